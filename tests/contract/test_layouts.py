"""Rule: the C struct and the Python record are the same, without a hole."""

from __future__ import annotations

import re

from netbpf.declare.histogram import SLOTS
from netbpf.declare.record import Record
from tests.contract.house import (
    constants,
    enums,
    every_tool,
    map_types,
    program,
    records_of,
    struct,
    tool_of,
)


def declared(record: type[Record]) -> list[tuple[str, str, int, int]]:
    """Return (C type, name, offset, size) of every member."""
    rows, at = [], 0
    for column in record.members:
        rows.append((column.ctype, column.name, at, column.size))
        at += column.size
    return rows


def in_c(text: str, name: str) -> tuple[list[tuple[str, str, int, int]], int]:
    """Return the same of the C struct, padding at the end left out."""
    members, size = struct(text, name)
    if members and members[-1].name == "pad":
        members = members[:-1]
    return [tuple(member) for member in members], size


def assert_same(text: str, record: type[Record], name: str) -> None:
    (members, size), wanted = in_c(text, name), declared(record)
    # What is taken apart in C (an array, a struct in the struct) may have longer names in Python.
    spread = {n for n in (m[1] for m in members) if [m[1] for m in members].count(n) > 1}
    inner = {m[1] for m in members} - _own_members(text, name)
    for ours, theirs in zip(wanted, members):
        alike = ours == theirs or (theirs[1] in spread | inner and ours[0::2] == theirs[0::2])
        assert alike, f"struct {name} has {theirs} where {record.__name__} has {ours}"
    assert len(members) == len(wanted), f"struct {name} and {record.__name__} have other lengths"
    assert size == record.size, f"struct {name} has {size} bytes, {record.__name__} {record.size}"


def _own_members(text: str, name: str) -> set[str]:
    found = re.search(rf"\bstruct {name}\s*\{{(.*?)\n\}}", text, re.DOTALL)
    return set(re.findall(r"(\w+)(?:\[\w+\])?\s*;", found[1])) if found else set()


@every_tool
def test_c_struct_is_the_python_record(name):
    for record in records_of(tool_of(name)):
        if record.cstruct:
            assert_same(program(name), record, record.cstruct)


@every_tool
def test_c_struct_has_no_hole_that_is_not_named(name):
    # What a hole holds is stack of the kernel: the verifier refuses it, or a stranger reads it.
    for record in records_of(tool_of(name)):
        if record.cstruct:
            members, size = struct(program(name), record.cstruct)
            assert sum(member.size for member in members) == size, "name the padding: u8 pad[N]"


@every_tool
def test_event_begins_with_its_time_and_names_its_struct(name):
    event = tool_of(name).event
    if event:
        assert event.cstruct
        members, _ = struct(program(name), event.cstruct)
        assert members[0][:2] == ("u64", "time")


@every_tool
def test_tables_are_maps_of_their_records(name):
    for table in tool_of(name).tables:
        key, value = map_types(program(name), table.map)
        for ctype, record in ((key, table.key), (value, table.sums)):
            if record.cstruct:
                assert ctype == f"struct {record.cstruct}"
            else:
                assert [ctype] == [column.ctype for column in record.members]
        assert table.sums.members[0].ctype == "u64", "sums are 64 bits wide, and there is one"
        assert set(table.gauges) | set(table.persistent) <= {c.name for c in table.sums.members}
        for column in table.row.columns:
            assert not column.ctype, f"{column.name} of a row is made in user space: ctype=''"


@every_tool
def test_histogram_is_a_map_of_key_and_buckets_and_sums(name):
    histogram = tool_of(name).histogram
    if not histogram or not histogram.map:
        return
    text = program(name)
    key, value = map_types(text, histogram.map)
    if histogram.key.cstruct:
        assert key == f"struct {histogram.key.cstruct}"
    else:
        assert [key] == [column.ctype for column in histogram.key.members]
    extra = histogram.extra.members if histogram.extra else ()
    members, size = struct(text, value.partition(" ")[2])
    names = [*["slots"] * SLOTS, "count", "sum", *(column.name for column in extra)]
    assert [(m.ctype, m.name) for m in members] == [("u64", name) for name in names]
    assert size == (SLOTS + 2 + len(extra)) * 8


def test_number_of_buckets_is_the_same():
    texts = [program(name) for name in _with_histograms()]
    assert texts, "no tool has a histogram"
    for text in texts:
        assert constants(text)["HISTOGRAM_SLOTS"] == SLOTS


def _with_histograms() -> list[str]:
    from netbpf.declare.tool import tool_names

    return [name for name in tool_names() if "HISTOGRAM_SLOTS" in program(name)]


@every_tool
def test_columns_of_c_have_a_width_that_c_has(name):
    for record in records_of(tool_of(name)):
        for column in record.members:
            assert re.fullmatch(r"[us](8|16|32|64)|(u8|char)\[\d+\]", column.ctype), column.name


def test_c_is_read_as_a_compiler_reads_it():
    text = """
#define LENGTH 5
enum color { RED, GREEN = 4, BLUE };
struct inner {
	u64 a;
	u8 b;
};
struct outer {
	u8 first;
	u32 second;
	char name[LENGTH];
	struct inner inner;
	u16 last[2];
	struct only_bytes bytes;
};
struct only_bytes {
	u8 kind;
	u8 rest[2];
};
"""
    members, size = struct(text, "outer")
    assert [(m.name, m.offset, m.size) for m in members] == [
        ("first", 0, 1), ("second", 4, 4), ("name", 8, 5), ("a", 16, 8), ("b", 24, 1),
        ("last", 32, 2), ("last", 34, 2), ("bytes", 36, 3),
    ]  # fmt: skip
    assert members[-1].ctype == "u8[3]"
    assert size == 40
    assert enums(text) == {"color": {"RED": 0, "GREEN": 4, "BLUE": 5}}
