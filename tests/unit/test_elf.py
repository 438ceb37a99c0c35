"""ELF files are read correctly, and broken ones raise only UnreadableBinary."""

from __future__ import annotations

import contextlib
import os
import random
import struct
import time
from pathlib import Path

import pytest

from netbpf.binaries import elf
from netbpf.binaries.elf import UnreadableBinary, functions

FUNC, IFUNC, OBJECT = 0x12, 0x1A, 0x11
TEXT_OFFSET, TEXT_ADDRESS = 0x1000, 0x401000


def symbol(name: int, info: int = FUNC, section: int = 1, value: int = TEXT_ADDRESS) -> bytes:
    return struct.pack("<IBBHQQ", name, info, 0, section, value, 32)


def make_elf(names: bytes, entries: list[bytes], headers: bool = True, kind: int = 2) -> bytes:
    """Return a small x86-64 ELF file: one code segment, one symbol table of type `kind`."""
    table = bytes(24) + b"".join(entries)
    at_names, at_table = 0x200, 0x400
    shstr = b"\0.text\0.strtab\0.symtab\0.shstrtab\0"
    at_shstr, at_sections = 0x800, 0x900
    sections = [
        (0, 0, 0, 0, 0, 0),
        (1, 1, TEXT_ADDRESS, TEXT_OFFSET, 0x100, 0),
        (7, 3, 0, at_names, len(names), 0),
        (15, kind, 0, at_table, len(table), 2),
        (23, 3, 0, at_shstr, len(shstr), 0),
    ]
    loads = [
        struct.pack("<IIQQQQQQ", 1, 5, TEXT_OFFSET, TEXT_ADDRESS, 0, 0x100, 0x100, 4096),
        struct.pack("<IIQQQQQQ", 1, 4, 0, 0x400000, 0, 0x1000, 0x1000, 4096),
    ]
    dynamic = struct.pack(
        "<8Q", 5, 0x400000 + at_names, 6, 0x400000 + at_table, 10, len(names), 0, 0
    )
    if not headers:  # the loader's view only: .dynsym must come before .dynstr
        at_names, at_table = 0x400 + len(table), 0x400
        dynamic = struct.pack(
            "<8Q", 5, 0x400000 + at_names, 6, 0x400000 + at_table, 10, len(names), 0, 0
        )
        loads.append(struct.pack("<IIQQQQQQ", 2, 4, 0x180, 0x400180, 0, 64, 64, 8))
    image = bytearray(0x1100)
    count = len(sections) if headers else 0
    image[:64] = b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack(
        "<HHIQQQIHHHHHH", 3, 62, 1, TEXT_ADDRESS, 64, at_sections if headers else 0,
        0, 64, 56, len(loads), 64, count, 4 if headers else 0,
    )  # fmt: skip
    parts = [(64, b"".join(loads)), (0x180, dynamic), (at_names, names), (at_table, table)]
    if headers:
        parts += [(at_shstr, shstr)]
        for n, (name, type_, address, offset, size, link) in enumerate(sections):
            header = struct.pack(
                "<IIQQQQIIQQ", name, type_, 0, address, offset, size, link, 0, 1, 24
            )
            parts.append((at_sections + 64 * n, header))
    for at, data in parts:
        image[at : at + len(data)] = data
    return bytes(image)


@pytest.fixture
def write(tmp_path: Path):
    def write_file(data: bytes) -> str:
        path = tmp_path / "file"
        path.write_bytes(data)
        return str(path)

    return write_file


def libc() -> str:
    with open("/proc/self/maps") as maps:
        found = [line.split()[-1] for line in maps if "libc.so.6" in line or "ld-musl" in line]
    if not found:
        pytest.skip("this Python maps no libc.so.6 or ld-musl: run it with a dynamic Python")
    return found[0]


def test_offset_comes_from_the_segment_with_the_address(write):
    path = write(make_elf(b"\0look\0", [symbol(1, value=TEXT_ADDRESS + 0x20)]))
    assert functions(path, ["look"])["look"] == elf.Function(
        "look", TEXT_OFFSET + 0x20, TEXT_ADDRESS + 0x20, 32
    )


def test_only_defined_functions_are_returned(write):
    names = b"\0undefined\0data\0outside\0"
    entries = [symbol(1, section=0), symbol(11, info=OBJECT), symbol(16, value=0x400010)]
    assert functions(write(make_elf(names, entries)), ["undefined", "data", "outside"]) == {}


def test_versions_in_names_are_ignored(write):
    path = write(make_elf(b"\0look@@V_2.1\0", [symbol(1)]))
    assert set(functions(path, ["look@V_2"])) == {"look"}


def test_name_merged_into_a_longer_one_is_found(write):
    path = write(make_elf(b"\0__wrap_look\0", [symbol(8)]))
    assert set(functions(path, ["look"])) == {"look"}


def test_longer_and_shorter_names_do_not_match(write):
    path = write(make_elf(b"\0looking\0loo\0", [symbol(1), symbol(9)]))
    assert functions(path, ["look"]) == {}


def test_ifunc_is_recorded(write):
    assert functions(write(make_elf(b"\0look\0", [symbol(1, info=IFUNC)])), ["look"])["look"].ifunc


def test_dynamic_symbols_are_found_without_section_headers(write):
    path = write(make_elf(b"\0look\0", [symbol(1)], headers=False))
    assert functions(path, ["look"])["look"].offset == TEXT_OFFSET


def test_functions_of_libc_agree_with_the_dynamic_linker():
    import ctypes

    path = libc()
    found = functions(path, ["getaddrinfo", "gethostbyname", "no_such_function"])
    assert set(found) == {"getaddrinfo", "gethostbyname"}
    address = [
        ctypes.cast(getattr(ctypes.CDLL(None), name), ctypes.c_void_p).value
        for name in ("getaddrinfo", "gethostbyname")
    ]
    assert address[1] - address[0] == (
        found["gethostbyname"].address - found["getaddrinfo"].address
    )


def test_code_at_the_offset_is_the_code_in_memory():
    import ctypes

    found = functions(libc(), ["getaddrinfo"])["getaddrinfo"]
    entry = ctypes.cast(ctypes.CDLL(None).getaddrinfo, ctypes.c_void_p).value
    with open(libc(), "rb") as file:
        file.seek(found.offset)
        there, runs = file.read(32), ctypes.string_at(entry, 32)
    if runs[:1] == b"\xcc":  # another process has a uprobe on it
        there, runs = there[1:], runs[1:]
    assert there == runs


@pytest.mark.parametrize(
    "name", ["/dev/zero", "/dev/null", "/proc", "/nonexistent", "/proc/self/mem"]
)
def test_other_files_are_rejected(name):
    with pytest.raises(UnreadableBinary) as error:
        functions(name, ["look"])
    assert error.value.path == name
    assert error.value.why


def test_fifo_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(UnreadableBinary, match="regular"):
        functions(str(tmp_path / "fifo"), ["look"])


def test_huge_sparse_file_is_rejected_immediately(tmp_path):
    path = tmp_path / "huge"
    path.write_bytes(make_elf(b"\0look\0", [symbol(1)]))
    os.truncate(path, elf.MAX_FILE + 1)
    with pytest.raises(UnreadableBinary, match="large"):
        functions(str(path), ["look"])


def test_empty_and_text_files_are_rejected(write):
    for data in (b"", b"\x7fEL", b"#!/bin/sh\n", b"\x7fELF", b"\x7fELF" + bytes(60)):
        with pytest.raises(UnreadableBinary):
            functions(write(data), ["look"])


def test_impossible_section_count_is_rejected_quickly(tmp_path):
    data = bytearray(make_elf(b"\0look\0", [symbol(1)]))
    struct.pack_into("<H", data, 60, 0)  # e_shnum 0: the first section's size is the count
    struct.pack_into("<Q", data, 0x900 + 32, 1 << 60)
    path = tmp_path / "many"
    path.write_bytes(data)
    os.truncate(path, 1 << 31)
    start = time.monotonic()
    with pytest.raises(UnreadableBinary, match="too many"):
        functions(str(path), ["look"])
    assert time.monotonic() - start < 2


def try_all(path: Path, copies) -> None:
    for data in copies:
        path.write_bytes(data)
        with contextlib.suppress(UnreadableBinary):
            functions(str(path), ["look", "getaddrinfo"])


def flipped(data: bytes, count: int, limit: int):
    chance = random.Random(7)
    for _ in range(count):
        copy = bytearray(data)
        for _ in range(chance.randint(1, 8)):
            copy[chance.randrange(min(limit, len(copy)))] = chance.randrange(256)
        yield bytes(copy)


@pytest.mark.parametrize("headers", [True, False])
def test_truncated_copies_raise_no_other_error(tmp_path, headers):
    data = make_elf(b"\0look\0", [symbol(1)], headers)
    try_all(tmp_path / "cut", (data[:size] for size in range(0, len(data), 37)))


@pytest.mark.parametrize("headers", [True, False])
def test_flipped_copies_raise_no_other_error(tmp_path, headers):
    data = make_elf(b"\0look\0", [symbol(1)], headers)
    try_all(tmp_path / "flip", flipped(data, 400, 0xB00))


def test_truncated_and_flipped_libc_raises_no_other_error(tmp_path):
    data = Path(libc()).read_bytes()
    try_all(tmp_path / "cut", (data[: len(data) * part // 8] for part in range(8)))
    try_all(tmp_path / "flip", flipped(data, 20, 0x10000))
