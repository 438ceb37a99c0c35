"""Figures over several rounds, and tables of them in Markdown."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple


class Figure(NamedTuple):
    """The median of some values with the quartiles around it, and how many there were."""

    median: float
    low: float
    high: float
    number: int

    def __str__(self) -> str:
        if self.number < 2:
            return _short(self.median)
        return f"{_short(self.median)} ({_short(self.low)} to {_short(self.high)})"


def figure(values: Iterable[float]) -> Figure:
    """Return the figure of some values, of which there is at least one."""
    found = sorted(values)
    if len(found) < 2:
        return Figure(found[0], found[0], found[0], 1)
    low, _, high = statistics.quantiles(found, n=4, method="inclusive")
    return Figure(statistics.median(found), low, high, len(found))


def _short(value: float) -> str:
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f}"


def ratio(mine: float, other: float) -> str:
    """Return a ratio as text, "-" if `other` is too small to be compared with."""
    return f"{mine / other:.2f}" if other > 0 else "-"


def table(heads: Sequence[str], rows: Iterable[Sequence[object]], texts: int = 1) -> str:
    """Return a table in Markdown; the first `texts` columns are text, the others numbers."""
    marks = ["---"] * texts + ["---:"] * (len(heads) - texts)
    lines = [heads, marks, *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def machine() -> dict[str, object]:
    """Return the facts that the figures depend on."""
    cpu = Path("/proc/cpuinfo").read_text()
    model = next((x.partition(": ")[2] for x in cpu.splitlines() if x.startswith("model name")), "")
    memory = int(Path("/proc/meminfo").read_text().split()[1]) >> 20
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "cpu": model or platform.processor(),
        "cpus": os.cpu_count(),
        "memory_gib": memory,
        "python": platform.python_version(),
        "load_before": os.getloadavg()[0],
    }
