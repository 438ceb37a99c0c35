"""Open events are listed once each, as far as the output and the user let them."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from netbpf.declare.tool import find_tool
from netbpf.run.results import open_events
from netbpf.run.results.decoded import EventDecoder

TOOL = find_tool("tcplife")
SESSIONS = 5000


class Stop:
    """Lets a number of batches pass."""

    def __init__(self, batches):
        self.batches = batches
        self.inside = False

    def may_write(self, few=False):
        self.batches -= 1
        return self.batches >= 0

    def flush(self):
        assert self.inside

    @contextmanager
    def extended(self):
        self.inside = True
        yield
        self.inside = False


def records(number):
    """One record per session; the remote port tells them apart."""
    names = [column.name for column in TOOL.event.members]
    layout = TOOL.event.layout()
    blank = layout.unpack(bytes(layout.size))
    for port in range(number):
        row = list(blank)
        row[names.index("rport")] = port
        yield layout.pack(*row)


def test_without_identity_each_record_is_another_object(monkeypatch):
    tool = find_tool("solife")
    monkeypatch.setattr(open_events, "read_iterator", b"".join)
    blank = bytes(tool.event.layout().size)
    attached = SimpleNamespace(missing=(), with_role=lambda role: [[blank] * 23])
    found = open_events.OpenEvents(tool, tool.event, attached)
    stop, times = Stop(9), []
    found.read(stop)
    found.write(
        EventDecoder(tool, tool.event, {}, attached), stop, lambda some, columns: times.extend(some)
    )
    assert len(times) == found.number == 23


@pytest.fixture
def listed(monkeypatch):
    def listed(raws, batches=1000):
        monkeypatch.setattr(open_events, "read_iterator", b"".join)
        attached = SimpleNamespace(missing=(), with_role=lambda role: raws)
        found = open_events.OpenEvents(TOOL, TOOL.event, attached)
        stop, rows = Stop(batches), []

        def show(times, columns):
            assert stop.inside and len(times) == len(columns["rport"])
            rows.extend(columns["rport"])

        found.read(stop)
        found.write(EventDecoder(TOOL, TOOL.event, {}, attached), stop, show)
        return found, rows

    return listed


def test_all_are_listed_in_order(listed):
    found, rows = listed([records(SESSIONS)])
    assert rows == list(range(SESSIONS))
    assert (found.number, found.unwritten) == (SESSIONS, 0)


def test_what_two_iterators_return_is_listed_once(listed):
    found, rows = listed([records(3000), records(4000)])
    assert rows == list(range(4000))
    assert (found.number, found.unwritten) == (4000, 0)


def test_what_the_output_does_not_take_is_counted(listed):
    found, rows = listed([records(SESSIONS)], batches=2)
    assert rows == list(range(2 * open_events._BATCH))
    assert found.number == len(rows) and found.unwritten == SESSIONS - len(rows)
