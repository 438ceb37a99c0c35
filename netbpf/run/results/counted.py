"""Results counted from events while they are read: distributions and aggregations."""

from __future__ import annotations

from typing import Any

from netbpf.declare.aggregation import Aggregation
from netbpf.declare.histogram import Histogram
from netbpf.declare.shown import bucket_columns, sorted_rows
from netbpf.kernel.clock import kernel_ns
from netbpf.run.results.aggregates import Aggregator
from netbpf.run.results.events import EventResult
from netbpf.run.results.histograms import HistogramCounter


class DistributionResult(EventResult):
    """Distributions of a column of the events, counted while they are read."""

    unit = "values"
    heading = False

    def __init__(self, declared: Histogram, *more: Any) -> None:
        super().__init__(*more)
        self.declared = declared
        self.columns = (*declared.key.columns, *bucket_columns())
        self.counter = HistogramCounter(declared, self.settings["map_entries"])

    def _show(self, ns: int, values: dict[str, Any]) -> None:
        self.counter.add(values)

    def _show_waiting(self, ns: int, values: dict[str, Any]) -> None:
        pass

    def close_interval(self, final: bool) -> None:
        """Write the distributions of the interval; those of the last one come with drain()."""
        if self.pending:
            self._look_at_pending()
        self._read_to(self._mark)
        if not final:
            self._write_histograms()

    def drain(self) -> None:
        """Write the last distributions."""
        super().drain()
        self._write_histograms()
        if self.more.get("pending"):
            self.note(f"{self.more['pending']} had not ended and are not counted")
        if self.more.get("abandoned"):
            number = self.more["abandoned"]
            self.note(f"{number} never returned: they count with the time until they were left")
        if self.counter.crowded:
            self.note("the key null holds what found no room among --map-entries keys")

    def _write_histograms(self) -> None:
        now = kernel_ns()
        for histogram in self.counter.since_last():
            self.writer.histogram(now, histogram)


class AggregateResult(EventResult):
    """Rows made of the events while they are read."""

    heading = False

    def __init__(self, declared: Aggregation, *more: Any) -> None:
        super().__init__(*more)
        self.columns = declared.row.columns
        self._intervals = 0
        self.reader = Aggregator(declared, self.settings)

    def _show(self, ns: int, values: dict[str, Any]) -> None:
        self.reader.add(values, True)

    def _show_open(self, ns: int, values: dict[str, Any]) -> None:
        self.reader.add(values, False)

    def close_interval(self, final: bool) -> None:
        """Write the rows of the interval; those of the last one come with drain()."""
        super().close_interval(final)
        if not final:
            self._write_rows()

    def drain(self) -> None:
        """Write the last rows."""
        super().drain()
        self._write_rows()
        if self.reader.crowded:
            self.note("the row without a key holds what found no room among --map-entries rows")

    def _write_rows(self) -> None:
        now, rows = self.reader.since_last()
        if self._intervals:
            self.writer.new_table()
        self._intervals += 1
        self.writer.rows(now, sorted_rows(rows, self.settings.get("sort") or ""))
