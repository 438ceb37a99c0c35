"""Problems of TCP sessions that are open, or have ended, as tcplife sees them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

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
    since,
    times,
)

_IDLE_US = 2_000_000
_LONG_US = 600_000_000
_UNREAD = 64 << 10
SESSIONS = View(
    "tcplife --open",
    keys=("netns", "state", "close", "role", "laddr", "lport", "raddr", "rport",
          "pid", "comm", "container", "unit"),
    sums=("rx_unread", "tx_unsent"),
    largest=("idle_us", "age_us", "rx_unread", "tx_unsent"),
    over=(("idle", "idle_us", _IDLE_US), ("unread", "rx_unread", _UNREAD),
          ("unsent", "tx_unsent", 0), ("long_idle", "idle_us", _LONG_US)),
)  # fmt: skip
_CLOSE_WAIT = 3  # sockets of one process
_MANY_IDLE = 100


def _open(evidence: Evidence) -> list[Values]:
    return [row for row in evidence.of(SESSIONS) if row["pending"]]


def close_wait(evidence: Evidence) -> Iterator[Case]:
    """Find processes that do not close connections that the peer has closed."""
    rows = [row for row in _open(evidence) if row["state"] == "CLOSE_WAIT" and row["idle"]]
    for (pid,), same in grouped(rows, "pid").items():
        number = sum(row["idle"] for row in same)
        if number < _CLOSE_WAIT:
            continue
        who = processes(same, "idle")
        longest = max(row["idle_us"] or 0 for row in same)
        facts = [
            f"{times(number, 'connection')} in CLOSE_WAIT without any data for 2 s or more, the "
            f"longest for {longest / 1e6:.0f} s",
            _ports(same, number),
        ]
        values = {"pid": pid, "who": named(who), "number": number}
        severity = CRITICAL if number >= 1000 else WARNING
        yield Case(severity, values, facts, frozenset({("pid", pid)}), who, 0, number)


def _ports(rows: Sequence[Values], number: int) -> str:
    """Return which end most of the rows have in common."""
    groups: dict[str, int] = {}
    for row in rows:
        end = (f"accepted on port {row['lport']}" if row["role"] == "passive"
               else f"to {endpoint(row['raddr'], row['rport'])}")  # fmt: skip
        groups[end] = groups.get(end, 0) + row["pending"]
    end = max(groups, key=lambda name: groups[name])
    return f"{groups[end]} of them {end}"


def unread(evidence: Evidence) -> Iterator[Case]:
    """Find processes that do not read what has arrived for them."""
    rows = [row for row in _open(evidence) if row["unread"] and row["state"] != "CLOSE_WAIT"]
    for (pid,), same in grouped(rows, "pid").items():
        idle = [row for row in same if row["idle"]]
        if not idle:
            continue
        who = processes(idle, "unread")
        most = max(row["rx_unread_max"] for row in idle)
        number = sum(row["unread"] for row in idle)
        facts = [f"{times(number, 'connection')} with up to {most} bytes that have arrived and "
                 "were not read", _ports(idle, number)]  # fmt: skip
        values = {"pid": pid, "who": named(who)}
        yield Case(WARNING, values, facts, frozenset(map(_flow, idle)), who, 0, most)


def _flow(row: Values) -> tuple[str, object]:
    """Return the connection, which both of its ends have in common."""
    return "flow", frozenset({(row["laddr"], row["lport"]), (row["raddr"], row["rport"])})


def untaken(evidence: Evidence) -> Iterator[Case]:
    """Find remote ends that do not take what is sent to them."""
    rows = [row for row in _open(evidence) if row["unsent"] and row["idle"]]
    for (raddr, rport), same in grouped(rows, "raddr", "rport").items():
        who = processes(same, "unsent")
        most = max(row["tx_unsent_max"] for row in same)
        number = sum(row["unsent"] for row in same)
        facts = [f"{times(number, 'connection')} with up to {most} bytes that were written and "
                 "could not be sent, without progress for 2 s"]  # fmt: skip
        values = {"remote": endpoint(raddr, rport), "raddr": raddr, "rport": rport,
                  "who": named(who)}  # fmt: skip
        yield Case(WARNING, values, facts, frozenset(map(_flow, same)), who, 0, most)


def idle(evidence: Evidence) -> Iterator[Case]:
    """Find processes with many connections that nothing moves on."""
    rows = [row for row in _open(evidence) if row["long_idle"] and row["state"] == "ESTABLISHED"]
    for (pid,), same in grouped(rows, "pid").items():
        number = sum(row["long_idle"] for row in same)
        if number < _MANY_IDLE:
            continue
        who = processes(same, "long_idle")
        ends = _ports([{**row, "pending": row["long_idle"]} for row in same], number)
        facts = [f"{times(number, 'connection')} without any data for 10 minutes or more", ends]
        subjects = frozenset({("pid", pid)})
        yield Case(NOTE, {"pid": pid, "who": named(who)}, facts, subjects, who, 0, number)


def resets(evidence: Evidence) -> Iterator[Case]:
    """Find services whose sessions end by resets."""
    rows = [row for row in evidence.of(SESSIONS) if row["count"] and row["close"]]
    by_service = grouped(rows, "pid", "role")
    here = {_flow(row) for row in rows if row["close"] == "rst-local"}
    for by in ("rst-local", "rst-remote"):
        # If both ends are on this machine, report the end that resets, and not the other one.
        chosen = [row for row in rows if row["close"] == by]
        if by == "rst-remote":
            chosen = [row for row in chosen if _flow(row) not in here]
        groups = grouped(chosen, "pid", "role")
        for (pid, role), same in groups.items():
            number = sum(row["count"] for row in same)
            ended = sum(row["count"] for row in by_service[pid, role])
            if number < 10 or number < 0.1 * ended:
                continue
            who = processes(same)
            values = {
                "who": named(who), "pid": pid,
                "by": "by this end" if by == "rst-local" else "by the remote end",
            }  # fmt: skip
            facts = [f"{number} of {times(ended, 'session')} ended with a reset", _ports(
                [{**row, "pending": row["count"]} for row in same], number)]  # fmt: skip
            subjects = frozenset({("pid", pid)})
            yield Case(WARNING, values, facts, subjects, who, since(same), number)


RULES = (
    Rule(
        "close-wait", (SESSIONS,), close_wait,
        "{who} does not close connections that the other side has closed",
        "The peer is done (it has sent a FIN) and the program still holds the socket: it leaks "
        "descriptors until accept(2) or connect(2) fail. Only the program can end this, by "
        "close(2); no kernel timeout does.",
        "netbpf tcplife --state CLOSE_WAIT -p {pid} -d 1",
        "a program that handles a FIN closes within milliseconds; 3 that wait 2 s are a pattern",
    ),
    Rule(
        "does-not-read", (SESSIONS,), unread,
        "{who} does not read what has arrived",
        "Its receive buffers fill, the window closes, and the senders wait. The program is "
        "blocked, stopped or overloaded; the network is not the reason.",
        "netbpf tcplife --open -p {pid} -d 1",
        "64 KiB are more than one read takes, and nothing moved for 2 s",
        {"peer-does-not-read": "flow"},
    ),
    Rule(
        "peer-does-not-read", (SESSIONS,), untaken,
        "{remote} does not take what {who} sends",
        "Its window is closed, as its program does not read, or the path is broken and nothing is "
        "acknowledged. This machine can only wait: look at the other end.",
        "netbpf tcpwin --raddr {raddr} -D {rport} -d 10",
        "TCP itself holds written data back for a fraction of a second at most, not for 2 s",
        differs="remote",
    ),
    Rule(
        "idle-connections", (SESSIONS,), idle,
        "{who} keeps many connections that nothing moves on",
        "A pool that is too large, or clients that left without a FIN: without keepalive nobody "
        "notices, and firewalls on the way forget them.",
        "netbpf tcplife --min-idle 10m -p {pid} -d 1",
        "100 connections of one process for 10 minutes: most pools and firewalls time out earlier",
    ),
    Rule(
        "resets", (SESSIONS,), resets,
        "Sessions of {who} are reset {by}",
        "The end that resets had unread data or a fault, was killed, or has a firewall or load "
        "balancer before it that gave the session up. The other end loses what was on the way.",
        "netbpf tcplife --by close,raddr -p {pid}",
        "10 resets that are a tenth of all sessions: single ones are normal, such as of browsers",
    ),
)  # fmt: skip
