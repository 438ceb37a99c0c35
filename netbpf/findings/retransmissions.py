"""Lost packets, as tcpretrans sees them."""

from __future__ import annotations

from collections.abc import Iterator

from netbpf.declare.finding import (
    CRITICAL,
    WARNING,
    Case,
    Evidence,
    Rule,
    View,
    endpoint,
    grouped,
    named,
    processes,
    service,
    since,
    times,
)

RETRANSMISSIONS = View(
    "tcpretrans",
    keys=("kind", "netns", "laddr", "lport", "raddr", "rport", "pid", "comm", "container", "unit"),
    sums=("segs",),
)
_LEAST = 10  # segments: fewer say nothing about a path
_SHARE = 0.01


def handshakes(evidence: Evidence) -> Iterator[Case]:
    """Find remote ends to which SYNs or SYN-ACKs were sent again."""
    rows = [row for row in evidence.of(RETRANSMISSIONS) if row["kind"] in ("SYN", "SYNACK")]
    for (kind, raddr), same in grouped(rows, "kind", "raddr").items():
        segments = sum(row["segs"] for row in same)
        if segments < 3:
            continue
        ports = sorted({row["rport"] for row in same} if kind == "SYN" else
                       {row["lport"] for row in same})  # fmt: skip
        remote = endpoint(raddr, ports[0] if kind == "SYN" and len(ports) == 1 else None)
        who = processes(same)
        values = {"remote": remote, "raddr": raddr, "what": "SYNs" if kind == "SYN" else "SYN-ACKs",
                  "who": named(who)}  # fmt: skip
        facts = [f"{times(segments, 'segment')} sent again for port "
                 f"{', '.join(map(str, ports[:4]))}"]  # fmt: skip
        subjects: set[tuple[str, object]] = set()
        for row in same:
            remote_end, local_end = (row["raddr"], row["rport"]), (row["laddr"], row["lport"])
            subjects.add(("remote", endpoint(*remote_end)))
            subjects |= service(evidence, *(remote_end if kind == "SYN" else local_end))
        yield Case(WARNING, values, facts, frozenset(subjects), who, since(same), segments)


def data(evidence: Evidence) -> Iterator[Case]:
    """Find paths on which data was lost, or all of them."""
    rows = [row for row in evidence.of(RETRANSMISSIONS) if row["kind"] in ("RTO", "FAST", "TLP")]
    segments = sum(row["segs"] for row in rows)
    sent = max(evidence.counters.get("Tcp.OutSegs", 0), segments)
    if segments < _LEAST or segments < sent * _SHARE:
        return
    by_peer = {raddr: sum(row["segs"] for row in same)
               for (raddr,), same in grouped(rows, "raddr").items()}  # fmt: skip
    worst = max(by_peer, key=lambda raddr: by_peer[raddr])
    one = by_peer[worst] >= 0.8 * segments
    chosen = [row for row in rows if row["raddr"] == worst] if one else rows
    kinds = {
        kind: sum(row["segs"] for row in same) for (kind,), same in grouped(chosen, "kind").items()
    }
    tail = kinds.get("RTO", 0) + kinds.get("TLP", 0)
    who = processes(chosen)
    values = {
        "where": f"to {worst}" if one else f"to {times(len(by_peer), 'peer')}",
        "share": f"{100 * segments / sent:.1f} %",
        "raddr": worst, "who": named(who),
        "command": f"netbpf tcpretrans --raddr {worst}" if one else "netbpf tcpretrans --flows",
        "meaning": "Packets are lost, or come too late, on the way to this machine or back"
        if one else "Packets to many peers are lost: look at this machine's device, its queue and "
        "its uplink first",
    }  # fmt: skip
    facts = [f"{times(segments, 'segment')} of {sent} were sent again"]
    facts.append(", ".join(f"{number} by {kind}" for kind, number in sorted(kinds.items())))
    if tail > 0.5 * sum(kinds.values()):
        facts.append("most of them after a timeout or a tail loss probe: the end of a flight was "
                     "lost, so that no later segment showed the gap")  # fmt: skip
    severity = CRITICAL if segments >= 0.1 * sent else WARNING
    yield Case(severity, values, facts, frozenset({("raddr", worst)}), who, since(chosen), segments)


RULES = (
    Rule(
        "handshake-retransmissions", (RETRANSMISSIONS,), handshakes,
        "{what} to {remote} are sent again, for {who}",
        "Each one delays a connection by a second or more. The other side is down, a firewall "
        "drops the packets, or its queues are full.",
        "netbpf tcpretrans --raddr {raddr}",
        "a SYN is sent again after 1 s (RFC 6298); 3 are no accident",
    ),
    Rule(
        "data-retransmissions", (RETRANSMISSIONS,), data,
        "{share} of the TCP segments are sent again, {where}, most of {who}",
        "{meaning}.",
        "{command}",
        "1 % already limits throughput, which falls with the square root of the loss (Mathis et "
        "al., 1997); with 10 % connections stall",
    ),
)  # fmt: skip
