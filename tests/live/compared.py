"""Marks for the columns of a tool's JSON that a test compares with an independent value.

`@compares("tcplife", "tx_bytes", "rx_bytes")` on a test claims that it fails if one of these
columns is wrong: it compares them with the actions of the test's own programs, or with values of
the kernel or another program. `shape` is the kind of line: see `shapes_of`. Every column of every
tool needs such a mark (tests/contract/test_compared.py).

`tests/live/prove_compared.py` proves the marks: it runs the test once for each column, with that
column wrong in the tool's output (`SPOIL`), and the test must fail.
"""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Callable, NamedTuple, TypeVar

from netbpf.declare.columns import Column
from netbpf.declare.tool import Tool, find_tool

HERE = Path(__file__).parent
SPOIL = "NETBPF_TEST_SPOIL"  # TOOL:SHAPE:COLUMN
Test = TypeVar("Test")
_HISTOGRAM = ("buckets", "count", "sum", "percentiles")


def compares(tool: str, *columns: str, shape: str = "event") -> Callable[[Test], Test]:
    """Mark a test: it compares these columns of `tool` in lines of that shape."""
    return lambda test: test


class Claim(NamedTuple):
    """The claim of a mark that a test compares a column."""

    file: str
    test: str
    tool: str
    shape: str
    column: str


def shapes_of(tool: Tool) -> dict[str, list[str]]:
    """Return {shape: columns} of the tool's JSON lines.

    "event" is an event, including its time. "rows" is the table that needs no option, other tables
    have the name of their option, "--top". "histogram" has the columns of its key and the tool's
    fields, "summary" the tool's own fields. Fields of all tools, like `lost`, are not included.
    """
    shapes: dict[str, list[str]] = {}
    if tool.event:
        shapes["event"] = ["time", *_names(tool.event.columns)]
    if tool.histogram:
        added = [*_HISTOGRAM, *tool.histogram.fields]
        shapes["histogram"] = [*_names(tool.histogram.key.columns), *added]
    for table in tool.tables:
        shapes[f"--{table.option}" if table.option else "rows"] = _names(table.row.columns)
    if tool.aggregation:
        shapes[f"--{tool.aggregation.option}"] = _names(tool.aggregation.row.columns)
    totals = _names(tool.totals.columns) if tool.totals else []
    shapes["summary"] = [*tool.summary_fields, *totals]
    return {shape: columns for shape, columns in shapes.items() if columns}


def _names(columns: tuple[Column, ...]) -> list[str]:
    return [column.name for column in columns]


def claims_of(path: Path) -> Iterator[Claim]:
    """Yield the claims of the marks in a test file; their arguments must be literals."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            for mark in node.decorator_list:
                if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "compares":
                    tool, *columns = (ast.literal_eval(word) for word in mark.args)
                    words = {k.arg: ast.literal_eval(k.value) for k in mark.keywords}
                    shape = words.pop("shape", "event")
                    assert not words, f"{path.name}: compares() has no {words}"
                    yield from (Claim(path.name, node.name, tool, shape, c) for c in columns)


def all_claims() -> list[Claim]:
    """Return the claims of all marks of the live tests."""
    return [claim for path in sorted(HERE.glob("test_*.py")) for claim in claims_of(path)]


# --- spoiling ------------------------------------------------------------------------------------


def spoiled(line: dict[str, Any]) -> dict[str, Any]:
    """Return a line of JSON unchanged, or with one column wrong if the environment sets SPOIL."""
    tool, _, rest = os.environ.get(SPOIL, "").partition(":")
    if not tool or line.get("tool") != tool:
        return line
    shape, _, column = rest.partition(":")
    if shape != spec_of(line):
        return line
    changed = dict(line)
    for part in ("key", "totals"):
        if column in changed.get(part, ()):
            changed[part] = {**changed[part], column: wrong(changed[part][column])}
            return changed
    if column in changed:
        changed[column] = wrong(changed[column])
    return changed


def spec_of(line: dict[str, Any]) -> str:
    """Return the shape of a line."""
    if line["type"] != "interval":
        return str(line["type"])
    columns = set(line) - {"tool", "type", "time"}
    shapes = shapes_of(find_tool(line["tool"]))
    for shape, names in shapes.items():
        if columns == set(names) - ({"time"} if shape == "event" else set()):
            return shape
    # With --by, rows have the columns of --summary and all keys.
    wider = [shape for shape, names in shapes.items() if shape != "event" and columns > set(names)]
    return max(wider, key=lambda shape: len(shapes[shape]), default="interval")


def wrong(value: Any) -> Any:
    """Return another value of the same type, far enough off to violate bounds. Null stays null.

    A test that expects only null in a column has not compared it with a value.
    """
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value * 3 + 1_000_003
    if isinstance(value, str):
        return _later(value) if value.endswith("Z") and value[4:5] == "-" else f"?{value}?"
    if isinstance(value, list):
        return [wrong(item) for item in value] or ["?"]
    if isinstance(value, dict):
        return {name: wrong(item) for name, item in value.items()} or {"?": 1}
    return None


def _later(stamp: str) -> str:
    then = datetime.fromisoformat(stamp.replace("Z", "+00:00")) + timedelta(hours=1)
    return then.isoformat().replace("+00:00", "Z")
