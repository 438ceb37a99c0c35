"""Digests: rows per interval from the events of a tool."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from netbpf.declare.aggregation import Aggregation, Group
from netbpf.kernel.clock import kernel_ns


class Aggregator:
    """Sorts events into groups; each read returns the rows of an interval and begins anew.

    At most --map-entries groups are kept apart in an interval; what comes after is in a row of
    which no key is known, and `crowded` is true.
    """

    def __init__(self, declared: Aggregation, settings: Mapping[str, Any]) -> None:
        """Take the declaration."""
        self._declared = declared
        self._settings = settings
        self._most = settings["map_entries"]
        self._groups: dict[tuple[Any, ...], Group] = {}
        self.crowded = False

    def add(self, values: Mapping[str, Any], ended: bool) -> None:
        """Take an event."""
        key = tuple(values[name] for name in self._declared.key)
        if key not in self._groups and len(self._groups) >= self._most:
            self.crowded = True
            key = (None,) * len(key)
        if key not in self._groups:
            self._groups[key] = self._declared.group()
        self._groups[key].add(values, ended)

    def since_last(self) -> tuple[int, list[dict[str, Any]]]:
        """Return the monotonic time in ns, and the rows of the interval that ends now."""
        taken, self._groups = self._groups, {}
        names = self._declared.key
        rows = [{**dict(zip(names, key)), **group.row()} for key, group in taken.items()]
        kept = [row for row in rows if self._declared.keep(row, self._settings)]
        return kernel_ns(), sorted(kept, key=lambda row: -row[self._declared.order])
