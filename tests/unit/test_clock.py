"""Clock: the kernel's monotonic time of an event becomes wall clock time."""

from __future__ import annotations

import time
from datetime import datetime, timezone

import pytest

from netbpf.output import clock
from netbpf.output.clock import Clock


@pytest.fixture
def fixed(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock that began at 2026-01-31T23:59:59.9 UTC, 1000 s after boot."""
    wall = int(datetime(2026, 1, 31, 23, 59, 59, tzinfo=timezone.utc).timestamp())
    monkeypatch.setattr(time, "time_ns", lambda: wall * 10**9 + 900_000_000)
    monkeypatch.setattr(time, "monotonic_ns", lambda: 1000 * 10**9)
    return Clock()


def test_time_is_that_of_the_event_in_utc_with_microseconds(fixed):
    start = 1000 * 10**9
    assert fixed.rfc3339(start) == "2026-01-31T23:59:59.900000Z"
    assert fixed.rfc3339(start + 99_999_999) == "2026-01-31T23:59:59.999999Z"
    assert fixed.rfc3339(start + 100_000_000) == "2026-02-01T00:00:00.000000Z"
    assert fixed.rfc3339(start - 10**9) == "2026-01-31T23:59:58.900000Z"  # before the start


def test_every_time_can_be_parsed(fixed):
    for ns in range(0, 10**13, 777_777_777_777):
        text = fixed.rfc3339(ns)
        parsed = datetime.strptime(text, "%Y-%m-%dT%H:%M:%S.%fZ")
        assert parsed.strftime("%Y-%m-%dT%H:%M:%S.%fZ") == text


def test_local_time_of_day_follows_the_time_zone(fixed, monkeypatch):
    monkeypatch.setenv("TZ", "XYZ-5:30")
    time.tzset()
    clock._local.cache_clear()
    try:
        assert fixed.local(1000 * 10**9) == "05:29:59.900000"
    finally:
        monkeypatch.undo()
        time.tzset()
        clock._local.cache_clear()


def test_seconds_since_start(fixed):
    assert fixed.since_start(1000 * 10**9 + 1_500_000) == 0.0015
    assert fixed.since_start(999 * 10**9) == -1.0


def test_a_wall_clock_that_is_set_does_not_move_events_against_each_other(monkeypatch):
    one = Clock()
    before = one.rfc3339(one.start)
    monkeypatch.setattr(time, "time_ns", lambda: 0)
    assert one.rfc3339(one.start) == before
