"""The JSON Schema of the lines of netbpf triage --json."""

from __future__ import annotations

from typing import Any

from netbpf.declare.finding import SEVERITIES

_TEXT, _COUNT = {"type": "string"}, {"type": "integer", "minimum": 0}
_NUMBER, _TIME = {"type": "number"}, {"type": "string", "format": "date-time"}


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    return {**schema, "type": [schema["type"], "null"]}


_WHO = _object(
    {
        "pid": _or_null(_COUNT),
        "comm": _or_null(_TEXT),
        "container": _or_null(_TEXT),
        "unit": _or_null(_TEXT),
        "netns": _or_null(_COUNT),
        "count": {**_COUNT, "description": "events, or sockets"},
    }
)


def triage_schema() -> dict[str, Any]:
    """Return the schema of a line: a finding, or the summary, which is the last line."""
    tool = {"const": "triage"}
    finding = _object(
        {
            "tool": tool,
            "type": {"const": "finding"},
            "finding": {**_TEXT, "description": "name of the rule"},
            "severity": {"enum": list(SEVERITIES)},
            "sentence": {**_TEXT, "description": "what is wrong"},
            "evidence": {"type": "array", "items": _TEXT, "description": "what shows it"},
            "since": _or_null(_TIME),
            "who": {"type": "array", "items": _WHO, "description": "whom it hits, or who does it"},
            "meaning": {**_TEXT, "description": "what it means, and what to do"},
            "command": {**_TEXT, "description": "the next command to type"},
            "threshold": {**_TEXT, "description": "from when on it is told, and why"},
        }
    )
    summary = _object(
        {
            "tool": tool,
            "type": {"const": "summary"},
            "start": _TIME,
            "end": _TIME,
            "seconds": _NUMBER,
            "findings": _COUNT,
            "tools": {"type": "array", "items": _TEXT, "description": "tools that looked"},
            "not_seen": {"type": "array", "items": _TEXT, "description": "what this kernel hides"},
            "lost": {"type": "object", "description": "losses by tool and cause"},
            "complete": {"type": "boolean"},
            "stopped_by": _TEXT,
            "cpu_percent": {**_NUMBER, "description": "of one CPU, in the kernel's programs"},
            "reader_cpu_seconds": _NUMBER,
        }
    )
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "netbpf triage",
        "oneOf": [finding, summary],
    }
