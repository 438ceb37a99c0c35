"""What recorded results of each tool look like on terminals of several widths and in a pipe.

tests/data/text/NAME.jsonl is a recording: JSON lines of a tool (`netbpf TOOL --json`), with long
addresses and names among them; the name may end in -by=KEYS. NAME.FORM.txt is its text. `python -m
tests.screens` writes these files anew: read them as a user would before they are committed.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any
from unittest import mock

from netbpf.declare.columns import Column
from netbpf.declare.stacks import shown_with
from netbpf.declare.tool import Tool, find_tool
from netbpf.output import screen
from netbpf.output.clock import Clock
from netbpf.output.text_writer import TextWriter
from netbpf.output.writers import make_writer

DATA = Path(__file__).parent / "data" / "text"
NAMES = sorted(path.stem for path in DATA.glob("*.jsonl"))
# Name of the form: characters per line (0: a pipe), and the options.
FORMS: dict[str, tuple[int, dict[str, Any]]] = {
    "80": (80, {}),
    "120": (120, {}),
    "200": (200, {}),
    "pipe": (0, {}),
    "pipe-w": (0, {"wide": True}),
}
_AT = 1_000_000_000_000  # ns, of all lines

Line = dict[str, Any]


class Terminal(io.StringIO):
    """A stream that is a terminal of `width` characters, a pipe if that is 0."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.columns = width

    def isatty(self) -> bool:
        return self.columns > 0


class FixedClock(Clock):
    """All events took place at one time."""

    def local(self, ns: int) -> str:
        return "12:09:54.113201"


def lines_of(name: str) -> list[Line]:
    return [json.loads(line) for line in (DATA / f"{name}.jsonl").read_text().splitlines()]


def screen_of(name: str, form: str) -> str:
    """Return what a user sees: results, and below them the summary."""
    width, settings = FORMS[form]
    lines = lines_of(name)
    return shown(lines, width, {**settings, **settings_of(name, find_tool(lines[0]["tool"]))})


def settings_of(name: str, tool: Tool) -> dict[str, Any]:
    """Return the options that the name of a recording stands for."""
    _, given, keys = name.partition("-by=")
    (by,) = [one for one in tool.options if one.name == "by"] if given else [None]
    return {"by": by.value(keys), **by.sets} if by else {}


def shown(lines: Sequence[Line], width: int, settings: Mapping[str, Any]) -> str:
    tool = find_tool(lines[0]["tool"])
    out, err = Terminal(width), Terminal(width)
    times = {"time": tool.show_time} if tool.show_time else {}
    with contextlib.redirect_stderr(err), mock.patch.object(screen, "columns_of", _columns_of):
        with mock.patch.dict("os.environ", {"TERM": "dumb"}):
            _write(tool, lines, out, {**times, **settings})
    return out.getvalue() + err.getvalue()


def _columns_of(stream: Terminal) -> int:
    return stream.columns


def _write(tool: Tool, lines: Sequence[Line], out: Terminal, settings: Mapping[str, Any]) -> None:
    shapes = list(_shapes(tool, settings))
    first = _shape(lines[0], shapes)
    writer = make_writer("text", tool.name, first, FixedClock(), out, settings)
    writer.begin()
    writers = {first: writer}
    if lines[0]["type"] == "event" and isinstance(writer, TextWriter):
        writer.heading_now()
    for group in _groups(lines):
        kind, columns = _kind(tool, group[0], shapes)
        if columns not in writers:
            writers[columns] = writer.sibling(columns)
        if kind == "event":
            for line in group:
                writers[columns].event(_AT, line)
        elif kind == "interval":
            writers[columns].new_table()
            writers[columns].rows(_AT, group)
        elif kind == "histogram":
            for line in group:
                writer.histogram(_AT, line)
        elif kind == "counters":
            writer.counters(_AT, group[0]["counters"])
        else:
            writer.summary(group[0])


def _kind(
    tool: Tool, line: Line, shapes: Sequence[tuple[Column, ...]]
) -> tuple[str, tuple[Column, ...]]:
    """Return the type of a line and its columns; what is still open is as an event."""
    columns = _shape(line, shapes)
    if line["type"] == "interval" and tool.open_rows and tool.event:
        if columns == tool.event.columns:
            return "event", _open_columns(tool)
    return line["type"], columns


@lru_cache
def _open_columns(tool: Tool) -> tuple[Column, ...]:
    assert tool.open_rows and tool.event
    return tuple(tool.open_rows.columns(tool.event.columns))


def _shapes(tool: Tool, settings: Mapping[str, Any]) -> Iterator[tuple[Column, ...]]:
    by = settings.get("by") or ()
    if tool.event:
        yield shown_with(tool.event.columns, settings)
    for table in tool.tables_of(settings) if by else tool.tables:
        yield tuple(table.columns({**settings, "by": by}))
    if tool.aggregation:
        yield tuple(tool.aggregation.columns(by))


def _shape(line: Line, shapes: Sequence[tuple[Column, ...]]) -> tuple[Column, ...]:
    """Return the columns of the record that a line is; keys that are not in --by are null."""
    names = {n for n, value in line.items() if value is not None}
    names -= {"tool", "type", "time", "lost"}
    fitting = [s for s in shapes if names <= {column.name for column in s} <= line.keys()]
    return max(fitting, key=len, default=())


def _groups(lines: Sequence[Line]) -> Iterator[list[Line]]:
    """Yield lines that belong together: of one type, time and record."""
    group: list[Line] = []
    for line in lines:
        if group and _group(line) != _group(group[0]):
            yield group
            group = []
        group.append(line)
    yield group


def _group(line: Line) -> tuple[object, ...]:
    together = line["type"] in ("interval", "histogram")
    return line["type"], line.keys(), line.get("time") if together else None


def main() -> None:
    """Write the text of all recordings."""
    for name in NAMES:
        for form in FORMS:
            (DATA / f"{name}.{form}.txt").write_text(screen_of(name, form))


if __name__ == "__main__":
    main()
