"""When to stop, and waiting until there is something to do."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from types import FrameType
from typing import Any, Optional

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stop:
    """Ends the tool in order: Ctrl-C, SIGTERM, SIGHUP, a closed pipe, time or number reached.

    `reason` is empty as long as it goes on.
    """

    def __init__(self, settings: Mapping[str, Any], out_fd: int = 1) -> None:
        """Watch for signals and for the reader of `out_fd` going away."""
        self.reason = ""
        self._most = settings.get("max_events") or 0
        self._duration = settings.get("duration") or 0.0
        self._deadline = float("inf")
        self._out_fd = out_fd
        self._poll = select.epoll()
        self._wake, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._wake_write = wake_write
        self._poll.register(self._wake, select.EPOLLIN)
        with suppress(OSError):  # a file cannot be polled, and never closes
            self._poll.register(out_fd, 0)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        # nohup has SIGHUP ignored: that stays. A shell that starts something in the background has
        # SIGINT ignored, too, but who sends it means it.
        asked = [n for n in _SIGNALS if n == signal.SIGINT or signal.getsignal(n) != signal.SIG_IGN]
        self._before = {number: signal.signal(number, self._on_signal) for number in asked}

    def begin(self) -> None:
        """Start the clock of --duration."""
        if self._duration:
            self._deadline = time.monotonic() + self._duration

    def watch(self, fd: int) -> None:
        """Wake up when `fd` is readable."""
        self._poll.register(fd, select.EPOLLIN)

    def now(self, reason: str) -> None:
        """Stop for `reason`; the first reason counts."""
        self.reason = self.reason or reason

    def room(self, seen: int) -> int:
        """Return how many more events may be shown, stopping when it is none."""
        if not self._most:
            return 1 << 30
        if seen >= self._most:
            self.now("max-events")
        return max(self._most - seen, 0)

    def wait(self, until: Optional[float] = None) -> None:
        """Sleep until something is readable, a signal comes, or the monotonic time `until`."""
        end = min(self._deadline, until if until is not None else float("inf"))
        timeout = -1.0 if end == float("inf") else max(end - time.monotonic(), 0.0)
        for fd, mask in self._poll.poll(timeout):
            if fd == self._wake:
                with suppress(BlockingIOError):
                    os.read(self._wake, 64)
            elif fd == self._out_fd and mask & (select.EPOLLERR | select.EPOLLHUP):
                self.now("closed pipe")
        if time.monotonic() >= self._deadline:
            self.now("duration")

    def _on_signal(self, number: int, _: Optional[FrameType]) -> None:
        # A second Ctrl-C, while finishing, is obeyed at once.
        if self.reason and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.now(signal.Signals(number).name)

    def close(self) -> None:
        """Stop watching; signals do again what they did before."""
        signal.set_wakeup_fd(-1)
        for number, handler in self._before.items():
            signal.signal(number, handler or signal.SIG_DFL)
        self._poll.close()
        os.close(self._wake)
        os.close(self._wake_write)
