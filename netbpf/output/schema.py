"""JSON Schema of a tool's JSON lines, generated from its declared columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from netbpf.declare.columns import Column, Container
from netbpf.declare.histogram import Histogram
from netbpf.declare.keys import Key
from netbpf.declare.stacks import StackEnd, is_on_request
from netbpf.declare.tool import Tool

_TIME = {"type": "string", "format": "date-time", "description": "RFC 3339, UTC, microseconds"}
_COUNT = {"type": "integer", "minimum": 0}
_COUNTED = {  # scope of the counters
    "namespaces": {**_COUNT, "description": "network namespaces that the counters are summed over"},
    "filtered": {"type": "boolean", "description": "filters apply to rows but not to counters"},
}
_CAUSES = ("map_full", "probe_missed", "reader", "unwritten", "not_covered")
_NAMES = {"type": "array", "items": {"type": "string"}}
_PRIVILEGES = {
    "kept": {**_NAMES, "description": "capabilities kept while running"},
    "helper": {**_NAMES, "description": "capabilities of the process that reads kernel counters"},
    "no_new_privs": {"type": "boolean"},
    "seccomp": {"type": "boolean", "description": "a system call filter was installed"},
}
_LOST = {**_COUNT, "description": "events lost during this interval; absent if none"}
_OVERHEAD = {"type": "object", "required": ["measured", "runs", "run_ns", "cpu_percent"]}


def schema_of(tool: Tool) -> dict[str, Any]:
    """Return the schema (draft 2020-12) of every line of `netbpf TOOL --json`."""
    lines = []
    if tool.event:
        kinds = ("event", "interval") if tool.interval else ("event",)
        columns = tool.event.columns
        optional = [column.name for column in columns if is_on_request(column)]
        lines += [_line(tool, kind, _columns(columns), optional) for kind in kinds]
    if tool.histogram and not tool.aggregation:  # which has these, and others
        lines.append(_line(tool, "histogram", _histogram(tool.histogram)))
    for table in tool.tables:
        lines.append(_line(tool, "interval", _columns(table.row.columns)))
    if tool.aggregation:
        rows = tool.aggregation
        lines.append(_line(tool, "interval", _columns(rows.row.columns)))
        keys = [Key(name) for name in rows.keys]
        lines.append(_line(tool, "interval", _columns(rows.columns(keys))))
        if tool.histogram or rows.measured:
            shown = _histogram(tool.histogram or rows.distribution(rows.measured[0], keys))
            shown["key"]["required"] = []
            if "stack" in rows.keys:
                shown["key"]["properties"]["stack_end"] = StackEnd().schema()
            lines.append(_line(tool, "histogram", {**shown, "unit": {"type": "string"}}))
    if tool.interval_counters:
        numbers = {"type": "object", "additionalProperties": {"type": "integer"}}
        lines.append(_line(tool, "counters", {"counters": numbers}))
    lines += [_progress(tool), _summary(tool)]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"netbpf {tool.name}",
        "description": tool.summary,
        "oneOf": lines,
    }


def _line(
    tool: Tool, kind: str, properties: dict[str, Any], optional: Sequence[str] = ()
) -> dict[str, Any]:
    head = {"tool": {"const": tool.name}, "type": {"const": kind}, "time": _TIME}
    if kind == "event":
        return _object({**head, **properties}, optional)
    return _object({**head, **properties, "lost": _LOST}, ["lost", *optional])


def _object(properties: dict[str, Any], optional: Sequence[str] = ()) -> dict[str, Any]:
    required = [name for name in properties if name not in optional]
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


def _columns(columns: Sequence[Column]) -> dict[str, Any]:
    return {column.name: column.schema() for column in columns}


def _histogram(histogram: Histogram) -> dict[str, Any]:
    bound, units = {"type": ["integer", "null"]}, histogram.units
    marks = {"bounds": {"type": "string"}, **{f"p{p}": bound for p in (50, 90, 99)}}
    return {
        "key": _histogram_key(histogram),
        "unit": {"enum": units} if len(units) > 1 else {"const": histogram.unit},
        "buckets": {
            "type": "array",
            "items": _object({"low": _COUNT, "high": _COUNT, "count": _COUNT}),
            "description": "log2 buckets, low and high inclusive",
        },
        "count": _COUNT,
        "sum": _COUNT,
        "percentiles": _object(marks),
        **histogram.fields,
    }


def _histogram_key(histogram: Histogram) -> dict[str, Any]:
    columns = _columns(histogram.key.columns)
    if not histogram.keyed:
        return _object(columns)
    more = [Container("container id")] if "container" in histogram.keyed.keys else []
    for column in more:
        column.name = "container"
    return _object({**columns, **_columns(more)}, histogram.keyed.keys)


def _lost(tool: Tool, *own: str) -> dict[str, Any]:
    # Without its event option, a tool has no ring buffer.
    causes = (*(("ring_full",) if tool.event else ()), *_CAUSES, *own)
    optional = tool.event_option or tool.events_unless
    return _object(dict.fromkeys(causes, _COUNT), ["ring_full"] if optional else [])


def _progress(tool: Tool) -> dict[str, Any]:
    head = {"tool": {"const": tool.name}, "type": {"const": "progress"}, "time": _TIME}
    properties = {
        **head,
        "seconds": {"type": "number"},
        "events": _COUNT,
        "unit": {"type": "string"},
        "lost": _lost(tool),
        "complete": {"type": "boolean"},
        "overhead": _OVERHEAD,
        "coverage": {"type": "object"},
    }
    return _object(properties, ["coverage"])


def _summary(tool: Tool) -> dict[str, Any]:
    own = ("unseen",) if tool.count_unseen else ()
    word = {"type": "string"}
    words = {"type": "array", "items": word}
    probe = {
        "name": word,
        "kind": {"type": ["string", "null"]},
        "targets": words,
        "rejected": words,
    }
    properties = {
        "tool": {"const": tool.name},
        "type": {"const": "summary"},
        "start": _TIME,
        "end": _TIME,
        "seconds": {"type": "number"},
        "events": _COUNT,
        "unit": word,
        "stopped_by": word,
        "lost": _lost(tool, *own),
        "complete": {"type": "boolean"},
        "probes": {"type": "array", "items": _object(probe)},
        "privileges": _object(_PRIVILEGES),
        "counters": {"type": "object", "additionalProperties": {"type": "integer"}},
        **({"counted": _object(_COUNTED)} if tool.counters and tool.namespace_counters else {}),
        "after_end": {**_COUNT, "description": "events after the end and before detaching"},
        "overhead": _OVERHEAD,
        **tool.summary_fields,
        **({"totals": _object(_columns(tool.totals.columns))} if tool.totals else {}),
        "notes": words,
    }
    return _object(properties, optional=("counted", "privileges", *tool.summary_fields))
