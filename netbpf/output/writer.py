"""What the runner calls to write records: the base class of writers for text, JSON and CSV.

Writers depend on columns and streams, not on tools. Records are written to `out`. The summary is
written to `out` as JSON and to stderr as text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TextIO, Union

from netbpf.declare.aliases import Shown
from netbpf.declare.batch import Columns, rows_of
from netbpf.declare.columns import Column
from netbpf.output.clock import Clock
from netbpf.output.outlet import Outlet
from netbpf.output.screen import RED, Screen, report
from netbpf.output.text import describe_loss, describe_summary

Stream = Union[TextIO, Outlet]


class Style:
    """Output settings: `wide`, `time` (wall clock), `timestamp` (seconds since start).

    `columns` are the names given with --columns, `shown` the text columns of an alias. With
    `interval`, CSV has a column for losses per interval. `screen` is the terminal of the output, if
    it is one.
    """

    def __init__(self, settings: Mapping[str, Any], screen: Screen) -> None:
        """Read the settings."""
        self.wide = bool(settings.get("wide"))
        self.time = bool(settings.get("time"))
        self.seconds = settings.get("time") == "seconds"
        self.given = {name for name, value in settings.items() if value}
        self.timestamp = bool(settings.get("timestamp"))
        self.interval = bool(settings.get("interval"))
        self.verbose = bool(settings.get("verbose"))
        self.columns: Sequence[str] = settings.get("columns") or ()
        self.sort = str(settings.get("sort") or "")
        self.shown: Sequence[Shown] = settings.get("shown") or ()
        self.screen = screen

    def chosen(self, columns: Sequence[Column]) -> list[Column]:
        """Return those of `columns` that --columns names, in its order."""
        named = {column.name: column for column in columns}
        return [named[name] for name in self.columns if name in named]


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

    def events(self, times: Sequence[int], columns: Columns, kind: str = "event") -> None:
        """Write many events (or rows of an interval) with the same columns."""
        for ns, values in zip(times, rows_of(columns)):
            self.event(ns, values, kind)

    def rows(self, ns: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write all rows of an interval."""
        for row in rows:
            self.event(ns, row, "interval")

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
            report(f"{self.tool}: {describe_loss(since)}", RED)

    def summary(self, summary: Mapping[str, Any]) -> None:
        """Write the summary."""
        self.explain(summary)

    def explain(self, summary: Mapping[str, Any]) -> None:
        """Write the summary as text to stderr."""
        for line in describe_summary(summary, self.style.verbose):
            report(line, RED if "LOST DATA" in line else "")

    def _aside(self, text: str) -> None:
        # Outlet.drop() counts unwritten records, and this is none.
        getattr(self.out, "aside", self.out.write)(text)
