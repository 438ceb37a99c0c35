"""Rule: a tool is three new files of one stem, and its names are those that users know."""

from __future__ import annotations

import fnmatch
import re

import pytest

from netbpf.declare.columns import Addr, Bytes, Column, Duration, Micros, Port
from netbpf.declare.record import Record
from netbpf.declare.tool import Tool, all_tools, tool_names
from netbpf.run import shared_owners
from tests.contract.conventions import DATA, PROGRAMS, ROOT, every_tool, tool_of

WORDS = {
    line.split()[0]
    for line in (DATA / "vocabulary.txt").read_text().splitlines()
    if line and not line.startswith("#")
}


def shown_records(tool: Tool) -> list[type[Record]]:
    """Return the records whose columns a user meets."""
    found = [tool.event, *(table.row for table in tool.tables)]
    if tool.histogram:
        found.append(tool.histogram.key)
    if tool.aggregation:
        found.append(tool.aggregation.row)
    return [record for record in found if record]


def shown(tool: Tool) -> list[Column]:
    return [column for record in shown_records(tool) for column in record.columns]


@every_tool
def test_three_files_have_one_stem(name):
    assert tool_of(name).name == name, "the docstring begins with the module's name"
    assert (PROGRAMS / f"{name}.bpf.c").is_file(), f"there is no bpf_programs/{name}.bpf.c"
    test = ROOT / "tests" / "live" / f"test_{name}.py"
    assert test.is_file(), f"{name} has no live test: {test.relative_to(ROOT)}"


def test_every_c_program_belongs_to_a_tool():
    stems = {path.name.partition(".")[0] for path in PROGRAMS.glob("*.bpf.c")}
    known = {*tool_names(), shared_owners.TOOL.name}
    assert stems <= known, "a C program without netbpf/tools/*.py of its stem"


@every_tool
def test_names_that_tools_share_come_from_the_vocabulary(name):
    others = {column.name for tool in all_tools() if tool.name != name for column in shown(tool)}
    unknown = {column.name for column in shown(tool_of(name))} & others - WORDS
    assert not unknown, f"explain what both tools mean in tests/data/vocabulary.txt: {unknown}"


@every_tool
def test_column_names_carry_their_unit(name):
    for column in shown(tool_of(name)):
        assert re.fullmatch(r"[a-z][a-z0-9_]*", column.name), f"{column.name}: lower case"
        if isinstance(column, (Duration, Micros)):
            assert column.name.endswith("_us"), f"{column.name} is in microseconds: NAME_us"
        if isinstance(column, Bytes):
            assert re.search(r"(^|_)bytes$", column.name), f"{column.name} is in bytes: NAME_bytes"
        if isinstance(column, Port):
            assert column.name.endswith("port"), f"{column.name} is a port"
        if isinstance(column, Addr):
            assert re.search(r"addr$|^listener$", column.name), f"{column.name} is an address"


@every_tool
def test_a_column_name_means_one_thing_within_a_tool(name):
    kinds: dict[str, str] = {}
    for column in shown(tool_of(name)):
        kind = str(column.json_type)
        assert kinds.setdefault(column.name, kind) == kind, f"{column.name} has two types"


@every_tool
def test_columns_have_help(name):
    for column in shown(tool_of(name)):
        assert len(column.help) > 2, f"{column.name}: say in a few words what it is"
        assert not column.help.endswith("."), f"{column.name}: help is no sentence"


def test_vocabulary_is_sorted_and_explained():
    lines = [
        line
        for line in (DATA / "vocabulary.txt").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    names = [line.split()[0] for line in lines]
    assert names == sorted(set(names))
    assert all(len(line.split()) > 1 for line in lines)


@every_tool
def test_counters_are_ones_that_kernels_have(name):
    tool = tool_of(name)
    known = (DATA / "counters.txt").read_text().split()
    for counter in (*tool.counters, *tool.interval_counters):
        assert re.fullmatch(r"[A-Z]\w*(\.\*)?\.\w+", counter), f"{counter}: Group.Name"
        assert fnmatch.filter(known, counter), f"no kernel is known to have {counter}"


@pytest.mark.parametrize("tree", ["netbpf", "bpf_programs"])
def test_file_names_are_plain(tree):
    for path in (ROOT / tree).rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            assert re.fullmatch(r"[a-z_0-9]+(\.bpf)?\.(py|c|h)|py\.typed", path.name), path
