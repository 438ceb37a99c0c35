"""Problems of listening sockets, as tcpsynbl and soaccept see them."""

from __future__ import annotations

from collections.abc import Iterator

from netbpf.declare.finding import (
    CRITICAL,
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

LISTENERS = View("tcpsynbl")
SLOW_US = 100_000
_QUEUES = ("queues", "listeners")  # what counters of all listeners are about
_ALWAYS = 2  # of net.ipv4.tcp_syncookies: cookies are sent even if nothing is full
ACCEPTS = View(
    "soaccept --tcp",
    keys=("netns", "laddr", "lport", "result", "pid", "comm", "container", "unit"),
    largest=("wait_us", "queue_max"),
    over=(("slow", "wait_us", SLOW_US),),
)


def _case(evidence: Evidence, row: Values, severity: str, facts: list[str], weight: int) -> Case:
    listener = endpoint(row["laddr"], row["lport"])
    who = [{"pid": row["pid"], "comm": row["comm"], "container": None, "unit": None,
            "netns": row["netns"], "count": weight}]  # fmt: skip
    values = {**row, "listener": listener, "who": named(who)}
    subjects = service(evidence, row["laddr"], row["lport"]) | {_QUEUES}
    return Case(severity, values, facts, frozenset(subjects), who, 0, weight)


def accept_queue(evidence: Evidence) -> Iterator[Case]:
    """Find listeners that lost connections because their accept queue was full."""
    for row in evidence.of(LISTENERS):
        if not row["dropped"] or row["accept_max"] <= row["accept_limit"]:
            continue
        facts = [
            f"{times(row['dropped'], 'connection')} lost",
            f"{row['accept_max']} connections waited for accept(2); the limit is "
            f"{row['accept_limit']} (the smaller of the backlog of listen(2) and "
            f"net.core.somaxconn, which is {row['somaxconn']})",
        ]
        yield _case(evidence, row, CRITICAL, facts, row["dropped"])


def syn_queue(evidence: Evidence) -> Iterator[Case]:
    """Find listeners whose SYN queue was full, or that answered with SYN cookies."""
    for row in evidence.of(LISTENERS):
        full = row["dropped"] and row["accept_max"] <= row["accept_limit"]
        asked = row["cookies"] and row["syncookies"] != _ALWAYS
        if not full and not asked:
            continue
        facts = [
            f"{times(row['syns'], 'SYN')} and {times(row['handshakes'], 'completed handshake')}",
            f"{times(row['cookies'], 'SYN cookie')} sent, {times(row['dropped'], 'SYN')} dropped; "
            f"at most {row['syn_max']} handshakes were incomplete at a time",
        ]
        flood = row["syns"] > 10 * max(row["handshakes"], 1) and row["syns"] >= 100
        case = _case(
            evidence, row, CRITICAL if flood else WARNING, facts, row["cookies"] + row["dropped"]
        )
        kind = "is flooded with SYNs that never become connections"
        usual = "gets SYNs faster than the queue takes them"
        yield case._replace(values={**case.values, "what": kind if flood else usual})


def syn_cookies(evidence: Evidence) -> Iterator[Case]:
    """Find full SYN queues by the kernel's counters, which do not say whose."""
    cookies, dropped, made = (evidence.counters.get(name, 0) for name in _COOKIES)
    flood = cookies + dropped > 10 * max(made, 1) and cookies + dropped >= 100
    if evidence.levels.get("syncookies") == _ALWAYS and not flood:
        return
    if cookies + dropped:
        facts = [f"{times(cookies, 'SYN cookie')} sent, {times(dropped, 'SYN')} dropped, and "
                 f"{times(made, 'connection')} made (of all listeners)"]  # fmt: skip
        what = ("gets a flood of SYNs that never become connections" if flood
                else "is full: SYNs come faster than it takes them")  # fmt: skip
        yield Case(CRITICAL if flood else WARNING, {"what": what}, facts, frozenset({_QUEUES}),
                   weight=cookies + dropped)  # fmt: skip


def slow_accepts(evidence: Evidence) -> Iterator[Case]:
    """Find programs that let complete connections wait."""
    groups = grouped(evidence.of(ACCEPTS), "netns", "laddr", "lport")
    for (_, laddr, lport), rows in groups.items():
        slow, total = sum(row["slow"] for row in rows), sum(row["count"] for row in rows)
        if slow < 3 or slow < total / 100:
            continue
        longest = max(row["wait_us"] or 0 for row in rows)
        who = processes(rows)
        values = {"listener": endpoint(laddr, lport), "lport": lport, "who": named(who)}
        facts = [f"{slow} of {times(total, 'connection')} waited longer than 100 ms for accept(2), "
                 f"the longest {longest / 1e6:.1f} s"]  # fmt: skip
        subjects = service(evidence, laddr, lport)
        yield Case(WARNING, values, facts, frozenset(subjects), who, since(rows), slow)


_COOKIES = ("TcpExt.SyncookiesSent", "TcpExt.TCPReqQFullDrop", "Tcp.PassiveOpens")
_EFFECTS = ("slow-accepts", "syn-queue", "backend-does-not-answer", "handshake-retransmissions")
RULES = (
    Rule(
        "accept-queue-overflow", (LISTENERS,), accept_queue,
        "The accept queue of {listener} overflows: {who} does not accept fast enough",
        "Clients see connects that take 1, 3 or 7 s, or time out, although the server is up. "
        "Either the program is blocked or too slow, or a burst is larger than the backlog.",
        "netbpf soaccept -L {lport}",
        "each drop is a connection that a client has to try again (TcpExt.ListenOverflows)",
        {**dict.fromkeys(_EFFECTS, "service"), "syn-cookies": "queues"},
        "listener",
    ),
    Rule(
        "syn-queue", (LISTENERS,), syn_queue,
        "The SYN queue of {listener} is full: {who} {what}",
        "With cookies, connections are made, and lose TCP options. Without (tcp_syncookies = 0), "
        "SYNs are dropped. A flood has senders that never answer; a burst of real clients needs a "
        "larger backlog, net.core.somaxconn and net.ipv4.tcp_max_syn_backlog.",
        "netbpf tcpsynbl -L {lport} 1",
        "cookies are only sent if the queue is full; a flood: 100 SYNs, and ten times as many as "
        "handshakes",
        {**dict.fromkeys(_EFFECTS[2:], "service"), "syn-cookies": "queues"},
        "listener",
    ),
    Rule(
        "syn-cookies", (), syn_cookies,
        "The SYN queue of a listener {what}",
        "With cookies, connections are made, and lose TCP options. Without (tcp_syncookies = 0), "
        "SYNs are dropped. The local address and port of the connections listed say which "
        "listener, their remote addresses who: a flood has many that never answer.",
        "ss -tn state syn-recv",
        "as for syn-queue; for kernels on which no tool sees the SYNs of each listener",
        counters=_COOKIES,
    ),
    Rule(
        "slow-accepts", (ACCEPTS,), slow_accepts,
        "{who} accepts late: complete connections to {listener} wait",
        "The client has sent its request and waits; the time is the server program's, which was "
        "busy, blocked, or has too few threads that accept.",
        "netbpf soaccept --summary -L {lport}",
        "100 ms are more than a request usually takes; 3 of them, and 1 % of all",
        differs="listener",
    ),
)  # fmt: skip
