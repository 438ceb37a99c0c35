"""Data behind the kernel tables: probes selected on recorded kernels, and live test results.

The sources are in the source tree: kernels recorded by `netbpf doctor --record`
(tests/data/kernels), and the results that `make vm SAVE=1` stored (vagrant/results.json).
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

_SOURCE_TREE = Path(__file__).resolve().parents[2]
_OUTCOMES = ("passed", "failed", "skipped")
_OTHERS = "others"
Rows = list[Sequence[str]]


def recordings() -> dict[str, RecordedKernel]:
    """Return the recorded kernels by name, oldest first."""
    paths = (_SOURCE_TREE / "tests" / "data" / "kernels").glob("*.json")
    kernels = {path.stem: RecordedKernel(json.loads(path.read_text())) for path in paths}
    return dict(sorted(kernels.items(), key=lambda item: _version(item[0])))


def _version(name: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", name))


def selection_rows(tools: Sequence[Tool], kernels: Mapping[str, RecordedKernel]) -> Rows:
    """Return a header, and for each probe a row with the kind selected on each kernel.

    Probes of a tool share a row if the same kinds are selected for them on all kernels.
    """
    rows: Rows = [("tool", "probes", *kernels)]
    for tool in tools:
        probes: dict[tuple[str, ...], list[str]] = {}
        for probe, kinds in _selected_kinds(tool, kernels):
            probes.setdefault(kinds, []).append(f"`{probe.name}`")
        rows += [(f"`{tool.name}`", ", ".join(names), *kinds) for kinds, names in probes.items()]
    return rows


def _selected_kinds(
    tool: Tool, kernels: Mapping[str, RecordedKernel]
) -> Iterator[tuple[Probe, tuple[str, ...]]]:
    per_kernel = [select(tool.all_probes, kernel) for kernel in kernels.values()]
    for selections in zip(*per_kernel):
        yield selections[0].probe, tuple(map(_kind, selections))


def _kind(selection: Selection) -> str:
    if not selection.alternative:
        return "-"
    missing = ", ".join(selection.lost_columns)
    return selection.alternative.how.label + (f", without {missing}" if missing else "")


def results() -> dict[str, Any]:
    """Return the stored live test results by machine, oldest kernel first."""
    path = _SOURCE_TREE / "vagrant" / "results.json"
    stored = json.loads(path.read_text()) if path.exists() else {}
    return dict(sorted(stored.items(), key=lambda item: (_version(item[1]["release"]), item[0])))


def result_rows(tools: Sequence[Tool], machines: Mapping[str, Any]) -> Rows:
    """Return a header, and for each tool a row with its results on each machine; others last."""
    releases = [f"{facts['release']}<br>bcc {facts['bcc']}" for facts in machines.values()]
    rows: Rows = [("tool", *releases)]
    names = [tool.name for tool in tools]
    for name in (*names, _OTHERS):
        title = name if name == _OTHERS else f"`{name}`"
        counts = (_outcomes(facts["tests"], name, names) for facts in machines.values())
        rows.append((title, *counts))
    return rows


def _outcomes(tests: Mapping[str, Mapping[str, int]], tool: str, tools: Sequence[str]) -> str:
    """Return the summed outcomes of a tool's tests; keys of `tests` are FILE or FILE/TOOL."""
    sums = dict.fromkeys(_OUTCOMES, 0)
    for name, counts in tests.items():
        last = name.split("/")[-1]
        if tool == (last if last in tools else _OTHERS):
            sums = {outcome: n + counts.get(outcome, 0) for outcome, n in sums.items()}
    return ", ".join(f"{number} {outcome}" for outcome, number in sums.items() if number) or (
        "not run"
    )
