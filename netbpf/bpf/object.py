"""A compiled program as plain bytes: its instructions, and the maps that they refer to.

An image holds nothing of the process that made it: where an instruction loads a map, it names the
map's place in the list of maps instead of a descriptor. Packed, it has its own checksum, so that
what is torn or damaged is recognised. There is no object in it to revive, only numbers, names and
instructions, which the kernel's verifier looks at as at any others.
"""

from __future__ import annotations

import hashlib
import json
import struct
import sys
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Optional

MAGIC = b"netbpf\x01\n"  # the number is that of the format
_HEAD = struct.Struct("=8s32s")  # magic, SHA-256 of the rest
_LENGTH = struct.Struct("=I")  # of the JSON, which instructions follow
_MOST_TEXT = 1 << 16  # bytes of JSON: no tool has a tenth of it
_LOAD_64 = 0x18  # BPF_LD | BPF_IMM | BPF_DW; its src_reg tells what is loaded:
_CONSTANT, _MAP_DESCRIPTOR = 0, 1  # BPF_PSEUDO_MAP_FD is 1


class MapSpec(NamedTuple):
    """What the kernel must know to make a map: bpf_map_type, sizes in bytes, entries, flags."""

    name: str
    kind: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int


class BpfObject(NamedTuple):
    """Maps, and the instructions of C functions by name; map loads name a place in `maps`."""

    maps: tuple[MapSpec, ...]
    programs: dict[str, bytes]


def map_references(code: bytes) -> Iterator[tuple[int, int]]:
    """Yield (offset in bytes of the number, number) for each load of a map."""
    for offset in _loads(code, _MAP_DESCRIPTOR):
        yield offset, struct.unpack_from("=i", code, offset)[0]


def constant_loads(code: bytes) -> Iterator[int]:
    """Yield the offset in bytes of the lower half of each constant of 64 bits.

    The upper half is in the instruction that follows, 8 bytes further on.
    """
    return _loads(code, _CONSTANT)


def _loads(code: bytes, wanted: int) -> Iterator[int]:
    for offset, operation, source in instructions(code):
        if operation == _LOAD_64 and source == wanted and offset + 16 <= len(code):
            yield offset + 4


def instructions(code: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield (offset in bytes, operation, src_reg); loads of 64 bits are one, of twice the size."""
    offset = 0
    while offset + 8 <= len(code):
        operation, registers = code[offset], code[offset + 1]
        # struct bpf_insn: dst_reg and src_reg are bit fields of four bits each.
        yield offset, operation, registers >> 4 if sys.byteorder == "little" else registers & 15
        offset += 16 if operation == _LOAD_64 else 8


def with_maps(code: bytes, numbers: Mapping[int, int]) -> bytes:
    """Return `code` with the number of each map that it loads replaced; KeyError if one is new."""
    changed = bytearray(code)
    for offset, number in map_references(code):
        struct.pack_into("=i", changed, offset, numbers[number])
    return bytes(changed)


def pack(image: BpfObject, key: str = "") -> bytes:
    """Return the image as bytes that `unpack` takes, sealed for what it was made from: `key`."""
    sizes = {name: len(code) for name, code in image.programs.items()}
    described = {"maps": image.maps, "programs": sizes, "seal": _seal(image, key)}
    text = json.dumps(described).encode()
    body = b"".join((_LENGTH.pack(len(text)), text, *image.programs.values()))
    return _HEAD.pack(MAGIC, hashlib.sha256(body).digest()) + body


def _seal(image: BpfObject, key: str) -> str:
    # A file that has another's name, or that was changed and summed up again, is recognised by it.
    text = json.dumps([key, image.maps, list(image.programs)]).encode()
    return hashlib.sha256(b"".join((text, *image.programs.values()))).hexdigest()


def unpack(data: bytes, key: Optional[str] = None) -> Optional[BpfObject]:
    """Return the packed image, or None if these are not just the bytes that `pack` returned.

    With `key`, only if it was packed for that.
    """
    if len(data) < _HEAD.size + _LENGTH.size:
        return None
    magic, checksum = _HEAD.unpack_from(data)
    body = data[_HEAD.size :]
    if magic != MAGIC or hashlib.sha256(body).digest() != checksum:
        return None
    (length,) = _LENGTH.unpack_from(body)
    if length > _MOST_TEXT:
        return None
    try:
        described = json.loads(body[_LENGTH.size : _LENGTH.size + length])
    except (ValueError, RecursionError):
        return None
    image = _described(described, body[_LENGTH.size + length :])
    if not image or (key is not None and described["seal"] != _seal(image, key)):
        return None
    return image


def _described(described: Any, codes: bytes) -> Optional[BpfObject]:
    """Return the image if the parts of `described` are what `pack` writes."""
    if not isinstance(described, dict) or described.keys() != {"maps", "programs", "seal"}:
        return None
    maps, sizes = described["maps"], described["programs"]
    if not isinstance(maps, list) or not isinstance(sizes, dict):
        return None
    right = all(isinstance(one, list) and len(one) == len(MapSpec._fields) for one in maps)
    if not right or not all(type(one[0]) is str and all(map(_fits, one[1:])) for one in maps):
        return None
    if not all(_fits(size) and size % 8 == 0 for size in sizes.values()):
        return None
    if sum(sizes.values()) != len(codes):
        return None
    programs, offset = {}, 0
    for name, size in sizes.items():
        programs[name] = codes[offset : offset + size]
        offset += size
    return BpfObject(tuple(MapSpec(*shape) for shape in maps), programs)


def _fits(number: Any) -> bool:
    return type(number) is int and 0 <= number < 1 << 32
