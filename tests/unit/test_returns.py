"""Returns of C functions are found by decoding instruction lengths, or the function is left out."""

from __future__ import annotations

import random
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from netbpf.binaries import returns
from netbpf.binaries.elf import ElfFile, Function, UnreadableBinary
from netbpf.binaries.returns import Step, Unproven, decode

LENGTHS = """
55 | 48 89 e5 | f3 0f 1e fa | 48 83 ec 10 | 48 81 ec 00 01 00 00 | 66 b8 01 00 | b8 01 00 00 00
48 b8 01 02 03 04 05 06 07 08 | 8b 05 00 00 00 00 | 48 8b 44 24 08 | 48 8b 84 24 00 01 00 00
8b 04 25 00 00 00 00 | 48 8d 04 85 00 00 00 00 | f6 c1 01 | f6 d9 | f7 c1 01 00 00 00 | f7 d9
66 f7 c1 01 00 | 0f b6 c0 | 0f ba e0 03 | 66 0f 3a 0f c1 04 | 66 0f 38 00 c1 | c5 f8 77
c5 f9 70 c1 00 | c4 e2 79 18 c1 | c4 e3 79 0f c1 04 | 62 f1 7c 48 10 07 | 62 f3 7d 48 25 c1 ff
66 2e 0f 1f 84 00 00 00 00 00 | e8 00 00 00 00 | 0f 05 | 64 48 8b 04 25 28 00 00 00
69 c0 01 02 03 04 | 6b c0 01 | a1 01 02 03 04 05 06 07 08 | c8 10 00 00 | ff 15 00 00 00 00
c7 00 01 02 03 04
"""


@pytest.mark.parametrize("text", re.split(r"\||\n", LENGTHS.strip()), ids=str.strip)
def test_length(text):
    code = bytes.fromhex(text)
    assert decode(code + b"\xcc" * 15, 0) == Step(len(code))


@pytest.mark.parametrize(
    ("text", "step"),
    [
        ("c3", Step(1, "ret")),
        ("f3 c3", Step(2, "ret")),
        ("c2 08 00", Step(3, "ret")),
        ("eb fe", Step(2, "jump", 0)),
        ("e9 fb ff ff ff", Step(5, "jump", 0)),
        ("75 10", Step(2, "branch", 18)),
        ("0f 84 00 01 00 00", Step(6, "branch", 262)),
        ("3e ff e0", Step(3, "switch")),
        ("ff e0", Step(2, "away")),
        ("ff 25 00 00 00 00", Step(6, "away")),
        ("0f 0b", Step(2, "end")),
    ],
)
def test_flow(text, step):
    assert decode(bytes.fromhex(text) + bytes(15), 0) == step


@pytest.mark.parametrize("text", ["06", "67 8b 00", "0f 0f c0 0c", "c4 e0 79 10 c1"])
def test_unknown_instructions(text):
    with pytest.raises(Unproven):
        decode(bytes.fromhex(text) + bytes(15), 0)


@pytest.mark.parametrize(
    "text",
    [
        "ca 08 00",
        "cb",
        "d7",
        "48 48 89 c0",
        "48 66 b8 01 00",
        "66 e9 00 00",
        "66 0f 84",
        "0f 20 c0",
    ],
)
def test_instructions_that_compilers_do_not_emit_are_unknown(text):
    with pytest.raises(Unproven):
        decode(bytes.fromhex(text) + bytes(15), 0)


class Code:
    """An ELF file with nothing but code."""

    machine = "EM_X86_64"

    def __init__(self, text):
        self.code = bytes.fromhex(text)

    def read(self, offset, size):
        if offset + size > len(self.code) + 64:
            raise UnreadableBinary("code", "truncated")
        return (self.code + bytes(64))[offset : offset + size]


@pytest.mark.parametrize(
    ("text", "size", "found"),
    [
        ("55 c3", 2, (1,)),
        ("74 01 c3 f3 c3", 5, (2, 3)),
        ("74 01 c3 eb 01 cc 5d c3", 5, (2, 7)),  # continues after the end
        ("74 01 c3 eb fb", 5, (2,)),  # back to the start
        ("eb 00 0f 0b", 2, ()),  # never returns
        ("74 01 b8 c3 00 00 00", 7, ()),  # into the middle of an instruction
        ("c3 ff e0", 3, ()),
        ("c3 06", 2, ()),
        ("c3 e8 00", 3, ()),
        ("c3", 0, ()),
    ],
)
def test_returns_of_a_function(text, size, found):
    assert returns.returns(Code(text), Function("f", 0, 0, size)) == found


def test_functions_that_are_not_decoded():
    assert returns.returns(Code("c3"), Function("f", 0, 0, 1, ifunc=True)) == ()
    assert returns.returns(Code("c3"), Function("f", 0, 0, 1 << 20)) == ()
    other = Code("c3")
    other.machine = "EM_AARCH64"
    assert returns.returns(other, Function("f", 0, 0, 1)) == ()


LIBCS = [
    *Path("/lib").glob("x86_64-linux-gnu/libc.so.6"),
    *Path("/lib").glob("ld-musl-x86_64.so.1"),
]


@pytest.mark.skipif(not shutil.which("objdump") or not LIBCS, reason="apt install binutils")
@pytest.mark.parametrize("path", LIBCS, ids=lambda path: path.name)
def test_every_instruction_of_libc_has_the_length_objdump_prints(path):
    with ElfFile(str(path)) as image:
        text = image.section(".text")
        code = image.read(text.offset, text.size) + bytes(16)
    words = ["objdump", "-d", "-w", "-j", ".text", path]
    listing = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    number, wrong = 0, []
    for at, data, what in re.findall(r"^ *(\w+):\t((?:\w\w )+) *\t?(.*)$", listing, re.M):
        # objdump joins FWAIT, an instruction of its own, to the next one; addr32 is rejected.
        if "(bad)" in what or data.startswith("9b ") or " 67 " in f" {data}"[:7]:
            continue
        number += 1
        step = decode(code, int(at, 16) - text.address)
        if step.length != len(data.split()):
            wrong.append((at, data, what))
    assert number > 50_000 and not wrong


@pytest.mark.skipif(not shutil.which("objdump"), reason="apt install binutils")
def test_random_instructions_have_the_length_objdump_prints(tmp_path):
    # Each is followed by NOPs, so that objdump restarts at the next one.
    chance, room, tries = random.Random(7), 48, 20_000
    cases = [bytes(chance.randrange(256) for _ in range(15)) for _ in range(tries)]
    path = tmp_path / "code"
    path.write_bytes(b"".join(case.ljust(room, b"\x90") for case in cases))
    words = ["objdump", "-D", "-w", "-b", "binary", "-m", "i386:x86-64", "--insn-width=16", path]
    listing = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    rows = re.findall(r"^ *(\w+):\t((?:\w\w )+) *\t?(.*)$", listing, re.M)
    theirs = {int(at, 16): (data.split(), what) for at, data, what in rows}
    compared = 0
    for number, case in enumerate(cases):
        data, what = theirs[number * room]
        # objdump joins FWAIT, an instruction of its own, to the next one.
        if "(bad)" in what or 0x9B in case[:5]:
            continue
        try:
            step = decode(case.ljust(room, b"\x90"), 0)
        except Unproven:
            continue
        compared += 1
        assert step.length == len(data), (case.hex(" "), what)
        assert (step.flow == "ret") == bool(re.search(r"\bretw?\b", what)), (case.hex(" "), what)
        to = re.search(r"\b(?:j|loop)\w*(?:,p[tn])?\s+0x(\w+)$", what)
        assert (step.flow in ("jump", "branch")) == bool(to), (case.hex(" "), what)
        if to:
            assert (number * room + step.to) % 2**64 == int(to[1], 16), (case.hex(" "), what)
    assert compared > tries * 2 // 3
