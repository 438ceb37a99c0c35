"""The measured cost of a tool, for its manual: bench/cost.py --python prints it."""

from __future__ import annotations

from typing import Any, NamedTuple

_WHERE = "an x86-64 virtual machine with two CPUs, Linux 6.18"


class Cost(NamedTuple):
    """CPU time in us per connection or lookup: of BPF programs, and of the reader."""

    probes: float
    reader: float
    per: str = "connection"


def in_manual(tool: Any) -> str:
    """Return the manual's text on the cost of `tool`, "" if it was not measured."""
    cost = tool.cost
    if not cost:
        return ""
    load, unit = "short TCP connections over loopback", "connection"
    if cost.per == "lookup":
        load, unit = "lookups of a name in /etc/hosts", "lookup"
    return (
        f"Under a load of {load}, probes used {cost.probes:.1f} us of CPU time per {unit} and the "
        f"reader {cost.reader:.1f} us ({_WHERE}; bench/cost.py). The summary shows the cost of a "
        "run."
    )
