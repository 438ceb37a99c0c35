"""Show findings as text or JSON lines."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from netbpf.declare.finding import CRITICAL, Values
from netbpf.declare.values import escape
from netbpf.output.clock import Clock
from netbpf.output.screen import BOLD, RED, Screen
from netbpf.triage.judge import Finding, as_json

_WIDTH = 80  # without a terminal
_MOST_WHO = 3  # processes that text lists


def json_lines(
    findings: Sequence[Finding], clock: Clock, summary: Mapping[str, Any]
) -> Iterator[str]:
    """Yield a line per finding, and the summary as the last one."""
    for finding in findings:
        yield json.dumps({"tool": "triage", **as_json(finding, _since(finding, clock))})
    yield json.dumps({"tool": "triage", "type": "summary", **summary})


def _since(finding: Finding, clock: Clock) -> str:
    return clock.rfc3339(finding.case.since) if finding.case.since else ""


def text_lines(
    findings: Sequence[Finding], clock: Clock, summary: Mapping[str, Any], screen: Screen
) -> Iterator[str]:
    """Yield the lines of the text, the worst finding first."""
    width = screen.width or _WIDTH
    for number, finding in enumerate(findings, 1):
        yield from _finding(number, finding, clock, width, screen)
    if not findings:
        yield screen.paint("Nothing stands out.", BOLD)
        yield ""
    looked = ", ".join(summary["tools"])
    yield from _folded(f"Looked at for {summary['seconds']:.1f} s: {looked}.", width)
    for note in summary["not_seen"]:
        yield from _folded(f"Not seen: {note}.", width)
    cost = (f"{summary['cpu_percent']:.2g} % of one CPU in the kernel, "
            f"{summary['reader_cpu_seconds']:.2f} s of CPU in netbpf")  # fmt: skip
    yield from _folded(f"Cost: {cost}.", width)


def _finding(
    number: int, finding: Finding, clock: Clock, width: int, screen: Screen
) -> Iterator[str]:
    severity = finding.case.severity
    style = RED if severity == CRITICAL else BOLD
    title = f"{number}. {severity.upper()}: {escape(finding.sentence)}"
    for line in _folded(title, width, indent=3):
        yield screen.paint(line, style)
    facts = [escape(fact) for fact in finding.facts]
    since = _since(finding, clock)
    if since:
        facts.append(f"since {since[11:19]} UTC")
    facts += list(_who(finding.case.who))
    for fact in facts:
        yield from _folded(f"   - {fact}", width, indent=5)
    yield from _folded(f"   {escape(finding.meaning)}", width, indent=3)
    yield f"   > {escape(finding.command)}"
    yield ""


def _who(who: Sequence[Values]) -> Iterator[str]:
    known = [one for one in who if one["pid"]]
    if len(known) > 1 or any(one["container"] or one["unit"] for one in known):
        for one in known[:_MOST_WHO]:
            places = [f"container {one['container']}"] * bool(one["container"])
            places += [f"unit {one['unit']}"] * bool(one["unit"])
            yield escape(", ".join([f"{one['comm']} (pid {one['pid']}): {one['count']}", *places]))
    if len(known) > _MOST_WHO:
        yield f"and {len(known) - _MOST_WHO} more processes"


def _folded(text: str, width: int, indent: int = 0) -> list[str]:
    return textwrap.wrap(text, width, subsequent_indent=" " * indent, break_long_words=False,
                         break_on_hyphens=False)  # fmt: skip
