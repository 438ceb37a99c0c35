"""The last line of a run: what was seen, what was lost, what it cost, and what to think of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from netbpf.declare.tool import Tool
from netbpf.kernel.processes import ids_differ
from netbpf.output.clock import Clock
from netbpf.run.results.base import Result
from netbpf.run.tally import Tally

_SHOWN_WHILE_RUNNING = ("measured", "runs", "run_ns", "ns_per_run", "cpu_percent",
                        "reader_cpu_seconds")  # fmt: skip


def intent_of(settings: Mapping[str, Any]) -> str:
    """Return how long a run traces, how to end it, and when it shows something."""
    interval, count = settings.get("interval"), settings.get("count")
    duration, events = settings.get("duration"), settings.get("max_events")
    ends = [f"for {duration:g} s"] if duration else []
    if interval and count:
        ends.append(f"for {count} intervals")
    if events:
        ends.append(f"until {events} events")
    until = " or ".join([*ends, "until Ctrl-C"])
    return f"tracing {until}, results {f'every {interval:g} s' if interval else 'at the end'}"


def progress_of(
    shape: Result, clock: Clock, now: int, lost: Mapping[str, int], cost: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what a report at the time `now` (ns) has while the tool runs."""
    more = shape.progress()
    overhead = {name: cost[name] for name in _SHOWN_WHILE_RUNNING}
    return {**_seen_and_lost(shape, clock, now, lost), "overhead": overhead, **more}


def summary_of(
    tool: Tool,
    shape: Result,
    tally: Tally,
    clock: Clock,
    end: int,
    lost: Mapping[str, int],
    **more: Any,
) -> dict[str, Any]:
    """Return the summary of a run that ended at `end` (ns); `more` are fields of the runner."""
    added = shape.summary()
    return {
        "tool": tool.name,
        "start": clock.rfc3339(clock.start),
        "end": clock.rfc3339(end),
        **_seen_and_lost(shape, clock, end, lost),
        "after_end": shape.after_end,
        "counters": tally.rise,
        **tally.scope(),
        **more,
        **added,
        "notes": shape.notes,
    }


def _seen_and_lost(
    shape: Result, clock: Clock, now: int, lost: Mapping[str, int]
) -> dict[str, Any]:
    return {
        "seconds": round((now - clock.start) / 1e9, 3),
        "events": shape.seen,
        "unit": shape.unit,
        "lost": dict(lost),
        "complete": not any(lost.values()),
    }


def add_notes(
    summary: dict[str, Any],
    tool: Tool,
    settings: Mapping[str, Any],
    shape: Result,
    tally: Tally,
    narrowed: Sequence[str],
) -> None:
    """Add the remarks on a result that follow from what it is."""
    notes = summary["notes"]
    notes += tally.notes(shape.namespaces)
    notes += tool.notes({**summary, "own": tally.own}, settings) if tool.notes else []
    if shape.empty and narrowed:
        notes.append(f"nothing was seen that passes {' and '.join(narrowed)}")
    if ids_differ():
        notes.append("process ids are those of the host, not of this PID namespace")
