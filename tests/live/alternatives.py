"""Cases for test_alternatives.py: traffic that must give the same result with every kind of probe.

The test file of a tool defines `ALTERNATIVES`, a Case, unless all its probes are in user space.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Callable, NamedTuple

import calls
import traffic
from harness import Json, Run
from topology import Host

from netbpf.declare.cgroup_names import NAMES

# Columns with durations, which differ as no two probes run at the same instant.
MEASURED = ("_us", "_ns", "time")


class Stage(NamedTuple):
    """Hosts and processes for traffic."""

    alone: Host
    left: Host
    right: Host
    client: traffic.Peer
    server: traffic.Peer
    caller: calls.Caller


class Case(NamedTuple):
    """The tool's options, the traffic, and the facts that must not depend on the kind of probe.

    `facts` takes a run and the columns that a kind of probe in use cannot fill. `settings` are the
    options, by name, that probes depend on.
    """

    args: Callable[[Stage], Sequence[object]]
    act: Callable[[Stage, Run], None]
    facts: Callable[[Run, set[str]], Any]
    settings: dict[str, object] = {}


def sessions(stage: Stage, run: Run) -> None:
    """Create TCP sessions of each family with two kinds of ends, and a refused connection."""
    for family in traffic.FAMILIES[:3]:
        for end in ("client-fin", "server-reset"):
            session = traffic.connect(stage.client, stage.server, family)
            session.transfer(up=1234, down=4099)
            session.end(end)
    traffic.failed(
        traffic.attempt(stage.client, stage.right, traffic.Plan("ipv4", "refused", 0, 0))
    )


def everything(stage: Stage, run: Run) -> None:
    """Let the caller make every kind of call on sockets, 7 times each."""
    stage.caller.go("everything", 7)


def plain(line: Json, lost: set[str]) -> tuple[tuple[str, str], ...]:
    """Return the columns of a line that must not depend on the kind of probe."""
    return tuple(
        (name, repr(value))
        for name, value in sorted(line.items())
        # The reader looks up NAMES by the cgroup's id, if it finds them in time.
        if name not in (*lost, *NAMES, "type") and not name.endswith(MEASURED)
    )


def events(run: Run, lost: set[str]) -> Counter[Any]:
    """Return the events of a run."""
    return Counter(plain(event, lost) for event in run.events)


def rows(run: Run, lost: set[str]) -> Counter[Any]:
    """Return the rows of a run."""
    return Counter(plain(row, lost) for row in run.rows)
