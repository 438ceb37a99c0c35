"""Results counted in BPF maps: distributions and tables, per interval or at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any

from netbpf.bpf.maps import Map
from netbpf.declare.histogram import Histogram
from netbpf.declare.shown import bucket_columns
from netbpf.declare.table import Table, sorted_rows
from netbpf.declare.tool import Tool
from netbpf.kernel.clock import kernel_ns
from netbpf.kernel.counters import increase
from netbpf.kernel.device_counters import Devices
from netbpf.kernel.device_programs import DevicePrograms
from netbpf.output.clock import Clock
from netbpf.output.screen import report
from netbpf.output.writer import Writer
from netbpf.run.attached import Attached
from netbpf.run.filters import netns_of
from netbpf.run.results.base import Result, with_names
from netbpf.run.results.histograms import HistogramReader
from netbpf.run.results.tables import TableReader
from netbpf.run.snapshot import run_in_namespaces, run_iterators
from netbpf.run.stop import Stop


class HistogramResult(Result):
    """Distributions, per interval or once at the end.

    If the tool has `compare_devices`, the sums of the whole run are compared with the devices' own
    counters.
    """

    unit = "values"

    def __init__(
        self,
        tool: Tool,
        declared: Histogram,
        settings: Mapping[str, Any],
        attached: Attached,
        clock: Clock,
    ) -> None:
        super().__init__()
        self.title = f"the distributions ({declared.unit})"
        self.requested = bool(declared.option)
        self.tool, self.clock, self.attached, self.settings = tool, clock, attached, settings
        by = settings.get("by") or ()
        self.columns = (*declared.columns(by), *bucket_columns())
        join = settings["output"] == "text" and not settings.get("wide")
        self._fd = attached.loaded.maps[declared.map]
        self.reader = HistogramReader(declared, self._fd, join, by)
        self._devices = Devices(netns_of(settings)) if tool.compare_devices else None
        self._counted: dict[tuple[int, str], tuple[int, int]] = {}

    def begin(self, stop: Stop, writer: Writer) -> None:
        """Read the devices' counters after attaching: earlier packets are never missing."""
        super().begin(stop, writer)
        self._counted = self._devices.read() if self._devices else {}

    def _compare(self, devices: Devices) -> None:
        # The devices first: packets that they count later are not reported as missing.
        now, declared = devices.read(), self.reader.declared
        plain = copy(declared)
        plain.describe = None
        whole = HistogramReader(plain, self._fd).since_last()
        devices.close()
        increases = {
            key: (received - self._counted[key][0], sent - self._counted[key][1])
            for key, (received, sent) in now.items()
            if key in self._counted
        }
        assert self.tool.compare_devices
        fields, notes = self.tool.compare_devices(whole, increases, self.settings)
        self.fields.update(fields)
        self.notes += notes

    def collect(self, final: bool) -> None:
        """Read the histograms of the interval."""
        if final and self._devices:
            self._compare(self._devices)
        for probe in self.reader.declared.refresh:
            run_iterators(self.attached.links.get(probe, ()))
        self._taken = (kernel_ns(), self.reader.since_last())
        if final and self.tool.pending_state:
            self._note_pending_state()

    def close_interval(self, final: bool) -> None:
        """Write the histograms of the interval."""
        now, histograms = self._taken
        for histogram in histograms:
            self.namespaces.add(histogram["key"].get("netns") or 0)
            self.seen += histogram["count"]
        for histogram in histograms[: self.settings.get(self.reader.declared.limit) or None]:
            self.writer.histogram(now, histogram)
        notes_of = self.tool.histogram_notes
        for note in notes_of(histograms) if notes_of else ():
            if note not in self.notes:
                self.note(note)

    def _note_pending_state(self) -> None:
        assert self.tool.pending_state
        fds = {name: self.attached.loaded.maps[name] for name in self.tool.maps}
        maps = {name: [raw for _, raw in Map.from_fd(fd).items()] for name, fd in fds.items()}
        fields, notes = self.tool.pending_state(kernel_ns(), maps)
        self.fields.update(fields)
        self.notes += notes


class TableResult(Result):
    """Rows computed from a map, per interval or once at the end."""

    unit = "rows"

    def __init__(
        self,
        tool: Tool,
        table: Table,
        settings: Mapping[str, Any],
        attached: Attached,
        counters: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.title = f"the table of {table.map.replace('_', ' ')}"
        self.not_in_csv = ("the kernel's counters of each interval",) if counters else ()
        self.requested, self.main = bool(table.option), table.main
        self.tool, self.table, self.settings, self.attached = tool, table, settings, attached
        self.columns = tuple(table.columns(settings))
        self.reader = TableReader(table, attached.loaded.maps[table.map])
        self._warnings: dict[str, str] = {}
        missing = {
            name for s in attached.selections if s.probe in tool.probes for name in s.lost_columns
        }
        self._missing = dict.fromkeys((c.name for c in self.columns if c.name in missing), None)
        self._names = counters
        self._read = (*counters, *table.counters)
        self._counters = attached.counters.read() if self._read else {}
        self._programs = None
        if table.programs and table.with_programs(settings):
            self._programs = DevicePrograms(netns_of(settings))
            attached.closers.append(self._programs.close)

    def begin(self, stop: Stop, writer: Writer) -> None:
        """Fill the map with what exists at the start."""
        super().begin(stop, writer)
        links = self.attached.links.get(self.table.first, ())
        run_in_namespaces(links, netns_of(self.settings))
        self._refresh()

    def _refresh(self) -> None:
        for probe in self.table.refresh:
            run_iterators(self.attached.links.get(probe, ()))

    def collect(self, final: bool) -> None:
        """Read the rows of the interval, then the kernel's counters for the same time."""
        self._refresh()
        self._taken = (kernel_ns(), self.reader.since_last())
        self._runs = self._programs.since_last() if self._programs else {}
        if self._read:
            before, self._counters = self._counters, self.attached.counters.read()
            self._grown = increase(before, self._counters, self._names)
            self._of_rows = increase(before, self._counters, self.table.counters)

    def close_interval(self, final: bool) -> None:
        """Write the rows, and the increase of the counters."""
        now, entries = self._taken
        self.writer.new_table()
        by = self.settings.get("by") or ()
        if any(column.name == "cgroup" for column in self.table.key.columns):
            entries = [(with_names(key, by), sums) for key, sums in entries]
        else:
            entries = [(key, with_names(sums, by)) for key, sums in entries]
        rows = [{**row, **self._missing} for row in self.table.build(entries, self.settings)]
        if self.table.counted:
            rows = list(self.table.counted(rows, self._of_rows, self.settings))
        if self.table.programs:
            rows = list(self.table.programs(rows, self._runs))
        if not any(option.name == "sort" for option in self.tool.own_options):
            rows = sorted_rows(rows, self.settings.get("sort") or "")
        self.namespaces.update(row.get("netns") or 0 for row in rows)
        self.writer.rows(now, rows)
        self.seen += len(rows)
        if self._names:
            self.writer.counters(now, self._grown)
        self._warn(rows, final)

    def _warn(self, rows: Sequence[dict[str, Any]], final: bool) -> None:
        for subject, sentence in self.table.warn(rows, self.settings) if self.table.warn else ():
            self._warnings[subject] = sentence
            if not final:  # else the summary, which follows immediately, has it
                report(f"netbpf: {sentence}")

    def summary(self) -> dict[str, Any]:
        """Return the fields; repeat the warnings as notes."""
        self.notes += self._warnings.values()
        return super().summary()
