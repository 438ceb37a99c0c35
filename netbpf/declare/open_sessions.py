"""Sessions that are still open: their age, idle time, and bytes that wait, and filters by these."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any, Optional

from netbpf.declare.column import Column
from netbpf.declare.columns import U64_MAX, Count, Duration
from netbpf.declare.open_rows import OpenRows
from netbpf.declare.options import Option, seconds
from netbpf.declare.values import TCP_STATES

# The first columns of text; those in _WITH_ROOM only with -w, and where 80 characters are exceeded.
_FIRST = (
    "pid", "comm", "laddr", "lport", "raddr", "rport", "state", "age_us", "idle_us", "rx_unread",
    "tx_unsent", "tx_unacked",
)  # fmt: skip
_WITH_ROOM = {"lport": 64, "laddr": 63, "tx_unacked": 62}  # with their priorities
_NEVER_OPEN = ("CLOSE", "LISTEN", "NEW_SYN_RECV", "TIME_WAIT")  # or not in a table of files
_STATES = tuple(word for word in TCP_STATES.values() if word not in _NEVER_OPEN)


class Span(Duration):
    """A long duration: nanoseconds in C, microseconds when decoded, seconds in text."""

    text_unit = "s"

    def text(self, value: Any) -> str:
        """Format as seconds, with a decimal below 1000."""
        if value is None:
            return "-"
        return f"{value / 1e6:.1f}" if value < 999_950_000 else f"{value / 1e6:.0f}"


class Age(Span):
    """The age of a session; text marks by ">" that it is at least that."""

    def cell(self, values: Mapping[str, Any]) -> str:
        """Return the text of the age, which duration_us has if it is certain."""
        text = self.text(values[self.name])
        bound = values["duration_us"] is None and values["state"] not in ("SYN_SENT", "SYN_RECV")
        return f">{text}" if bound and text != "-" else text


def open_columns() -> dict[str, Column]:
    """Return the columns that only open sessions have, by name."""
    hidden: dict[str, Any] = {"text": False, "option": "open"}
    return {
        "age_us": Age(
            "time since an open session was established, at least; since connect() if it is not",
            header="AGE_S", width=6, priority=66, **hidden,
        ),
        "idle_us": Span(
            "time since an open session sent or received data, or was established",
            header="IDLE_S", width=6, priority=67, **hidden,
        ),
        "rx_unread": Count(
            "bytes received that the owner of an open session has not read", header="UNREAD",
            width=6, null=U64_MAX, priority=62, **hidden,
        ),
        "tx_unsent": Count(
            "bytes written to an open session that were never sent", header="UNSENT",
            width=6, null=U64_MAX, priority=61, **hidden,
        ),
    }  # fmt: skip


def text_of_open(columns: Sequence[Column]) -> list[Column]:
    """Return the columns of open sessions in text: what these are asked for first."""
    by_name = {column.name: copy(column) for column in columns}
    for name, column in by_name.items():
        column.wide, column.option = name not in _FIRST or name in _WITH_ROOM, ""
        column.in_text = name in _FIRST or (column.in_text and name != "close")
        column.priority = _WITH_ROOM.get(name, column.priority)
    by_name["state"].priority = 64
    by_name["tx_unacked"].header, by_name["tx_unacked"].width = "UNACKED", 7
    rest = [column for name, column in by_name.items() if name not in _FIRST]
    return [*(by_name[name] for name in _FIRST), *rest]


def states(text: str) -> list[str]:
    """Parse "established,fin-wait-1", as ss writes the states, or as the kernel."""
    known = {state.replace("_", ""): state for state in _STATES}
    found = []
    for word in filter(None, text.split(",")):
        state = known.get(word.upper().replace("-", "").replace("_", ""))
        if not state:
            raise ValueError(f"'{word}' is not one of {', '.join(_STATES)}")
        found.append(state)
    if not found:
        raise ValueError(f"'{text}' has no state of {', '.join(_STATES)}")
    return found


FILTERS_OF_OPEN = (
    Option("--open", help="list sessions that are still open, at each INTERVAL and at exit"),
    Option("--state", metavar="LIST", parse=states, sets={"open": True},
           help="only open sessions in these states, such as ESTABLISHED,CLOSE_WAIT"),
    Option("--min-idle", metavar="TIME", parse=seconds, sets={"open": True},
           help="only open sessions without data in either direction for this time (60, 2h30m)"),
    Option("--min-age", metavar="TIME", parse=seconds, sets={"open": True},
           help="only open sessions that were established at least this time ago"),
)  # fmt: skip


def passes(values: dict[str, Any], settings: Mapping[str, Any]) -> Optional[dict[str, Any]]:
    """Apply --state, --min-idle and --min-age, which no session passes that has ended."""
    wanted = settings.get("state")
    if wanted and values["state"] not in wanted:
        return None
    for option, column in (("min_idle", "idle_us"), ("min_age", "age_us")):
        least = settings.get(option)
        if least and (values[column] is None or values[column] < least * 1e6):
            return None
    return values


def only_open(settings: Mapping[str, Any]) -> bool:
    """Return whether only open sessions pass the filters."""
    return any(settings.get(name) for name in ("state", "min_idle", "min_age"))


OPEN_ROWS = OpenRows(text_of_open, only_open)
