"""Events that have not ended yet, such as open sessions: an iterator reads them all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from netbpf.declare.batch import Columns, rows_of
from netbpf.declare.probes import Role
from netbpf.declare.record import Event
from netbpf.declare.tool import Tool
from netbpf.run.attached import Attached
from netbpf.run.results.decoded import EventDecoder
from netbpf.run.stop import Stop
from netbpf.system.links import read_iterator

_BATCH = 1024  # records

Show = Callable[[Sequence[int], Columns], None]


class OpenEvents:
    """The open events at the end of an interval.

    `number` is how many the last list had, `unwritten` how many were left out of the lists so far,
    as the output or the user stopped them.
    """

    def __init__(self, tool: Tool, event: type[Event], attached: Attached) -> None:
        self.number = self.unwritten = 0
        self._key = tool.identity or _its_own
        self._layout = event.layout()
        self._time = [column.name for column in event.members].index("time")
        self._links = attached.with_role(Role.OPEN)
        self._read: list[bytes] = []

    def __bool__(self) -> bool:
        return bool(self._links)

    def read(self, stop: Stop) -> None:
        """Read all that are open now."""
        with stop.extended():  # the time to read and list them does not count
            self._read = [read_iterator(link) for link in self._links]

    def write(self, decoder: EventDecoder, stop: Stop, show: Show) -> None:
        """Pass those that were read to `show`, each once."""
        seen: set[Any] = set()
        left = sum(len(data) // self._layout.size for data in self._read)
        for batch in self._batches():
            if not stop.may_write(not seen):
                self.unwritten += left
                break
            left -= len(batch)
            with stop.extended():
                times, columns = decoder.events([raw[self._time] for raw in batch], batch)
                kept = _new(map(self._key, rows_of(columns)), seen)
                if len(kept) < len(times):
                    times, columns = _chosen(kept, times, columns)
                if times:
                    show(times, columns)
                stop.flush()
        self.number = len(seen)
        self._read = []

    def _batches(self) -> Iterator[list[tuple[Any, ...]]]:
        size = _BATCH * self._layout.size
        for data in self._read:
            whole = memoryview(data)[: len(data) // self._layout.size * self._layout.size]
            for first in range(0, len(whole), size):
                yield list(self._layout.iter_unpack(whole[first : first + size]))


def _its_own(values: Mapping[str, Any]) -> object:
    """Return a key that no other event has."""
    return object()


def _new(keys: Any, seen: set[Any]) -> list[int]:
    """Return the places of the keys that are not in `seen`, and add them to it."""
    kept = []
    for place, key in enumerate(keys):
        if key not in seen:
            seen.add(key)
            kept.append(place)
    return kept


def _chosen(
    places: Sequence[int], times: Sequence[int], columns: Mapping[str, Sequence[Any]]
) -> tuple[Sequence[int], Columns]:
    some: Columns = {name: [values[place] for place in places] for name, values in columns.items()}
    return [times[place] for place in places], some
