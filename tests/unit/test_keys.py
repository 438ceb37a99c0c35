"""Keys of --by: whatever the key, the rows of a tool add up to the same."""

from __future__ import annotations

import random

import pytest

from netbpf.declare.aggregation import Number, Sum
from netbpf.declare.columns import Addr, Enum, Text
from netbpf.declare.keys import Key, block, key_columns, parse_keys
from netbpf.declare.stacks import COMPLETE, CUT, Frame, Functions, Stack, UserStack
from netbpf.declare.tool import all_tools, find_tool
from netbpf.output.schema import schema_of
from netbpf.run.results.aggregates import Aggregator
from netbpf.run.results.histograms import HistogramCounter

TOOLS = [tool for tool in all_tools() if tool.aggregation]
FRAME = Frame(function="connect", offset=16, file="/lib/libc.so.6", build_id=None)
STACKS = [Stack([FRAME], COMPLETE), Stack([FRAME], CUT), Stack([FRAME, FRAME], COMPLETE)]
FUNCTIONS = [Functions(["a+0x1"]), Functions(["b+0x2", "a+0x1"])]
CASES = [(tool, key) for tool in TOOLS for key in tool.aggregation.keys]


def value_of(column, chance):
    """Return one of a few values that a column of an event may have."""
    if column.name == "errno":
        return chance.choice([None, "ECONNREFUSED"])
    if column.name == "result":
        return chance.choice(["OK", "EAI_NONAME"])
    if isinstance(column, Addr):
        return chance.choice([None, "10.1.2.3", "10.1.9.9", "10.2.0.1", "fe80::1"])
    if isinstance(column, Enum):
        return chance.choice([word for word in column.words.values() if word])
    if isinstance(column, Text) or column.json_type == "string":
        return chance.choice([None, "a", "b"])
    if column.json_type == "array":
        return chance.choice([None, *(STACKS if isinstance(column, UserStack) else FUNCTIONS)])
    return chance.choice([0, 1, 7, 1000])


def events_of(tool, number=300):
    chance = random.Random(tool.name)
    columns = tool.event.columns
    return [{column.name: value_of(column, chance) for column in columns} for _ in range(number)]


def rows_of(tool, by, events, **settings):
    plain = {"map_entries": 10_000, "failed": None, "errors": None, "min_ms": None}
    one = Aggregator(tool.aggregation, {**plain, **settings, "by": by})
    for index, event in enumerate(events):
        one.add({**event, "container": event.get("comm")}, bool(index % 5))
    return one.since_last()[1]


KEYED = [(tool, key) for tool in all_tools() if tool.keyed for key in tool.keyed.keys]


@pytest.mark.parametrize(
    ("tool", "key"), [*CASES, *KEYED], ids=lambda one: one if isinstance(one, str) else one.name
)
def test_text_of_a_key_needs_no_other_column(tool, key):
    columns = tool.keyed.parts if tool.keyed else tool.event.columns
    (column,) = key_columns(parse_keys(key, columns), columns)
    for value in (value_of(column, random.Random(key)), None):
        assert column.cell({key: value}) == column.text(value)
    assert ":" not in column.title and "xN" not in column.title


@pytest.mark.parametrize(
    ("tool", "key"), CASES, ids=lambda one: one if isinstance(one, str) else one.name
)
def test_sums_over_any_key_equal_the_total(tool, key):
    events = events_of(tool)
    by = parse_keys(key, tool.event.columns)
    rows = rows_of(tool, by, events)
    total = rows_of(
        tool, parse_keys("netns", tool.event.columns), [{**e, "netns": 1} for e in events]
    )
    values = {event.get("comm" if key == "container" else key) for event in events}
    assert {row[key] for row in rows} == values
    added = [
        name for name, one in tool.aggregation.aggregates.items()
        if type(one) in (Number, Sum) and name not in tool.aggregation.keys
    ]  # fmt: skip
    assert added
    for name in added:
        assert sum(row[name] for row in rows) == total[0][name], name
    for other in tool.aggregation.keys:
        assert other == key or {row[other] for row in rows} == {None}


@pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool.name)
def test_distributions_by_key_hold_every_value(tool):
    events, by = events_of(tool), parse_keys("comm", tool.event.columns)
    for column in tool.aggregation.measured:
        counter = HistogramCounter(tool.aggregation.distribution(column, by), 1000, by)
        for event in events:
            counter.add(event)
        found = counter.since_last()
        known = [event[column] for event in events if event[column] is not None]
        assert sum(one["count"] for one in found) == len(known)
        assert sum(one["sum"] for one in found) == sum(known)


def test_blocks_of_addresses_are_one_key():
    tool = find_tool("tcplife")
    events = [{**event, "raddr": raddr} for event, raddr in zip(
        events_of(tool), ["10.1.2.3", "10.1.9.9", "10.2.0.1", None, "fe80::1"]
    )]  # fmt: skip
    rows = rows_of(tool, parse_keys("raddr/16", tool.event.columns), events)
    assert {row["raddr"] for row in rows} == {"10.1.0.0/16", "10.2.0.0/16", None, "fe80::/16"}


@pytest.mark.parametrize(
    ("address", "prefix", "expected"),
    [("10.1.2.3", 24, "10.1.2.0/24"), ("10.1.2.3", 64, "10.1.2.3/32"), ("fe80::1", 64, "fe80::/64"),
     ("10.1.2.3", 0, "0.0.0.0/0"), ("/run/x.sock", 24, "/run/x.sock"), ("@abc", 8, "@abc")],
)  # fmt: skip
def test_block_is_the_network_of_an_address(address, prefix, expected):
    assert block(address, prefix) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [("foo", "'foo' is not a key"), ("comm/8", "only addresses have blocks"),
     ("raddr/x", "only addresses"), ("raddr/129", "only addresses"),
     ("comm,comm", "different keys"),
     ("", "different keys"), (",", "different keys")],
)  # fmt: skip
def test_what_is_no_key_is_an_error_that_lists_those_there_are(text, words):
    with pytest.raises(ValueError, match=words):
        parse_keys(text, find_tool("soconnect").event.columns)


def test_rows_are_the_first_in_the_order_that_is_asked_for():
    tool, events = find_tool("soconnect"), events_of(find_tool("soconnect"))
    by = parse_keys("raddr,rport", tool.event.columns)
    rows = rows_of(tool, by, events, sort="failures", top=3)
    everything = sorted((row["failures"] for row in rows_of(tool, by, events)), reverse=True)
    assert [row["failures"] for row in rows] == everything[:3]


def test_keys_are_columns_of_text_whatever_the_event_shows():
    columns = find_tool("tcpretrans").event.columns
    found = key_columns([Key("raddr", 8), Key("container"), Key("uid")], columns)
    assert [column.name for column in found] == ["raddr", "container", "uid"]
    assert all(column.in_text and not column.wide for column in found)
    assert found[0].cell({"raddr": "10.0.0.0/8"}) == "10.0.0.0/8"


def test_schema_allows_rows_by_any_key():
    jsonschema = pytest.importorskip("jsonschema", reason="needs jsonschema: make setup-dev")
    for tool in TOOLS:
        validator = jsonschema.Draft202012Validator(schema_of(tool))
        for key in ("comm", "netns"):
            (row, *_) = rows_of(tool, parse_keys(key, tool.event.columns), events_of(tool, 3))
            line = {"tool": tool.name, "type": "interval", "time": "2026-01-02T03:04:05.000006Z"}
            validator.validate({**line, **row})
