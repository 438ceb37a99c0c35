"""Program files: ELF, Go's tables, x86-64 instructions."""

from __future__ import annotations

import struct

from hypothesis import strategies as st

from netbpf.binaries import elf, golang
from netbpf.binaries.binary import looks_like_go
from netbpf.binaries.elf import Function, UnreadableBinary
from netbpf.binaries.returns import Unproven, decode, returns
from tests.fuzz.damage import File, mutated
from tests.fuzz.target import Target
from tests.unit.test_elf import TEXT_ADDRESS, TEXT_OFFSET, make_elf, symbol
from tests.unit.test_golang import NAME, STACK_CHECK, binary, code
from tests.unit.test_returns import LENGTHS, Code

FILE = File()
NAMES = b"\0getaddrinfo\0gethostbyname_r\0__wrap_look\0"
LOOKUPS = ("getaddrinfo", "gethostbyname_r", "look")
ENTRIES = [symbol(1), symbol(13, value=TEXT_ADDRESS + 64), symbol(36, 0x1A)]
PLAIN = [
    make_elf(NAMES, ENTRIES),
    make_elf(NAMES, ENTRIES, headers=False),
    make_elf(NAMES, ENTRIES, kind=11),
]
HEADERS = [*range(64 + 3 * 56), *range(0x180, 0x1C0), *range(0x400, 0x480), *range(0x900, 0xA40)]


def find(data: bytes) -> None:
    path = FILE.of(data)
    assert looks_like_go(path) in (True, False)
    for name, found in elf.functions(path, LOOKUPS).items():
        assert name == found.name in LOOKUPS
        assert 0 <= found.offset < 1 << 64 and found.size >= 0


SYMBOLS = st.lists(
    st.tuples(
        st.integers(0, 60),  # the number of the name
        st.sampled_from([0x12, 0x1A, 0x11, 0x22]),
        st.sampled_from([0, 1, 0xFFF1]),
        st.integers(0, 0x1FF),  # the address in or after the code
    ),
    max_size=12,
)


def known(rows: list[tuple[int, int, int, int]]) -> None:
    """In a generated table, the first function of each name is found."""
    names = b"\0" + b"".join(b"f%02d\0" % number for number in range(61))
    entries, wanted = [], {}
    for number, info, section, at in rows:
        entries.append(symbol(1 + 4 * number, info, section, TEXT_ADDRESS + at))
        if info & 15 in (2, 10) and section and at < 0x100:
            wanted.setdefault(f"f{number:02}", (TEXT_OFFSET + at, info & 15 == 10))
    found = elf.functions(FILE.of(make_elf(names, entries)), [f"f{n:02}" for n in range(61)])
    assert {name: (one.offset, one.ifunc) for name, one in found.items()} == wanted


GO = [binary(version) for version in ((1, 16), (1, 18), (1, 20))]
GO += [binary(text_start=0), binary(named=False), binary(go="go1.17"), binary(at=64)]
TABLES = [*range(64 + 2 * 56), *range(0x1000, 0x1040), *range(0x2000, 0x20D0)]
TABLES += range(0x20D0, len(GO[2]))


def look(data: bytes) -> None:
    """For any content of the tables, a probed return is a RET."""
    for found in golang.lookups(FILE.of(data)).lookups:
        assert found.name in golang.HOST_REGISTER and 0 < found.size < 1 << 20
        assert data[found.offset : found.offset + 4] in golang._STACK_CHECK["EM_X86_64"]
        assert found.returns
        for offset in found.returns:
            assert data[offset] == 0xC3 and found.offset < offset < found.offset + found.size


BODIES = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9)), min_size=1, max_size=6)


def proven(parts: list[tuple[int, int]]) -> None:
    """In a generated function, exactly the returns with the caller's stack are found."""
    pieces, wanted = [(0, STACK_CHECK + b"\x48\x83\xec\x18")], []
    at = len(pieces[0][1])
    for nops, body in parts:
        for depth, piece in ((24, b"\xc3" * (body + 1)), (0, b"\x90" * nops + b"\xc3")):
            pieces.append((depth, piece))
            at += len(piece)
        wanted.append(TEXT_OFFSET + at - 1)
    done = b"".join(piece for _, piece in pieces)
    pieces += [(24, b"\x90"), (0, b"\xe9" + struct.pack("<i", -(len(done) + 6)))]
    made = b"".join(p for _, p in pieces), [(depth, len(p)) for depth, p in pieces]
    (found,) = golang.lookups(FILE.of(binary(made=made))).lookups
    assert (found.name, list(found.returns)) == (NAME, wanted)


INSTRUCTIONS = [bytes.fromhex(t) for line in LENGTHS.strip().split("\n") for t in line.split("|")]
FLOW = [bytes.fromhex(text) for text in ("c3", "f3c3", "c20800", "ebfe", "7510", "0f8400000000")]


def step(data: bytes) -> None:
    found = decode(data, 0)
    assert 0 < found.length <= len(data) + 15
    assert found.flow in ("", "ret", "jump", "branch", "switch", "end", "away")
    if found.length <= len(data):
        assert found == decode(data + b"\xcc" * 15, 0), "what follows must not matter"


def function(data: bytes) -> None:
    """Each return that is found is a RET, with any prefixes."""
    image = Code(data.hex())
    for size in {len(data), len(data) // 2}:
        for at in returns(image, Function("f", 0, 0, size)):
            assert decode(data + bytes(64), at).flow == "ret"


CALLS = [b"".join(INSTRUCTIONS[i::3]) + b"\xc3" for i in range(3)] + [code()[0]]
CALLS += [bytes.fromhex(text) for text in ("7401c3f3c3", "7401c3eb01cc5dc3", "7401c3ebfb")]

TARGETS = (
    Target("elf", mutated(PLAIN, HEADERS), find, (UnreadableBinary,)),
    Target("elf-symbols", SYMBOLS, known),
    Target("go", mutated(GO, TABLES), look, (UnreadableBinary,)),
    Target("go-returns", BODIES, proven),
    Target("instruction", mutated(INSTRUCTIONS + FLOW), step, (Unproven, IndexError)),
    Target("returns", mutated(CALLS), function),
)
