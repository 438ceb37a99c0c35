"""Data that a socket holds back: columns about it, percentiles, advice and notes."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any

from netbpf.declare.columns import (
    Addr,
    Cgroup,
    Comm,
    Count,
    Enum,
    Family,
    Netns,
    Pid,
    Port,
    Text,
    Uid,
)
from netbpf.declare.histogram import SLOTS, bucket_bounds
from netbpf.declare.record import Record

REASONS = dict(enumerate("nagle cork autocork cwnd rwnd pacing other refused".split()))
# TCP_NAGLE_OFF 1, TCP_NAGLE_CORK 2, TCP_NAGLE_PUSH 4
SETTINGS = dict(enumerate("ON OFF CORK OFF+CORK PUSH OFF+PUSH CORK+PUSH OFF+CORK+PUSH".split()))
BUCKETS = [f"slot{number}" for number in range(SLOTS)]  # as in struct histogram
KEYS = tuple("comm pid uid cgroup netns family laddr lport raddr rport".split())  # of --by
ADVICE = "TCP_NODELAY or one write"
_UNITS = ((1, "us"), (1000, "ms"), (1000000, "s"))
_DELAYED_US = 32_000  # an acknowledgement is delayed by at least 40 ms


class StallKey(Record):
    """The key of the distribution: the reason, and with --by more."""

    cstruct = "stall_key"

    comm = Comm("name of the process that sent (--by)")
    pid = Pid("the process (--by)")
    uid = Uid("its user (--by)")
    cgroup = Cgroup()
    netns = Netns()
    family = Family("address family (--by)")
    laddr = Addr("local address (--by)")
    lport = Port("local port (--by)")
    raddr = Addr("remote address (--by)")
    rport = Port("remote port (--by)")
    reason = Enum("why the data was not sent immediately", REASONS, ctype="u32")


class Setting(Text):
    """The bits of a socket's setting; in text the names of the options that set them."""

    width = 26

    def text(self, value: Any) -> str:
        """Return "default", "TCP_NODELAY", "TCP_NODELAY+TCP_CORK" and so on."""
        options = {"ON": "default", "OFF": "TCP_NODELAY", "CORK": "TCP_CORK", "PUSH": "push"}
        return "+".join(options[word] for word in value.split("+"))


class Advice(Text):
    """What the program should do."""

    def text(self, value: Any) -> str:
        """Return a short form."""
        return "TCP_NODELAY/writev" if value else "-"


class Bound(Count):
    """Microseconds, the upper bound of a bucket."""

    def text(self, value: Any) -> str:
        """Return "<=65.6ms": three digits, rounded up so that it stays a bound."""
        if value is None:
            return "-"
        scale, unit = next((s, u) for s, u in _UNITS if value < 1000 * s or s == _UNITS[-1][0])
        digits = max(0, 3 - len(str(value // scale)))
        return f"<={math.ceil(value * 10**digits / scale) / 10**digits:g}{unit}"


def with_advice(row: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the columns p99_us and advice of a socket, from its buckets and its reason."""
    rank, counted, bound = -(-row["holds"] * 99 // 100), 0, None
    for slot, name in enumerate(BUCKETS):
        counted += row[name]
        if counted >= rank:
            bound = bucket_bounds(slot)[1]
            break
    # A write waits for the acknowledgement of the one before it, then an answer is read.
    pattern = row["reason"] == "nagle" and row["holds"] > 1 and row["rounds"] * 2 >= row["holds"]
    return {"p99_us": bound, "advice": ADVICE if pattern else None}


def still_held(
    socket: type[Record], now: int, maps: Mapping[str, Sequence[bytes]]
) -> tuple[dict[str, int], list[str]]:
    """Return the number of sockets that still hold data, and notes on the oldest.

    The values of the map `stalls` are the record `socket`, followed by the start in ns. No
    histogram contains these stalls.
    """
    decode, layout, start = socket.decoder(), socket.layout(), struct.Struct("=Q")
    waiting = [
        (now - start.unpack_from(raw, socket.size)[0], decode(layout.unpack_from(raw)))
        for raw in maps["stalls"]
    ]
    waiting.sort(key=lambda pair: -pair[0])
    notes = [
        f"still held: {sk['comm']} (pid {sk['pid']}) to {sk['raddr']} port "
        f"{sk['rport']}, for {age / 1e6:.1f} ms ({sk['reason']})"
        for age, sk in waiting[:5]
    ]
    return {"still_held": len(waiting)}, notes


def delayed_acks(histograms: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a note if half of the nagle stalls are as long as a delayed acknowledgement."""
    for histogram in histograms:
        long = histogram["percentiles"]["p50"] > _DELAYED_US
        if histogram["key"]["reason"] == "nagle" and long:
            return ["nagle holds of 32 ms and more: the other end delays its acknowledgements"]
    return []
