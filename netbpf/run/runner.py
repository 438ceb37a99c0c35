"""The one sequence of every tool: check, select, compile, attach, ready, stream, write, summary."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, Optional, TextIO

from netbpf.declare.constants import load_constant
from netbpf.declare.memory import ring_size
from netbpf.declare.tool import Tool
from netbpf.errors import EXIT_LOST, NetbpfError
from netbpf.kernel.clock import StepAlarm, kernel_ns
from netbpf.kernel.inspect import LiveKernel
from netbpf.output.clock import Clock
from netbpf.output.outlet import Outlet
from netbpf.output.screen import Resizes, end_echoed_line, report
from netbpf.output.writers import TextWriter, make_writer
from netbpf.run.confinement import Confinement
from netbpf.run.filters import checked, filter_defines, narrowing, netns_of
from netbpf.run.losses import Budget, Cost, Ledger
from netbpf.run.names import Names
from netbpf.run.program import start
from netbpf.run.ready import ReadyFile
from netbpf.run.reports import Reports
from netbpf.run.results.choose import left_out_of_csv, make_result
from netbpf.run.results.tables import read_totals
from netbpf.run.snapshot import take_snapshot
from netbpf.run.stop import Stop
from netbpf.run.summary import add_notes, intent_of, progress_of, summary_of
from netbpf.run.tally import Tally
from netbpf.system.file_limit import allow_many_files

_LAST_SECONDS = 0.1  # for the summary, when the time to write results is up


def run(tool: Tool, settings: Mapping[str, Any], out: Optional[TextIO] = None) -> int:
    """Run `tool` until it is told to stop, giving up what it needs no more; return its status."""
    return Run(tool, settings, out or sys.stdout, confined=True).execute()


class Run:
    """One run of one tool; only if it is `confined` does it change what this process may do."""

    def __init__(
        self, tool: Tool, settings: Mapping[str, Any], out: TextIO, confined: bool = False
    ) -> None:
        """Check the options and privileges; nothing touches the kernel yet."""
        self.tool = tool
        show_time = settings.get("time") or tool.show_time
        stamps = {"time": show_time} if show_time else {}
        self.settings = checked(tool, {**settings, **stamps})
        self.narrowed = narrowing(tool, settings)
        path = self.settings.get("ready_file")
        self.sign = ReadyFile(path) if path else None
        self.out = Outlet(out.fileno(), out.encoding)
        self._longer = 0  # intervals that nobody read
        self.resizes: Optional[Resizes] = None
        self._interrupted = False  # by Ctrl-C, which is dealt with
        self.defines = self._defines()
        allow_many_files()
        self.confinement = Confinement(tool, self.settings, confined)

    def execute(self) -> int:
        """Do the whole sequence."""
        kernel = LiveKernel(self.settings.get("btf") or "")
        self.names = Names(kernel)
        self.defines += self._named_constants()
        with ExitStack() as self.opened:
            self._open(kernel)
            self._announce()
            return self._trace()

    def _open(self, kernel: LiveKernel) -> None:
        # What was opened last is closed first.
        keep = self.opened.callback
        keep(self.out.close)
        if self.sign:
            keep(self.sign.close)
            keep(self.sign.close)  # a file outlives us: if the first try fails, there is another
        self.attached = start(self.tool, self.settings, kernel, self.defines, self._say)
        keep(self.attached.close)
        self.names.bind(self.tool, self.attached.loaded.maps)
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
        self.tally = Tally(self.tool, self.settings, self.confinement.helper)
        keep(self.tally.close)
        self.attached.counters = self.tally.source
        self.shape = make_result(self.tool, self.settings, self.attached, self.clock)
        self.ledger = Ledger(self.attached, self.cost, self.shape)
        self.writer = make_writer(
            self.settings["output"], self.tool.name, self.shape.columns, self.clock,
            self.out, self.settings,
        )  # fmt: skip

    def _begin_line(self) -> None:
        if self.stop.reason == "SIGINT" and not self._interrupted:
            self._interrupted = True
            end_echoed_line()

    def _announce(self) -> None:
        self._begin_line()
        rest = left_out_of_csv(self.shape) if self.settings["output"] == "csv" else ""
        if rest:
            report(f"{self.tool.name}: {rest}")
        if isinstance(self.writer, TextWriter) and not self.shape.heading:
            report(f"{self.tool.name}: {intent_of(self.settings)}: {self.tool.summary}")

    def _trace(self) -> int:
        self._counted = self._totals()  # before the kernel's, at the end after them: never fewer
        self.tally.begin()
        take_snapshot(self.attached)
        self.shape.begin(self.stop, self.writer)
        self.confinement.enter(self.attached.loaded.maps, self._say)
        self._ready()
        self.confinement.seal()
        self.writer.begin()
        if isinstance(self.writer, TextWriter) and self.shape.heading:
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
        to_out = self.settings["output"] == "json"
        self.reports = Reports(self.ledger, self.out, self._write_progress, to_out)
        interval = self.settings.get("interval") or 0.0
        due = time.monotonic() + interval if interval else float("inf")
        left = self.settings.get("count") or 0
        while not self.stop.reason:
            self.stop.wait(min(due, self.reports.due, self.shape.next_due(), self.tally.due))
            self._look_at_clock()
            if self.resizes and self.resizes.seen():
                self.writer.style.screen.refresh()
            self.out.flush()
            self.shape.read()
            self.out.flush()
            self.tally.look(self.shape.namespaces)
            if time.monotonic() >= due and not self.stop.reason:
                due += interval
                left -= 1
                if left == 0:  # what closes now is the last interval: there is none after it
                    self.stop.now("count")
                    break
                self._close_interval()
            if time.monotonic() >= self.reports.due:
                self.reports.look()
                self._look_at_budget(budget)
                if self.out.blocked:  # -n counts what happened, also if nobody reads it
                    missed = self.ledger.total.get("ring_full", 0)
                    self.stop.room(self.shape.seen + self.shape.waiting + missed)
            if self.out.error:
                closed = isinstance(self.out.error, BrokenPipeError)
                self.stop.now("closed pipe" if closed else "output error")

    def _close_interval(self) -> None:
        if self.out.blocked:  # nothing is lost: the next one covers its time as well
            self._longer += 1
            return
        self.shape.collect(final=False)
        self.writer.interval.lost = self.reports.of_interval()
        self.shape.close_interval(final=False)
        self.writer.end_interval()
        self.out.flush()

    def _look_at_budget(self, budget: Optional[Budget]) -> None:
        over = budget.overrun() if budget else None
        if over:
            self.shape.note(f"stopped: probes and reader cost {over} (--max-overhead)")
            self.stop.now("max-overhead")

    def _write_progress(self, fresh: Mapping[str, int]) -> None:
        ns = kernel_ns()
        lost = {**self.ledger.total, "unwritten": 0, **self._not_covered()}
        report = progress_of(self.shape, self.clock, ns, lost, self.cost.read())
        self.writer.progress(ns, report, fresh)
        self.out.flush()

    def _not_covered(self) -> dict[str, int]:
        return {"not_covered": self.confinement.not_covered(self.attached, self.shape)}

    def _finish(self) -> int:
        """Write what belongs to the time before the stop, detach, and write the summary."""
        self._begin_line()
        self._look_at_clock()
        self.shape.collect(final=True)
        end = kernel_ns()
        self.writer.interval.lost = self.reports.of_interval()
        lost = self.ledger.total
        self.shape.close_interval(final=True)
        self.out.flush()  # detaching can take a while
        cost = self.cost.read()
        self.tally.end()
        totals = self._totals()
        with self.stop.apart():
            self.attached.detach()
        self.shape.drain()
        self.writer.end_interval()
        self.stop.finish()
        if totals:
            totals = {name: n - self._counted[name] for name, n in totals.items()}
            self.shape.more["totals"] = totals
        lost = {
            **lost,
            "reader": self.shape.strange,
            "unwritten": self.shape.unread + self.out.drop(),
            **self._not_covered(),
            **self._unseen(totals),
        }
        return self._summarise(end, cost, lost)

    def _look_at_clock(self) -> None:
        self.steps.clear()
        if self.clock.resync():
            self.shape.note("the wall clock was set meanwhile: times before and after differ")

    def _defines(self) -> list[str]:
        lines = [f"#define MAP_ENTRIES {self.settings['map_entries']}"]
        if self.tool.has_events(self.settings):
            lines.append(f"#define RING_PAGES {ring_size(self.settings['buffer']) // 4096}")
        lines += filter_defines(self.settings)
        netns = netns_of(self.settings) or os.stat("/proc/self/ns/net").st_ino
        lines.append(f"#define COUNTED_NETNS {load_constant(netns)}")  # of the summary's counters
        own = dict(self.tool.constants(self.settings)) if self.tool.constants else {}
        for option in self.tool.own_options:
            own.update(option.constant(self.settings.get(option.name)))
        return [*lines, *(f"#define {name} {value}" for name, value in own.items())]

    def _named_constants(self) -> list[str]:
        # What a tool must ask the kernel for before compiling: numbers of reasons, addresses.
        ask = self.tool.kernel_constants
        found = ask(self.settings, self.names) if ask else {}
        return [f"#define {name} {value}" for name, value in found.items()]

    def _totals(self) -> dict[str, int]:
        if not self.tool.totals:
            return {}
        return read_totals(self.tool.totals, self.attached.loaded.maps["totals"])

    def _ready(self) -> None:
        for selection in self.attached.selections:
            found = ", ".join(selection.targets) or (
                "found while running" if selection.kind else ""
            )
            self._say(f"probe {selection.probe.name}: {selection.kind or 'none'} {found}".rstrip())
            for words, why in selection.rejected:
                self._say(f"  not {words}: {why}")
        if self.sign:
            self.sign.create()
        self._say("ready")

    def _say(self, message: str) -> None:
        if self.settings.get("verbose"):
            print(f"netbpf: {message}", file=sys.stderr)

    def _unseen(self, totals: dict[str, int]) -> dict[str, int]:
        count = self.tool.count_unseen
        counters = self.tally.own
        return {"unseen": count(totals, counters, self.attached.missing)} if count else {}

    def _summarise(self, end: int, cost: dict[str, Any], lost: dict[str, int]) -> int:
        summary = summary_of(
            self.tool, self.shape, self.tally, self.clock, end, lost,
            stopped_by=self.stop.reason,
            probes=self.attached.described(),
            privileges=self.confinement.described(),
            overhead=cost,
        )  # fmt: skip
        if self._longer:
            what = f"{self._longer} intervals became part of the next one"
            self.shape.note(f"{what}: nobody read the output when they ended")
        summary["notes"] = self.shape.notes + self.confinement.notes(self.attached)
        add_notes(summary, self.tool, self.settings, self.shape, self.tally, self.narrowed)
        summary["notes"] += self.names.notes()
        self.writer.summary(summary)
        self.stop.finish(_LAST_SECONDS)
        failure = None if isinstance(self.out.error, BrokenPipeError) else self.out.error
        if self.settings["output"] == "json" and (failure or self.out.blocked):
            self.writer.explain(summary)
        if failure:
            raise NetbpfError(f"standard output: {failure.strerror}")
        return EXIT_LOST if any(lost.values()) and self.settings.get("fail_on_loss") else 0
