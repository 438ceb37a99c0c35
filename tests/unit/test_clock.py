"""Clock: conversion of event times from the kernel's monotonic clock to wall clock time."""

from __future__ import annotations

import select
import time
from datetime import datetime, timezone

import pytest

from netbpf.kernel import clock as kernel_clock
from netbpf.output import clock
from netbpf.output.clock import Clock


@pytest.fixture
def fixed(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock that began at 2026-01-31T23:59:59.9 UTC, 1000 s after boot."""
    wall = int(datetime(2026, 1, 31, 23, 59, 59, tzinfo=timezone.utc).timestamp())
    monkeypatch.setattr(time, "time_ns", lambda: wall * 10**9 + 900_000_000)
    monkeypatch.setattr(time, "monotonic_ns", lambda: 1000 * 10**9)
    return Clock()


def test_rfc3339_is_the_events_time_in_utc(fixed):
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


def test_setting_the_wall_clock_does_not_change_the_offset_until_resync(monkeypatch):
    one = Clock()
    before = one.rfc3339(one.start)
    monkeypatch.setattr(time, "time_ns", lambda: 0)
    assert one.rfc3339(one.start) == before


class Hands:
    """Both clocks, moved by hand; reading either takes 10 ns."""

    def __init__(self) -> None:
        self.kernel, self.wall = 1000 * 10**9, 5000 * 10**9

    def pass_by(self, ns: int) -> None:
        self.kernel, self.wall = self.kernel + ns, self.wall + ns

    def kernel_ns(self) -> int:
        self.pass_by(10)
        return self.kernel

    def time_ns(self) -> int:
        self.pass_by(10)
        return self.wall


@pytest.fixture
def hands(monkeypatch: pytest.MonkeyPatch) -> Hands:
    found = Hands()
    monkeypatch.setattr(time, "time_ns", found.time_ns)
    return found


def at(one: Clock, ns: int) -> float:
    """Return the wall clock in seconds since 1970."""
    return datetime.fromisoformat(one.rfc3339(ns).replace("Z", "+00:00")).timestamp()


@pytest.mark.parametrize("step", [3600 * 10**9, -3600 * 10**9, 5_000])
def test_step_changes_only_later_times(hands, step):
    one = Clock(hands.kernel_ns)
    before = hands.kernel
    assert at(one, before) == pytest.approx(5000, abs=1e-3)
    hands.pass_by(10**9)
    assert one.resync() is False
    hands.wall += step
    assert one.resync() is True
    hands.pass_by(10**9)
    assert one.resync() is False
    assert at(one, before) == pytest.approx(5000, abs=2e-6)
    assert at(one, hands.kernel) == pytest.approx(hands.wall / 1e9, abs=2e-6)
    assert one.since_start(hands.kernel) == pytest.approx(2, abs=1e-3)


def test_several_steps_each_apply_from_their_time(hands):
    one, moments = Clock(hands.kernel_ns), []
    for step in (7, 19, -3):
        hands.pass_by(10**9)
        moments.append((hands.kernel, hands.wall))
        hands.wall += step * 10**9
        assert one.resync()
    for kernel, wall in moments:
        assert at(one, kernel) == pytest.approx(wall / 1e9, abs=2e-6)


def test_offset_is_from_the_fastest_sample(hands, monkeypatch):
    waits = iter([10**9, 10**6, 0, 10**6, 10**9])

    def interrupted() -> int:
        wall = hands.time_ns()
        hands.pass_by(next(waits))
        return wall

    monkeypatch.setattr(time, "time_ns", interrupted)
    one = Clock(hands.kernel_ns)
    assert at(one, hands.kernel) == pytest.approx(hands.wall / 1e9, abs=2e-6)


def test_interrupted_sample_is_not_a_step(hands, monkeypatch):
    one = Clock(hands.kernel_ns)

    def interrupted() -> int:
        hands.pass_by(10**9)
        return hands.time_ns()

    monkeypatch.setattr(time, "time_ns", interrupted)
    assert one.resync() is False


def test_listed_shift_is_used_if_it_agrees_with_the_measured_one():
    listed = kernel_clock._listed_shift("monotonic      500000         7\nboottime 3 4\n")
    assert listed == 500_000 * 10**9 + 7
    assert kernel_clock._listed_shift("1 -1 999999999\n7 0 0\n") == -1
    assert kernel_clock.select_shift(listed, listed - 777) == listed
    assert kernel_clock.select_shift(listed, 777) == 0  # the file is for the namespace of children
    assert kernel_clock.select_shift(listed, 23 * 10**9) == 23 * 10**9
    assert kernel_clock.select_shift(listed, None) == listed


def test_no_alarm_if_the_clock_is_not_set():
    alarm = kernel_clock.StepAlarm()
    try:
        assert alarm.fd >= 0
        assert not select.select([alarm.fd], [], [], 0)[0]
        alarm.clear()
    finally:
        alarm.close()
    assert alarm.fd == -1


@pytest.mark.parametrize(
    "text",
    ["", "\n", "monotonic", "monotonic 1", "monotonic x 0\n", "monotonic 1 2 3\n", "9 " * 99],
)
def test_shift_in_another_format_is_ignored(text):
    assert kernel_clock._listed_shift(text) == 0
