"""Small writes that TCP holds back, as tcpnagle sees them."""

from __future__ import annotations

from collections.abc import Iterator

from netbpf.declare.finding import (
    WARNING,
    Case,
    Evidence,
    Rule,
    View,
    endpoint,
    grouped,
    named,
    processes,
    times,
)

WRITES = View("tcpnagle --top 100")
_LEAST = 10
_LONG_US = 20_000  # on average


def held_back(evidence: Evidence) -> Iterator[Case]:
    """Find processes whose small writes wait for delayed acknowledgements."""
    rows = [row for row in evidence.of(WRITES) if row.get("advice")]
    for (pid,), same in grouped(rows, "pid").items():
        number, held_us = (sum(row[name] for row in same) for name in ("holds", "held_us"))
        if number < _LEAST or held_us < number * _LONG_US:
            continue
        worst = max(same, key=lambda row: row["held_us"])
        who = processes(same, "holds")
        values = {"pid": pid, "who": named(who)}
        facts = [
            f"{times(number, 'write')} held for {held_us / number / 1000:.0f} ms on average, "
            f"{held_us / 1e6:.1f} s in all",
            f"most of them to {endpoint(worst['raddr'], worst['rport'])}",
        ]
        yield Case(WARNING, values, facts, frozenset({("pid", pid)}), who, 0, number)


RULES = (
    Rule(
        "small-writes", (WRITES,), held_back,
        "Small writes of {who} wait for acknowledgements before they are sent",
        "The program writes a message in several pieces and then reads. Nagle's algorithm holds "
        "the second piece back until the first is acknowledged, and the peer delays that: 40 ms "
        "for each message. Write it in one piece (writev), or set TCP_NODELAY.",
        "netbpf tcpnagle --top 10 -p {pid} -d 5",
        "an acknowledgement is delayed by 40 ms or more (TCP_DELACK_MIN); 10 held for half of it",
    ),
)  # fmt: skip
