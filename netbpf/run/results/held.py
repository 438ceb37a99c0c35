"""Delay events for a moment, as a second record may amend them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any, Callable

from netbpf.declare.record import AmendedEvent

# An amendment follows its event within microseconds, unless the task is preempted in between.
_SECONDS = 0.1
AMENDMENT = 1


class Held:
    """A queue of events in order; one with a key is delayed by 0.1 s. See AmendedEvent."""

    def __init__(
        self, event: type[AmendedEvent], late: Callable[[], Mapping[int, int]] = dict
    ) -> None:
        """Queue events of `event`; `late` returns {key: value} of amendments from elsewhere."""
        self._late = late
        names = [column.name for column in event.members]
        self._key, self._value = names.index("key"), names.index(event.amended)
        self._queue: deque[tuple[float, list[Any]]] = deque()
        self._latest: dict[int, list[Any]] = {}
        self._elsewhere: dict[int, int] = {}

    @property
    def number(self) -> int:
        """The number of events in the queue."""
        return len(self._queue)

    @property
    def due(self) -> float:
        """The monotonic time in seconds at which the first event is due."""
        return self._queue[0][0] if self._queue else float("inf")

    def add(self, rows: Iterable[tuple[Any, ...]], now: float) -> None:
        """Add unpacked records at the monotonic time `now`; an amendment changes its event."""
        for row in rows:
            key = row[self._key]
            if key & AMENDMENT:
                if key ^ AMENDMENT in self._latest:
                    self._latest[key ^ AMENDMENT][self._value] = row[self._value]
                continue
            event = list(row)
            if key:
                self._latest[key] = event
            self._queue.append((now + _SECONDS if key else now, event))

    def release(self, now: float = float("inf")) -> list[list[Any]]:
        """Return the events that are due at the monotonic time `now`, or all."""
        due = []
        if self._latest and self._queue[0][0] <= now:
            self._elsewhere.update(self._late())
        while self._queue and self._queue[0][0] <= now:
            event = self._queue.popleft()[1]
            if self._latest.get(event[self._key]) is event:
                del self._latest[event[self._key]]
                event[self._value] = self._elsewhere.pop(event[self._key], event[self._value])
            due.append(event)
        return due
