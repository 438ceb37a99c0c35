"""Event times: from the kernel's monotonic clock to the wall clock."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import lru_cache

_TRIALS = 5
_SLACK = 1000  # ns: less hardly shows in a time with microseconds
_MOST_STEPS = 64


class Clock:
    """Converts CLOCK_MONOTONIC nanoseconds, as events carry them, to wall clock time.

    The distance between the two clocks is constant until the wall clock is set: look() notices
    that, and later events follow the new time while earlier ones keep the old one.
    """

    def __init__(self, now: Callable[[], int] | None = None) -> None:
        """Take the distance now; `now` returns the events' clock in ns, else this process's."""
        self.now = now or time.monotonic_ns
        self._past: list[tuple[int, int]] = []  # (end, distance) of the times before the last step
        self._offset = self._nearest()
        self.start = self.now()

    def look(self) -> bool:
        """Return whether the wall clock was set since the last look; call it before each batch."""
        low, high = self._bounds()
        if low - _SLACK <= self._offset <= high + _SLACK:
            return False
        self._past = [*self._past, (self.now(), self._offset)][-_MOST_STEPS:]
        self._offset = self._nearest()
        return True

    def _nearest(self) -> int:
        bounds = (self._bounds() for _ in range(_TRIALS))
        low, high = min(bounds, key=lambda pair: pair[1] - pair[0])
        return (low + high) // 2

    def _bounds(self) -> tuple[int, int]:
        before = self.now()
        wall = time.time_ns()
        after = self.now()
        return wall - after, wall - before

    def _wall(self, ns: int) -> tuple[int, int]:
        offset = next((offset for end, offset in self._past if ns < end), self._offset)
        return divmod(ns + offset, 10**9)

    def rfc3339(self, ns: int) -> str:
        """Return UTC with microseconds, "2026-01-31T23:59:59.123456Z"."""
        seconds, rest = self._wall(ns)
        return f"{_utc(seconds)}.{rest // 1000:06d}Z"

    def local(self, ns: int) -> str:
        """Return local time of day with microseconds."""
        seconds, rest = self._wall(ns)
        return f"{_local(seconds)}.{rest // 1000:06d}"

    def since_start(self, ns: int) -> float:
        """Return seconds since the start of tracing."""
        return (ns - self.start) / 1e9


@lru_cache(maxsize=4)
def _utc(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


@lru_cache(maxsize=4)
def _local(seconds: int) -> str:
    return time.strftime("%H:%M:%S", time.localtime(seconds))
