"""Format summaries and histograms as text."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Optional

from netbpf.declare.columns import Column
from netbpf.declare.values import escape
from netbpf.output.screen import fold

WIDTH = 80
_BAR, _LEAST_BAR = 40, 8  # characters
_BESIDE_BAR = 36
_MAX_PROBES = 12


def describe_histogram(
    histogram: Mapping[str, Any],
    stamp: str = "",
    width: Optional[int] = None,
    below: Sequence[Column] = (),
) -> str:
    """Return one histogram as text: key, headline and one bar per bucket.

    Lines have at most `width` characters, if it is given. Values of the key in the columns `below`
    have lines of their own.
    """
    stacks = "".join(column.text(histogram["key"][column.name]) for column in below)
    aside = {"stack_end", *(column.name for column in below)}
    parts = {name: value for name, value in histogram["key"].items() if name not in aside}
    named = ((k, "-" if v is None else str(v)) for k, v in parts.items())
    key = " ".join(f"{name}={escape(value)}" for name, value in named)
    head = histogram.get("headline", "")
    first = " ".join(part for part in (stamp, key) if part) + (f": {head}" if head else "")
    lines = ["", fold(first, width) + stacks]
    buckets = histogram["buckets"]
    if buckets:
        lines.append(f"{histogram['unit']:>21} : {'count':<9} distribution")
        longest = max(bucket["count"] for bucket in buckets)
        bar = _BAR if width is None else max(_LEAST_BAR, min(_BAR, width - _BESIDE_BAR))
        lines += [_bar(bucket, longest, bar) for bucket in buckets]
    return "\n".join(lines) + "\n"


def _bar(bucket: Mapping[str, int], longest: int, width: int) -> str:
    low, high, count = bucket["low"], bucket["high"], bucket["count"]
    span = str(low) if low == high else f"{low} -> {high}"
    # Rounded up: a bucket with any count has at least one star.
    stars = -(-count * width // longest) if longest else 0
    return f"{span:>21} : {count:<9} |{'*' * stars:<{width}}|"


def _counters(counters: Mapping[str, int], zeros: bool) -> str:
    shown = [f"{name} +{grown}" for name, grown in counters.items() if grown or zeros]
    return ", ".join(shown) or "none grew"


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


def describe_loss(lost: Mapping[str, int], zeros: bool = False) -> str:
    """Return "LOST DATA: 1234 (ring_full 1200, map_full 34)"."""
    return f"LOST DATA: {sum(lost.values())} ({_causes(lost, zeros)})"


def _causes(lost: Mapping[str, int], zeros: bool) -> str:
    return ", ".join(f"{cause} {number}" for cause, number in lost.items() if number or zeros)


def _number(number: int, things: str) -> str:
    return f"{number} {things.removesuffix('s') if number == 1 else things}"


def describe_summary(summary: Mapping[str, Any], zeros: bool = False) -> list[str]:
    """Return lines about events and losses, probes and their cost, counters, and notes.

    Causes of loss and counters that are 0 are only named with `zeros`.
    """
    tool = summary["tool"]
    causes = _causes(summary["lost"], zeros)
    completeness = "nothing lost" if summary["complete"] else "LOST DATA"
    completeness += f" ({causes})" if causes else ""
    cost = summary["overhead"]
    probes = _probes(summary["probes"])
    about = "about " if cost.get("measured_percent", 100) < 100 else ""
    overhead = (
        f"{cost['cpu_percent']:.2g} % of one CPU "
        f"({about}{cost['runs']} runs, {cost['ns_per_run'] or 0} ns each)"
        if cost.get("measured")
        else "not measured: unavailable on this kernel"
    )
    reader = cost.get("reader_cpu_seconds") or 0
    reader_percent = f"{100 * reader / max(summary['seconds'], 1e-3):.2g} %"
    lines = [
        f"{tool}: {_number(summary['events'], summary['unit'])} in {summary['seconds']:.1f} s; "
        f"{completeness}",
        f"{tool}: probes {probes}; cost: {overhead}, reader {reader_percent}",
    ]
    if summary["counters"]:
        scope = _scope(summary.get("counted"))
        grown = _counters(summary["counters"], zeros)
        lines.append(f"{tool}: kernel counters{scope}: {grown}")
    return [*lines, *(f"{tool}: note: {escape(note)}" for note in summary["notes"])]


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
