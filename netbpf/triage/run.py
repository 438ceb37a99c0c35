"""Run a session of the tools that the rules look at, judge what they saw, and show the findings."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any, Callable, Optional, TextIO

from netbpf.declare.finding import Evidence, View, all_rules
from netbpf.declare.tool import Tool
from netbpf.kernel.addresses import local_addresses
from netbpf.kernel.counters import increase
from netbpf.kernel.levels import Levels
from netbpf.output.screen import Screen, report
from netbpf.run.filters import netns_of
from netbpf.run.member import Member
from netbpf.run.session import Session
from netbpf.run.together import limited
from netbpf.triage.collect import Collector
from netbpf.triage.judge import Finding, judge, views_of
from netbpf.triage.show import json_lines, text_lines

Parsed = Callable[[str], tuple[Tool, dict[str, Any]]]


class Triage(Session):
    """A session whose tools write nothing: the findings follow at the end."""

    def __init__(
        self, views: Sequence[View], members: Sequence[Member], out: TextIO, as_json: bool
    ) -> None:
        super().__init__(members, out, confined=True)
        self._views, self._json = tuple(views), as_json
        self.counters = sorted({name for rule in all_rules() for name in rule.counters})
        self.findings: list[Finding] = []

    def _open(self) -> None:
        super()._open()
        self._levels = Levels(netns_of(self.settings))
        self.opened.callback(self._levels.close)

    def summarise(self) -> list[dict[str, int]]:
        """Write the findings; return the losses of each tool."""
        lost = super().summarise()
        evidence = self.evidence()
        self.findings = judge(all_rules(), evidence)
        summary = self._summary(evidence)
        if self._json:
            lines = json_lines(self.findings, self.clock, summary)
        else:
            lines = text_lines(self.findings, self.clock, summary, Screen(self.out))
        for line in lines:
            self.out.write(f"{line}\n")
        return lost

    def evidence(self) -> Evidence:
        """Return what the tools saw."""
        rows, lost = {}, {}
        counters = increase(self.first.every, self.last.every, self.counters)
        for member in self.members:
            writer = member.writer
            assert isinstance(writer, Collector)
            name = member.tool.name
            rows[name] = writer.rows_of_view()
            counters.update(writer.summary_fields["counters"])
            crowded = {"crowded": writer.crowded} if writer.crowded else {}
            lost[name] = {**writer.summary_fields["lost"], **crowded}
        seconds = self.members[0].summary["seconds"]
        return Evidence(rows, counters, seconds, lost, local_addresses(), self._levels.read())

    def _summary(self, evidence: Evidence) -> dict[str, Any]:
        cost = self.spent
        return {
            "start": self.members[0].summary["start"],
            "end": self.members[0].summary["end"],
            "seconds": evidence.seconds,
            "findings": len(self.findings),
            "tools": [view.tool for view in self._views],
            "not_seen": self._not_seen(),
            "lost": {tool: n for tool, n in evidence.lost.items() if any(n.values())},
            "complete": not any(n for one in evidence.lost.values() for n in one.values()),
            "stopped_by": self.stop.reason,
            "cpu_percent": cost["cpu_percent"],
            "reader_cpu_seconds": cost["reader_cpu_seconds"],
        }

    def _not_seen(self) -> list[str]:
        found = []
        for member in self.members:
            missing = sorted(member.attached.missing)
            if missing:
                found.append(f"{', '.join(missing)} of {member.tool.name}, on this kernel")
        return found


def triage(
    parsed: Parsed,
    limits: Mapping[str, Any],
    filters: Sequence[str],
    as_json: bool,
    out: Optional[TextIO] = None,
) -> int:
    """Look for problems; `filters` are words of filters that all tools get. Return the status."""
    views = views_of(all_rules())
    plans = limited([parsed(" ".join([view.line, *filters])) for view in views], limits)
    members = [
        Member(tool, {**settings, "output": "text"}, _collector(view))
        for view, (tool, settings) in zip(views, plans)
    ]
    session = Triage(views, members, out or sys.stdout, as_json)
    if not as_json:
        seconds = members[0].settings["duration"]
        report(f"netbpf: looking for problems for {seconds:g} s, or until Ctrl-C")
    return session.execute()


def _collector(view: View) -> Callable[..., Collector]:
    return lambda output, *context: Collector(view, *context)
