"""Events that have not ended yet, such as open sessions: an iterator reads them all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from netbpf.declare.batch import Columns, rows_of
from netbpf.declare.probes import Role
from netbpf.declare.record import Event
from netbpf.declare.tool import Tool
from netbpf.run.program import Attached
from netbpf.run.results.decoded import EventDecoder
from netbpf.run.snapshot import read_records
from netbpf.run.stop import Stop

_BATCH = 1024  # records

Show = Callable[[Sequence[int], Columns], None]


class OpenEvents:
    """The open events at the end of an interval.

    `number` is how many the last list had, `unwritten` how many were left out as the output or the
    user stopped it.
    """

    def __init__(self, tool: Tool, event: type[Event], attached: Attached) -> None:
        self.number = self.unwritten = 0
        self._key = tool.identity
        self._layout = event.layout()
        self._time = [column.name for column in event.members].index("time")
        self._links = attached.with_role(Role.OPEN)
        self._raws: list[tuple[Any, ...]] = []

    def __bool__(self) -> bool:
        return bool(self._links)

    def read(self) -> None:
        """Read all that are open now."""
        self._raws = list(read_records(self._links, self._layout))

    def write(self, decoder: EventDecoder, stop: Stop, show: Show) -> None:
        """Pass those that were read to `show`, each once."""
        assert self._key, "a probe with the role OPEN needs identity="
        seen: set[Any] = set()
        for first in range(0, len(self._raws), _BATCH):
            if not stop.may_write(first == 0):
                self.unwritten = len(self._raws) - first
                break
            batch = self._raws[first : first + _BATCH]
            with stop.extended():  # a list takes its time, unless nobody reads it
                times, columns = decoder.events([raw[self._time] for raw in batch], batch)
                kept = _new(map(self._key, rows_of(columns)), seen)
                if len(kept) < len(times):
                    times, columns = _chosen(kept, times, columns)
                if times:
                    show(times, columns)
        self.number = len(seen)
        self._raws = []


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
