"""The sequence of every run: check, select, compile, attach, ready, stream, write, summary.

A session runs several tools in one process, with one loop, one clock and one end. The owners of
sockets are found once for all of them.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Optional, TextIO

from netbpf.bpf.type_answers import keep_answers, open_kernel
from netbpf.declare.tool import Tool
from netbpf.errors import EXIT_LOST, NetbpfError
from netbpf.kernel.clock import StepAlarm, kernel_ns
from netbpf.output.clock import Clock
from netbpf.output.outlet import Outlet
from netbpf.output.screen import Resizes
from netbpf.run import shared_owners
from netbpf.run.attached import Attached
from netbpf.run.confinement import Confinement
from netbpf.run.filters import filter_defines
from netbpf.run.kernel_counters import Sources
from netbpf.run.losses import Budget, Cost
from netbpf.run.member import Context, Member
from netbpf.run.meter import Meter, Statistics, Switch
from netbpf.run.pace import Pace
from netbpf.run.program import Program
from netbpf.run.ready import ReadyFile
from netbpf.run.snapshot import take_snapshot
from netbpf.run.stop import Stop
from netbpf.system.file_limit import allow_many_files

_MEASURE = "measure"  # the helper's task: see Statistics
_SWITCH_SECONDS = 0.1  # for the helper to turn it on or off
_LAST_SECONDS = 0.1  # to write the summary after the time for results is over


def run(tool: Tool, settings: Mapping[str, Any], out: Optional[TextIO] = None) -> int:
    """Run `tool` until it is stopped, with the least privileges; return the exit status."""
    return Session([Member(tool, settings)], out or sys.stdout, confined=True).execute()


class Session:
    """One run of one tool or several.

    The first one's settings say when the session ends. If `confined`, this process drops privileges
    that it no longer needs. `counters` are counters of the kernel, beside those of the tools.
    """

    counters: Sequence[str] = ()

    def __init__(self, members: Sequence[Member], out: TextIO, confined: bool = False) -> None:
        """Check the privileges; nothing is loaded into the kernel yet."""
        self.members = tuple(members)
        self.settings = members[0].settings
        path = self.settings.get("ready_file")
        self.ready_file = ReadyFile(path) if path else None
        self.out = Outlet(out.fileno(), out.encoding)
        self.resizes: Optional[Resizes] = None
        allow_many_files()
        self._given = [(member.tool, member.settings) for member in members]
        self.confinement = Confinement(self._given, confined)

    def execute(self) -> int:
        """Do the whole sequence; return the exit status."""
        self.kernel = open_kernel(self.settings.get("btf") or "", self._log)
        with ExitStack() as self.opened:
            self._open()
            self.stop.begin_line()
            for member in self.members:
                member.announce()
            self._begin()
            self._loop()
            return self._finish()

    def _open(self) -> None:
        # Closed in reverse order.
        keep = self.opened.callback
        keep(self.out.close)
        if self.ready_file:
            keep(self.ready_file.close)
            keep(self.ready_file.close)  # a second try, as the file outlives this process
        self.owners = self._find_owners()
        for member in self.members:
            member.load(self.kernel, self.owners, self._log, self.opened)
        for member in self.members:
            member.attach(self.opened)
        if self.owners:
            self.owners.attach_targets(last=True)
        keep_answers(self.kernel, self._log)
        self.clock = Clock(kernel_ns)
        self.stop = Stop(self.settings, self.out)
        keep(self.stop.close)
        tools = [member.tool for member in self.members]
        self.sources = Sources(
            tools, self.settings, self.confinement.helper, self.counters, {_MEASURE: Statistics()}
        )
        keep(self.sources.close)
        programs = [fd for one in self._attached for fd in one.loaded.programs.values()]
        self.meter = Meter(programs, self._switch())
        keep(self.meter.close)
        self.cost = Cost({str(fd): fd for fd in programs}, self.meter)  # entries have equal names
        if self.out.isatty():
            self.resizes = Resizes()
            keep(self.resizes.close)
        self.steps = StepAlarm()
        keep(self.steps.close)
        context = Context(
            self.out, self.clock, self.stop, self.sources, self.confinement, self.meter
        )
        for member in self.members:
            member.open(context)

    def _switch(self) -> Optional[Switch]:
        """Return what turns the measuring of programs on and off, which needs a privilege."""
        helper = self.sources.helper
        if helper:
            return lambda on: bool(helper.ask(_MEASURE, on, _SWITCH_SECONDS))
        if self.confinement.wanted:
            return None
        own = Statistics()
        self.opened.callback(own, False)
        return own

    def _find_owners(self) -> Optional[Attached]:
        """Load the programs that find owners for several tools, if there are such tools."""
        settings = shared_owners.shared_settings(self._given)
        if not settings:
            return None
        defines = [f"#define MAP_ENTRIES {settings['map_entries']}", *filter_defines(settings)]
        tool = shared_owners.TOOL
        attached = Program(tool, settings, self.kernel, defines, self._log).attach()
        self.opened.callback(attached.close)
        return attached

    @property
    def _attached(self) -> list[Attached]:
        own = [member.attached for member in self.members]
        return [*own, *([self.owners] if self.owners else [])]

    def _begin(self) -> None:
        for member in self.members:
            member.count_totals()
        readings = self.first = self.sources.read()
        if self.owners:
            take_snapshot(self.owners)
        for member in self.members:
            member.begin(readings)
        self.confinement.enter(self.members[0].attached.loaded.maps, self._log)
        if self.ready_file:
            self.ready_file.create()
        for member in self.members:
            member.attached.log_choice(self._log)
        self._log("ready")
        self.confinement.seal()
        for member in self.members:
            member.begin_writing()
        self.out.flush()

    def _loop(self) -> None:
        self.stop.begin()
        if self.steps.fd >= 0:
            self.stop.watch(self.steps.fd)
        percent = self.settings.get("max_overhead")
        budget = Budget(self.cost, percent) if percent else None
        for member in self.members:
            member.start_clock()
        pace, pause = Pace(), 0.0
        while not self.stop.reason:
            until = min(
                self.sources.due, self.meter.due, *(member.next_due() for member in self.members)
            )
            self.stop.pause(min(pause, until - time.monotonic()))
            self.stop.wait(until)
            self._check_clock()
            if self.resizes and self.resizes.seen():
                for member in self.members:
                    member.writer.style.screen.refresh()
            self.out.flush()
            pause = pace.pause(*self._read())
            for member in self.members:
                member.result.listen(wanted=not pace.often)
            self.out.flush()
            self.meter.update()
            self.sources.update({n for m in self.members for n in m.result.namespaces})
            for member in self.members:
                if member.update():
                    self._check_budget(budget)
            if self.out.error:
                closed = isinstance(self.out.error, BrokenPipeError)
                self.stop.now("closed pipe" if closed else "output error")

    def _read(self) -> tuple[int, int]:
        """Read events of all tools; return how many were read, and how many wait in a ring."""
        results = [member.result for member in self.members]
        for result in results:
            result.read()
        return sum(result.taken for result in results), max(result.waiting for result in results)

    def _check_budget(self, budget: Optional[Budget]) -> None:
        over = budget.overrun() if budget else None
        if over:
            why = f"stopped: probes and reader cost {over} (--max-overhead)"
            for member in self.members:
                member.result.note(why)
            self.stop.now("max-overhead")

    def _check_clock(self) -> None:
        self.steps.clear()
        if self.clock.resync():
            for member in self.members:
                member.result.note(
                    "the wall clock was set meanwhile: times before and after differ"
                )

    def _finish(self) -> int:
        """Write the events before the stop, detach, and write the summaries."""
        self.stop.begin_line()
        self._check_clock()
        for member in self.members:
            member.collect()
        self.spent = self.cost.read()  # of all tools together
        readings = self.last = self.sources.read_last()
        for member in self.members:
            member.end_counters(readings)
        with self.stop.extended():
            for attached in self._attached:
                attached.detach()
        for member in self.members:
            member.drain()
        self.stop.finish()
        lost = self.summarise()
        self.stop.finish(_LAST_SECONDS)
        return self.exit_status(lost)

    def summarise(self) -> list[dict[str, int]]:
        """Write the summaries; return the losses of each tool by cause."""
        unwritten = [self.out.drop(), *[0] * (len(self.members) - 1)]
        return [member.summarise(n) for member, n in zip(self.members, unwritten)]

    def exit_status(self, lost: Sequence[Mapping[str, int]]) -> int:
        """Return the exit status after these losses of each tool; NetbpfError if output failed."""
        failure = None if isinstance(self.out.error, BrokenPipeError) else self.out.error
        if failure or self.out.blocked:
            for member in self.members:
                member.explain()
        if failure:
            raise NetbpfError(f"standard output: {failure.strerror}")
        any_lost = any(number for one in lost for number in one.values())
        return EXIT_LOST if any_lost and self.settings.get("fail_on_loss") else 0

    def _log(self, message: str) -> None:
        if self.settings.get("verbose"):
            print(f"netbpf: {message}", file=sys.stderr)
