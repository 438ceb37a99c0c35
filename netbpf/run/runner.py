"""The sequence of every tool: check, select, compile, attach, ready, stream, write, summary."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, Optional, TextIO

from netbpf.bpf.type_answers import keep_answers, open_kernel
from netbpf.declare.constants import load_constant
from netbpf.declare.memory import ring_size
from netbpf.declare.tool import Tool
from netbpf.errors import EXIT_LOST, NetbpfError
from netbpf.kernel.clock import StepAlarm, kernel_ns
from netbpf.output.clock import Clock
from netbpf.output.outlet import Outlet
from netbpf.output.screen import Resizes, report
from netbpf.output.writers import TextWriter, make_writer
from netbpf.run.confinement import Confinement
from netbpf.run.filters import active_filters, checked, filter_defines, netns_of
from netbpf.run.kernel_counters import KernelCounters
from netbpf.run.losses import Budget, Cost, LossLedger
from netbpf.run.names import Names
from netbpf.run.pace import Pace
from netbpf.run.program import start
from netbpf.run.ready import ReadyFile
from netbpf.run.reports import Reports
from netbpf.run.results.choose import left_out_of_csv, make_result
from netbpf.run.results.tables import read_totals
from netbpf.run.snapshot import take_snapshot
from netbpf.run.stop import Stop
from netbpf.run.summary import add_notes, intent_of, progress_of, summary_of
from netbpf.system.file_limit import allow_many_files

_LAST_SECONDS = 0.1  # to write the summary after the time for results is over


def run(tool: Tool, settings: Mapping[str, Any], out: Optional[TextIO] = None) -> int:
    """Run `tool` until it is stopped, with the least privileges; return the exit status."""
    return Run(tool, settings, out or sys.stdout, confined=True).execute()


class Run:
    """One run of one tool; if `confined`, this process drops privileges that it no longer needs."""

    def __init__(
        self, tool: Tool, settings: Mapping[str, Any], out: TextIO, confined: bool = False
    ) -> None:
        """Check the options and privileges; nothing is loaded into the kernel yet."""
        self.tool = tool
        show_time = settings.get("time") or tool.show_time
        time_option = {"time": show_time} if show_time else {}
        self.settings = checked(tool, {**settings, **time_option})
        self.active_filters = active_filters(tool, settings)
        path = self.settings.get("ready_file")
        self.ready_file = ReadyFile(path) if path else None
        self.out = Outlet(out.fileno(), out.encoding)
        self._merged = 0  # intervals that were merged into the next one
        self.resizes: Optional[Resizes] = None
        self.defines = self._defines()
        allow_many_files()
        self.confinement = Confinement(tool, self.settings, confined)

    def execute(self) -> int:
        """Do the whole sequence; return the exit status."""
        self.kernel = open_kernel(self.settings.get("btf") or "", self._log)
        self.names = Names(self.kernel)
        self.defines += self._named_constants()
        with ExitStack() as self.opened:
            self._open()
            self._announce()
            return self._trace()

    def _open(self) -> None:
        # Closed in reverse order.
        keep = self.opened.callback
        keep(self.out.close)
        if self.ready_file:
            keep(self.ready_file.close)
            keep(self.ready_file.close)  # a second try, as the file outlives this process
        self.attached = start(self.tool, self.settings, self.kernel, self.defines, self._log)
        keep(self.attached.close)
        self.names.bind(self.tool, self.attached.loaded.maps)
        keep_answers(self.kernel, self._log)
        self.cost = Cost(self.attached.loaded.programs)
        keep(self.cost.close)
        self.clock = Clock(kernel_ns)
        self.stop = Stop(self.settings, self.out)
        keep(self.stop.close)
        if self.out.isatty():
            self.resizes = Resizes()
            keep(self.resizes.close)
        self.steps = StepAlarm()
        keep(self.steps.close)
        self.counters = KernelCounters(self.tool, self.settings, self.confinement.helper)
        keep(self.counters.close)
        self.attached.counters = self.counters.source
        self.result = make_result(self.tool, self.settings, self.attached, self.clock)
        self.ledger = LossLedger(self.attached, self.cost, self.result)
        self.writer = make_writer(
            self.settings["output"], self.tool.name, self.result.columns, self.clock,
            self.out, self.settings,
        )  # fmt: skip

    def _announce(self) -> None:
        self.stop.begin_line()
        omitted = left_out_of_csv(self.result) if self.settings["output"] == "csv" else ""
        if omitted:
            report(f"{self.tool.name}: {omitted}")
        if isinstance(self.writer, TextWriter) and not self.result.heading:
            report(f"{self.tool.name}: {intent_of(self.settings)}: {self.tool.summary}")

    def _trace(self) -> int:
        # Read before the kernel's counters, and at the end after them: never smaller than these.
        self._counted = self._totals()
        self.counters.begin()
        take_snapshot(self.attached)
        self.result.begin(self.stop, self.writer)
        self.confinement.enter(self.attached.loaded.maps, self._log)
        self._ready()
        self.confinement.seal()
        self.writer.begin()
        if isinstance(self.writer, TextWriter) and self.result.heading:
            self.writer.heading_now()
        self.out.flush()
        self._loop()
        return self._finish()

    def _loop(self) -> None:
        self.stop.begin()
        if self.steps.fd >= 0:
            self.stop.watch(self.steps.fd)
        percent = self.settings.get("max_overhead")
        budget = Budget(self.cost, percent) if percent else None
        as_json = self.settings["output"] == "json"
        self.reports = Reports(self.ledger, self.out, self._write_progress, as_json)
        interval = self.settings.get("interval") or 0.0
        due = time.monotonic() + interval if interval else float("inf")
        left = self.settings.get("count") or 0
        pace, pause = Pace(), 0.0
        while not self.stop.reason:
            until = min(due, self.reports.due, self.result.next_due(), self.counters.due)
            self.stop.pause(min(pause, until - time.monotonic()))
            self.stop.wait(until)
            self._check_clock()
            if self.resizes and self.resizes.seen():
                self.writer.style.screen.refresh()
            self.out.flush()
            self.result.read()
            pause = pace.pause(self.result.taken, self.result.waiting)
            self.out.flush()
            self.counters.update(self.result.namespaces)
            if time.monotonic() >= due and not self.stop.reason:
                due += interval
                left -= 1
                if left == 0:  # the interval that ends now is the last one
                    self.stop.now("count")
                    break
                self._close_interval()
            if time.monotonic() >= self.reports.due:
                self.reports.update()
                self._check_budget(budget)
                if self.out.blocked:  # -n counts events that happened, even if unread
                    missed = self.ledger.total.get("ring_full", 0)
                    self.stop.remaining(self.result.seen + self.result.unwritten + missed)
            if self.out.error:
                closed = isinstance(self.out.error, BrokenPipeError)
                self.stop.now("closed pipe" if closed else "output error")

    def _close_interval(self) -> None:
        if self.out.blocked:  # nothing is lost: the next interval covers this time
            self._merged += 1
            return
        self.result.collect(final=False)
        self.writer.interval.lost = self.reports.take_interval()
        self.result.close_interval(final=False)
        self.writer.end_interval()
        self.out.flush()

    def _check_budget(self, budget: Optional[Budget]) -> None:
        over = budget.overrun() if budget else None
        if over:
            self.result.note(f"stopped: probes and reader cost {over} (--max-overhead)")
            self.stop.now("max-overhead")

    def _write_progress(self, fresh: Mapping[str, int]) -> None:
        ns = kernel_ns()
        lost = {**self.ledger.total, "unwritten": 0, **self._not_covered()}
        report = progress_of(self.result, self.clock, ns, lost, self.cost.read())
        self.writer.progress(ns, report, fresh)
        self.out.flush()

    def _not_covered(self) -> dict[str, int]:
        return {"not_covered": self.confinement.not_covered(self.attached, self.result)}

    def _finish(self) -> int:
        """Write the events before the stop, detach, and write the summary."""
        self.stop.begin_line()
        self._check_clock()
        self.result.collect(final=True)
        end = kernel_ns()
        self.writer.interval.lost = self.reports.take_interval()
        lost = self.ledger.total
        self.result.close_interval(final=True)
        self.out.flush()  # detaching can take a while
        cost = self.cost.read()
        self.counters.end()
        totals = self._totals()
        with self.stop.extended():
            self.attached.detach()
        self.result.drain()
        self.writer.end_interval()
        self.stop.finish()
        if totals:
            totals = {name: n - self._counted[name] for name, n in totals.items()}
            self.result.fields["totals"] = totals
        lost = {
            **lost,
            "reader": self.result.invalid_records,
            "unwritten": self.result.unread + self.out.drop(),
            **self._not_covered(),
            **self._unseen(totals),
        }
        return self._summarise(end, cost, lost)

    def _check_clock(self) -> None:
        self.steps.clear()
        if self.clock.resync():
            self.result.note("the wall clock was set meanwhile: times before and after differ")

    def _defines(self) -> list[str]:
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

    def _ready(self) -> None:
        self.attached.log_choice(self._log)
        if self.ready_file:
            self.ready_file.create()
        self._log("ready")

    def _log(self, message: str) -> None:
        if self.settings.get("verbose"):
            print(f"netbpf: {message}", file=sys.stderr)

    def _unseen(self, totals: dict[str, int]) -> dict[str, int]:
        count = self.tool.count_unseen
        counters = self.counters.own
        return {"unseen": count(totals, counters, self.attached.missing)} if count else {}

    def _summarise(self, end: int, cost: dict[str, Any], lost: dict[str, int]) -> int:
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
        summary["notes"] = self.result.notes + self.confinement.notes(self.attached)
        add_notes(
            summary, self.tool, self.settings, self.result, self.counters, self.active_filters
        )
        summary["notes"] += self.names.notes()
        self.writer.summary(summary)
        self.stop.finish(_LAST_SECONDS)
        failure = None if isinstance(self.out.error, BrokenPipeError) else self.out.error
        if self.settings["output"] == "json" and (failure or self.out.blocked):
            self.writer.explain(summary)
        if failure:
            raise NetbpfError(f"standard output: {failure.strerror}")
        return EXIT_LOST if any(lost.values()) and self.settings.get("fail_on_loss") else 0
