"""Entries and returns of the lookup functions of Go programs, or the reason why there are none."""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from netbpf.binaries import golang
from netbpf.binaries.elf import UnreadableBinary

PROGRAM = Path(__file__).parents[1] / "live" / "programs" / "resolve.go"
TEXT, DATA = 0x401000, 0x402000
NAME = "net.(*Resolver).lookupIPAddr"
STACK_CHECK = b"\x49\x3b\x66\x10"
MAGIC = {(1, 2): 0xFB, (1, 16): 0xFA, (1, 18): 0xF0, (1, 20): 0xF1}


def jump_back(length: int) -> bytes:
    return b"\xe9" + struct.pack("<i", -(length + 5))


def code(ret: bytes = b"\xc3", last: bytes | None = None) -> tuple[bytes, list[tuple[int, int]]]:
    """Return a function and its steps (depth, length): check, body, return, body, stack growth."""
    parts = [(0, STACK_CHECK + b"\x48\x83\xec\x18"), (24, b"\xc3" * 5), (0, ret)]
    parts += [(24, b"\x90" * 3), (0, b"\xc3"), (24, b"\x90")]
    done = b"".join(part for _, part in parts)
    parts.append((0, b"\x90\x89" + jump_back(len(done) + 2) if last is None else last))
    return b"".join(p for _, p in parts), [(depth, len(p)) for depth, p in parts]


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def pcsp(steps: list[tuple[int, int]]) -> bytes:
    out, before = b"", -1
    for depth, length in steps:
        delta = depth - before
        out += varint(delta << 1 if delta >= 0 else ((-delta - 1) << 1) | 1) + varint(length)
        before = depth
    return out + b"\0"


def pclntab(version: tuple[int, int], size: int, steps, text_start: int, at: int = 0) -> bytes:
    """Return the table of one function at `at` in the text, in the format of a Go version."""
    names, table = b"\0other\0" + NAME.encode() + b"\0", b"\0" + pcsp(steps)
    relative = version >= (1, 18)
    functab = 12 if relative else 24
    words = [1, 0] + ([text_start] if relative else [])
    at_names = 0x60
    at_steps = at_names + (len(names) + 7) // 8 * 8
    at_funcs = (at_steps + len(table) + 7) // 8 * 8
    words += [at_names, 0, 0, at_steps, at_funcs]
    if relative:
        entries = struct.pack("<III", at, functab, at + size)
        func = struct.pack("<IiiII", at, 7, 0, 0, 1)
    else:
        entries = struct.pack("<QQQ", TEXT + at, functab, TEXT + at + size)
        func = struct.pack("<QiiII", TEXT + at, 7, 0, 0, 1)
    out = bytearray(at_funcs + len(entries) + len(func) + 16)
    head = bytes([MAGIC[version]]) + b"\xff\xff\xff\0\0\x01\x08" + struct.pack("<7Q", *words[:7])
    for where, part in ((0, head), (at_names, names), (at_steps, table)):
        out[where : where + len(part)] = part
    struct.pack_into(f"<{len(words)}Q", out, 8, *words)
    out[at_funcs : at_funcs + len(entries + func)] = entries + func
    return bytes(out)


def build_info(text: str) -> bytes:
    return b"\xff Go buildinf:\x08\x02" + bytes(16) + bytes([len(text)]) + text.encode() + bytes(32)


def binary(version=(1, 20), made=None, text_start=TEXT, go="go1.24.3", named=True, at=0) -> bytes:
    """Return an x86-64 ELF file: .text at 0x1000, table and build info in a data segment."""
    text, steps = made or code()
    table = pclntab(version, len(text), steps, text_start, at)
    info = build_info(go)
    at_info = 0x2000 + (len(table) + 15) // 16 * 16
    names = b"\0.text\0.gopclntab\0.go.buildinfo\0.shstrtab\0"
    at_names = at_info + len(info)
    at_sections = (at_names + len(names) + 7) // 8 * 8
    sections = [
        (0, 0, 0, 0, 0),
        (1, 1, TEXT, 0x1000, 0x1000),
        (7 if named else 0, 1, DATA, 0x2000, len(table)),
        (18, 1, DATA + at_info - 0x2000, at_info, len(info)),
        (32, 3, 0, at_names, len(names)),
    ]
    loads = struct.pack("<IIQQQQQQ", 1, 5, 0x1000, TEXT, 0, 0x1000, 0x1000, 4096)
    size = at_names - 0x2000
    loads += struct.pack("<IIQQQQQQ", 1, 4, 0x2000, DATA, 0, size, size, 4096)
    head = b"\x7fELF\x02\x01\x01" + bytes(9)
    head += struct.pack(
        "<HHIQQQIHHHHHH", 2, 62, 1, TEXT, 64, at_sections, 0, 64, 56, 2, 64, len(sections), 4
    )
    out = bytearray(at_sections + 64 * len(sections))
    parts = [(0, head + loads), (0x1000 + at, text), (0x2000, table)]
    parts += [(at_info, info), (at_names, names)]
    for n, (name, kind, address, offset, length) in enumerate(sections):
        header = struct.pack("<IIQQQQIIQQ", name, kind, 2, address, offset, length, 0, 0, 1, 0)
        parts.append((at_sections + 64 * n, header))
    for where, part in parts:
        out[where : where + len(part)] = part
    return bytes(out)


@pytest.fixture
def look(tmp_path: Path):
    def read(data: bytes) -> golang.GoProgram:
        path = tmp_path / "program"
        path.write_bytes(data)
        return golang.lookups(str(path))

    return read


@pytest.mark.parametrize("version", [(1, 16), (1, 18), (1, 20)])
def test_entry_and_returns_in_each_table_format(look, version):
    (found,) = look(binary(version)).lookups
    assert (found.name, found.offset, found.host) == (NAME, 0x1000, 5)
    # The RET bytes inside the body (depth 24) are not returns: no range begins at them.
    assert found.returns == (0x1000 + 13, 0x1000 + 17)


def test_nops_before_a_return_are_skipped(look):
    long_nop = b"\x66\x0f\x1f\x84\x00\x00\x00\x00\x00"
    (found,) = look(binary(made=code(b"\x90" + long_nop + b"\x0f\x1f\x40\x00\xc3"))).lookups
    assert found.returns[0] == 0x1000 + 13 + 14


@pytest.mark.parametrize("ret", [b"\xcc", b"\x48\xc3", b"\x90\x90", b"\xc2\x08\x00"])
def test_unknown_exit_makes_the_function_unusable(look, ret):
    with pytest.raises(UnreadableBinary, match="provable"):
        look(binary(made=code(ret)))


def test_last_range_must_jump_back_to_the_entry(look):
    with pytest.raises(UnreadableBinary, match="provable"):
        look(binary(made=code(last=b"\x90\xe9\x00\x00\x00\x00")))


def test_short_jump_back_is_accepted(look):
    length = len(code(last=b"")[0])
    made = code(last=b"\x90\xeb" + bytes([256 - (length + 3)]))
    assert look(binary(made=made)).lookups


def test_entry_without_a_stack_check_is_not_proven(look):
    text, steps = code()
    with pytest.raises(UnreadableBinary, match="provable"):
        look(binary(made=(b"\x90" * 4 + text[4:], steps)))


def test_text_start_of_zero_is_found_after_c_startup_code(look):
    # Go 1.26 no longer records it; with cgo, C code comes first in .text.
    data = bytearray(binary(text_start=0, go="go1.26.0"))
    text, _ = code()
    data[0x1000 : 0x1000 + len(text)] = bytes(len(text))
    data[0x1120 : 0x1120 + len(text)] = text
    (found,) = look(bytes(data)).lookups
    assert (found.offset, found.returns[0]) == (0x1120, 0x1120 + 13)


def test_table_without_a_section_name_is_found_by_its_header(look):
    assert look(binary(named=False)).lookups


def test_go_before_the_register_abi_is_rejected_with_a_reason(look):
    with pytest.raises(UnreadableBinary, match="registers"):
        look(binary((1, 16), go="go1.16.7"))
    with pytest.raises(UnreadableBinary, match="registers"):
        look(binary((1, 2), go="go1.12"))


def test_missing_version_leaves_the_error_layout_unknown(look):
    program = look(binary(go=""))
    assert (program.version, program.error) == (None, None)
    assert program.lookups


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("go1.24.3", (1, 24)),
        ("go1.25-20250209-RC00 cl/724970549 X:boringcrypto", (1, 25)),
        ("devel go1.26-65b71c11d4", (1, 26)),
        ("", None),
        ("gone", None),
    ],
)
def test_versions(text, version):
    assert golang.parse_version(text) == version


def test_error_layout_changed_in_go_1_23():
    old, new = golang.dns_error((1, 22)), golang.dns_error((1, 23))
    assert old == golang.DnsError(0, 16, 48, 49, 50)
    assert new == golang.DnsError(16, 32, 64, 65, 66)
    assert golang.dns_error((1, 12)) is None


def test_not_go(look):
    data = binary().replace(b".gopclntab", b".xxxxxxxxx").replace(b"\xf1\xff\xff\xff", bytes(4))
    with pytest.raises(UnreadableBinary, match="no Go function table"):
        look(data)


def test_broken_copies_raise_no_other_error(look):
    data = binary()
    chance = random.Random(11)
    copies = [data[:size] for size in range(0, len(data), 97)]
    for number in range(600):
        copy = bytearray(data)
        start = 0x2000 if number % 2 else 0
        for _ in range(chance.randint(1, 8)):
            copy[start + chance.randrange(min(0x400, len(copy) - start))] = chance.randrange(256)
        copies.append(bytes(copy))
    for copy in copies:
        with contextlib.suppress(UnreadableBinary):
            look(copy)


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    go = shutil.which("go")
    if not go:
        pytest.skip("no Go toolchain: install golang-go")
    directory = tmp_path_factory.mktemp("go")

    def make(*options: str, **variables: str) -> str:
        out = str(directory / re.sub(r"\W+", "_", f"p{options}{variables}"))
        environment = {**os.environ, "GOFLAGS": "-mod=mod", "GO111MODULE": "off"}
        environment.update(CGO_ENABLED="0", **variables)
        if not environment.keys() & {"HOME", "XDG_CACHE_HOME", "GOCACHE"}:
            environment["GOCACHE"] = str(directory / "cache")  # go requires one
        command = [go, "build", "-o", out, *options, str(PROGRAM)]
        subprocess.run(command, env=environment, check=True, timeout=300)
        return out

    return make


def disassembled_returns(path: str, name: str) -> list[int]:
    """Return the distance of each RET from the entry, from Go's own disassembler."""
    command = ["go", "tool", "objdump", "-s", "^" + re.escape(name) + "$", path]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    code_lines = [line.split() for line in lines if re.search(r"\s0x[0-9a-f]+\s", line)]
    entry = int(code_lines[0][1], 16)
    return [int(words[1], 16) - entry for words in code_lines if words[3] == "RET"]


@pytest.mark.parametrize("arch", ["amd64", "arm64"])
def test_returns_agree_with_gos_disassembler(build, arch):
    path = build(GOARCH=arch)
    program = golang.lookups(path)
    assert {found.name for found in program.lookups} == set(golang.HOST_REGISTER)
    for found in program.lookups:
        returns = [offset - found.offset for offset in found.returns]
        assert returns == disassembled_returns(path, found.name)


def test_stripped_program_has_the_same_result(build):
    plain, stripped = build(GOARCH="amd64"), build("-ldflags=-s -w", GOARCH="amd64")
    wanted, found = golang.lookups(plain), golang.lookups(stripped)
    assert [f.returns for f in found.lookups] == [f.returns for f in wanted.lookups]
    assert found.version == wanted.version
    assert found.version is not None


@pytest.mark.parametrize("version", [(1, 16), (1, 20)])
def test_table_that_ends_within_an_entry_is_an_error(look, version):
    # The section ends within the last number.
    data = bytearray(binary(version))
    at = data.index(bytes([MAGIC[version]]) + b"\xff\xff\xff")
    struct.pack_into("<Q", data, at + 8, 1000)  # functions
    sections = int.from_bytes(data[40:48], "little")
    size = sections + 64 * 2 + 32
    for less in range(1, 9):
        whole = int.from_bytes(data[size : size + 8], "little")
        cut = data[:size] + (whole - less).to_bytes(8, "little") + data[size + 8 :]
        with contextlib.suppress(UnreadableBinary):
            look(bytes(cut))
