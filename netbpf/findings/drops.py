"""Dropped packets, as skbdrop sees them."""

from __future__ import annotations

from collections.abc import Iterator

from netbpf.declare.finding import NOTE, WARNING, Case, Evidence, Rule, View, grouped, times
from netbpf.declare.reasons import MEANINGS

DROPS = View("skbdrop")
_LEAST = 10
# Another finding tells these with the process that they are about, or they are normal.
_ELSEWHERE = ("TCP_LISTEN_OVERFLOW",)
_USUAL = ("NO_SOCKET", "TCP_OLD_DATA", "TCP_OLD_ACK", "TCP_OFOMERGE", "TCP_RESET", "TCP_CLOSE",
          "SOCKET_CLOSE", "TCP_OLD_SEQUENCE", "OTHERHOST", "UNHANDLED_PROTO", "SOCKET_FILTER",
          "IPV6DISABLED", "TCP_FLAGS", "TCP_INVALID_SEQUENCE", "TCP_ABORT_ON_DATA",
          "TCP_INVALID_ACK_SEQUENCE", "NOT_SPECIFIED")  # fmt: skip


def dropped(evidence: Evidence) -> Iterator[Case]:
    """Find reasons for which packets that matter are dropped."""
    rows = [row for row in evidence.of(DROPS) if row["harmless"] != "yes"]
    for (reason, dev), same in grouped(rows, "reason", "dev").items():
        number = sum(row["count"] for row in same)
        if reason in _ELSEWHERE or number < _LEAST:
            continue
        place = max(same, key=lambda row: row["count"])["location"]
        protocols = ", ".join(dict.fromkeys(str(row["proto"]) for row in same))
        values = {
            "reason": reason,
            "number": times(number, "packet"),
            "where": f"on {dev}" if dev else "before they reach a device",
            "meaning": MEANINGS.get(str(reason), "the kernel's name of the reason is all there is"),
        }
        facts = [f"{number} at {place} ({protocols})"]
        facts += [f"for example {row['example']}" for row in same[:1] if row.get("example")]
        severity = NOTE if reason in _USUAL else WARNING
        subjects = frozenset({("dev", dev), ("reason", reason)})
        yield Case(severity, values, facts, subjects, (), 0, number)


RULES = (
    Rule(
        "drops", (DROPS,), dropped,
        "{number} dropped {where}: {reason}",
        "{reason}: {meaning}.",
        "netbpf skbdrop --reason {reason} --events -d 10",
        "10 of one reason; reasons that occur on every machine are notes",
    ),
)  # fmt: skip
