"""Rows of socket calls: by operation and protocol, and of the busiest processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from netbpf.declare.calls import OPS, PROTOS, call_rows
from netbpf.declare.table import Entry

Settings = Mapping[str, Any]

SORTABLE = ("bytes", "calls", "errors", "would_block", "restarted")
_ORDER = [*OPS.values(), *PROTOS.values()]


def by_protocol(groups: Sequence[Entry], settings: Settings) -> list[dict[str, Any]]:
    """Return the rows of all operations, in the order of OPS and PROTOS or of --sort."""
    names = ("op",) if settings["no_split"] else ("op", "proto")
    rows = sorted(call_rows(groups, *names), key=lambda row: [_ORDER.index(row[n]) for n in names])
    if settings["sort"]:
        rows.sort(key=lambda row: -row[settings["sort"]])
    return [{"op": row["op"], "proto": None, **row} for row in rows]


def busiest(groups: Sequence[Entry], settings: Settings) -> list[dict[str, Any]]:
    """Return the processes with the most of --sort of each operation, then with most calls."""
    comms = {key["pid"]: key["comm"] for key, _ in groups}
    most = settings["sort"] or SORTABLE[0]
    rows = sorted(call_rows(groups, "op", "pid"), key=lambda row: (-row[most], -row["calls"]))
    shown = []
    for op in OPS.values():
        first = [row for row in rows if row["op"] == op][: settings["top"]]
        shown += [{"op": op, "pid": row["pid"], "comm": comms[row["pid"]], **row} for row in first]
    return shown


def ranking(_: Mapping[str, Any], settings: Settings) -> list[str]:
    """Return a note on the column by which --top ranks processes."""
    if not settings["top"] or settings["by"]:
        return []
    return [f"--top shows the processes with the most {settings['sort'] or SORTABLE[0]} (--sort)"]
