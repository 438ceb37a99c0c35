"""Files that user stacks are read from: tables of .eh_frame, programs, maps and perf maps."""

from __future__ import annotations

import os
from collections.abc import Sequence

from hypothesis import strategies as st

from netbpf.binaries.code import Code, executable_mappings
from netbpf.binaries.eh_frame import UnwindTable
from netbpf.binaries.frame_rules import NONE, SP, Rule
from netbpf.binaries.perf_map import PerfMap
from netbpf.system.untrusted import UnreadableBinary
from tests.fuzz import proc_files
from tests.fuzz.damage import File, directory, mutated
from tests.fuzz.programs import GO, HEADERS, PLAIN
from tests.fuzz.target import Target
from tests.unit.test_eh_frame import (
    ADDRESS,
    ALIGNED,
    CODE,
    HEADER,
    MOV_RBP,
    PUSH_RBP,
    budget,
    common,
    table,
)
from tests.unit.test_elf import TEXT_ADDRESS

FILE = File()
BODIES = [PUSH_RBP + MOV_RBP, PUSH_RBP + ALIGNED, b"\x0a\x0e\x20\x86\x03\x41\x0b", b"\x07\x10"]
FUNCTIONS = [(CODE + 64 * n, 60, body) for n, body in enumerate(BODIES)]
TABLES = [table(FUNCTIONS), table(FUNCTIONS, common(b"zPLR\0", b"\x1b\0\0\0\0\x1b\x1b"))]
_MARK = b"-- header --"
SEEDS = [data + _MARK + header for data, header in TABLES]
SEEDS += [data + _MARK for data, _ in TABLES]


def damaged_table(case: bytes) -> None:
    data, _, header = case.partition(_MARK)
    found = UnwindTable(data, ADDRESS, header, HEADER)
    for address in (0, CODE, CODE + 5, CODE + 100, CODE + 150, CODE + 200, (1 << 64) - 1):
        rule = found.rule(address, budget(0.5))
        if rule is not None:
            assert SP <= rule.kind <= NONE
            assert abs(rule.cfa) < 1 << 31 and abs(rule.bp) < 1 << 15


STEPS = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 200)), max_size=12)


def steps(case: list[tuple[int, int]]) -> None:
    """At each address, the depth is that of the last step before it."""
    instructions, at, depth, depths = b"", 0, 8, {}
    for advance, words in case:
        depths.update(dict.fromkeys(range(at, at + advance), depth))
        at, depth = at + advance, 8 * words
        instructions += bytes([0x40 | advance]) + b"\x0c\x07" + leb(depth)
    depths[at] = depth
    for data, header in (table([(CODE, at + 1, instructions)]),):
        for header_used in (header, b""):
            found = UnwindTable(data, ADDRESS, header_used, HEADER)
            for offset, wanted in depths.items():
                assert found.rule(CODE + offset, budget()) == Rule(SP, wanted)


def leb(value: int) -> bytes:
    data = b""
    while value > 0x7F:
        data += bytes([value & 0x7F | 0x80])
        value >>= 7
    return data + bytes([value])


def program(data: bytes) -> None:
    try:
        code = Code(FILE.of(data))
    except UnreadableBinary:
        return
    for address in (0, TEXT_ADDRESS, TEXT_ADDRESS + 63, TEXT_ADDRESS + 64, (1 << 64) - 1):
        named = code.function(address)
        if named:
            assert isinstance(named[0], str) and 0 <= named[1] <= address
        assert code.rule(address, budget(0.5)) is None or data
        where = code.address(address)
        assert where is None or where >= 0


def maps(data: bytes) -> None:
    for one in executable_mappings(data):
        assert one.start >= 0 and one.end >= 0 and "\n" not in one.path


LISTS = [b"1000 20 js:one\n1020 10 js:two\n", b"7f00deadbeef ff a b c\n", b"0 ffffffffffffffff x"]
PROC = directory()
(PROC / "7" / "root" / "tmp").mkdir(parents=True)
(PROC / "7" / "status").write_bytes(b"NSpid:\t7\t1\n")


def perf_map(data: bytes) -> None:
    path = PROC / "7" / "root" / "tmp" / "perf-1.map"
    path.write_bytes(data)
    os.chown(PROC / "7", os.geteuid(), -1)
    found = PerfMap(7, str(PROC))
    for address in _addresses(data):
        named = found.function(address)
        assert named is None or (named[1] <= address and "\n" not in named[0])


def _addresses(data: bytes) -> Sequence[int]:
    return (0, 0x1000, 0x1001, 0x1020, 0x7F00DEADBEEF + 1, len(data), (1 << 64) - 1)


TARGETS = [
    Target("eh-frame", mutated(SEEDS), damaged_table),
    Target("eh-frame-steps", STEPS, steps),
    Target("code", mutated([*PLAIN, *GO[:2]], HEADERS), program),
    Target("code-maps", mutated(proc_files.MAPS), maps),
    Target("perf-map", mutated(LISTS), perf_map),
]
