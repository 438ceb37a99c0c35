"""Results computed from events in user space: distributions and aggregations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from netbpf.declare.aggregation import Aggregation
from netbpf.declare.batch import Columns, rows_of
from netbpf.declare.histogram import Histogram
from netbpf.declare.keys import key_columns
from netbpf.declare.shown import bucket_columns
from netbpf.kernel.clock import kernel_ns
from netbpf.run.results.aggregates import Aggregator
from netbpf.run.results.events import EventResult
from netbpf.run.results.histograms import HistogramCounter


class DistributionResult(EventResult):
    """Distributions of a column of the events."""

    unit = "values"
    heading = False

    def __init__(self, declared: Histogram, *context: Any) -> None:
        super().__init__(*context)
        self.declared = declared
        by = self.settings.get("by")
        keys = key_columns(by, self.event.columns) if by else declared.key.columns
        self.columns = (*keys, *bucket_columns())
        self.counter = HistogramCounter(declared, self.settings["map_entries"], by)

    def _show(self, times: Sequence[int], columns: Columns) -> None:
        for values in rows_of(columns):
            self.counter.add(values)

    def _show_waiting(self, ns: int, values: dict[str, Any]) -> None:
        pass

    def close_interval(self, final: bool) -> None:
        """Write the distributions of the interval; drain() writes those of the last one."""
        if self.pending:
            self._read_pending()
        self._read_to(self._end_position)
        if not final:
            self._write_histograms()

    def drain(self) -> None:
        """Write the last distributions."""
        super().drain()
        self._write_histograms()
        if self.fields.get("pending"):
            self.note(f"{self.fields['pending']} were pending at the end and are not counted")
        if self.fields.get("abandoned"):
            number = self.fields["abandoned"]
            self.note(
                f"{number} never returned: they count with the time until they were abandoned"
            )
        if self.counter.crowded:
            self.note("the key null holds values of keys beyond --map-entries")

    def _write_histograms(self) -> None:
        now = kernel_ns()
        for histogram in self.counter.since_last():
            self.writer.histogram(now, histogram)


class AggregateResult(EventResult):
    """Rows aggregated from the events."""

    heading = False

    def __init__(self, declared: Aggregation, *context: Any) -> None:
        super().__init__(*context)
        by = self.settings.get("by") or ()
        self.columns = tuple(declared.columns(by))
        self._intervals = 0
        self.reader = Aggregator(declared, self.settings)

    def _show(self, times: Sequence[int], columns: Columns) -> None:
        for values in rows_of(columns):
            self.reader.add(values, True)

    def _show_open(self, times: Sequence[int], columns: Columns) -> None:
        for values in rows_of(columns):
            self.reader.add(values, False)

    def _show_waiting(self, ns: int, values: dict[str, Any]) -> None:
        self.reader.add(values, False)

    def close_interval(self, final: bool) -> None:
        """Write the rows of the interval; drain() writes those of the last one."""
        super().close_interval(final)
        if not final:
            self._write_rows()

    def drain(self) -> None:
        """Write the last rows."""
        super().drain()
        self._write_rows()
        if self.reader.crowded:
            self.note("the row without a key holds events of keys beyond --map-entries")

    def _write_rows(self) -> None:
        now, rows = self.reader.since_last()
        if self._intervals:
            self.writer.new_table()
        self._intervals += 1
        self.writer.rows(now, rows)
