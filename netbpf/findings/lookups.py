"""Problems of name lookups, as gethostlatency sees them."""

from __future__ import annotations

from collections.abc import Iterator

from netbpf.declare.finding import (
    CRITICAL,
    NOTE,
    WARNING,
    Case,
    Evidence,
    Rule,
    View,
    grouped,
    named,
    processes,
    since,
    times,
)

_SLOW_US = 1_000_000
LOOKUPS = View(
    "gethostlatency",
    keys=("host", "result", "pid", "comm", "container", "unit", "netns"),
    largest=("latency_us",),
    over=(("slow", "latency_us", _SLOW_US),),
)
_NAMELESS = ("EAI_NONAME", "EAI_NODATA", "HOST_NOT_FOUND", "NO_DATA")
_MANY = 50  # per second, for one name
_COMMAND = "netbpf gethostlatency --host {host}"


def slow(evidence: Evidence) -> Iterator[Case]:
    """Find names whose lookup takes long, or has not ended."""
    for (host,), rows in grouped(evidence.of(LOOKUPS), "host").items():
        late = [row for row in rows if row["slow"]]
        if not late:
            continue
        number, hanging = sum(row["slow"] for row in late), sum(row["pending"] for row in late)
        longest = max(row["latency_us"] or 0 for row in late)
        who = processes(late, "slow")
        facts = [f"{times(number, 'lookup')} took longer than 1 s, the longest "
                 f"{longest / 1e6:.1f} s"]  # fmt: skip
        facts += [f"{times(hanging, 'lookup')} had not ended"] * bool(hanging)
        values = {"host": host, "who": named(who)}
        subjects = frozenset({("host", host), *(("pid", one["pid"]) for one in who)})
        yield Case(CRITICAL if longest >= 5 * _SLOW_US else WARNING, values, facts, subjects, who,
                   since(late), longest)  # fmt: skip


def failing(evidence: Evidence) -> Iterator[Case]:
    """Find names whose lookup fails."""
    for (host,), rows in grouped(evidence.of(LOOKUPS), "host").items():
        failed = [row for row in rows if row["count"] and row["result"] not in ("OK", None)]
        number, total = sum(r["count"] for r in failed), sum(r["count"] for r in rows)
        if number < 3 or number < total / 10:
            continue
        results = sorted({str(row["result"]) for row in failed})
        who = processes(failed)
        values = {"host": host, "who": named(who), "result": " and ".join(results)}
        facts = [f"{number} of {times(total, 'lookup')} failed"]
        severity = NOTE if set(results) <= set(_NAMELESS) else WARNING
        subjects = frozenset({("host", host)})
        yield Case(severity, values, facts, subjects, who, since(failed), number)


def many(evidence: Evidence) -> Iterator[Case]:
    """Find names that are looked up again and again."""
    for (host,), rows in grouped(evidence.of(LOOKUPS), "host").items():
        number = sum(row["count"] for row in rows)
        if number < max(_MANY * evidence.seconds, 100):
            continue
        who = processes(rows)
        values = {"host": host, "who": named(who)}
        facts = [f"{times(number, 'lookup')}, {number / max(evidence.seconds, 1):.0f} per second"]
        yield Case(NOTE, values, facts, frozenset({("host", host)}), who, since(rows), number)


RULES = (
    Rule(
        "slow-lookups", (LOOKUPS,), slow,
        "Looking up {host} is slow for {who}",
        "Everything that begins with this name waits that long. A resolver of /etc/resolv.conf "
        "does not answer (each try takes 5 s), or answers late.",
        _COMMAND,
        "1 s; the C library asks the next resolver after 5 s (resolv.conf(5), timeout)",
        {"failing-lookups": "host"},
        "host",
    ),
    Rule(
        "failing-lookups", (LOOKUPS,), failing,
        "Looking up {host} fails for {who}: {result}",
        "The name does not exist (EAI_NONAME), or no resolver gave an answer (EAI_AGAIN).",
        _COMMAND,
        "3 failures that are a tenth of the lookups; names that do not exist are notes",
        differs="host",
    ),
    Rule(
        "repeated-lookups", (LOOKUPS,), many,
        "{who} looks up {host} again and again",
        "Each connection pays for a lookup: the program does not keep the address, and nothing on "
        "this machine caches it (nscd, systemd-resolved, dnsmasq).",
        "netbpf gethostlatency --summary --host {host}",
        "50 per second for one name",
    ),
)  # fmt: skip
