"""Decide when to stop, and wait for data, signals and the output."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, Optional

from netbpf.output.outlet import Outlet
from netbpf.output.screen import end_echoed_line

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
GRACE = 0.4  # seconds after the stop to read and write earlier events


class Stop:
    """Stops the tool on Ctrl-C, SIGTERM, SIGHUP, a closed pipe, a duration or a number of events.

    `reason` is empty until the stop.
    """

    def __init__(self, settings: Mapping[str, Any], out: Outlet) -> None:
        """Watch for signals and for the closing of `out` by its reader."""
        self.reason = ""
        self._line_begun = False
        self._most = settings.get("max_events") or 0
        self._duration = settings.get("duration") or 0.0
        self._deadline = float("inf")
        self._grace_end = float("inf")
        self._out = out
        self._data: set[int] = set()  # descriptors that are ignored while the output is blocked
        self._asked_for_room = False
        self._poll = select.epoll()
        self._wake, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._wake_write = wake_write
        self._poll.register(self._wake, select.EPOLLIN)
        self._signals = select.poll()
        self._signals.register(self._wake, select.POLLIN)
        with suppress(OSError):  # a file cannot be polled, and is never closed by a reader
            self._poll.register(out.fileno(), 0)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        # SIGHUP stays ignored under nohup. SIGINT, which shells ignore for background jobs, is
        # handled: if it is sent, it is meant.
        handled = [
            n for n in _SIGNALS if n == signal.SIGINT or signal.getsignal(n) != signal.SIG_IGN
        ]
        self._before = {number: signal.signal(number, self._on_signal) for number in handled}

    def begin(self) -> None:
        """Start the time of --duration."""
        if self._duration:
            self._deadline = time.monotonic() + self._duration

    def watch(self, fd: int, data: bool = False) -> None:
        """Wake up when `fd` is readable; with `data`, only while the output is not blocked."""
        self._poll.register(fd, select.EPOLLIN)
        if data:
            self._data.add(fd)

    def now(self, reason: str) -> None:
        """Stop for `reason`; the first reason counts."""
        if not self.reason:
            self._grace_end = time.monotonic() + GRACE
            self.reason = reason

    @property
    def blocked(self) -> bool:
        """Whether the output is full, as its reader does not read."""
        return self._out.blocked

    @property
    def overdue(self) -> bool:
        """Whether the time for writing after the stop is over."""
        return time.monotonic() >= self._grace_end

    @contextmanager
    def extended(self) -> Iterator[None]:
        """Extend the time for writing after the stop by the duration of the block."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._grace_end += (time.monotonic() - began) * (self._grace_end > 0)

    def may_write(self, few: bool = False) -> bool:
        """Return whether the output accepts more; after the stop, wait for it until the deadline.

        Before the stop this does not wait: unread events stay in the ring buffer. With `few`, so
        little was written since the stop that only a very slow machine exceeds the deadline: it is
        ignored.
        """
        self._out.flush()
        while self._out.blocked and self.reason and not self.overdue:
            self._out.wait_for_room(self._grace_end)
            self._out.flush()
        extended = few and self._grace_end > 0  # no second signal
        return not self._out.blocked and (extended or not self.overdue)

    def flush(self) -> None:
        """Write what the output accepts now."""
        self._out.flush()

    def finish(self, extra: float = 0.0) -> None:
        """Write what the output accepts until the deadline, or `extra` seconds later."""
        self._out.finish(self._grace_end + extra)

    def remaining(self, seen: int) -> int:
        """Return how many more events may be shown after `seen`; stop if none."""
        if not self._most:
            return 1 << 30
        if seen >= self._most:
            self.now("max-events")
        return max(self._most - seen, 0)

    def pause(self, seconds: float) -> None:
        """Sleep until a signal arrives, or for some seconds at most."""
        end = min(time.monotonic() + seconds, self._deadline)
        left = end - time.monotonic()
        if left > 0 and not self.reason:
            self._signals.poll(left * 1000)

    def wait(self, until: Optional[float] = None) -> None:
        """Sleep until a descriptor is readable, a signal arrives, or the monotonic time `until`.

        While the output is blocked, wait until it is writable instead of until data is readable.
        """
        end = min(self._deadline, until if until is not None else float("inf"))
        timeout = -1.0 if end == float("inf") else max(end - time.monotonic(), 0.0)
        self._ask_for_room(self._out.blocked)
        for fd, mask in self._poll.poll(timeout):
            if fd == self._wake:
                with suppress(BlockingIOError):
                    os.read(self._wake, 64)
            elif fd == self._out.fileno() and mask & (select.EPOLLERR | select.EPOLLHUP):
                self.now("closed pipe")
        if time.monotonic() >= self._deadline:
            self.now("duration")

    def _ask_for_room(self, blocked: bool) -> None:
        if blocked == self._asked_for_room:
            return
        self._asked_for_room = blocked
        with suppress(OSError):  # a file
            self._poll.modify(self._out.fileno(), select.EPOLLOUT if blocked else 0)
        for fd in self._data:
            self._poll.modify(fd, 0 if blocked else select.EPOLLIN)

    def _on_signal(self, number: int, _: Optional[FrameType]) -> None:
        # A second signal while finishing: remaining events are counted and not written.
        if self.reason:
            self._grace_end = 0.0
        self.now(signal.Signals(number).name)

    def begin_line(self) -> None:
        """Begin a new line if Ctrl-C stopped the tool, as the terminal has shown ^C; once."""
        if self.reason == "SIGINT" and not self._line_begun:
            self._line_begun = True
            end_echoed_line(self._out)

    def close(self) -> None:
        """Stop watching, and restore the signal handlers."""
        signal.set_wakeup_fd(-1)
        for number, handler in self._before.items():
            signal.signal(number, handler or signal.SIG_DFL)
        self._poll.close()
        os.close(self._wake)
        os.close(self._wake_write)
