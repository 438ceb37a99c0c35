"""The one sequence of every tool: check, select, compile, attach, ready, stream, write, summary."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional, TextIO

from netbpf.declare.numbers import at_load
from netbpf.declare.tool import Tool
from netbpf.errors import EXIT_LOST, PrivilegeError, UsageError
from netbpf.kernel.clock import StepAlarm, kernel_ns
from netbpf.kernel.files import allow_many_files
from netbpf.kernel.inspect import LiveKernel
from netbpf.kernel.maps import Map, possible_cpus
from netbpf.kernel.privileges import in_first_user_namespace, missing_privileges
from netbpf.kernel.processes import ids_differ
from netbpf.output.clock import Clock
from netbpf.output.writers import TextWriter, make_writer
from netbpf.run.filters import checked, filter_defines, narrowing, netns_of
from netbpf.run.losses import Cost, read_covered, read_losses
from netbpf.run.names import Names
from netbpf.run.program import start
from netbpf.run.shapes import left_out_of_csv, make_shape
from netbpf.run.snapshot import take_snapshot
from netbpf.run.stop import Stop
from netbpf.run.stream import ring_size
from netbpf.run.tables import read_totals
from netbpf.run.tally import Tally

_CHECK_SECONDS = 1.0  # how often --max-overhead is looked at


def run(tool: Tool, settings: Mapping[str, Any], out: Optional[TextIO] = None) -> int:
    """Run `tool` until it is told to stop; return the exit code."""
    return Run(tool, settings, out or sys.stdout).execute()


class Run:
    """One run of one tool."""

    def __init__(self, tool: Tool, settings: Mapping[str, Any], out: TextIO) -> None:
        """Check the options and privileges; nothing touches the kernel yet."""
        self.tool = tool
        stamped = settings.get("time") or tool.stamped
        stamps = {"time": stamped} if stamped else {}
        self.settings = checked(tool, {**settings, **stamps})
        self.narrowed = narrowing(tool, settings)
        self.out = out
        self._check_ready_file()
        self.defines = self._defines()
        allow_many_files()
        lacking = missing_privileges()
        if lacking:
            hint = f"run it as root: sudo netbpf {tool.name}"
            if not in_first_user_namespace():
                hint = "those of a user namespace do not count: run it as root of the machine"
            raise PrivilegeError(f"tracing needs {', '.join(lacking)}", hint)

    def execute(self) -> int:
        """Do the whole sequence."""
        kernel = LiveKernel(self.settings.get("btf") or "")
        self.names = Names(kernel)
        self.defines += self._named_constants()
        self.attached = start(self.tool, self.settings, kernel, self.defines, self._say)
        self.names.bind(self.tool, self.attached.loaded.maps)
        self.cost = Cost(self.attached.loaded.programs)
        self.clock = Clock(kernel_ns)
        self.stop = Stop(self.settings, self.out.fileno())
        self.steps = StepAlarm()
        try:
            self.tally = Tally(self.tool, self.settings)
            self.attached.counters = self.tally.source
            self.shape = make_shape(self.tool, self.settings, self.attached, self.clock)
            self.writer = make_writer(
                self.settings["output"], self.tool.name, self.shape.columns, self.clock,
                self.out, self.settings,
            )  # fmt: skip
            self._announce()
            return self._trace()
        finally:
            self.attached.close()
            self.cost.close()
            self.stop.close()
            self.steps.close()
            self.tally.close()

    def _announce(self) -> None:
        rest = left_out_of_csv(self.shape) if self.settings["output"] == "csv" else ""
        if rest:
            print(f"{self.tool.name}: {rest}", file=sys.stderr)
        if isinstance(self.writer, TextWriter) and not self.shape.heading:
            interval, duration = self.settings.get("interval"), self.settings.get("duration")
            until = f"for {duration:g} s" if duration else "until Ctrl-C"
            when = f"every {interval:g} s" if interval else "at the end"
            what = f"tracing {until}, results {when}"
            print(f"{self.tool.name}: {what}: {self.tool.summary}", file=sys.stderr, flush=True)

    def _trace(self) -> int:
        counted = self._totals()  # before the kernel's, and after them at the end: never fewer
        self.tally.begin()
        take_snapshot(self.attached)
        self.shape.begin(self.stop, self.writer)
        self._ready()
        try:
            self.writer.begin()
            if isinstance(self.writer, TextWriter) and self.shape.heading:
                self.writer.heading_now()
            self.out.flush()
            self._loop()
            self._look_at_clock()
            self.shape.close_interval(final=True)
            self.out.flush()  # detaching can take a while
            end = kernel_ns()
            cost = self.cost.read()
            self.tally.end()
            totals = self._totals()
            self.attached.detach()
            self.shape.drain()
            self.out.flush()
        except BrokenPipeError:
            self._mute()
            end = kernel_ns()
            self.tally.end()
            cost, totals = self.cost.read(), self._totals()
            self.attached.detach()
        if totals:
            totals = {name: n - counted[name] for name, n in totals.items()}
            self.shape.more["totals"] = totals
        return self._summarise(end, cost, self._unseen(totals))

    def _loop(self) -> None:
        self.stop.begin()
        if self.steps.fd >= 0:
            self.stop.watch(self.steps.fd)
        check = time.monotonic() + _CHECK_SECONDS
        interval = self.settings.get("interval") or 0.0
        due = time.monotonic() + interval if interval else float("inf")
        left = self.settings.get("count") or 0
        while not self.stop.reason:
            watching = check if self.settings.get("max_overhead") else float("inf")
            self.stop.wait(min(due, watching, self.shape.next_due(), self.tally.due))
            self._look_at_clock()
            if self.shape.read():
                self.out.flush()
            self.tally.look(self.shape.namespaces)
            if time.monotonic() >= due and not self.stop.reason:
                due += interval
                left -= 1
                if left == 0:  # what closes now is the last interval: there is none after it
                    self.stop.now("count")
                    break
                self.shape.close_interval(final=False)
                self.out.flush()
            if time.monotonic() >= watching:
                check += _CHECK_SECONDS
                self._check_overhead()

    def _look_at_clock(self) -> None:
        self.steps.clear()
        if self.clock.look():
            self.shape.note("the wall clock was set meanwhile: times before and after differ")

    def _check_overhead(self) -> None:
        spent = float(str(self.cost.read()["cpu_percent"]))
        if spent > self.settings["max_overhead"]:
            self.shape.note(f"stopped: the probes cost {spent:.2g} % of one CPU (--max-overhead)")
            self.stop.now("max-overhead")

    def _defines(self) -> list[str]:
        lines = [f"#define MAP_ENTRIES {self.settings['map_entries']}"]
        lines.append(f"#define CPUS {possible_cpus()}")
        if self.tool.has_events(self.settings):
            lines.append(f"#define RING_PAGES {ring_size(self.settings['buffer']) // 4096}")
        lines += filter_defines(self.settings)
        netns = netns_of(self.settings) or os.stat("/proc/self/ns/net").st_ino
        lines.append(f"#define COUNTED_NETNS {at_load(netns)}")  # whose counters the summary tells
        own = self.tool.constants(self.settings) if self.tool.constants else {}
        return [*lines, *(f"#define {name} {value}" for name, value in own.items())]

    def _named_constants(self) -> list[str]:
        # What a tool must ask the kernel for before compiling: numbers of reasons, addresses.
        ask = self.tool.hooks.get("named_constants")
        found = ask(self.settings, self.names) if ask else {}
        return [f"#define {name} {value}" for name, value in found.items()]

    def _totals(self) -> dict[str, int]:
        if not self.tool.totals:
            return {}
        return read_totals(self.tool.totals, self.attached.loaded.maps["totals"])

    def _ready(self) -> None:
        for choice in self.attached.choices:
            found = ", ".join(choice.targets) or ("found while running" if choice.kind else "")
            self._say(f"probe {choice.probe.name}: {choice.kind or 'none'} {found}".rstrip())
            for words, why in choice.passed_over:
                self._say(f"  not {words}: {why}")
        if self.settings.get("ready_file"):
            Path(self.settings["ready_file"]).write_text(f"{os.getpid()}\n")
        self._say("ready")

    def _check_ready_file(self) -> None:
        path = self.settings.get("ready_file")
        if path and not os.access(os.path.dirname(os.path.abspath(path)), os.W_OK):
            raise UsageError(
                f"--ready-file: cannot create '{path}'", "its directory must exist and be writable"
            )

    def _say(self, message: str) -> None:
        if self.settings.get("verbose"):
            print(f"netbpf: {message}", file=sys.stderr)

    def _mute(self) -> None:
        # Nobody reads any more: let neither the summary nor the interpreter's last flush complain.
        self.stop.now("closed pipe")
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.out.fileno())

    def _unseen(self, totals: dict[str, int]) -> dict[str, int]:
        unseen = self.tool.hooks.get("unseen")
        counters = self.tally.own
        return {"unseen": unseen(totals, counters, self.attached.lacking)} if unseen else {}

    def _summarise(self, end: int, cost: dict[str, Any], unseen: dict[str, int]) -> int:
        if self.stop.reason == "closed pipe":
            self._mute()
        losses = Map(self.attached.loaded.maps["losses"], 4, 8, per_cpu=True)
        besides = [c.entry for c in self.attached.choices if c.alternative and c.probe.besides]
        lost = {
            **read_losses(losses),
            "probe_missed": self.cost.missed(besides, read_covered(losses)),
            "reader": self.shape.strange,
            **unseen,
        }
        if not self.tool.has_events(self.settings):
            del lost["ring_full"]
        more = self.shape.summary()
        summary = {
            "tool": self.tool.name,
            "start": self.clock.rfc3339(self.clock.start),
            "end": self.clock.rfc3339(end),
            "seconds": round((end - self.clock.start) / 1e9, 3),
            "events": self.shape.seen,
            "unit": self.shape.unit,
            "stopped_by": self.stop.reason,
            "lost": lost,
            "complete": not any(lost.values()),
            "probes": self.attached.described(),
            "counters": self.tally.rise,
            **self.tally.scope(),
            "overhead": cost,
            **more,
            "notes": self.shape.notes,
        }
        self._add_notes(summary)
        self.writer.summary(summary)
        self.out.flush()
        return EXIT_LOST if any(lost.values()) and self.settings.get("fail_on_loss") else 0

    def _add_notes(self, summary: dict[str, Any]) -> None:
        summary["notes"] += self.tally.notes(self.shape.namespaces)
        review = self.tool.hooks.get("review")
        summary["notes"] += (
            review({**summary, "own": self.tally.own}, self.settings) if review else []
        )
        summary["notes"] += self.names.notes()
        if self.shape.empty and self.narrowed:
            words = "nothing was seen that passes"
            summary["notes"].append(f"{words} {' and '.join(self.narrowed)}")
        if ids_differ():
            summary["notes"].append("process ids are those of the host, not of this PID namespace")
