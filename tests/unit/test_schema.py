"""JSON Schema: output of the JSON writer validates, anything else does not."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pytest

from netbpf.declare.columns import (
    Addr,
    Bytes,
    Comm,
    Count,
    Duration,
    Enum,
    Errno,
    Family,
    Micros,
    Owner,
    Pid,
    Port,
    TcpState,
    Uid,
)
from netbpf.declare.histogram import SLOTS, Histogram
from netbpf.declare.record import Event, Record
from netbpf.declare.tool import Tool
from netbpf.output.clock import Clock
from netbpf.output.schema import schema_of
from netbpf.output.writers import make_writer
from netbpf.run.results.histograms import buckets, percentiles

jsonschema = pytest.importorskip("jsonschema", reason="needs jsonschema: make setup-dev")


class Everything(Event):
    """One column of each class."""

    cstruct = "everything"

    pid = Pid("p")
    comm = Comm("c")
    owner = Owner("o")
    family = Family("f")
    laddr = Addr("a")
    lport = Port("l")
    tx_bytes = Bytes("b")
    span_us = Duration("d")
    srtt_us = Micros("m")
    role = Enum("r", {0: None, 1: "active"})
    err = Errno("e")
    state = TcpState("s")
    uid = Uid("u")
    calls = Count("n")


class Key(Record):
    """A histogram's key."""

    dev = Comm("device")


HISTOGRAM = Histogram("m", Key, "bytes", fields={"average": {"type": "number"}})
TOOL = Tool(
    "demo - a demonstration", probes=(), event=Everything, histogram=HISTOGRAM, interval=True,
    summary_fields={"open": {"type": "integer"}}, interval_counters=("Tcp.OutRsts",),
)  # fmt: skip
SUMMARY = {
    "start": "2026-01-31T23:59:59.123456Z", "end": "2026-01-31T23:59:59.123456Z", "seconds": 1.5,
    "events": 23, "unit": "events", "stopped_by": "duration",
    "lost": {"ring_full": 0, "map_full": 0, "probe_missed": 0, "reader": 0, "unwritten": 0,
             "not_covered": 0},
    "complete": True, "after_end": 0,
    "probes": [{"name": "state", "kind": None, "targets": ["t"], "rejected": []}],
    "counters": {"Tcp.OutRsts": 1},
    "overhead": {"measured": True, "runs": 1, "run_ns": 1, "cpu_percent": 0.1, "more": 1},
    "notes": [],
}  # fmt: skip


@pytest.fixture(scope="module")
def validator() -> Any:
    schema = schema_of(TOOL)
    jsonschema.Draft202012Validator.check_schema(schema)
    checker = jsonschema.FormatChecker()
    return jsonschema.Draft202012Validator(schema, format_checker=checker)


class Output:
    """A JSON writer whose lines a test reads back."""

    def __init__(self) -> None:
        self.out = io.StringIO()
        self.writer = make_writer("json", "demo", Everything.columns, Clock(), self.out)

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.getvalue().splitlines()]


@pytest.mark.parametrize("fill", [0, 1, 255])
@pytest.mark.parametrize("kind", ["event", "interval"])
def test_events_validate_whatever_the_program_wrote(validator, fill, kind):
    raw = Everything.layout().unpack(bytes([fill]) * Everything.size)
    output = Output()
    output.writer.event(10**9, Everything.decoder()(raw), kind)
    [line] = output.lines()
    validator.validate(line)


def test_histograms_validate(validator):
    for values in ([], [0], [5, 900, 2**60]):
        slots = np.zeros(SLOTS, np.uint64)
        for value in values:
            slots[min(value.bit_length(), SLOTS - 1)] += np.uint64(1)
        output = Output()
        found = {
            "key": {"dev": "lo"}, "unit": "bytes", "buckets": buckets(slots),
            "count": len(values), "sum": sum(values), "percentiles": percentiles(slots),
            "average": 1.5, "headline": "for people only",
        }  # fmt: skip
        output.writer.histogram(10**9, found)
        validator.validate(output.lines()[0])


def test_counters_validate(validator):
    output = Output()
    output.writer.counters(10**9, {"Tcp.OutRsts": 3})
    validator.validate(output.lines()[0])


@pytest.mark.parametrize("more", [{}, {"open": 3}])
def test_summaries_validate_with_and_without_the_tools_own_fields(validator, more):
    output = Output()
    output.writer.summary({**SUMMARY, **more})
    validator.validate(output.lines()[0])


def test_summary_without_a_ring_validates_only_where_events_are_an_option():
    lost = dict.fromkeys(("map_full", "probe_missed", "reader", "unwritten", "not_covered"), 0)
    line = {"tool": "demo", "type": "summary", **SUMMARY, "lost": lost}
    for option, good in (("events", True), ("", False)):
        tool = Tool("demo - x", probes=(), event=Everything, event_option=option)
        assert jsonschema.Draft202012Validator(schema_of(tool)).is_valid(line) is good


def test_report_while_running_validates(validator):
    line = {
        "tool": "demo", "type": "progress", "time": SUMMARY["start"], "seconds": 10.0, "events": 2,
        "unit": "events", "lost": SUMMARY["lost"], "complete": True,
        "overhead": SUMMARY["overhead"],
    }  # fmt: skip
    validator.validate(line)
    assert not validator.is_valid({**line, "surprise": 1})


def test_row_has_the_losses_of_its_interval(validator):
    raw = Everything.layout().unpack(bytes(Everything.size))
    for kind, lost in (("event", 0), ("interval", 0), ("interval", 7)):
        output = Output()
        output.writer.interval.lost = {"ring_full": 3, "map_full": lost - 3} if lost else {}
        output.writer.event(10**9, Everything.decoder()(raw), kind)
        line = output.lines()[0]
        assert line.get("lost", 0) == lost
        validator.validate(line)


@pytest.mark.parametrize(
    "change",
    [{"surprise": 1}, {"lport": "80"}, {"comm": 5}, {"tool": "other"}, {"type": "event2"}],
    ids=str,
)
def test_unknown_fields_and_values_do_not_validate(validator, change):
    raw = Everything.layout().unpack(bytes(Everything.size))
    output = Output()
    output.writer.event(10**9, Everything.decoder()(raw))
    line = output.lines()[0]
    assert validator.is_valid(line)
    assert not validator.is_valid({**line, **change})


def test_every_field_is_required(validator):
    raw = Everything.layout().unpack(bytes(Everything.size))
    output = Output()
    output.writer.event(10**9, Everything.decoder()(raw))
    line = output.lines()[0]
    for name in line:
        assert not validator.is_valid({k: v for k, v in line.items() if k != name}), name
