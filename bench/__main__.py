"""Measure netbpf beside its peers: python3 -m bench [--quick] [TABLE ...]; needs root.

Tables: start, operations, reader, growth, sessions. Everything runs in namespaces of its own, on
one machine, in turns; other load makes the figures worse, so give ratios and say what else ran. The
report is written to build/bench as report.md and report.json.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench import growth, namespace, operations, reader, sessions, start
from bench.contestants import contestants
from bench.figures import machine, table
from bench.process import SOURCE_TREE
from netbpf.declare.tool import find_tool, tool_names

LOADS = tuple(operations.NUMBERS)
NETBPF = ("/usr/bin/python3", "-m", "netbpf")
TABLES = ("start", "operations", "reader", "growth", "sessions")
QUICK_TOOLS = ("tcplife", "soconnect", "netsize")
OUT = SOURCE_TREE / "build" / "bench"


def main() -> int:
    """Measure, and write the report; return the exit status."""
    parser = argparse.ArgumentParser(prog="python3 -m bench", description="Measure netbpf.")
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=f"{', '.join(TABLES)} (all)")
    parser.add_argument("--quick", action="store_true", help="one round, three tools")
    parser.add_argument("--rounds", type=int, help="measured rounds (5)")
    parser.add_argument("--tools", help="tools to measure, with commas (all; start: tcplife)")
    parser.add_argument("--loads", help=f"kinds of traffic, with commas: {', '.join(LOADS)} (all)")
    parser.add_argument("--share", type=float, help="part of the operations of a batch (1)")
    parser.add_argument("--out", type=Path, default=OUT, help="directory for the report")
    options = parser.parse_args()
    wanted = options.tables or TABLES
    for name in set(wanted) - set(TABLES):
        parser.error(f"no such table: {name}; there are {', '.join(TABLES)}")
    tools = options.tools.split(",") if options.tools else None
    for name in set(tools or ()) - set(tool_names()):
        parser.error(f"no such tool: {name}")
    loads = options.loads.split(",") if options.loads else [*LOADS]
    for name in set(loads) - set(LOADS):
        parser.error(f"no such traffic: {name}")
    if os.geteuid() != 0:
        print("bench: error: attaching BPF programs needs root", file=sys.stderr)
        return 77
    headers = namespace.enter()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    report = Report(options.quick, options.rounds, options.share, loads, headers)
    with tempfile.TemporaryDirectory(prefix="netbpf-bench-") as scratch:
        for name in TABLES:
            if name in wanted:
                getattr(report, name)(tools, Path(scratch))
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "report.json").write_text(json.dumps(report.data, indent=1) + "\n")
    (options.out / "report.md").write_text(report.markdown())
    print(report.markdown())
    print(f"bench: written to {options.out}/report.md and report.json", file=sys.stderr)
    return 0


class Report:
    """The tables that were measured: `data` for JSON, and their Markdown."""

    def __init__(
        self, quick: bool, rounds: int | None, share: float | None, loads: list[str], headers: str
    ) -> None:
        self._loads = loads
        self._quick = quick
        self._rounds = rounds or (1 if quick else 5)
        self._share = share or (0.25 if quick else 1.0)
        facts = machine() | {"kernel_headers": headers, "rounds": self._rounds, "quick": quick}
        self.data: dict[str, Any] = {"machine": facts}
        self._parts: list[str] = []
        self._begin = time.monotonic()

    def start(self, tools: list[str] | None, scratch: Path) -> None:
        """Measure starts."""
        self._parts.append("## Start\n\n" + _first_paragraphs(start))
        self.data["start"] = {}
        for name in tools or ["tcplife"]:
            result = start.measure(
                self._entrants(name), self._rounds, 0 if self._quick else 60, scratch, self._say
            )
            self.data["start"][name] = {
                "samples": {k: [s._asdict() for s in v] for k, v in result.samples.items()},
                "later_mib": result.later, "not_run": result.not_run,
            }  # fmt: skip
            self._parts.append(start.as_markdown(name, result))

    def operations(self, tools: list[str] | None, scratch: Path) -> None:
        """Measure operations with each tool attached."""
        self._parts.append("## Operations\n\n" + _first_paragraphs(operations))
        self.data["operations"] = {}
        names = tools or list(QUICK_TOOLS if self._quick else tool_names())
        first, last = min(os.sched_getaffinity(os.getppid())), max(os.sched_getaffinity(0))
        with operations.traffic(first, scratch, self._share, self._loads) as load:
            if load.missing:
                self._parts.append(f"- {load.missing}\n")
            for name in names:
                entrants = self._entrants(name)
                result = operations.measure(entrants, load, self._rounds, last, scratch, self._say)
                self.data["operations"][name] = {
                    "samples": {", ".join(k): v for k, v in result.samples.items()},
                    "untraced_us": result.untraced, "not_run": result.not_run,
                }  # fmt: skip
                self._parts.append(operations.as_markdown(name, result))

    def reader(self, tools: list[str] | None, _: Path) -> None:
        """Measure the reader alone."""
        self._parts.append("## Reader\n\n" + _first_paragraphs(reader))
        names = [name for name in tools or reader.TOOLS if name in reader.TOOLS]
        found = {}
        for name in names:
            self._say(f"reader of {name}")
            found[name] = reader.figures(name, 1 if self._quick else reader.RUNS)
        self.data["reader_us"] = found
        rows = [
            (name, *(f"{us:.2f} ({1e6 / us:,.0f}/s)" for us in each.values()))
            for name, each in found.items()
        ]
        self._parts.append(table(("tool", *reader.FORMATS), rows) + "\n")

    def growth(self, _: list[str] | None, scratch: Path) -> None:
        """Measure growth."""
        self._parts.append("## Growth\n\n" + _first_paragraphs(growth))
        sizes = growth.SIZES[:2] if self._quick else growth.SIZES
        by_size = growth.sockets(NETBPF, sizes, scratch, self._say)
        by_rate = growth.packets(
            NETBPF, growth.RATES[-1:] if self._quick else growth.RATES, scratch, self._say
        )
        self.data["growth"] = {
            "sockets": {name: [one._asdict() for one in each] for name, each in by_size.items()},
            "packets": {name: [one._asdict() for one in each] for name, each in by_rate.items()},
        }
        self._parts.append(growth.as_markdown(by_size, by_rate))

    def sessions(self, _: list[str] | None, scratch: Path) -> None:
        """Measure ten tools in one process."""
        self._parts.append("## Sessions\n\n" + _first_paragraphs(sessions))
        first, last = min(os.sched_getaffinity(os.getppid())), max(os.sched_getaffinity(0))
        with operations.traffic(first, scratch, self._share, [sessions.LOAD]) as load:
            found = sessions.measure(NETBPF, load, self._rounds, last, scratch, self._say)
        self.data["sessions"] = found
        self._parts.append(sessions.as_markdown(found))

    def markdown(self) -> str:
        """Return the whole report."""
        facts = self.data["machine"]
        lines = [f"- {name.replace('_', ' ')}: {value}" for name, value in facts.items()]
        return "\n".join(["# Measurements", "", *lines, "", *self._parts])

    def _entrants(self, name: str) -> list[Any]:
        flags = {flag for option in find_tool(name).options for flag in option.flags}
        return contestants(name, flags, NETBPF)

    def _say(self, text: str) -> None:
        print(
            f"bench: {time.monotonic() - self._begin:5.0f} s: {text}", file=sys.stderr, flush=True
        )


def _first_paragraphs(module: Any) -> str:
    text = module.__doc__ or ""
    return (
        "```text\n"
        + text.partition("\n")[0]
        + "\n"
        + text.partition("\n")[2].strip("\n")
        + "\n```\n"
    )


if __name__ == "__main__":
    sys.exit(main())
