"""The reader pauses while events are frequent, never otherwise."""

from __future__ import annotations

import pytest

from netbpf.run import pace


@pytest.fixture
def clock(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(pace.time, "monotonic", lambda: now[0])
    return now


def pauses(clock, reads, waiting=0):
    """Return the pauses after reads, each (seconds since the one before, events)."""
    paced, seen, found = pace.Pace(), 0, []
    for seconds, events in reads:
        clock[0] += seconds
        seen += events
        found.append(paced.pause(seen, waiting))
    return found


def test_rare_events_are_read_at_once(clock):
    assert pauses(clock, [(5.0, 1), (0.1, 1), (0.05, 2), (1.0, 100)]) == [0.0] * 4


def test_a_storm_is_read_in_pauses(clock):
    assert pauses(clock, [(0.001, 1), (0.02, 600), (0.02, 600)]) == [pace.PAUSE] * 3


def test_reads_without_events_end_the_pauses(clock):
    assert pauses(clock, [(0.001, 1), (0.02, 2), (0.02, 0)]) == [pace.PAUSE, 0.0, 0.0]


def test_few_that_wait_are_read_after_a_pause(clock):
    reads = [(0.001, 1000), (0.02, 1000)]
    assert pauses(clock, reads, waiting=pace.MANY - 1) == [pace.PAUSE] * 2


def test_it_says_whether_events_are_frequent(clock):
    paced, found = pace.Pace(), []
    for seconds, taken, waiting in ((0.02, 600, 0), (0.02, 9000, 5000), (0.02, 9001, 0)):
        clock[0] += seconds
        paced.pause(taken, waiting)
        found.append(paced.often)
    assert found == [True, True, False]


def test_what_waits_is_read_without_a_pause(clock):
    assert pauses(clock, [(0.001, 1000), (0.02, 1000)], waiting=5000) == [0.0, 0.0]
