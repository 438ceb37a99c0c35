"""Open sessions: their columns in text, and the filters --state, --min-idle and --min-age."""

from __future__ import annotations

import pytest

from netbpf.declare.open_sessions import (
    Age,
    Span,
    only_open,
    open_columns,
    passes,
    states,
    text_of_open,
)
from netbpf.declare.record import text_columns
from netbpf.declare.tool import find_tool

TCPLIFE = find_tool("tcplife")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"), (0, "0.0"), (49_999, "0.0"), (50_001, "0.1"), (9_960_000, "10.0"),
        (999_900_000, "999.9"), (999_949_999, "999.9"), (999_950_000, "1000"),
        (86_400_000_000, "86400"),
    ],
)  # fmt: skip
def test_span_is_in_seconds(value, text):
    assert Span("x").text(value) == text


def test_span_is_microseconds_of_nanoseconds():
    convert = Span("x").converter()
    assert (convert(1_234_567), convert(2**64 - 1)) == (1234, None)


@pytest.mark.parametrize(
    ("duration", "state", "text"),
    [
        (5_000_000, "ESTABLISHED", "5.0"),
        (None, "ESTABLISHED", ">5.0"),
        (None, "FIN_WAIT2", ">5.0"),
        (None, "SYN_SENT", "5.0"),
        (None, "SYN_RECV", "5.0"),
    ],
)
def test_age_that_is_not_certain_is_marked(duration, state, text):
    age = Age("x")
    age.name = "age_us"
    values = {"age_us": 5_000_000, "duration_us": duration, "state": state}
    assert age.cell(values) == text
    assert age.cell({**values, "age_us": None}) == "-"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("ESTABLISHED", ["ESTABLISHED"]),
        ("established,close-wait", ["ESTABLISHED", "CLOSE_WAIT"]),
        ("fin-wait-1,FIN_WAIT2,finwait2", ["FIN_WAIT1", "FIN_WAIT2", "FIN_WAIT2"]),
        ("syn-sent,,syn_recv", ["SYN_SENT", "SYN_RECV"]),
    ],
)
def test_states_are_those_of_ss_or_of_the_kernel(text, found):
    assert states(text) == found


@pytest.mark.parametrize("text", ["", ",", "open", "LISTEN", "CLOSE", "TIME_WAIT", "ESTABLISHED;"])
def test_other_states_are_refused_with_those_that_there_are(text):
    with pytest.raises(ValueError, match="ESTABLISHED, SYN_SENT, SYN_RECV, FIN_WAIT1"):
        states(text)


OPEN = {"state": "ESTABLISHED", "idle_us": 60_000_000, "age_us": 3_600_000_000}


@pytest.mark.parametrize(
    ("settings", "shown"),
    [
        ({}, True),
        ({"state": ["ESTABLISHED"]}, True),
        ({"state": ["CLOSE_WAIT", "ESTABLISHED"]}, True),
        ({"state": ["CLOSE_WAIT"]}, False),
        ({"min_idle": 60.0}, True),
        ({"min_idle": 60.001}, False),
        ({"min_age": 3600.0}, True),
        ({"min_age": 3600.001}, False),
        ({"min_age": 1.0, "min_idle": 61.0}, False),
        ({"min_age": 1.0, "min_idle": 59.0, "state": ["ESTABLISHED"]}, True),
    ],
)
def test_filters(settings, shown):
    assert passes(dict(OPEN), settings) == (OPEN if shown else None)
    assert only_open(settings) == bool(settings)
    ended = {"state": "CLOSE", "idle_us": None, "age_us": None}
    assert passes(ended, settings) == (None if settings else ended)


def test_filters_imply_open():
    options = {option.name: option for option in TCPLIFE.options}
    assert all(options[name].sets == {"open": True} for name in ("state", "min_idle", "min_age"))


def test_text_of_open_sessions_begins_with_what_they_are_asked_for():
    columns = text_of_open(TCPLIFE.event.columns)
    usual = list(text_columns(tuple(columns), False, {"open"}))
    assert [column.title for column in usual] == [
        "PID", "COMM", "RADDR", "RPORT", "STATE", "AGE_S", "IDLE_S", "UNREAD", "UNSENT",
    ]  # fmt: skip
    assert sum(max(column.width, len(column.title)) + 1 for column in usual) - 1 <= 80
    wide = {column.name for column in text_columns(tuple(columns), True, {"open"})}
    assert {"tx_bytes", "duration_us", "unit"} <= wide and "close" not in wide
    assert len(columns) == len(TCPLIFE.event.columns)
    ended = {column.name for column in text_columns(TCPLIFE.event.columns, True, {"open"})}
    assert not ended & open_columns().keys()


def test_events_of_ended_sessions_have_no_distribution_of_them():
    assert "duration_us" in TCPLIFE.aggregation.measured
    assert not set(TCPLIFE.aggregation.measured) & open_columns().keys()
