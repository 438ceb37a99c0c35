"""Aggregate the events of a tool to rows per interval."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from netbpf.declare.aggregation import Aggregation, Number
from netbpf.declare.keys import Key, with_end
from netbpf.declare.table import sorted_rows
from netbpf.kernel.clock import kernel_ns


class Aggregator:
    """Aggregates events by key; each read returns the rows of an interval and starts the next one.

    An interval has at most --map-entries keys. Events with further keys go to a row whose key is
    null, and `crowded` is set.
    """

    def __init__(self, declared: Aggregation, settings: Mapping[str, Any]) -> None:
        """Aggregate as `declared`."""
        self._declared = declared
        self._settings = settings
        self._max_rows = settings["map_entries"]
        by: tuple[Key, ...] = settings.get("by") or ()
        self._keys = by or tuple(map(Key, declared.key))
        self._null = dict.fromkeys(declared.keys) if by else {}
        self._aggregates = {
            name: one for name, one in declared.aggregates.items() if name not in self._null
        }
        self._order = settings.get("sort") or declared.order
        self._distinct: dict[tuple[object, ...], Number] = {
            aggregate.key: aggregate for aggregate in self._aggregates.values()
        }
        self._rows: dict[tuple[Any, ...], dict[tuple[object, ...], Any]] = {}
        self.crowded = False

    def add(self, values: Mapping[str, Any], ended: bool) -> None:
        """Add an event; `ended` is false for one that is still open at the end of the interval."""
        key = tuple(one.value(values) for one in self._keys)
        if key not in self._rows and len(self._rows) >= self._max_rows:
            self.crowded = True
            key = (None,) * len(key)
        if key not in self._rows:
            self._rows[key] = {which: one.start() for which, one in self._distinct.items()}
        states = self._rows[key]
        for which, aggregate in self._distinct.items():
            if aggregate.when(values, ended):
                aggregate.add(states[which], values)

    def since_last(self) -> tuple[int, list[dict[str, Any]]]:
        """Return the monotonic time in ns, and the rows of the interval that ends now, sorted."""
        taken, self._rows = self._rows, {}
        names = [key.name for key in self._keys]
        rows = [
            {
                **self._null,
                **dict(zip(names, key)),
                **{name: one.result(states[one.key]) for name, one in self._aggregates.items()},
            }
            for key, states in taken.items()
        ]
        if "stack" in self._null:
            rows = [with_end(row, self._declared.event) for row in rows]
        kept = [row for row in rows if self._declared.having(row, self._settings)]
        kept = sorted_rows(kept, self._order)
        return kernel_ns(), kept[: self._settings.get("top") or None]
