"""Accepted connections: the filters of the program, and the listeners of unix sockets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from netbpf.declare.constants import one_of

PROTOS = {"tcp": (6, 262), "unix": (1001, 1005)}  # of --proto: numbers of SockProto


def name_listener(values: dict[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Name a unix listener by its path."""
    if values["family"] == "unix":
        values["listener"] = values["laddr"]
    return values


def constants(settings: Mapping[str, Any]) -> dict[str, object]:
    """Return the constants of --errors and --proto; a summary counts all accepts."""
    found: dict[str, object] = {}
    if settings["errors"] and not settings["summary"]:
        found["ONLY_ERRORS"] = 1
    if settings["proto"]:
        wanted = {number for name in settings["proto"] for number in PROTOS[name]}
        found["FILTER_PROTO(x)"] = one_of("x", sorted(wanted))
    return found
