"""From declaration to program: the selected probes and maps, and the syntax of --probe."""

from __future__ import annotations

import pytest

from netbpf.bpf.loader import Loaded
from netbpf.declare.columns import Pid
from netbpf.declare.histogram import Histogram
from netbpf.declare.memory import ring_size
from netbpf.declare.options import PROCESS
from netbpf.declare.probes import Probe, RawTracepoint, Role, Tracepoint
from netbpf.declare.record import Event, Record
from netbpf.declare.tool import Tool
from netbpf.errors import UsageError
from netbpf.kernel.select import Selection
from netbpf.run.attached import Attached
from netbpf.run.program import maps_of, parse_forced, probes_of

STATE = Probe("state", RawTracepoint("t"), role=Role.STATE)
OPEN = Probe("open", RawTracepoint("u"), option="open")


class Line(Event):
    """An event."""

    pid = Pid("process")


class Key(Record):
    """A key."""

    pid = Pid("process")


def test_probe_of_an_option_is_used_only_with_the_option():
    tool = Tool("x - y", probes=(STATE, OPEN))
    assert probes_of(tool, {"open": False}) == [STATE]
    assert probes_of(tool, {"open": True}) == [STATE, OPEN]
    assert probes_of(tool, {}) == [STATE]


def test_owners_are_traced_only_if_shown_or_filtered():
    tool = Tool(
        "x - y", probes=(STATE,), event=Line, event_option="events", owners=True, options=PROCESS
    )
    assert probes_of(tool, {}) == [STATE]
    names = {"state", "accept", "accept4", "snapshot"}
    assert {probe.name for probe in probes_of(tool, {"events": True})} == names
    assert {probe.name for probe in probes_of(tool, {"pid": [1]})} == names


def test_maps_are_the_ones_the_reader_needs():
    histogram = Histogram("sizes", Key, "bytes")
    both = Tool("x - y", probes=(), event=Line, histogram=histogram, maps=("more",))
    assert set(maps_of(both, {})) == {"losses", "more", "events", "sizes"}
    asked = Tool("x - y", probes=(), event=Line, event_option="events")
    assert maps_of(asked, {}) == ["losses"]


@pytest.mark.parametrize(
    ("text", "forced"),
    [
        (None, {}),
        ("", {}),
        ("state=tp", {"state": "tp"}),
        ("state=tp,accept=kretprobe", {"state": "tp", "accept": "kretprobe"}),
    ],
)
def test_forced_kinds_are_parsed(text, forced):
    assert parse_forced(text) == forced


@pytest.mark.parametrize("text", ["state", "state=", "state=tp,accept", "tp"])
def test_invalid_probe_option_is_a_usage_error(text):
    with pytest.raises(UsageError, match="--probe"):
        parse_forced(text)


def test_summary_has_the_selection_and_reasons():
    selection = Selection(STATE, STATE.alternatives[0], ("t",), (("fentry f", "no such function"),))
    none = Selection(Probe("accept", Tracepoint("s:t"), optional=True), None, (), ())
    redundant = Selection(
        Probe("more", Tracepoint("s:t")), None, (), (("more", "covered by state_tp"),), True
    )
    assert Attached([selection, none, redundant], Loaded({}, {})).described() == [
        {
            "name": "state",
            "kind": "rawtp",
            "targets": ["t"],
            "rejected": ["fentry f: no such function"],
        },
        {"name": "accept", "kind": None, "targets": [], "rejected": []},
    ]


def test_ring_is_the_next_power_of_two():
    assert [ring_size(n) for n in (4096, 4097, 1 << 20, (1 << 20) + 1)] == [
        4096, 8192, 1 << 20, 1 << 21,
    ]  # fmt: skip
