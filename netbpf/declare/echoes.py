"""ICMP echo requests: what can come of them, and rows of them by key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from netbpf.declare import aggregation as a
from netbpf.declare import columns as c
from netbpf.declare.aggregation import Values
from netbpf.declare.record import Row

RESULTS = {
    0: "waiting", 1: "reply", 2: "unreachable", 3: "time-exceeded", 4: "too-big", 5: "bad-header",
    6: "dropped", 7: "lost",
}  # fmt: skip
UNANSWERED = ("dropped", "lost")
ERRORS = tuple(word for number, word in RESULTS.items() if 2 <= number <= 5)


def replied(values: Values, has_ended: bool) -> bool:
    """Count requests that a reply answered."""
    return has_ended and values["result"] == "reply"


def refused(values: Values, has_ended: bool) -> bool:
    """Count requests that an ICMP error answered."""
    return has_ended and values["result"] in ERRORS


def unanswered(values: Values, has_ended: bool) -> bool:
    """Count requests that nothing answered."""
    return has_ended and values["result"] in UNANSWERED


class PingRow(Row):
    """The requests of a key that were over in an interval."""

    raddr = c.Addr("address that was asked")
    requests = c.Count("requests that are over", width=8, over=a.Number())
    replies = c.Count("those with a reply", width=7, over=a.Number(when=replied))
    errors = c.Count("those with an ICMP error instead", width=6, over=a.Number(when=refused))
    lost = c.Count("those without an answer: lost or dropped", width=6, alert=True,
                   over=a.Number(when=unanswered))  # fmt: skip
    waiting = c.Count("requests that were not over", width=7, over=a.Number(when=a.pending))
    p50_us = c.Duration("median of rtt_us of the replies", header="P50_MS", width=7,
                        over=a.Percentile("rtt_us", 50, replied))  # fmt: skip
    p99_us = c.Duration("rtt_us of 99 % of them", header="P99_MS", width=7,
                        over=a.Percentile("rtt_us", 99, replied))  # fmt: skip


def request_of(values: Mapping[str, Any]) -> tuple[object, ...]:
    """Return the key that two records of one request share."""
    return tuple(values[name] for name in ("netns", "laddr", "raddr", "ident", "seq"))
