"""The summary of a run: events, losses, overhead, counters and notes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from netbpf.declare.tool import Tool
from netbpf.kernel.processes import ids_differ
from netbpf.output.clock import Clock
from netbpf.run.kernel_counters import KernelCounters
from netbpf.run.results.base import Result

_SHOWN_WHILE_RUNNING = ("measured", "measured_percent", "runs", "run_ns", "ns_per_run",
                        "cpu_percent", "reader_cpu_seconds")  # fmt: skip


def intent_of(settings: Mapping[str, Any]) -> str:
    """Return how long a run traces, how to end it, and when it shows something."""
    interval, count = settings.get("interval"), settings.get("count")
    duration, events = settings.get("duration"), settings.get("max_events")
    ends = [f"for {duration:g} s"] if duration else []
    if interval and count:
        ends.append(f"for {count} interval{'s' * (count != 1)}")
    if events:
        ends.append(f"until {events} event{'s' * (events != 1)}")
    until = " or ".join([*ends, "until Ctrl-C"])
    return f"tracing {until}, results {f'every {interval:g} s' if interval else 'at the end'}"


def progress_of(
    result: Result, clock: Clock, now: int, lost: Mapping[str, int], cost: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the fields of a progress report at the time `now` (ns)."""
    overhead = {name: cost[name] for name in _SHOWN_WHILE_RUNNING}
    return {**_seen_and_lost(result, clock, now, lost), "overhead": overhead, **result.progress()}


def summary_of(
    tool: Tool,
    result: Result,
    counters: KernelCounters,
    clock: Clock,
    end: int,
    lost: Mapping[str, int],
    **fields: Any,
) -> dict[str, Any]:
    """Return the summary of a run that ended at `end` (ns); `fields` are the runner's."""
    added = result.summary()
    return {
        "tool": tool.name,
        "start": clock.rfc3339(clock.start),
        "end": clock.rfc3339(end),
        **_seen_and_lost(result, clock, end, lost),
        "after_end": result.after_end,
        "counters": counters.rise,
        **counters.scope(),
        **fields,
        **added,
        "notes": result.notes,
    }


def _seen_and_lost(
    result: Result, clock: Clock, now: int, lost: Mapping[str, int]
) -> dict[str, Any]:
    return {
        "seconds": round((now - clock.start) / 1e9, 3),
        "events": result.seen,
        "unit": result.unit,
        "lost": dict(lost),
        "complete": not any(lost.values()),
    }


def add_notes(
    summary: dict[str, Any],
    tool: Tool,
    settings: Mapping[str, Any],
    result: Result,
    counters: KernelCounters,
    filters: Sequence[str],
) -> None:
    """Add the notes that follow from the result and its counters."""
    notes = summary["notes"]
    notes += counters.notes(result.namespaces)
    notes += tool.notes({**summary, "own": counters.own}, settings) if tool.notes else []
    if result.empty and filters:
        notes.append(f"nothing matched {' and '.join(filters)}")
    if ids_differ():
        notes.append("process ids are those of the host, not of this PID namespace")
