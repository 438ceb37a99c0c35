"""Event times: from the kernel's monotonic clock to the wall clock."""

from __future__ import annotations

import time
from functools import lru_cache


class Clock:
    """Converts CLOCK_MONOTONIC nanoseconds, as events carry them, to wall clock time.

    The distance between the two clocks is taken once, at the start: a clock that is set meanwhile
    does not shift events against each other.
    """

    def __init__(self) -> None:
        """Take the distance now."""
        self._offset = time.time_ns() - time.monotonic_ns()
        self.start = time.monotonic_ns()

    def rfc3339(self, ns: int) -> str:
        """Return UTC with microseconds, "2026-01-31T23:59:59.123456Z"."""
        seconds, rest = divmod(ns + self._offset, 10**9)
        return f"{_utc(seconds)}.{rest // 1000:06d}Z"

    def local(self, ns: int) -> str:
        """Return local time of day with microseconds."""
        seconds, rest = divmod(ns + self._offset, 10**9)
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
