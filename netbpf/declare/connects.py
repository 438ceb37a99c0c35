"""Attempts to connect: their results, and which of them the rows of a summary count."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from netbpf.declare.constants import load_constant
from netbpf.declare.options import nanoseconds
from netbpf.declare.sockets import ends_of

Values = Mapping[str, Any]

# Results that are not error numbers: RESULT_* in C.
_NUMBERS = {
    "PENDING": -1,
    "PORTS_USED_UP": 1000,
    "CLOSED": 1001,
    "UNANSWERED": 1002,
    "NOT_SENT": 1003,
}
# Texts that are clearer or shorter than the C library's.
RESULTS = {
    _NUMBERS["PORTS_USED_UP"]: "Local ports used up",
    _NUMBERS["CLOSED"]: "Closed by the program",
    _NUMBERS["UNANSWERED"]: "SYN unanswered, closed by the program",
    _NUMBERS["NOT_SENT"]: "No SYN was sent",
    11: "Backlog is full",
    99: "Address unavailable",
    101: "Network unreachable",
}
PROTOS = ("tcp", "udp", "unix")  # of --proto
SHORT_RESULTS = {RESULTS[_NUMBERS["UNANSWERED"]]: "Unanswered, closed"}


def is_shown(row: Values, settings: Values) -> bool:
    """Return whether the row of a summary passes --failed and --min-ms."""
    if settings["failed"] and not row["failures"]:
        return False
    return not settings["min_ms"] or (row["p99_us"] or 0) >= settings["min_ms"] * 1000


def constants(settings: Values) -> dict[str, object]:
    """Return the numbers of results, and the filters; a summary is of all attempts."""
    numbers: dict[str, object] = {f"RESULT_{name}": number for name, number in _NUMBERS.items()}
    least = None if settings["summary"] else settings["min_ms"]
    if settings["failed"] and not settings["summary"]:
        numbers["ONLY_FAILED"] = 1
    return {**numbers, **proto_constants(settings), "MIN_NS": load_constant(nanoseconds(least))}


def proto_constants(settings: Values) -> dict[str, object]:
    """Return the constants of --proto, --udp and --unix."""
    wanted = set(settings["proto"] or ["tcp"])
    wanted.update(name for name in ("udp", "unix") if settings[name])
    found: dict[str, object] = {f"WITH_{n.upper()}": 1 for n in PROTOS[1:] if n in wanted}
    return found if "tcp" in wanted else {**found, "WITHOUT_TCP": 1}


def same_attempt(values: Values) -> object:
    """Return what two events of one attempt have in common.

    Two descriptors of one socket are one attempt. A unix socket is listed by its one call.
    """
    return object() if values["family"] == "unix" else ends_of(values)
