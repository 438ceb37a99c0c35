"""Collect what the tools of a session show, in a bounded amount of memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Optional

from netbpf.declare.batch import Columns
from netbpf.declare.columns import Column
from netbpf.declare.finding import View
from netbpf.output.clock import Clock
from netbpf.output.screen import Screen
from netbpf.output.writer import Stream, Style, Writer

MOST_KEYS = 16384


class Counts:
    """What is kept of the events of one key."""

    __slots__ = ("count", "first", "largest", "last", "over", "pending", "sums")

    def __init__(self, view: View, ns: int) -> None:
        self.count = self.pending = 0
        self.first = self.last = ns
        self.sums = [0] * len(view.sums)
        self.largest: list[Optional[int]] = [None] * len(view.largest)
        self.over = [0] * len(view.over)


class Collector(Writer):
    """A writer that counts the events of a tool as its view says, and keeps the rows of tables.

    Events of more than 16,384 keys are counted under a key of nulls: `crowded` is their number.
    """

    def __init__(self, view: View, tool: str, columns: Sequence[Column], clock: Clock, out: Stream,
                 settings: Mapping[str, Any]) -> None:  # fmt: skip
        super().__init__(tool, columns, clock, out, Style(settings, Screen(out)))
        self._view = view
        self._counts: dict[tuple[Any, ...], Counts] = {}
        self._rows: list[Mapping[str, Any]] = []
        self.crowded = 0
        self.summary_fields: Mapping[str, Any] = {}

    def sibling(self, columns: Sequence[Column]) -> Writer:
        """Return itself: all results of the tool are collected."""
        return self

    def event(self, ns: int, values: Mapping[str, Any], kind: str = "event") -> None:
        """Collect one event, or a row of a table."""
        if self._view.keys:
            self.events([ns], {name: (value,) for name, value in values.items()}, kind)
        else:
            self._rows.append(values)

    def events(self, times: Sequence[int], columns: Columns, kind: str = "event") -> None:
        """Collect many events."""
        view, counts = self._view, self._counts
        if not view.keys:
            super().events(times, columns, kind)
            return
        absent = (None,) * len(times)

        def values(names: Sequence[str]) -> list[Sequence[Any]]:
            return [columns.get(name, absent) for name in names]

        keys = zip(*values(view.keys))
        sums, largest = values(view.sums), values(view.largest)
        over = [(columns.get(column, absent), limit) for _, column, limit in view.over]
        for i, (ns, key) in enumerate(zip(times, keys)):
            known = counts.get(key)
            if known is None:
                known = counts.setdefault(self._room_for(key), Counts(view, ns))
            known.last = ns
            if kind == "event":
                known.count += 1
            else:
                known.pending += 1
            for j, column in enumerate(sums):
                known.sums[j] += column[i] or 0
            for j, column in enumerate(largest):
                value, before = column[i], known.largest[j]
                if value is not None and (before is None or value > before):
                    known.largest[j] = value
            for j, (column, limit) in enumerate(over):
                known.over[j] += (column[i] or 0) > limit

    def _room_for(self, key: tuple[Any, ...]) -> tuple[Any, ...]:
        if len(self._counts) < MOST_KEYS:
            return key
        self.crowded += 1
        return (None,) * len(key)

    def histogram(self, ns: int, histogram: Mapping[str, Any]) -> None:
        """Ignore it: findings look at events and rows."""

    def progress(self, ns: int, progress: Mapping[str, Any], since: Mapping[str, int]) -> None:
        """Ignore it: the summary has the losses."""

    def summary(self, summary: Mapping[str, Any]) -> None:
        """Keep the summary."""
        self.summary_fields = summary

    def explain(self, summary: Mapping[str, Any]) -> None:
        """Ignore it."""

    def rows_of_view(self) -> list[Mapping[str, Any]]:
        """Return what was collected: a row per key, or the rows of the table."""
        return self._rows if not self._view.keys else [
            self._row(key, counts) for key, counts in self._counts.items()
        ]  # fmt: skip

    def _row(self, key: tuple[Any, ...], counts: Counts) -> Mapping[str, Any]:
        view = self._view
        twice = set(view.sums) & set(view.largest)
        return {
            **dict(zip(view.keys, key)),
            **dict(zip(view.sums, counts.sums)),
            **{f"{name}_max" if name in twice else name: value
               for name, value in zip(view.largest, counts.largest)},
            **{name: number for (name, _, _), number in zip(view.over, counts.over)},
            "count": counts.count,
            "pending": counts.pending,
            "first": counts.first,
            "last": counts.last,
        }  # fmt: skip
