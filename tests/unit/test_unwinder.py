"""Stacks are unwound from copies, by rules that are stored for the programs."""

from __future__ import annotations

import json
import os
import re
import struct
from collections import deque

import pytest

from netbpf.binaries import frame_rules
from netbpf.binaries.code import Mapping, executable_mappings, read_maps
from netbpf.binaries.frame_rules import BP, BY_POINTER, DEREF, NO_RULE, OUTERMOST, SP, Rule
from netbpf.binaries.perf_map import PerfMap
from netbpf.declare.stacks import COMPLETE, CUT, NO_UNWIND
from netbpf.run import stack_records, unwinder
from netbpf.run.stack_records import RECORD, Record, Space
from netbpf.run.unwinder import Unwinder
from tests.contract.conventions import PROGRAMS

CODE, STACK, NUMBER = 0x400000, 0x7FFF00000000, 0xFFFF8000DEAD0000
DIAL, OUTER, MAIN, START = (CODE + n for n in (0x10, 0x20, 0x30, 0x40))
HEADER = (PROGRAMS / "include" / "user_stacks.bpf.h").read_text()


class Rules:
    """The map of rules."""

    def __init__(self) -> None:
        self.stored: dict[tuple[int, int], tuple[int, int, int]] = {}

    def set(self, key: bytes, value: bytes) -> None:
        self.stored[struct.unpack("=QQ", key)] = struct.unpack("=ihH", value)


class Code:
    """A file whose rules are given by address."""

    build_id = "ab" * 20

    def __init__(self, rules: dict[int, Rule]) -> None:
        self.rules = rules

    def rule(self, address: int, budget: object) -> Rule | None:
        return self.rules.get(address + 1)

    def address(self, offset: int) -> int:
        return CODE + offset

    def function(self, address: int) -> tuple[str, int] | None:
        return (f"f{address >> 4 & 15}", address & 15) if address < START else None


class Files:
    """Files by mapping, and by build id."""

    def __init__(self, code: Code | None) -> None:
        self.code = code

    def mapped(self, pid: int, mapping: Mapping) -> Code | None:
        return self.code

    def with_build_id(self, build_id: str, program: str) -> tuple[str, Code | None]:
        return (program, self.code) if self.code and build_id == self.code.build_id else ("", None)


def made(rules: dict[int, Rule]) -> Unwinder:
    one: Unwinder = object.__new__(Unwinder)
    one._files, one._rules = Files(Code(rules)), Rules()  # type: ignore[assignment]
    one._queue, one._budget = deque(), None  # type: ignore[assignment]
    return one


def record(words: dict[int, int], ip: int = DIAL, size: int = 8192, **more: int) -> Record:
    """Return a record whose stack has these words, by offset from sp."""
    copy = bytearray(8192)
    for offset, word in words.items():
        struct.pack_into("<Q", copy, offset, word)
    registers = {"ip": ip, "sp": STACK, "bp": 0, "key": 1 << 63 | 7, **more}
    return Record(
        space=NUMBER, pid=os.getpid(), size=size, frames=bytes(512), program=bytes(320),
        copy=bytes(copy), **registers,
    )  # fmt: skip


def space(one: Record) -> Space:
    found = Space(one, 0)  # pid 0: nothing is read
    found._mappings = [Mapping(CODE, CODE + 0x1000, 0, 1, 2, "/bin/x")]
    return found


PLAIN = {DIAL: Rule(SP, 16), OUTER: Rule(SP, 8), MAIN: Rule(SP, 32), START: OUTERMOST}
WORDS = {8: OUTER, 16: MAIN, 48: START}


def test_unwinds_to_the_start_and_stores_the_rules():
    one = made(PLAIN)
    given = record(WORDS)
    addresses, end = one._unwind(given, space(given))
    assert (addresses, end) == ([DIAL, OUTER, MAIN, START], COMPLETE)
    assert one._rules.stored == {
        (ip, NUMBER): (rule.cfa, rule.bp, rule.kind) for ip, rule in PLAIN.items()
    }


def test_frames_have_names():
    one = made(PLAIN)
    given = record(WORDS)
    frames, end = one._resolved(given, space(given))
    assert [frame["function"] for frame in frames] == ["f0", "f1", "f2", "f3"]
    assert {frame["offset"] for frame in frames} == {16}  # of the return address
    assert {frame["file"] for frame in frames} == {"/bin/x"}
    assert {frame["build_id"] for frame in frames} == {"ab" * 20} and end == COMPLETE


def test_frame_pointers_where_there_is_no_table():
    one = made({START: OUTERMOST})
    words = {32: STACK + 64, 40: OUTER, 64: 0, 72: START}
    given = record(words, bp=STACK + 32)
    assert one._unwind(given, space(given)) == ([DIAL, OUTER, START], NO_UNWIND)
    assert one._rules.stored[DIAL, NUMBER] == (BY_POINTER.cfa, BY_POINTER.bp, BP)


def test_function_that_aligns_its_stack():
    one = made({DIAL: Rule(DEREF, -8), OUTER: Rule(BP, 16, -16), START: OUTERMOST})
    # bp points to the saved one; below it is the CFA.
    words = {56: STACK + 128, 64: STACK + 256, 120: OUTER, 256: 1, 264: START}
    given = record(words, bp=STACK + 64)
    assert one._unwind(given, space(given)) == ([DIAL, OUTER, START], COMPLETE)


@pytest.mark.parametrize(
    ("size", "end"), [(8192, CUT), (4096, NO_UNWIND)], ids=["more of it", "its top"]
)
def test_stack_beyond_the_copy(size, end):
    one = made({DIAL: Rule(SP, size + 64)})
    given = record({}, size=size)
    assert one._unwind(given, space(given)) == ([DIAL], end)


def test_more_functions_than_are_followed_are_cut():
    one = made({DIAL: Rule(SP, 8)})
    given = record(dict.fromkeys(range(0, 8192, 8), DIAL))
    addresses, end = one._unwind(given, space(given))
    assert (len(addresses), end) == (unwinder._DEPTH, CUT)


@pytest.mark.parametrize(
    "rule", [Rule(SP, 0), Rule(SP, -8), Rule(SP, 24), Rule(BP, 16, -16)],
    ids=["nowhere", "back", "to no code", "no frame"],
)  # fmt: skip
def test_rule_that_leads_nowhere_is_not_used_again(rule):
    one = made({DIAL: rule})
    given = record({16: 0x1234567, 8: DIAL}, bp=STACK - 64)
    assert one._unwind(given, space(given)) == ([DIAL], NO_UNWIND)
    stored = one._rules.stored[DIAL, NUMBER]
    assert stored[2] == NO_RULE.kind or rule.cfa == 16


def test_process_that_has_ended_has_the_frames_of_build_ids():
    one = made(PLAIN)
    frames = [(1, bytes.fromhex("ab" * 20), 0x10), (1, b"\x11" * 20, 0x77), (2, bytes(20), 0x5000)]
    raw = b"".join(struct.pack("=i20sQ", *frame) for frame in frames)
    raw += struct.pack("=i20sQ", 2, bytes(20), 0xBB << 56)  # no address of user space
    program = b"".join(part.ljust(40, b"\0") for part in (b"x", b"bin", b"opt")) + bytes(200)
    given = record({})._replace(frames=raw.ljust(512, b"\0"), program=program)
    ended = Space(given, 0)
    found, end = one._resolved(given, ended)
    assert end == NO_UNWIND
    assert [(f["function"], f["offset"], f["file"], f["build_id"]) for f in found] == [
        ("f0", 16, "/opt/bin/x", "ab" * 20),
        (None, 0x77, None, "11" * 20),
        (None, 0x5000, None, None),
    ]


def test_stack_beyond_the_rate_is_not_unwound():
    one = made(PLAIN)
    given = record(WORDS, key=1 << 62 | 5)
    frames, end = one._resolved(given, space(given))
    assert len(frames) == 1 and end == NO_UNWIND and not one._rules.stored


def test_messages_are_whole_lines():
    reader, writer = os.pipe()
    one = made({})
    one._out = writer
    one._write({"key": 1, "frames": [], "end": CUT})
    assert json.loads(os.read(reader, 999)) == {"key": 1, "frames": [], "end": CUT}
    os.close(reader), os.close(writer)


# --- as in C --------------------------------------------------------------------------------------


def defined(name: str) -> int:
    match = re.search(rf"#define {name} (\d+)", HEADER)
    assert match
    return int(match[1])


def test_constants_are_those_of_the_program():
    kinds = re.search(r"enum \{ (RULE_[^}]*) \};", HEADER)
    assert kinds
    for number, name in enumerate(re.findall(r"RULE_(\w+)", kinds[1]), 1):
        assert getattr(frame_rules, name) == number
    assert defined("STACK_DEPTH") == unwinder._DEPTH
    assert defined("STACK_RING_PAGES") * 4096 == unwinder.RING_BYTES
    parts, frames = defined("PATH_PARTS") * 40, defined("FRAMES_BY_POINTER") * 32
    fields = RECORD.unpack(bytes(RECORD.size))
    assert [len(field) for field in fields if isinstance(field, bytes)] == [
        frames, parts, defined("STACK_COPY"),
    ]  # fmt: skip
    assert RECORD.size % 8 == 0 and len(fields) == len(Record._fields)
    assert stack_records._PART == 40 and "POINTER_KEY (1ULL << 62)" in HEADER


# --- what is read of a process --------------------------------------------------------------------


def test_mappings_of_this_process_hold_its_code():
    found = executable_mappings(read_maps(os.getpid()))
    assert found == sorted(found) and all(one.start < one.end for one in found)
    libc = [one for one in found if "libc" in one.path]
    assert libc and os.stat(libc[0].path).st_ino == libc[0].inode


@pytest.mark.parametrize("device", ["ffffffff:01", "fe:fffffff", "1000:01"])
def test_mapping_of_a_device_that_cannot_be_is_left_out(device):
    line = b"1000-2000 r-xp 00000000 %s 7 /usr/bin/redis-server\n"
    assert executable_mappings(line % device.encode()) == []
    assert len(executable_mappings(line % b"fff:fffff")) == 1


def test_inode_number_of_too_many_digits_is_left_out():
    line = b"1000-2000 r-xp 00000000 fe:01 %s /usr/bin/redis-server\n"
    assert executable_mappings(line % (b"7" * 5000)) == []


def test_process_that_has_ended_has_no_maps():
    assert read_maps(1 << 22) == b"" and executable_mappings(b"") == []


def proc_with(tmp_path, text: bytes, name: str = "perf-1.map"):
    root = tmp_path / "7" / "root" / "tmp"
    root.mkdir(parents=True)
    (tmp_path / "7" / "status").write_bytes(b"Name:\tx\nNSpid:\t7\t1\nNSsid:\t7\t1\n")
    (root / name).write_bytes(text)
    return str(tmp_path), root / name


def test_perf_map_is_read_again_when_it_has_grown(tmp_path):
    proc, path = proc_with(tmp_path, b"1000 20 one\n")
    names = PerfMap(7, proc)
    assert names.function(0x1005) == ("one", 5) and names.function(0x1020) is None
    path.write_bytes(b"1000 20 one\n1020 8 two words\nno line\n")
    assert names.function(0x1020) == ("two words", 0)
    assert names.function(0xFFF) is None


def test_perf_map_of_another_user_is_empty(tmp_path, monkeypatch):
    proc, _ = proc_with(tmp_path, b"1000 20 one\n")
    monkeypatch.setattr("netbpf.binaries.perf_map.owner", lambda pid, proc: os.geteuid() + 1)
    assert PerfMap(7, proc).function(0x1005) is None


def test_perf_map_may_be_no_file(tmp_path):
    proc, path = proc_with(tmp_path, b"")
    path.unlink()
    os.mkfifo(path)
    assert PerfMap(7, proc).function(0x1005) is None
