"""README tables of kernels: which probes each would be served with, and on which the tests ran.

Both come from the source tree: recordings that `netbpf doctor --record` made on those kernels
(tests/data/kernels), and what `make vm` kept of its runs (vagrant/results.json).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from netbpf.declare.probes import Probe
from netbpf.declare.tool import Tool
from netbpf.kernel.inspect import RecordedKernel
from netbpf.kernel.select import Selection, select

_TREE = Path(__file__).resolve().parents[2]
_NONE = "-"
_ENDS = ("passed", "failed", "skipped")
_OTHERS = "others"
Rows = list[Sequence[str]]


def recordings() -> dict[str, RecordedKernel]:
    """Return the recorded kernels by name, the oldest first."""
    paths = (_TREE / "tests" / "data" / "kernels").glob("*.json")
    found = {path.stem: RecordedKernel(json.loads(path.read_text())) for path in paths}
    return dict(sorted(found.items(), key=lambda item: _version(item[0])))


def _version(name: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", name))


def choices_rows(tools: Sequence[Tool], kernels: Mapping[str, RecordedKernel]) -> Rows:
    """Return a row for each probe, with the kind that each kernel would serve it with.

    Probes of a tool that are served alike everywhere share a row; the first row is the head.
    """
    rows: Rows = [("tool", "probes", *kernels)]
    for tool in tools:
        alike: dict[tuple[str, ...], list[str]] = {}
        for probe, kinds in _kinds(tool, kernels):
            alike.setdefault(kinds, []).append(f"`{probe.name}`")
        rows += [(f"`{tool.name}`", ", ".join(names), *kinds) for kinds, names in alike.items()]
    return rows


def _kinds(
    tool: Tool, kernels: Mapping[str, RecordedKernel]
) -> Iterator[tuple[Probe, tuple[str, ...]]]:
    plans = [select(tool.all_probes, kernel) for kernel in kernels.values()]
    for selections in zip(*plans):
        yield selections[0].probe, tuple(map(_cell, selections))


def _cell(selection: Selection) -> str:
    if not selection.alternative:
        return _NONE
    loses = ", ".join(selection.lost_columns)
    return (
        f"{selection.alternative.words}, without {loses}" if loses else selection.alternative.words
    )


def results() -> dict[str, Any]:
    """Return what is kept of the runs in machines, by their names, the oldest kernel first."""
    path = _TREE / "vagrant" / "results.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    order = sorted(found.items(), key=lambda item: (_version(item[1]["release"]), item[0]))
    return dict(order)


def results_rows(tools: Sequence[Tool], machines: Mapping[str, Any]) -> Rows:
    """Return a row for each tool, with what came of its tests on each machine; others come last."""
    head = [f"{facts['release']}<br>bcc {facts['bcc']}" for facts in machines.values()]
    rows: Rows = [("tool", *head)]
    names = [tool.name for tool in tools]
    for name in (*names, _OTHERS):
        shown = name if name == _OTHERS else f"`{name}`"
        rows.append((shown, *(_count(facts["tests"], name, names) for facts in machines.values())))
    return rows


def _count(tests: Mapping[str, Mapping[str, int]], tool: str, tools: Sequence[str]) -> str:
    """Return the sums of a tool's tests, or of those of no tool; a member is FILE or FILE/TOOL."""
    sums = dict.fromkeys(_ENDS, 0)
    for name, counts in tests.items():
        last = name.split("/")[-1]
        if tool == (last if last in tools else _OTHERS):
            sums = {end: number + counts.get(end, 0) for end, number in sums.items()}
    return ", ".join(f"{number} {end}" for end, number in sums.items() if number) or "not run"
