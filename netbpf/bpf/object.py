"""A compiled program as plain data: its instructions, and the maps that they refer to.

It does not depend on the process that compiled it: an instruction that loads a map has the index in
the list of maps instead of a descriptor. Packed, it has a checksum that detects truncation and
damage. Unpacking creates only numbers, names and instructions, which the kernel's verifier checks
like any others.
"""

from __future__ import annotations

import hashlib
import json
import struct
import sys
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Optional

MAGIC = b"netbpf\x01\n"  # with the version of the format
_HEAD = struct.Struct("=8s32s")  # magic, SHA-256 of the rest
_LENGTH = struct.Struct("=I")  # of the JSON; the instructions follow it
_MAX_TEXT = 1 << 16  # bytes of JSON, over ten times the largest of any tool
_LOAD_64 = 0x18  # BPF_LD | BPF_IMM | BPF_DW; src_reg is the kind of the value:
_CONSTANT, _MAP_DESCRIPTOR = 0, 1  # BPF_PSEUDO_MAP_FD is 1


class MapSpec(NamedTuple):
    """The parameters of a map: name, bpf_map_type, sizes in bytes, entries, flags."""

    name: str
    kind: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int


class BpfObject(NamedTuple):
    """Maps, and instructions of C functions by name; map loads have an index into `maps`."""

    maps: tuple[MapSpec, ...]
    programs: dict[str, bytes]


def map_references(code: bytes) -> Iterator[tuple[int, int]]:
    """Yield (offset in bytes of the immediate, its value) for each load of a map."""
    for offset in _loads(code, _MAP_DESCRIPTOR):
        yield offset, struct.unpack_from("=i", code, offset)[0]


def constant_loads(code: bytes) -> Iterator[int]:
    """Yield the offset in bytes of the lower half of each 64-bit constant.

    The upper half is in the next instruction, 8 bytes further on.
    """
    return _loads(code, _CONSTANT)


def _loads(code: bytes, wanted: int) -> Iterator[int]:
    operations = code[::8]  # of instructions; the second half of a 64-bit load has operation 0
    index = operations.find(_LOAD_64)
    while 0 <= index < len(code) // 8 - 1:
        if _source_register(code[index * 8 + 1]) == wanted:
            yield index * 8 + 4
        index = operations.find(_LOAD_64, index + 2)


def instructions(code: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield (offset in bytes, operation, src_reg); a 64-bit load is one of twice the size."""
    offset = 0
    while offset + 8 <= len(code):
        operation = code[offset]
        yield offset, operation, _source_register(code[offset + 1])
        offset += 16 if operation == _LOAD_64 else 8


def _source_register(registers: int) -> int:
    # struct bpf_insn: dst_reg and src_reg are bit fields of four bits each.
    return registers >> 4 if sys.byteorder == "little" else registers & 15


def with_maps(code: bytes, numbers: Mapping[int, int]) -> bytes:
    """Return `code` with the number of each map replaced; KeyError if one is not in `numbers`."""
    changed = bytearray(code)
    for offset, number in map_references(code):
        struct.pack_into("=i", changed, offset, numbers[number])
    return bytes(changed)


def pack(bpf_object: BpfObject, key: str = "") -> bytes:
    """Return the object as bytes for `unpack`, sealed with `key`, the hash of its inputs."""
    sizes = {name: len(code) for name, code in bpf_object.programs.items()}
    described = {"maps": bpf_object.maps, "programs": sizes, "seal": _seal(bpf_object, key)}
    text = json.dumps(described).encode()
    body = b"".join((_LENGTH.pack(len(text)), text, *bpf_object.programs.values()))
    return _HEAD.pack(MAGIC, hashlib.sha256(body).digest()) + body


def _seal(bpf_object: BpfObject, key: str) -> str:
    # Detects a file under a wrong name, or one that was changed and has a new checksum.
    text = json.dumps([key, bpf_object.maps, list(bpf_object.programs)]).encode()
    return hashlib.sha256(b"".join((text, *bpf_object.programs.values()))).hexdigest()


def unpack(data: bytes, key: Optional[str] = None) -> Optional[BpfObject]:
    """Return the packed object, or None if `data` is not exactly what `pack` returned.

    With `key`, also None if it was packed with another key.
    """
    if len(data) < _HEAD.size + _LENGTH.size:
        return None
    magic, checksum = _HEAD.unpack_from(data)
    body = data[_HEAD.size :]
    if magic != MAGIC or hashlib.sha256(body).digest() != checksum:
        return None
    (length,) = _LENGTH.unpack_from(body)
    if length > _MAX_TEXT:
        return None
    try:
        described = json.loads(body[_LENGTH.size : _LENGTH.size + length])
    except (ValueError, RecursionError):
        return None
    bpf_object = _described(described, body[_LENGTH.size + length :])
    if not bpf_object or (key is not None and described["seal"] != _seal(bpf_object, key)):
        return None
    return bpf_object


def _described(described: Any, codes: bytes) -> Optional[BpfObject]:
    """Return the object if `described` has the format that `pack` writes."""
    if not isinstance(described, dict) or described.keys() != {"maps", "programs", "seal"}:
        return None
    maps, sizes = described["maps"], described["programs"]
    if not isinstance(maps, list) or not isinstance(sizes, dict):
        return None
    valid = all(isinstance(one, list) and len(one) == len(MapSpec._fields) for one in maps)
    if not valid or not all(type(one[0]) is str and all(map(_is_u32, one[1:])) for one in maps):
        return None
    if not all(_is_u32(size) and size % 8 == 0 for size in sizes.values()):
        return None
    if sum(sizes.values()) != len(codes):
        return None
    programs, offset = {}, 0
    for name, size in sizes.items():
        programs[name] = codes[offset : offset + size]
        offset += size
    return BpfObject(tuple(MapSpec(*spec) for spec in maps), programs)


def _is_u32(number: Any) -> bool:
    return type(number) is int and 0 <= number < 1 << 32
