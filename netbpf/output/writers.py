"""Writers for text, JSON lines and CSV.

Writers depend on columns and streams, not on tools. Records are written to `out`. The summary is
written to `out` as JSON and to stderr as text.
"""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Optional, TextIO, Union

from netbpf.declare.aliases import Shown, chosen_columns
from netbpf.declare.columns import Column
from netbpf.declare.record import text_columns
from netbpf.declare.values import escape
from netbpf.output.clock import Clock
from netbpf.output.outlet import Outlet
from netbpf.output.text import describe_histogram, describe_loss, describe_summary

Stream = Union[TextIO, Outlet]
_encode = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode


class Style:
    """Output settings: `wide`, `time` (wall clock), `timestamp` (seconds since start).

    With `interval`, CSV has a column for losses per interval. `shown` are the text columns of an
    alias.
    """

    def __init__(self, settings: Mapping[str, Any], terminal: bool) -> None:
        """Read the settings; a terminal truncates long values unless --wide is given."""
        self.wide = bool(settings.get("wide"))
        self.time = bool(settings.get("time"))
        self.seconds = settings.get("time") == "seconds"
        self.shown: Sequence[Shown] = settings.get("shown") or ()
        self.given = {name for name, value in settings.items() if value}
        self.timestamp = bool(settings.get("timestamp"))
        self.interval = bool(settings.get("interval"))
        self.terminal = terminal
        self.cut = terminal and not self.wide


class Interval:
    """State shared by the rows of one interval: `lost`, the losses by cause."""

    lost: Mapping[str, int] = {}


class Writer:
    """Base class of writers: the interface that the runner calls.

    `interval` is shared with siblings.
    """

    def __init__(
        self, tool: str, columns: Sequence[Column], clock: Clock, out: Stream, style: Style
    ) -> None:
        """Write records of `columns` for `tool`."""
        self.tool = tool
        self.columns = tuple(columns)
        self.clock = clock
        self.out = out
        self.style = style
        self.interval = Interval()

    def begin(self) -> None:
        """Write the header."""

    def event(self, ns: int, values: Mapping[str, Any], kind: str = "event") -> None:
        """Write one event (or row of an interval); `ns` is its CLOCK_MONOTONIC time."""
        raise NotImplementedError

    def histogram(self, ns: int, histogram: Mapping[str, Any]) -> None:
        """Write one histogram; its fields are those of the JSON Schema."""
        raise NotImplementedError

    def counters(self, ns: int, counters: Mapping[str, int]) -> None:
        """Write the increase of kernel counters in an interval."""

    def sibling(self, columns: Sequence[Column]) -> Writer:
        """Return a writer for other columns to the same stream."""
        other = type(self)(self.tool, columns, self.clock, self.out, self.style)
        other.interval = self.interval
        other.begin()
        return other

    def new_table(self) -> None:
        """Start the rows of the next interval."""

    def end_interval(self) -> None:
        """Mark the interval that was just written if it has losses."""

    def progress(self, ns: int, progress: Mapping[str, Any], since: Mapping[str, int]) -> None:
        """Report progress at the time `ns`; `since` are the losses since the last report."""
        if since:
            print(f"{self.tool}: {describe_loss(since)}", file=sys.stderr, flush=True)

    def summary(self, summary: Mapping[str, Any]) -> None:
        """Write the summary."""
        self.explain(summary)

    def explain(self, summary: Mapping[str, Any]) -> None:
        """Write the summary as text to stderr."""
        print(describe_summary(summary), file=sys.stderr, flush=True)

    def _aside(self, text: str) -> None:
        # Outlet.drop() counts unwritten records, and this is none.
        getattr(self.out, "aside", self.out.write)(text)


class JsonWriter(Writer):
    """Writes one JSON object per line."""

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


class CsvWriter(Writer):
    """Writes RFC 4180: a header and one row per record or histogram bucket."""

    def sibling(self, columns: Sequence[Column]) -> Writer:
        """Return a writer that discards its rows: a CSV file has one set of columns."""
        return _Nothing(self.tool, columns, self.clock, self.out, self.style)

    def begin(self) -> None:
        """Write the header."""
        self._csv = csv.writer(self.out)
        self._with_losses = bool(self.style.interval)
        names = [column.name for column in self.columns]
        header = io.StringIO()
        csv.writer(header).writerow(["time", "type", *names, *["lost"] * self._with_losses])
        self._aside(header.getvalue())

    def event(self, ns: int, values: Mapping[str, Any], kind: str = "event") -> None:
        """Write one row; unknown values are empty."""
        self._row(ns, kind, values)

    def histogram(self, ns: int, histogram: Mapping[str, Any]) -> None:
        """Write one row per bucket."""
        for bucket in histogram["buckets"]:
            self._row(ns, "histogram", {**histogram["key"], **bucket})

    def _row(self, ns: int, kind: str, values: Mapping[str, Any]) -> None:
        # Programs get raw strings; terminals must not receive escape sequences.
        cells = [values.get(column.name) for column in self.columns]
        cells = [";".join(cell) if isinstance(cell, list) else cell for cell in cells]
        cells = [str(cell).lower() if isinstance(cell, bool) else cell for cell in cells]
        if self.style.terminal:
            cells = [escape(cell) if isinstance(cell, str) else cell for cell in cells]
        if self._with_losses:
            lost = sum(self.interval.lost.values())
            cells.append(lost if kind != "event" else None)
        self._csv.writerow([self.clock.rfc3339(ns), kind, *cells])


class TextWriter(Writer):
    """Writes aligned columns."""

    def begin(self) -> None:
        """Prepare the columns; the heading is written before the first row."""
        usual = list(text_columns(self.columns, self.style.wide, self.style.given))
        self._shown = chosen_columns(self.columns, self.style.shown, usual, self.style.wide)
        self._headed = False
        self._separate = False

    def sibling(self, columns: Sequence[Column]) -> Writer:
        """Return a writer for other columns, with a blank line before each heading."""
        other = super().sibling(columns)
        assert isinstance(other, TextWriter)
        other._separate = True
        return other

    def new_table(self) -> None:
        """Repeat the heading before the next row."""
        if self._headed and not self._separate:
            self._aside("\n")
        self._headed = False

    def event(self, ns: int, values: Mapping[str, Any], kind: str = "event") -> None:
        """Write one line."""
        if not self._headed:
            self._heading()
        cells = [self._cell(column, column.cell(values)) for column in self._shown]
        self.out.write(" ".join([*self._stamps(ns), *cells]).rstrip() + "\n")

    def histogram(self, ns: int, histogram: Mapping[str, Any]) -> None:
        """Write the histogram as bars."""
        stamp = " ".join(self._stamps(ns))
        self.out.write(describe_histogram(histogram, stamp))

    def counters(self, ns: int, counters: Mapping[str, int]) -> None:
        """Write one line with the counters that changed, and a blank line between intervals."""
        grown = [f"{name} +{number}" for name, number in counters.items() if number]
        end = "" if self._separate else "\n"
        self._aside(f"kernel: {', '.join(grown) or 'no counter grew'}\n{end}")
        self._headed = False

    def end_interval(self) -> None:
        """Write a line below an incomplete interval."""
        if self.interval.lost:
            self._aside(f"{describe_loss(self.interval.lost)} in this interval\n")
            self._headed = False

    def heading_now(self) -> None:
        """Write the heading before the first event, as a sign that tracing has started."""
        if not self._headed:
            self._heading()

    def _heading(self) -> None:
        self._headed = True
        if self._separate:
            self._aside("\n")
        width = 8 if self.style.seconds else 15
        stamps = [f"{'TIME':<{width}}"] * self.style.time
        stamps += [f"{'TIME(s)':<10}"] * self.style.timestamp
        cells = [self._cell(column, column.title) for column in self._shown]
        self._aside(" ".join([*stamps, *cells]).rstrip() + "\n")

    def _stamps(self, ns: int) -> list[str]:
        wall = [self.clock.local(ns)[: 8 if self.style.seconds else 15]] if self.style.time else []
        since = [f"{self.clock.since_start(ns):<10.6f}"] if self.style.timestamp else []
        return wall + since

    def _cell(self, column: Column, text: str) -> str:
        # Truncate only on a terminal, where lines would wrap, and mark it with "~".
        width = max(column.width, column.full) if self.style.wide else column.width
        if self.style.cut and len(text) > width and column is not self._shown[-1]:
            text = text[: width - 1] + "~"
        return f"{text:{column.align}{width}}"


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
    return kind(tool, columns, clock, stream, Style(settings or {}, stream.isatty()))
