"""Make the result that a tool declares and its options ask for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from netbpf.declare.stacks import user_stacks
from netbpf.declare.tool import Tool
from netbpf.output.clock import Clock
from netbpf.output.writers import Writer
from netbpf.run.attached import Attached
from netbpf.run.results.base import Result
from netbpf.run.results.counted import AggregateResult, DistributionResult
from netbpf.run.results.events import EventResult
from netbpf.run.results.maps import HistogramResult, TableResult
from netbpf.run.stop import Stop


class Results(Result):
    """Several results of one tool in order; CSV has the rows of `parts[csv_part]`."""

    def __init__(self, parts: Sequence[Result], csv_part: int = 0) -> None:
        super().__init__()
        self.parts = tuple(parts)
        for part in parts:
            part.namespaces = self.namespaces
        self.unit = parts[0].unit
        self.csv_part = csv_part
        self.columns = parts[csv_part].columns

    @property
    def invalid_records(self) -> int:
        """The number of invalid records of all parts."""
        return sum(part.invalid_records for part in self.parts)

    @property
    def lost(self) -> dict[str, int]:
        """The losses of all parts."""
        return {cause: number for part in self.parts for cause, number in part.lost.items()}

    @property
    def empty(self) -> bool:
        """Whether no part has shown anything."""
        return all(part.empty for part in self.parts)

    @property
    def heading(self) -> bool:  # type: ignore[override]
        """Whether the first part has a heading."""
        return self.parts[0].heading

    def begin(self, stop: Stop, writer: Writer) -> None:
        """Begin all parts; each writes its own columns."""
        for index, part in enumerate(self.parts):
            part.begin(stop, writer if index == self.csv_part else writer.sibling(part.columns))

    def next_due(self) -> float:
        """Return the earliest time of all parts."""
        return min(part.next_due() for part in self.parts)

    def read(self) -> bool:
        """Read all parts."""
        found = [part.read() for part in self.parts]
        self.seen = self.parts[0].seen
        return True in found

    def listen(self, wanted: bool) -> None:
        """Say to all parts whether the kernel shall wake the reader."""
        for part in self.parts:
            part.listen(wanted)

    def collect(self, final: bool) -> None:
        """Collect for all parts."""
        for part in self.parts:
            part.collect(final)

    @property
    def taken(self) -> int:
        """The number of records that all parts have read."""
        return sum(part.taken for part in self.parts)

    @property
    def waiting(self) -> int:
        """The number of unread events of all parts."""
        return sum(part.waiting for part in self.parts)

    @property
    def unwritten(self) -> int:
        """The number of events that the parts have not written."""
        return sum(part.unwritten for part in self.parts)

    @property
    def unread(self) -> int:
        """The number of events before the end that no part has read."""
        return sum(part.unread for part in self.parts)

    @property
    def after_end(self) -> int:
        """The number of events after the end, of all parts."""
        return sum(part.after_end for part in self.parts)

    def progress(self) -> dict[str, Any]:
        """Return the fields of all parts."""
        self.seen = self.parts[0].seen
        return {name: value for part in self.parts for name, value in part.progress().items()}

    def close_interval(self, final: bool) -> None:
        """Close the interval of all parts."""
        for part in self.parts:
            part.close_interval(final)

    def drain(self) -> None:
        """Drain all parts."""
        for part in self.parts:
            part.drain()

    def summary(self) -> dict[str, Any]:
        """Return the fields of all parts, and collect their notes."""
        self.seen = self.parts[0].seen
        for part in self.parts:
            self.fields.update(part.summary())
            self.notes += part.notes
        return self.fields


def main_part(parts: Sequence[Result]) -> int:
    """Return the index of the result that CSV output has, as a file has one kind of rows.

    It is the one that an option asks for, else the one declared as the main one.
    """
    requested = [index for index, part in enumerate(parts) if part.requested]
    return next(iter([*requested, *(index for index, part in enumerate(parts) if part.main)]), 0)


def left_out_of_csv(result: Result) -> str:
    """Return a message about what CSV omits and other formats show, "" if nothing."""
    parts = result.parts if isinstance(result, Results) else (result,)
    main = result.csv_part if isinstance(result, Results) else 0
    titles = [part.title for index, part in enumerate(parts) if index != main and part.title]
    titles += [title for part in parts for title in part.not_in_csv]
    if not titles:
        return ""
    return f"CSV has only {parts[main].title}; --json also shows {' and '.join(titles)}"


def make_result(
    tool: Tool, settings: Mapping[str, Any], attached: Attached, clock: Clock
) -> Result:
    """Return the result that `tool` declares, or all of its results as one."""
    parts: list[Result] = []
    counted = tool.histogram if tool.histogram and tool.histogram.of else None
    if tool.event and tool.has_events(settings):
        context = (tool, tool.event, settings, attached, clock)
        measured, rows = settings.get("histogram"), tool.aggregation
        if counted and settings.get(counted.option):
            parts.append(DistributionResult(counted, *context))
        elif measured and rows:
            distribution = rows.distribution(measured, settings.get("by") or ())
            parts.append(DistributionResult(distribution, *context))
        elif rows and settings.get(rows.option):
            parts.append(AggregateResult(rows, *context))
        else:
            parts.append(EventResult(*context))
    histogram = tool.histogram_of(settings)
    if histogram and not counted:
        parts.append(HistogramResult(tool, histogram, settings, attached, clock))
    tables = tool.tables_of(settings)
    for table in tables:
        counters = tool.interval_counters if table is tables[-1] else ()
        parts.append(TableResult(tool, table, settings, attached, counters))
    if tool.uprobes:
        manager = import_module(f"netbpf.run.{tool.uprobes}").UprobeManager
        parts.append(manager(tool, settings, attached))
    if user_stacks(tool.records, settings):
        parts.append(import_module("netbpf.run.stacks").StackReader(tool, settings, attached))
    if len(parts) == 1:
        return parts[0]
    return Results(parts, main_part(parts) if settings["output"] == "csv" else 0)
