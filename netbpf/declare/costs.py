"""What each tool cost in a storm: the output of bench/cost.py --python, for the manuals."""

from __future__ import annotations

from typing import NamedTuple

_WHERE = "an x86-64 virtual machine with two CPUs, Linux 6.18"


class Cost(NamedTuple):
    """CPU time in us per connection, or per lookup: in the BPF programs, and in the reader."""

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
    """Return the manual's sentence on what a tool costs, "" for one that was not measured."""
    cost = COSTS.get(name)
    if not cost:
        return ""
    what, one = "short TCP connections over loopback", "connection"
    if name == "gethostlatency":
        what, one = "lookups of a name in /etc/hosts", "lookup"
    return (
        f"In a storm of {what}, its probes took {cost.probes:.1f} us of CPU time per {one} and its "
        f"reader {cost.reader:.1f} us ({_WHERE}; bench/cost.py). The summary has what a run cost."
    )
