"""Writers for JSON lines and CSV, and the choice of the writer."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Mapping, Sequence
from itertools import repeat
from typing import Any, Callable, Optional

from netbpf.declare.batch import Columns, Memo
from netbpf.declare.columns import Column
from netbpf.declare.values import escape
from netbpf.output.clock import Clock
from netbpf.output.screen import Screen
from netbpf.output.text_writer import TextWriter as TextWriter
from netbpf.output.writer import Stream, Style
from netbpf.output.writer import Writer as Writer

_encode = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode


def _all_null(values: Sequence[Any]) -> bool:
    return values[0] is None and values.count(None) == len(values)


def _encoder(json_type: Any) -> Callable[[Sequence[Any]], Sequence[Any]]:
    """Return the function from the values of a column to their JSON, or what "%s" makes such."""
    if json_type == "integer":
        return lambda values: ["null" if value is None else value for value in values]
    if json_type == "string":
        encoded = Memo(_encode).all
        return lambda values: ["null"] * len(values) if _all_null(values) else encoded(values)
    return lambda values: [_encode(value) for value in values]


class JsonWriter(Writer):
    """Writes one JSON object per line."""

    _prepared = ""

    def events(self, times: Sequence[int], columns: Columns, kind: str = "event") -> None:
        """Write one object per event."""
        if self.interval.lost and kind != "event":
            super().events(times, columns, kind)
            return
        if self._prepared != kind:
            self._prepare(kind, columns)
        texts = [encode(values) for encode, values in zip(self._encoders, columns.values())]
        rows = zip(self.clock.rfc3339s(times), *texts)
        self.out.writelines(map(self._template.__mod__, rows))

    def _prepare(self, kind: str, columns: Columns) -> None:
        self._prepared = kind
        head = _encode({"tool": self.tool, "type": kind, "time": "%s"})[:-1]
        fields = [f",{_encode(name)}:%s" for name in columns]
        self._template = "".join([head, *fields, "}\n"])
        types = {column.name: column.json_type for column in self.columns}
        self._encoders = [_encoder(types.get(name)) for name in columns]

    def event(self, ns: int, values: Mapping[str, Any], kind: str = "event") -> None:
        """Write one object."""
        head = {"tool": self.tool, "type": kind, "time": self.clock.rfc3339(ns)}
        if self.interval.lost and kind != "event":
            values = {**values, "lost": sum(self.interval.lost.values())}
        self.out.write(_encode({**head, **values}) + "\n")

    def histogram(self, ns: int, histogram: Mapping[str, Any]) -> None:
        """Write one object."""
        self.event(ns, {k: v for k, v in histogram.items() if k != "headline"}, "histogram")

    def counters(self, ns: int, counters: Mapping[str, int]) -> None:
        """Write one object."""
        self.event(ns, {"counters": counters}, "counters")

    def progress(self, ns: int, progress: Mapping[str, Any], since: Mapping[str, int]) -> None:
        """Write one object."""
        head = {"tool": self.tool, "type": "progress", "time": self.clock.rfc3339(ns)}
        self._aside(_encode({**head, **progress}) + "\n")

    def summary(self, summary: Mapping[str, Any]) -> None:
        """Write the summary as the last object."""
        self._aside(_encode({"tool": self.tool, "type": "summary", **summary}) + "\n")


class _Nothing(Writer):
    """Discards rows whose columns are not those of the CSV header."""

    def event(self, ns: int, values: Mapping[str, Any], kind: str = "event") -> None:
        """Write nothing."""

    def histogram(self, ns: int, histogram: Mapping[str, Any]) -> None:
        """Write nothing."""


class _Lines(list[str]):
    """The lines that a csv.writer writes."""

    write = list.append


def _plain(value: Any) -> Any:
    """Return what CSV has for a value."""
    if isinstance(value, list):
        return ";".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else value


class CsvWriter(Writer):
    """Writes RFC 4180: a header and one row per record or histogram bucket."""

    def sibling(self, columns: Sequence[Column]) -> Writer:
        """Return a writer that discards its rows: a CSV file has one set of columns."""
        return _Nothing(self.tool, columns, self.clock, self.out, self.style)

    def begin(self) -> None:
        """Write the header."""
        self._csv = csv.writer(self.out)
        self._with_losses = bool(self.style.interval)
        if self.style.columns:
            self.columns = tuple(self.style.chosen(self.columns))
        names = [column.name for column in self.columns]
        header = io.StringIO()
        csv.writer(header).writerow(["time", "type", *names, *["lost"] * self._with_losses])
        self._aside(header.getvalue())

    def event(self, ns: int, values: Mapping[str, Any], kind: str = "event") -> None:
        """Write one row; unknown values are empty."""
        self._row(ns, kind, values)

    def events(self, times: Sequence[int], columns: Columns, kind: str = "event") -> None:
        """Write one row per event."""
        if self.style.screen.terminal:
            super().events(times, columns, kind)
            return
        unknown = (None,) * len(times)
        cells = [self._cells(column, columns.get(column.name, unknown)) for column in self.columns]
        losses = None if kind == "event" else sum(self.interval.lost.values())
        lost = [repeat(losses)] * self._with_losses
        lines = _Lines()
        rows = zip(self.clock.rfc3339s(times), repeat(kind), *cells, *lost)
        csv.writer(lines).writerows(rows)
        self.out.writelines(lines)

    def _cells(self, column: Column, values: Sequence[Any]) -> Sequence[Any]:
        plain = column.json_type in ("integer", "string")
        return values if plain else [_plain(value) for value in values]

    def histogram(self, ns: int, histogram: Mapping[str, Any]) -> None:
        """Write one row per bucket."""
        for bucket in histogram["buckets"]:
            self._row(ns, "histogram", {**histogram["key"], **bucket})

    def _row(self, ns: int, kind: str, values: Mapping[str, Any]) -> None:
        # Programs get raw strings; terminals must not receive escape sequences.
        cells = [values.get(column.name) for column in self.columns]
        cells = [_plain(cell) for cell in cells]
        if self.style.screen.terminal:
            cells = [escape(cell) if isinstance(cell, str) else cell for cell in cells]
        if self._with_losses:
            lost = sum(self.interval.lost.values())
            cells.append(lost if kind != "event" else None)
        self._csv.writerow([self.clock.rfc3339(ns), kind, *cells])


def make_writer(
    output: str,
    tool: str,
    columns: Sequence[Column],
    clock: Clock,
    out: Optional[Stream] = None,
    settings: Optional[Mapping[str, Any]] = None,
) -> Writer:
    """Return the writer for `output`, which is "text", "json" or "csv"."""
    stream = out or sys.stdout
    kind = {"text": TextWriter, "json": JsonWriter, "csv": CsvWriter}[output]
    return kind(tool, columns, clock, stream, Style(settings or {}, Screen(stream)))
