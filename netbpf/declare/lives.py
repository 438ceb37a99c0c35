"""The life of sockets: how they are made and end, and the filter of protocols."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from netbpf.declare.constants import one_of

ORIGINS = {0: None, 1: "socket", 2: "accept"}
ENDS = {0: None, 1: "close", 2: "exit", 3: "open"}
# Words of --proto: numbers of SockProto.
PROTOS = {
    "tcp": (6, 262), "udp": (17, 136), "icmp": (1, 58), "raw": (1003,), "sctp": (132,),
}  # fmt: skip


def constants(settings: Mapping[str, Any]) -> dict[str, object]:
    """Return the C constant of --proto."""
    if not settings["proto"]:
        return {}
    wanted = {number for word in settings["proto"] for number in PROTOS[word]}
    return {"FILTER_PROTO(x)": one_of("x", sorted(wanted))}
