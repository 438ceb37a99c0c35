"""Files that cost their readers far more than their makers."""

from __future__ import annotations

import struct
from pathlib import Path

from tests.unit.test_elf import TEXT_ADDRESS, TEXT_OFFSET, make_elf, symbol

_SECTION = struct.Struct("<IIQQQQIIQQ")
NAMES, SYMBOLS, TABLE = 3, 2, 11  # SHT_STRTAB, SHT_SYMTAB, SHT_DYNSYM


def section(name: int, kind: int, offset: int, size: int, link: int = 0) -> bytes:
    return _SECTION.pack(name, kind, 0, 0, offset, size, link, 0, 1, 24)


def sectioned(path: Path, sections: list[bytes], parts: dict[int, bytes], size: int) -> Path:
    """Make a sparse ELF file of `size` bytes; section 1 has the sections' names."""
    at = size
    head = b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack(
        "<HHIQQQIHHHHHH", 3, 62, 1, TEXT_ADDRESS, 64, at, 0, 64, 56, 1, 64, len(sections) + 1, 1
    )  # fmt: skip
    head += struct.pack("<IIQQQQQQ", 1, 5, TEXT_OFFSET, TEXT_ADDRESS, 0, 0x100, 0x100, 4096)
    with path.open("wb") as file:
        for place, data in {0: head, at: bytes(64) + b"".join(sections), **parts}.items():
            file.seek(place)
            file.write(data)
    return path


def hollow(path: Path, tables: int = 3000, size: int = 200 << 20) -> Path:
    """Make a file of so many symbol tables, all of them in the same hole of `size` bytes."""
    names = b"\0getaddrinfo\0"
    sections = [section(0, NAMES, 1024, len(names))]
    sections += [section(0, SYMBOLS, 1 << 16, size, 1) for _ in range(tables)]
    return sectioned(path, sections, {1024: names}, (1 << 16) + size)


def hollow_names(path: Path, size: int = 90 << 20) -> Path:
    """Make a file whose table of names is a hole of `size` bytes."""
    sections = [
        section(0, NAMES, 1024, 16),
        section(0, NAMES, 1 << 16, size),
        section(0, SYMBOLS, 1024, 48, 2),
    ]
    return sectioned(path, sections, {}, (1 << 16) + size)


def one_table(path: Path) -> Path:
    """Make a file whose only table of symbols is a hole."""
    return hollow(path, tables=1)


def repeated(path: Path, size: int = 40 << 20) -> Path:
    """Make a file whose table of names has one of the wanted names, over and over."""
    names = b"gethostbyname\0" * (size // 14)
    sections = [
        section(0, NAMES, 1024, 16),
        section(0, NAMES, 4096, len(names)),
        section(0, SYMBOLS, 4096, len(names), 2),
    ]
    return sectioned(path, sections, {4096: names}, 4096 + len(names))


def endless_names(path: Path, sections: int = 19_000) -> Path:
    """Make a file of many sections, each with the name that begins at a megabyte without an end."""
    names = b"x" * (8 << 20)
    headers = [section(0, NAMES, 4096, len(names))]
    headers += [section(1, 1, 0, 0) for _ in range(sections)]
    return sectioned(path, headers, {4096: names}, 4096 + len(names))


def repeated_symbols(path: Path, number: int = 5_000_000) -> Path:
    """Make a libc whose table of symbols is one function that is there over and over."""
    names = b"\0getaddrinfo\0"
    entries = symbol(1) * number
    sections = [
        section(0, NAMES, 1024, len(names)),
        section(0, TABLE, 1 << 16, len(entries), 1),
    ]
    return sectioned(path, sections, {1024: names, 1 << 16: entries}, (1 << 16) + len(entries))


def many_returns() -> bytes:
    """Return a libc with a function that is all returns."""
    data = bytearray(make_elf(b"\0getaddrinfo\0", [symbol(1)]))
    data += bytes(0x8000)
    struct.pack_into("<Q", data, 0x400 + 24 + 16, 0x4000)  # the symbol's size
    struct.pack_into("<QQ", data, 64 + 32, 0x8000, 0x8000)  # the segment's
    data[TEXT_OFFSET : TEXT_OFFSET + 0x4000] = b"\xc3" * 0x4000
    return bytes(data)
