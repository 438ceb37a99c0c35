"""When to stop: signals, duration, number of events, a closed pipe; the first reason counts."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from netbpf.output.outlet import Outlet
from netbpf.run.stop import GRACE, Stop

SOON = 5.0  # seconds that a test would wait at most if it failed


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for fd in ends:
        with suppress(OSError):
            os.close(fd)


def stop_with(fd: int, **settings: object) -> Stop:
    return Stop(settings, Outlet(fd))


@pytest.fixture
def stop(pipe: tuple[int, int]) -> Iterator[Stop]:
    """A Stop without limits, whose output is a pipe."""
    made = stop_with(pipe[1])
    yield made
    made.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_ends_a_wait_at_once_and_is_the_reason(pipe, number):
    # Under nohup a hangup is ignored, which would fail this test.
    before = signal.signal(number, signal.SIG_DFL)
    stop = stop_with(pipe[1])
    try:
        signal.raise_signal(number)
        started = time.monotonic()
        stop.wait(started + SOON)
        assert time.monotonic() - started < SOON / 2
        assert stop.reason == number.name
    finally:
        stop.close()
        signal.signal(number, before)


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_only_a_second_signal_ends_the_time_to_finish(stop, second):
    assert not stop.overdue
    signal.raise_signal(signal.SIGINT)
    assert not stop.overdue
    signal.raise_signal(second)
    assert stop.overdue
    with stop.extended():
        time.sleep(0.01)
    assert stop.overdue
    assert stop.reason == "SIGINT"


def test_time_to_finish_ends_soon_after_the_stop(stop, monkeypatch):
    stop.now("duration")
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + GRACE + 0.1)
    assert stop.overdue
    with stop.extended():  # detaching does not count
        monkeypatch.setattr(time, "monotonic", lambda: now + GRACE + 7.1)
    monkeypatch.setattr(time, "monotonic", lambda: now + 7)
    assert not stop.overdue


def test_few_events_are_written_after_the_deadline_unless_a_second_signal_arrives(
    stop, monkeypatch
):
    stop.now("duration")
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + GRACE + 5)
    assert [stop.may_write(), stop.may_write(few=True)] == [False, True]
    signal.raise_signal(signal.SIGINT)
    assert not stop.may_write(few=True)


def fill(stop: Stop, out: Outlet) -> None:
    while not out.blocked:
        out.write("x" * 4000 + "\n")
        out.flush()


def test_blocked_output_pauses_data_and_wakes_when_writable(pipe):
    # The pipe's other end is the reader; the ring buffer is another pipe with data in it.
    out = Outlet(pipe[1])
    stop = Stop({}, out)
    data = os.pipe()
    try:
        stop.watch(data[0], data=True)
        os.write(data[1], b"x")
        fill(stop, out)
        started = time.monotonic()
        stop.wait(started + 0.05)
        assert time.monotonic() - started >= 0.05
        os.read(pipe[0], 1 << 16)
        started = time.monotonic()
        stop.wait(started + SOON)
        assert time.monotonic() - started < SOON / 2
        assert stop.may_write()
        started = time.monotonic()
        stop.wait(started + SOON)  # the data are back
        assert time.monotonic() - started < SOON / 2
    finally:
        stop.close()
        out.close()
        for fd in data:
            os.close(fd)


def test_blocked_output_is_waited_for_only_after_the_stop(pipe):
    out = Outlet(pipe[1])
    stop = Stop({}, out)
    try:
        fill(stop, out)
        started = time.monotonic()
        assert not stop.may_write()
        assert time.monotonic() - started < GRACE / 2
        stop.now("duration")
        assert not stop.may_write()
        assert GRACE * 0.9 <= time.monotonic() - started < SOON
    finally:
        stop.close()
        out.close()


def test_signal_handlers_are_restored_by_closing(pipe):
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    stop_with(pipe[1]).close()
    assert {number: signal.getsignal(number) for number in before} == before
    assert signal.set_wakeup_fd(-1) == -1


def test_hangup_that_is_ignored_stays_ignored(pipe):
    # GIVEN a program that was started with nohup
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        stop = stop_with(pipe[1])
        signal.raise_signal(signal.SIGHUP)
        # THEN it continues when the terminal is closed
        assert stop.reason == ""
        stop.close()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_ignored_interrupt_stops(pipe):
    # Shells ignore it for background jobs.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        stop = stop_with(pipe[1])
        signal.raise_signal(signal.SIGINT)
        stop.close()
        assert stop.reason == "SIGINT"
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_duration_counts_from_begin(pipe):
    stop = stop_with(pipe[1], duration=0.05)
    try:
        stop.wait(time.monotonic())
        assert stop.reason == ""
        stop.begin()
        started = time.monotonic()
        stop.wait(started + SOON)
        assert 0.04 < time.monotonic() - started < SOON / 2
        assert stop.reason == "duration"
    finally:
        stop.close()


def test_wait_ends_at_its_timeout_without_a_reason(stop):
    started = time.monotonic()
    stop.wait(started + 0.03)
    assert time.monotonic() - started < SOON / 2
    assert stop.reason == ""


def test_closed_reader_is_noticed_without_writing(pipe, stop):
    os.close(pipe[0])
    stop.wait(time.monotonic() + SOON)
    assert stop.reason == "closed pipe"


def test_output_to_a_file_does_not_stop(tmp_path):
    with open(tmp_path / "out", "wb") as out:
        stop = stop_with(out.fileno())
        try:
            stop.wait(time.monotonic() + 0.01)
            assert stop.reason == ""
        finally:
            stop.close()


def test_wait_ends_when_a_descriptor_is_readable(pipe):
    reader, writer = os.pipe()
    stop = stop_with(pipe[1])
    try:
        stop.watch(reader)
        os.write(writer, b"x")
        started = time.monotonic()
        stop.wait(started + SOON)
        assert time.monotonic() - started < SOON / 2
        assert stop.reason == ""
    finally:
        stop.close()
        os.close(reader)
        os.close(writer)


def test_number_of_events_is_a_limit(pipe):
    stop = stop_with(pipe[1], max_events=3)
    try:
        assert [stop.remaining(seen) for seen in (0, 1, 2)] == [3, 2, 1]
        assert stop.reason == ""
        assert stop.remaining(3) == 0
        assert stop.reason == "max-events"
        assert stop.remaining(4) == 0
    finally:
        stop.close()


def test_without_a_limit_any_number_remains(stop):
    assert stop.remaining(10**9) > 0
    assert stop.reason == ""


def test_first_reason_counts(pipe):
    stop = stop_with(pipe[1])
    stop.now("count")
    stop.now("duration")
    stop.close()
    assert stop.reason == "count"


def test_closing_leaves_no_descriptor_behind(pipe):
    before = set(os.listdir("/proc/self/fd"))
    stop_with(pipe[1]).close()
    assert set(os.listdir("/proc/self/fd")) == before
