"""One tool of a session: its options, programs, result, losses and summary."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, Callable, NamedTuple, Optional

from netbpf.declare.constants import load_constant
from netbpf.declare.memory import ring_size
from netbpf.declare.tool import Tool
from netbpf.kernel.clock import kernel_ns
from netbpf.kernel.inspect import LiveKernel
from netbpf.output.clock import Clock
from netbpf.output.outlet import Outlet
from netbpf.output.screen import report
from netbpf.output.writers import TextWriter, Writer, make_writer
from netbpf.run.attached import Attached, Log
from netbpf.run.confinement import Confinement
from netbpf.run.filters import active_filters, checked, filter_defines, netns_of
from netbpf.run.kernel_counters import KernelCounters, Readings, Sources
from netbpf.run.losses import Cost, LossLedger
from netbpf.run.meter import Meter
from netbpf.run.names import Names
from netbpf.run.program import Program
from netbpf.run.reports import Reports
from netbpf.run.results.choose import left_out_of_csv, make_result
from netbpf.run.results.tables import read_totals
from netbpf.run.snapshot import take_snapshot
from netbpf.run.stop import Stop
from netbpf.run.summary import add_notes, intent_of, progress_of, summary_of

NEVER = float("inf")


class Context(NamedTuple):
    """What all tools of a session share while they run."""

    out: Outlet
    clock: Clock
    stop: Stop
    sources: Sources
    confinement: Confinement
    meter: Meter


class Member:
    """A tool in a session, from the check of its options to its summary.

    `make_writer` makes the writer of the results from (settings, tool's name, columns, clock, out);
    the default writes them as --output says.
    """

    def __init__(
        self,
        tool: Tool,
        settings: Mapping[str, Any],
        make_writer: Callable[..., Writer] = make_writer,
    ) -> None:
        """Check the options; nothing is loaded into the kernel yet."""
        self.tool = tool
        show_time = settings.get("time") or tool.show_time
        time_option = {"time": show_time} if show_time else {}
        self.settings = checked(tool, {**settings, **time_option})
        self.active_filters = active_filters(tool, settings)
        self._make_writer = make_writer
        self._merged = 0  # intervals that were merged into the next one
        self._defines = self._constants()

    def load(
        self, kernel: LiveKernel, owners: Optional[Attached], log: Log, opened: ExitStack
    ) -> None:
        """Load the programs; `opened` closes them.

        `owners` are the programs that find owners for several tools.
        """
        self.names = Names(kernel)
        defines = [*self._defines, *self._named_constants()]
        self._program = Program(self.tool, self.settings, kernel, defines, log, owners)
        opened.callback(self._program.close)
        self._program.load()

    def attach(self, opened: ExitStack) -> None:
        """Attach the programs; `opened` detaches them."""
        self.attached = self._program.attach()
        opened.callback(self.attached.close)
        self.names.bind(self.tool, self.attached.loaded.maps)

    def open(self, context: Context) -> None:
        """Make the result and its writer."""
        self.out, self.stop, self.clock = context.out, context.stop, context.clock
        self.confinement = context.confinement
        self.counters = KernelCounters(self.tool, self.settings, context.sources)
        self.attached.counters = self.counters.source
        self.result = make_result(self.tool, self.settings, self.attached, self.clock)
        self.cost = Cost(self.attached.loaded.programs, context.meter)
        self.ledger = LossLedger(self.attached, self.cost, self.result)
        self.writer = self._make_writer(
            self.settings["output"], self.tool.name, self.result.columns, self.clock,
            self.out, self.settings,
        )  # fmt: skip

    def announce(self) -> None:
        """Report what CSV omits, and what the tool does until its first result."""
        omitted = left_out_of_csv(self.result) if self.settings["output"] == "csv" else ""
        if omitted:
            report(f"{self.tool.name}: {omitted}")
        if isinstance(self.writer, TextWriter) and not self.result.heading:
            report(f"{self.tool.name}: {intent_of(self.settings)}: {self.tool.summary}")

    def count_totals(self) -> None:
        """Read the totals before the kernel's counters, and at the end after them.

        So they are never smaller than the counters.
        """
        self._counted = self._totals()

    def begin(self, readings: Readings) -> None:
        """Record what exists already, and begin the result; `readings` are of the counters."""
        self.counters.begin(readings)
        take_snapshot(self.attached)
        self.result.begin(self.stop, self.writer)

    def begin_writing(self) -> None:
        """Write the header."""
        self.writer.begin()
        if isinstance(self.writer, TextWriter) and self.result.heading:
            self.writer.heading_now()

    def start_clock(self) -> None:
        """Begin the first interval, and the reports of losses."""
        as_json = self.settings["output"] == "json"
        self.reports = Reports(self.ledger, self.out, self._write_progress, as_json)
        self._interval = self.settings.get("interval") or 0.0
        self._due = time.monotonic() + self._interval if self._interval else NEVER
        self._left = self.settings.get("count") or 0

    def next_due(self) -> float:
        """Return the monotonic time in seconds at which update() has something to do."""
        return min(self._due, self.reports.due, self.result.next_due())

    def update(self) -> bool:
        """Close the interval and report losses, if it is time; return whether losses were read."""
        if time.monotonic() >= self._due and not self.stop.reason:
            self._due += self._interval
            self._left -= 1
            if self._left == 0:  # the interval that ends now is the last one
                self.stop.now("count")
                return False
            self._close_interval()
        if time.monotonic() < self.reports.due:
            return False
        self.reports.update()
        if self.out.blocked:  # -n counts events that happened, even if unread
            missed = self.ledger.total.get("ring_full", 0)
            self.stop.remaining(self.result.seen + self.result.unwritten + missed)
        return True

    def _close_interval(self) -> None:
        if self.out.blocked:  # nothing is lost: the next interval covers this time
            self._merged += 1
            return
        self.result.collect(final=False)
        self.writer.interval.lost = self.reports.take_interval()
        self.result.close_interval(final=False)
        self.writer.end_interval()
        self.out.flush()

    def _write_progress(self, fresh: Mapping[str, int]) -> None:
        ns = kernel_ns()
        lost = {**self.ledger.total, "unwritten": 0, **self._not_covered()}
        report = progress_of(self.result, self.clock, ns, lost, self.cost.read())
        self.writer.progress(ns, report, fresh)
        self.out.flush()

    def _not_covered(self) -> dict[str, int]:
        return {"not_covered": self.confinement.not_covered(self.tool, self.attached, self.result)}

    def collect(self) -> None:
        """Read the last interval from the kernel, and write it."""
        self.result.collect(final=True)
        self._end = kernel_ns()
        self.writer.interval.lost = self.reports.take_interval()
        self._lost = self.ledger.total
        self.result.close_interval(final=True)
        self.out.flush()  # detaching can take a while
        self._cost = self.cost.read()

    def end_counters(self, readings: Readings) -> None:
        """Compare with the kernel's counters, as they are now."""
        self.counters.end(readings)
        self._grown = self._totals()

    def drain(self) -> None:
        """Write the events from before the end; probes are detached."""
        self.result.drain()
        self.writer.end_interval()

    def summarise(self, unwritten: int) -> dict[str, int]:
        """Write the summary; return the losses by cause.

        `unwritten` is the number of records that the output did not take.
        """
        totals = self._grown
        if totals:
            totals = {name: n - self._counted[name] for name, n in totals.items()}
            self.result.fields["totals"] = totals
        lost = {
            **self._lost,
            "reader": self.result.invalid_records,
            "unwritten": self.result.unread + unwritten,
            **self._not_covered(),
            **self._unseen(totals),
        }
        self.write_summary(self._end, self._cost, lost)
        return lost

    def _unseen(self, totals: dict[str, int]) -> dict[str, int]:
        count = self.tool.count_unseen
        counters = self.counters.own
        return {"unseen": count(totals, counters, self.attached.missing)} if count else {}

    def write_summary(self, end: int, cost: dict[str, Any], lost: dict[str, int]) -> None:
        """Write the summary of a run that ended at `end` (ns)."""
        summary = summary_of(
            self.tool, self.result, self.counters, self.clock, end, lost,
            stopped_by=self.stop.reason,
            probes=self.attached.described(),
            privileges=self.confinement.described(),
            overhead=cost,
        )  # fmt: skip
        if self._merged:
            what = f"{self._merged} intervals became part of the next one"
            self.result.note(f"{what}: the output was not read when they ended")
        summary["notes"] = self.result.notes + self.confinement.notes(self.tool, self.attached)
        add_notes(
            summary, self.tool, self.settings, self.result, self.counters, self.active_filters
        )
        summary["notes"] += self.names.notes()
        self.summary = summary
        self.writer.summary(summary)

    def explain(self) -> None:
        """Write the summary to stderr, as the output does not take it."""
        if self.settings["output"] == "json":
            self.writer.explain(self.summary)

    def _constants(self) -> list[str]:
        lines = [f"#define MAP_ENTRIES {self.settings['map_entries']}"]
        if self.tool.has_events(self.settings):
            lines.append(f"#define RING_PAGES {ring_size(self.settings['buffer']) // 4096}")
        lines += filter_defines(self.settings)
        netns = netns_of(self.settings) or os.stat("/proc/self/ns/net").st_ino
        lines.append(f"#define COUNTED_NETNS {load_constant(netns)}")  # for the summary's counters
        own = self.tool.own_constants(self.settings)
        return [*lines, *(f"#define {name} {value}" for name, value in own.items())]

    def _named_constants(self) -> list[str]:
        # Constants of the running kernel: numbers of drop reasons, addresses.
        constants_of = self.tool.kernel_constants
        constants = constants_of(self.settings, self.names) if constants_of else {}
        return [f"#define {name} {value}" for name, value in constants.items()]

    def _totals(self) -> dict[str, int]:
        if not self.tool.totals:
            return {}
        return read_totals(self.tool.totals, self.attached.loaded.maps["totals"])
