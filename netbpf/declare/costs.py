"""Measured cost of each tool, for the manuals: the output of bench/cost.py --python."""

from __future__ import annotations

from typing import NamedTuple

_WHERE = "an x86-64 virtual machine with two CPUs, Linux 6.18"


class Cost(NamedTuple):
    """CPU time in us per connection or lookup: of BPF programs, and of the reader."""

    probes: float
    reader: float


COSTS = {
    "gethostlatency": Cost(1.9, 45.7),
    "netsize": Cost(3.9, 5.9),
    "skbdrop": Cost(2.8, 6.2),
    "soaccept": Cost(2.8, 25.4),
    "sockstat": Cost(2.3, 5.1),
    "soconnect": Cost(3.4, 27.5),
    "tcplife": Cost(4.7, 42.5),
    "tcpnagle": Cost(1.3, 8.7),
    "tcpretrans": Cost(2.4, 3.0),
    "tcpsynbl": Cost(0.9, 11.5),
}


def in_manual(name: str) -> str:
    """Return the manual's text on the cost of the tool `name`, "" if it was not measured."""
    cost = COSTS.get(name)
    if not cost:
        return ""
    load, unit = "short TCP connections over loopback", "connection"
    if name == "gethostlatency":
        load, unit = "lookups of a name in /etc/hosts", "lookup"
    return (
        f"Under a load of {load}, probes used {cost.probes:.1f} us of CPU time per {unit} and the "
        f"reader {cost.reader:.1f} us ({_WHERE}; bench/cost.py). The summary shows the cost of a "
        "run."
    )
