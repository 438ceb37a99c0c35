"""Summaries and distributions in words and bars, for people."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Optional

from netbpf.declare.values import escape

WIDTH = 80
_BAR = 40
_MOST_PROBES = 12
_FEW_COUNTERS = 9


def describe_histogram(histogram: Mapping[str, Any], stamp: str = "") -> str:
    """Return the text of one histogram: key, headline, a line per bucket with a bar."""
    named = ((k, "-" if v is None else str(v)) for k, v in histogram["key"].items())
    key = " ".join(f"{name}={escape(value)}" for name, value in named)
    head = histogram.get("headline", "")
    lines = ["", " ".join(part for part in (stamp, key) if part) + (f": {head}" if head else "")]
    buckets = histogram["buckets"]
    if buckets:
        lines.append(f"{histogram['unit']:>21} : {'count':<9} distribution")
        most = max(bucket["count"] for bucket in buckets)
        lines += [_bar(bucket, most) for bucket in buckets]
    return "\n".join(lines) + "\n"


def _bar(bucket: Mapping[str, int], most: int) -> str:
    low, high, count = bucket["low"], bucket["high"], bucket["count"]
    span = str(low) if low == high else f"{low} -> {high}"
    # Anything that happened at all shows at least one star.
    stars = -(-count * _BAR // most) if most else 0
    return f"{span:>21} : {count:<9} |{'*' * stars:<{_BAR}}|"


def _counters(counters: Mapping[str, int]) -> str:
    # A few are told one by one; of many only those that grew.
    many = len(counters) > _FEW_COUNTERS
    told = {name: grown for name, grown in counters.items() if grown or not many}
    words = [f"{name} +{grown}" for name, grown in told.items()]
    rest = len(counters) - len(told)
    return ", ".join([*words, *([f"{rest} others +0"] if rest else [])])


def _scope(counted: Optional[Mapping[str, Any]]) -> str:
    if not counted:
        return ""
    number = counted["namespaces"]
    return f" in {number} network namespaces" if number != 1 else " in 1 network namespace"


def _probes(probes: Sequence[Mapping[str, Any]]) -> str:
    """Name the probes with their kinds, or count them by kind where names would fill the screen."""
    if len(probes) <= _MOST_PROBES:
        return ", ".join(f"{p['name']}={p['kind'] or 'none'}" for p in probes)
    kinds = Counter(p["kind"] or "none" for p in probes)
    return ", ".join(f"{number} {kind}" for kind, number in kinds.items())


def describe_loss(lost: Mapping[str, int]) -> str:
    """Return "LOST DATA: 1234 (ring_full 1200, map_full 34)"."""
    causes = ", ".join(f"{cause} {number}" for cause, number in lost.items())
    return f"LOST DATA: {sum(lost.values())} ({causes})"


def describe_summary(summary: Mapping[str, Any]) -> str:
    """Return two to four lines: what was seen and lost, by which probes and at what cost."""
    tool, lost = summary["tool"], summary["lost"]
    causes = ", ".join(f"{cause} {number}" for cause, number in lost.items())
    verdict = "nothing lost" if summary["complete"] else "LOST DATA"
    cost = summary["overhead"]
    probes = _probes(summary["probes"])
    price = (
        f"{cost['cpu_percent']:.2g} % of one CPU "
        f"({cost['runs']} runs, {cost['ns_per_run'] or 0} ns each)"
        if cost.get("measured")
        else "not measured: the kernel does not count it here"
    )
    reader = cost.get("reader_cpu_seconds") or 0
    reading = f"{100 * reader / max(summary['seconds'], 1e-3):.2g} %"
    lines = [
        f"{tool}: {summary['events']} {summary['unit']} in {summary['seconds']:.1f} s; "
        f"{verdict} ({causes})",
        f"{tool}: probes {probes}; they cost {price}, the reader {reading}",
    ]
    if summary["counters"]:
        scope = _scope(summary.get("counted"))
        lines.append(f"{tool}: kernel counters meanwhile{scope}: {_counters(summary['counters'])}")
    return "\n".join([*lines, *(f"{tool}: note: {escape(note)}" for note in summary["notes"])])


def fill(text: str, first: str, indent: int) -> list[str]:
    """Return `text` in lines of 80 columns after the words `first`, further lines indented."""
    filled = textwrap.wrap(
        text,
        WIDTH,
        initial_indent=first,
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return filled or [first.rstrip()]
