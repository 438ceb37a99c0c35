"""The wait of TCP connections for their first byte: its phases, how it ends, and rows of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from netbpf.declare import aggregation as a
from netbpf.declare import columns as c
from netbpf.declare.aggregation import Values
from netbpf.declare.record import Row

ROLES = {1: "active", 2: "passive"}
_HEADERS = {"connect": "CONN", "first_tx": "WRITE", "answer": "ANSWER", "pickup": "READ"}
ENDS = {0: "waiting", 1: "data", 2: "eof", 3: "reset", 4: "closed", 5: "timeout"}


def with_data(values: Values, has_ended: bool) -> bool:
    """Count connections whose first byte was read."""
    return bool(values["end"] == "data")


def without_data(values: Values, has_ended: bool) -> bool:
    """Count connections that ended without a byte."""
    return has_ended and bool(values["end"] != "data")


def _p99(phase: str) -> c.Duration:
    help, header = f"{phase}_us of 99 % of the connections", _HEADERS[phase]
    return c.Duration(help, header=header, width=6, over=a.Percentile(f"{phase}_us", 99, a.always))


class PhaseRow(Row):
    """The connections of a key in an interval."""

    comm = c.Comm("process that read the first byte, or that has the socket", width=8)
    pid = c.Pid("its id", width=6)
    role = c.Enum("active: connected, passive: accepted", ROLES, width=7)
    connections = c.Count("connections with a first byte", header="CONNS", width=5,
                          over=a.Number(when=with_data))  # fmt: skip
    silent = c.Count("connections that ended without one", header="NONE", width=5,
                     over=a.Number(when=without_data))  # fmt: skip
    waiting = c.Count("connections that still waited", wide=True, width=7,
                      over=a.Number(when=a.pending))  # fmt: skip
    connect_p99_us = _p99("connect")
    first_tx_p99_us = _p99("first_tx")
    answer_p99_us = _p99("answer")
    pickup_p99_us = _p99("pickup")
    p50_us = c.Duration("median of first_rx_us", header="P50_MS", width=7,
                        over=a.Percentile("first_rx_us", 50))  # fmt: skip
    p99_us = c.Duration("first_rx_us of 99 %", header="P99_MS", width=7,
                        over=a.Percentile("first_rx_us", 99))  # fmt: skip


def notes(summary: Mapping[str, Any], settings: Mapping[str, Any]) -> list[str]:
    """Return how many connections the distributions do not have."""
    number = summary["totals"]["without_data"]
    if not number or not settings["histogram"]:
        return []
    what = f"{number} connection{'s' * (number != 1)} ended before a byte was read"
    return [f"{what}: --events shows them"]
