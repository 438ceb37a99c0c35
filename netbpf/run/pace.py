"""Let events gather before they are read: in a storm, waking the reader costs more than reading.

The kernel wakes the reader for a record only if the reader has released all records before it
(kernel/bpf/ringbuf.c). So a reader that pauses is woken once per pause, however many events happen.
In a session, whose rings fill while others are read, even that is often: 0.5 times per connection.
So while events are frequent, the reader keeps the last record of each ring, and nothing wakes it.
"""

from __future__ import annotations

import time

PAUSE = 0.02  # seconds; a person sees an event within 0.1
_OFTEN = 200  # events per second: 4 in a pause
MANY = 1024  # records in one ring that are read without a pause: as many as are read at once


class Pace:
    """Decides after each read for how long the reader pauses; `often`: events are frequent."""

    often = False

    def __init__(self) -> None:
        self._last, self._taken = time.monotonic(), 0

    def pause(self, taken: int, waiting: int) -> float:
        """Return seconds: 0 if events are rare, or many are `waiting`; `taken` were read so far."""
        now = time.monotonic()
        elapsed, events = now - self._last, taken - self._taken
        self._last, self._taken = now, taken
        self.often = events > _OFTEN * elapsed
        return PAUSE if self.often and waiting < MANY else 0.0
