"""Which columns a run of a tool shows with its options, and the checks of --columns and --sort."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Optional

from netbpf.declare.columns import Column, Count
from netbpf.declare.histogram import Histogram
from netbpf.declare.record import named
from netbpf.declare.tool import Tool
from netbpf.errors import UsageError, did_you_mean


def bucket_columns() -> tuple[Column, ...]:
    """Return the CSV columns of a bucket of a histogram."""
    return named(
        low=Count("lowest value of the bucket"),
        high=Count("highest value"),
        count=Count("how many"),
    )


def check_columns(tool: Tool, settings: Mapping[str, Any]) -> None:
    """Raise UsageError for names of --columns and --sort that the run does not show."""
    rows = _row_columns(tool, settings)
    if settings.get("columns"):
        parts = [*_event_columns(tool, settings), *rows]
        if settings.get("output") != "text":
            parts += _histogram_columns(tool, settings)
        for name in settings["columns"]:
            _check("--columns", name, parts, tool)
    if settings.get("sort"):
        if not rows:
            option = f"--{tool.aggregation.option}" if tool.aggregation else "an option for them"
            raise UsageError("--sort: there are no rows to sort", f"give {option} as well")
        _check("--sort", settings["sort"], rows, tool)


def _event_columns(tool: Tool, settings: Mapping[str, Any]) -> list[Sequence[Column]]:
    if not tool.event or not tool.has_events(settings):
        return []
    instead = _counted(tool, settings) or _aggregated(tool, settings)
    return [] if instead else [tool.event.columns]


def _row_columns(tool: Tool, settings: Mapping[str, Any]) -> list[Sequence[Column]]:
    rows = [table.columns(settings) for table in tool.tables_of(settings)]
    if tool.aggregation and _aggregated(tool, settings) and not _counted(tool, settings):
        rows.append(tool.aggregation.columns(settings.get("by") or ()))
    return rows


def _histogram_columns(tool: Tool, settings: Mapping[str, Any]) -> list[Sequence[Column]]:
    histogram = _counted(tool, settings)
    if not histogram and tool.histogram and not tool.histogram.of:
        histogram = tool.histogram_of(settings)
    return [(*histogram.key.columns, *bucket_columns())] if histogram else []


def _counted(tool: Tool, settings: Mapping[str, Any]) -> Optional[Histogram]:
    """Return the distribution that is shown instead of the events."""
    if tool.histogram and tool.histogram.of and tool.histogram_of(settings):
        return tool.histogram
    if tool.aggregation and settings.get("histogram"):
        by = settings.get("by") or ()
        return tool.aggregation.distribution(settings["histogram"], by)
    return None


def _aggregated(tool: Tool, settings: Mapping[str, Any]) -> bool:
    return bool(tool.aggregation and settings.get(tool.aggregation.option))


def _check(option: str, name: str, parts: Sequence[Sequence[Column]], tool: Tool) -> None:
    names = list(dict.fromkeys(column.name for columns in parts for column in columns))
    if not names:
        raise UsageError(
            f"{option}: {tool.name} shows distributions, which have no columns in text",
            "use -o csv or --json",
        )
    if name not in names:
        nearest = did_you_mean(name, names)
        raise UsageError(
            f"{option}: there is no column '{name}'", f"{nearest}columns: {', '.join(names)}"
        )
