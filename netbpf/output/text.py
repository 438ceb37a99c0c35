"""Format summaries and histograms as text."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Optional

from netbpf.declare.values import escape

WIDTH = 80
_BAR = 40
_MAX_PROBES = 12
_MAX_COUNTERS = 9


def describe_histogram(histogram: Mapping[str, Any], stamp: str = "") -> str:
    """Return one histogram as text: key, headline and one bar per bucket."""
    named = ((k, "-" if v is None else str(v)) for k, v in histogram["key"].items())
    key = " ".join(f"{name}={escape(value)}" for name, value in named)
    head = histogram.get("headline", "")
    lines = ["", " ".join(part for part in (stamp, key) if part) + (f": {head}" if head else "")]
    buckets = histogram["buckets"]
    if buckets:
        lines.append(f"{histogram['unit']:>21} : {'count':<9} distribution")
        longest = max(bucket["count"] for bucket in buckets)
        lines += [_bar(bucket, longest) for bucket in buckets]
    return "\n".join(lines) + "\n"


def _bar(bucket: Mapping[str, int], longest: int) -> str:
    low, high, count = bucket["low"], bucket["high"], bucket["count"]
    span = str(low) if low == high else f"{low} -> {high}"
    # Rounded up: a bucket with any count has at least one star.
    stars = -(-count * _BAR // longest) if longest else 0
    return f"{span:>21} : {count:<9} |{'*' * stars:<{_BAR}}|"


def _counters(counters: Mapping[str, int]) -> str:
    # A long list omits the counters that did not change.
    many = len(counters) > _MAX_COUNTERS
    shown = [f"{name} +{grown}" for name, grown in counters.items() if grown or not many]
    rest = len(counters) - len(shown)
    return ", ".join([*shown, *([f"{rest} others +0"] if rest else [])])


def _scope(counted: Optional[Mapping[str, Any]]) -> str:
    if not counted:
        return ""
    number = counted["namespaces"]
    return f" in {number} network namespaces" if number != 1 else " in 1 network namespace"


def _probes(probes: Sequence[Mapping[str, Any]]) -> str:
    """Return each probe with its kind, or the number of probes per kind if there are many."""
    if len(probes) <= _MAX_PROBES:
        return ", ".join(f"{p['name']}={p['kind'] or 'none'}" for p in probes)
    kinds = Counter(p["kind"] or "none" for p in probes)
    return ", ".join(f"{number} {kind}" for kind, number in kinds.items())


def describe_loss(lost: Mapping[str, int]) -> str:
    """Return "LOST DATA: 1234 (ring_full 1200, map_full 34)"."""
    causes = ", ".join(f"{cause} {number}" for cause, number in lost.items())
    return f"LOST DATA: {sum(lost.values())} ({causes})"


def describe_summary(summary: Mapping[str, Any]) -> str:
    """Return two to four lines: events and losses, probes and their cost, counters, notes."""
    tool, lost = summary["tool"], summary["lost"]
    causes = ", ".join(f"{cause} {number}" for cause, number in lost.items())
    completeness = "nothing lost" if summary["complete"] else "LOST DATA"
    cost = summary["overhead"]
    probes = _probes(summary["probes"])
    overhead = (
        f"{cost['cpu_percent']:.2g} % of one CPU "
        f"({cost['runs']} runs, {cost['ns_per_run'] or 0} ns each)"
        if cost.get("measured")
        else "not measured: unavailable on this kernel"
    )
    reader = cost.get("reader_cpu_seconds") or 0
    reader_percent = f"{100 * reader / max(summary['seconds'], 1e-3):.2g} %"
    lines = [
        f"{tool}: {summary['events']} {summary['unit']} in {summary['seconds']:.1f} s; "
        f"{completeness} ({causes})",
        f"{tool}: probes {probes}; cost: {overhead}, reader {reader_percent}",
    ]
    if summary["counters"]:
        scope = _scope(summary.get("counted"))
        lines.append(f"{tool}: kernel counters{scope}: {_counters(summary['counters'])}")
    return "\n".join([*lines, *(f"{tool}: note: {escape(note)}" for note in summary["notes"])])


def fill(text: str, first: str, indent: int) -> list[str]:
    """Return lines of at most 80 columns: `text` after `first`, with a hanging indent."""
    filled = textwrap.wrap(
        text,
        WIDTH,
        initial_indent=first,
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return filled or [first.rstrip()]
