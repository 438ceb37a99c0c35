"""Read a BTF file that the user named, and check it before libbpf parses it.

libbpf walks from type to type by the counts in the file, which versions before 1.4 do not check.
References between types are checked where they are used, in `netbpf.kernel.btf`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from netbpf.errors import UsageError
from netbpf.system.untrusted import UnreadableBinary, open_regular

MAX_BYTES = 64 << 20  # kernels have 3 to 12 MB
HINT = "--btf takes raw BTF or an ELF file with a .BTF section, of exactly this kernel"

_MAGIC = 0xEB9F
_HEADER = struct.Struct("=HBBIIIII")  # magic, version, flags, and five lengths: struct btf_header
# Bytes after struct btf_type by kind: (fixed, per vlen). include/uapi/linux/btf.h
_TRAILING = {
    **dict.fromkeys((2, 7, 8, 9, 10, 11, 12, 16, 18), (0, 0)),
    **dict.fromkeys((1, 14, 17), (4, 0)),
    **dict.fromkeys((4, 5, 15, 19), (0, 12)),
    **dict.fromkeys((6, 13), (0, 8)),
    3: (12, 0),
}


def unreadable(path: str, why: str = "") -> UsageError:
    """Return the error for a file that has no BTF or cannot be read."""
    return UsageError(f"cannot read kernel types from '{path}'{why and f': {why}'}", HINT)


def damaged(path: str, why: str) -> UsageError:
    """Return the error for a file with inconsistent BTF."""
    return UsageError(f"--btf: '{path}' is damaged: {why}", HINT)


def read(path: str) -> bytes:
    """Return the checked BTF of the file `path`; raises UsageError."""
    try:
        data = _content(path)
    except UnreadableBinary as error:
        raise unreadable(path, error.why) from error
    except (OSError, MemoryError) as error:
        raise unreadable(path, getattr(error, "strerror", "") or "too large") from error
    for why in _problems(path, data):
        raise damaged(path, why)
    return data


def _content(path: str) -> bytes:
    with open_regular(path) as file:
        data = file.read(MAX_BYTES + 1)
    if not data.startswith(b"\x7fELF"):
        if len(data) > MAX_BYTES:
            raise unreadable(path, "too large")
        return data
    from netbpf.binaries.elf import ElfFile  # the running kernel's has no ELF header

    with ElfFile(path) as elf:
        section = elf.section(".BTF")
        if not section:
            raise unreadable(path, "it has no .BTF section")
        if section.size > MAX_BYTES:
            raise unreadable(path, "too large")
        return elf.read(section.offset, section.size)


def _problems(path: str, data: bytes) -> Iterator[str]:
    """Yield problems of the header, then of the strings, then of the types."""
    if len(data) < _HEADER.size:
        raise unreadable(path)
    magic, version, _, header, types, types_size, strings, strings_size = _HEADER.unpack_from(data)
    if magic == struct.unpack("=H", struct.pack("=H", _MAGIC)[::-1])[0]:
        raise unreadable(path, "it is for a machine with another byte order")
    if magic != _MAGIC or version != 1 or header < _HEADER.size:
        raise unreadable(path)
    if header + types + types_size > len(data) or header + strings + strings_size > len(data):
        yield "it is truncated"
    elif types % 4 or types_size % 4 or types + types_size > strings:
        yield "its parts overlap"
    begin = header + strings
    names = data[begin : begin + strings_size]
    if names[:1] != b"\0" or names[-1:] != b"\0":
        yield "its names are not terminated"
    begin = header + types
    yield from _walk(memoryview(data[begin : begin + types_size]).cast("I"), strings_size)


def _walk(words: memoryview, names: int) -> Iterator[str]:
    # Fast, as there are about 100,000 types.
    at, number, end = 0, 0, len(words)
    sizes = {kind: (3 + fixed // 4, each // 4) for kind, (fixed, each) in _TRAILING.items()}
    while at + 3 <= end:
        number += 1
        info = words[at + 1]
        size = sizes.get(info >> 24 & 0x1F)
        if size is None:
            yield f"type {number} has an unknown kind ({info >> 24 & 0x1F})"
            return
        if words[at] >= names:
            yield f"the name of type {number} is outside of it"
            return
        at += size[0] + size[1] * (info & 0xFFFF)
    if at != end:
        yield f"type {number} ends outside of it"
