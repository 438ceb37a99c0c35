"""Convert event times from the kernel's monotonic clock to wall clock time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import lru_cache

_SECOND = 10**9  # ns
_SAMPLES = 5
_TOLERANCE = 1000  # ns: smaller steps are invisible at microsecond resolution
_MAX_STEPS = 64


class Clock:
    """Converts CLOCK_MONOTONIC nanoseconds, the time of events, to wall clock time.

    The offset between the clocks is constant until the wall clock is set. resync() detects such a
    step; events before the step keep the old offset, later ones get the new offset.
    """

    def __init__(self, now: Callable[[], int] | None = None) -> None:
        """Sample the offset; `now` returns the events' clock in ns (default: time.monotonic_ns)."""
        self.now = now or time.monotonic_ns
        self._past: list[tuple[int, int]] = []  # (end, offset) of each earlier step
        self._offset = self._sample()
        self.start = self.now()

    def resync(self) -> bool:
        """Return whether the wall clock was set since the last call; call it before each batch."""
        low, high = self._bounds()
        if low - _TOLERANCE <= self._offset <= high + _TOLERANCE:
            return False
        self._past = [*self._past, (self.now(), self._offset)][-_MAX_STEPS:]
        self._offset = self._sample()
        return True

    def _sample(self) -> int:
        bounds = (self._bounds() for _ in range(_SAMPLES))
        low, high = min(bounds, key=lambda pair: pair[1] - pair[0])
        return (low + high) // 2

    def _bounds(self) -> tuple[int, int]:
        before = self.now()
        wall = time.time_ns()
        after = self.now()
        return wall - after, wall - before

    def _wall(self, ns: int) -> tuple[int, int]:
        offset = next((offset for end, offset in self._past if ns < end), self._offset)
        return divmod(ns + offset, _SECOND)

    def rfc3339(self, ns: int) -> str:
        """Return UTC with microseconds, such as "2026-01-31T23:59:59.123456Z"."""
        seconds, rest = self._wall(ns)
        return f"{_utc(seconds)}.{rest // 1000:06d}Z"

    def rfc3339s(self, times: Sequence[int]) -> list[str]:
        """Return rfc3339() of many times."""
        if self._past:
            return [self.rfc3339(ns) for ns in times]
        stamps, last, prefix = [], -1, ""
        for ns in times:
            seconds, rest = divmod(ns + self._offset, _SECOND)
            if seconds != last:
                last, prefix = seconds, _utc(seconds)
            stamps.append(f"{prefix}.{rest // 1000:06d}Z")
        return stamps

    def local(self, ns: int) -> str:
        """Return the local time of day with microseconds."""
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
