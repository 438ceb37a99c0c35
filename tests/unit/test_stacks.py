"""User stacks as columns, keys and text."""

from __future__ import annotations

import json

import pytest

from netbpf.declare.keys import parse_keys
from netbpf.declare.stacks import (
    COMPLETE,
    CUT,
    NO_UNWIND,
    Frame,
    Functions,
    Stack,
    UserStack,
    decoder_with,
    shown_with,
)
from netbpf.declare.tool import find_tool
from netbpf.output.schema import schema_of

CONNECT = Frame(function="connect", offset=16, file="/lib/libc.so.6", build_id="ab" * 20)
NAMELESS = Frame(function=None, offset=0x1234, file="/opt/x", build_id=None)
NOWHERE = Frame(function=None, offset=0x7F0012, file=None, build_id=None)
GONE = Frame(function=None, offset=0x99, file=None, build_id="cd" * 20)
COMPILED = Frame(function="js:\x1b[1m", offset=1, file=None, build_id=None)


@pytest.mark.parametrize(
    ("frame", "text"),
    [
        (CONNECT, "connect+0x10 (/lib/libc.so.6)"),
        (NAMELESS, "/opt/x+0x1234"),
        (NOWHERE, "0x7f0012"),
        (GONE, "[cdcdcdcdcdcdcdcd]+0x99"),
        (COMPILED, "js:\\x1b[1m+0x1"),
    ],
)
def test_frame_as_text(frame, text):
    assert str(frame) == text


def test_stack_is_a_list_in_json_and_lines_in_text():
    stack = Stack([CONNECT, NAMELESS], CUT)
    assert json.loads(json.dumps(stack)) == [dict(CONNECT), dict(NAMELESS)]
    assert str(stack) == "connect+0x10 (/lib/libc.so.6);/opt/x+0x1234"
    text = UserStack().text(stack).splitlines()
    assert text[1:3] == ["    connect+0x10 (/lib/libc.so.6)", "    /opt/x+0x1234"]
    assert "cut" in text[3]
    assert len(UserStack().text(Stack([CONNECT], COMPLETE)).splitlines()) == 2
    assert UserStack().text(None) == ""


def test_stacks_are_equal_if_they_end_alike():
    same = [Stack([Frame(CONNECT)], end) for end in (COMPLETE, COMPLETE, NO_UNWIND)]
    assert same[0] == same[1] != same[2] and len(set(same)) == 2
    assert len({Functions(["a", "b"]), Functions(["a", "b"]), Functions(["b"])}) == 2


def test_stacks_are_resolved_only_if_there_is_one():
    column = UserStack()
    column.name = "stack"
    convert = column.converter()
    assert convert(0) is None and convert(5) is None  # not bound
    column.bind(lambda raw: Stack([CONNECT], f"end of {raw}"))
    assert convert(0) is None and convert(5).end == "end of 5"


def test_event_has_the_columns_only_if_they_are_asked_for():
    tool = find_tool("soconnect")
    event = tool.event
    raw = event.layout().unpack(bytes(event.size))
    assert not {"stack", "stack_end"} & decoder_with(event, {})([raw]).keys()
    assert {"stack", "stack_end"} <= decoder_with(event, {"stack": True})([raw]).keys()
    names = [column.name for column in shown_with(event.columns, {})]
    assert "stack" not in names and "stack_end" not in names
    assert len(shown_with(event.columns, {"stack": True})) == len(names) + 2


def keys(tool, text):
    (by,) = [option for option in tool.options if option.name == "by"]
    return by.parse(text)


@pytest.mark.parametrize("name", ["sockstat", "soconnect"])
def test_program_captures_stacks_only_if_they_are_asked_for(name):
    tool = find_tool(name)
    settings = {option.name: None for option in tool.options}
    for text, wanted in (("comm", False), ("comm,stack", True), ("stack", True)):
        constants = tool.own_constants({**settings, "by": keys(tool, text)})
        assert ("WITH_USER_STACKS" in constants) == wanted
    assert "WITH_USER_STACKS" not in tool.own_constants(settings)


def test_rows_by_stack_show_it_last():
    by = keys(find_tool("sockstat"), "stack,comm")
    table = find_tool("sockstat").by_table
    names = [column.name for column in table.columns({"by": by})]
    assert names[0] == "comm" and names[-2:] == ["stack", "stack_end"]
    rows = find_tool("soconnect").aggregation.columns(parse_keys("stack,comm", _event()))
    assert [column.name for column in rows][-2:] == ["stack", "stack_end"]


def _event():
    return find_tool("soconnect").event.columns


def test_calls_of_several_processes_with_one_stack_are_one_row():
    tool = find_tool("sockstat")
    settings = {option.name: None for option in tool.options}
    settings.update(by=keys(tool, "stack"), sort="calls")
    parts = {column.name: None for column in tool.by_table.key.columns}
    stacks = [Stack([Frame(CONNECT)], COMPLETE) for _ in range(2)] + [None, Stack([], NO_UNWIND)]
    entries = [
        ({**parts, "op": "connect", "stack": stack, "error": None}, {"calls": 2 + n, "bytes": 0})
        for n, stack in enumerate(stacks)
    ]
    rows = tool.by_table.build(entries, settings)
    assert {(row["calls"], row["stack_end"]) for row in rows} == {
        (5, COMPLETE), (4, None), (5, NO_UNWIND),
    }  # fmt: skip


def test_schema_allows_events_with_and_without_stacks():
    lines = schema_of(find_tool("soconnect"))["oneOf"]
    (event,) = [one for one in lines if one["properties"]["type"] == {"const": "event"}]
    assert "stack" in event["properties"] and "stack" not in event["required"]
    rows = schema_of(find_tool("sockstat"))["oneOf"]
    assert any("stack_end" in one["required"] for one in rows)
