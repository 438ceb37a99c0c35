"""Let events gather before they are read: in a storm, waking the reader costs more than reading.

The kernel wakes the reader for a record only if the reader has read all records before it
(kernel/bpf/ringbuf.c). So a reader that pauses is woken once per pause, however many events happen.
"""

from __future__ import annotations

import time

PAUSE = 0.02  # seconds; a person sees an event within 0.1
_OFTEN = 200  # events per second: 4 in a pause
_MANY = 64  # records in the ring that are read without a pause


class Pace:
    """Decides after each read for how long the reader pauses."""

    def __init__(self) -> None:
        self._last, self._taken = time.monotonic(), 0

    def pause(self, taken: int, waiting: int) -> float:
        """Return seconds: 0 if events are rare, or more are `waiting`; `taken` were read so far."""
        now = time.monotonic()
        elapsed, events = now - self._last, taken - self._taken
        self._last, self._taken = now, taken
        often = events > _OFTEN * elapsed
        return PAUSE if often and waiting < _MANY else 0.0
