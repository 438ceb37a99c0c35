"""Problems of outgoing connections, as soconnect sees them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Callable

from netbpf.declare.finding import (
    CRITICAL,
    NOTE,
    WARNING,
    Case,
    Evidence,
    Rule,
    Values,
    View,
    endpoint,
    grouped,
    named,
    processes,
    service,
    since,
    times,
)

CONNECTS = View(
    "soconnect",
    keys=("netns", "raddr", "rport", "errno", "result", "pid", "comm", "container", "unit"),
    sums=("retransmits",),
    largest=("latency_us",),
)
_UNANSWERED = ("SYN unanswered, closed by the program", "Closed by the program")
_UNREACHABLE = ("ENETUNREACH", "EHOSTUNREACH", "EACCES", "EPERM", "ENETDOWN", "EHOSTDOWN")
_PORTS = "Local ports used up"


def _cases(
    evidence: Evidence,
    is_failure: Callable[[Values], Any],
    more: Callable[[Sequence[Values]], Sequence[str]] = lambda failed: (),
) -> Iterator[Case]:
    """Yield a case per destination of the failed attempts; `more` returns further facts."""
    everything = evidence.of(CONNECTS)
    by_ends = grouped(everything, "netns", "raddr", "rport")
    answered: dict[tuple[Any, Any], set[Any]] = {}  # (process, port): addresses
    for row in everything:
        if row["result"] == "OK":
            answered.setdefault((row["pid"], row["rport"]), set()).add(row["raddr"])
    for ends, same in by_ends.items():
        (netns, raddr, rport), failed = ends, [_asked(row) for row in same if is_failure(row)]
        if not failed:
            continue
        attempts = sum(_asked(row)["asked"] for row in same)
        failures = sum(row["asked"] for row in failed)
        who = processes(failed, "asked")
        severity = CRITICAL if failures == attempts else WARNING
        if all(one["pid"] and answered.get((one["pid"], rport), set()) - {raddr} for one in who):
            severity = NOTE  # another address of the same service answers these processes
        remote = endpoint(raddr, rport)
        values = {
            "remote": remote, "raddr": raddr, "rport": rport, "who": named(who),
            "failures": failures, "attempts": attempts, "netns": netns,
            "result": next((row["result"] for row in failed if row["result"]), "no answer yet"),
        }  # fmt: skip
        yield Case(
            severity,
            values,
            [f"{failures} of {times(attempts, 'attempt')} to connect failed", *more(failed)],
            frozenset({("remote", remote), *service(evidence, raddr, rport)}),
            who,
            since(failed),
            failures,
        )


def _asked(row: Values) -> Values:
    """Return a row with the number of its attempts, ended or not."""
    return {**row, "asked": row["count"] + row["pending"]}


def refused(evidence: Evidence) -> Iterator[Case]:
    """Find destinations that answered a SYN with a reset."""
    return _cases(evidence, lambda row: row["errno"] == "ECONNREFUSED")


def unanswered(evidence: Evidence) -> Iterator[Case]:
    """Find destinations that did not answer, in time or at all."""

    def is_failure(row: Values) -> bool:
        waits = row["pending"] and row["retransmits"]
        return bool(row["errno"] == "ETIMEDOUT" or row["result"] in _UNANSWERED or waits)

    def sent_again(failed: Sequence[Values]) -> Sequence[str]:
        sent = sum(row["retransmits"] for row in failed)
        longest = max(row["latency_us"] or 0 for row in failed)
        return [f"{times(sent, 'SYN')} sent again; the longest attempt took {longest / 1e6:.1f} s"]

    return _cases(evidence, is_failure, sent_again)


def unreachable(evidence: Evidence) -> Iterator[Case]:
    """Find destinations without a route, or that a firewall or a router rejects."""
    return _cases(evidence, lambda row: row["errno"] in _UNREACHABLE)


def ports_used_up(evidence: Evidence) -> Iterator[Case]:
    """Find connects for which no local port was free."""
    return _cases(evidence, lambda row: row["result"] == _PORTS)


def _rule(ident: str, find: Any, sentence: str, meaning: str, command: str, source: str) -> Rule:
    explains = {"handshake-retransmissions": "remote"}
    return Rule(ident, (CONNECTS,), find, sentence, meaning, command, source, explains, "remote")


_COMMAND = "netbpf soconnect --failed --raddr {raddr} -D {rport}"
RULES = (
    _rule(
        "backend-refuses", refused,
        "{remote} refuses connections of {who}",
        "The machine answers, and no process listens on that port there: the service is down, "
        "listens on another address or port, or was not started yet. A firewall that rejects with "
        "a reset looks the same.",
        _COMMAND,
        "every refused attempt is a failure for the program; critical if none succeeded",
    ),
    _rule(
        "backend-does-not-answer", unanswered,
        "{remote} does not answer connections of {who}",
        "SYNs get no answer at all: the machine is down, a firewall drops them without a word, the "
        "route back is missing, or the listener's queues are full.",
        _COMMAND,
        "a SYN is sent again after 1 s (RFC 6298), so one that waits that long was not answered",
    ),
    _rule(
        "backend-unreachable", unreachable,
        "{remote} is unreachable for {who}: {result}",
        "A route is missing, a router or firewall answers with an ICMP error, or a local rule or "
        "security module forbids the connection.",
        "ip route get {raddr}",
        "every such attempt fails at once; critical if none succeeded",
    ),
    _rule(
        "local-ports-used-up", ports_used_up,
        "No local port is free for connections of {who} to {remote}",
        "Each connection to one destination needs a local port of its own, and ports in TIME_WAIT "
        "count for a minute. Keep connections open and reuse them, widen "
        "net.ipv4.ip_local_port_range, or set net.ipv4.tcp_tw_reuse = 1.",
        _COMMAND,
        "connect(2) fails with EADDRNOTAVAIL only if the whole range was tried",
    ),
)  # fmt: skip
