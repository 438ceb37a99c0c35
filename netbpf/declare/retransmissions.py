"""Retransmitted segments: their columns, which fit 80 characters, and what the kernel counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from netbpf.declare.columns import (
    Addr,
    Comm,
    Count,
    Enum,
    Family,
    Netns,
    Pid,
    Port,
    TcpState,
)
from netbpf.declare.network import Endpoint
from netbpf.declare.record import key, sums
from netbpf.declare.table import Entry

Values = Mapping[str, Any]

KINDS = {0: "SYN", 1: "SYNACK", 2: "RTO", 3: "FAST", 4: "TLP", 5: "FAILED", 6: "PROBE"}
LETTERS = {"SYNACK": "S", "TLP": "L", "PROBE": "L", "FAILED": "F"}
CA_STATES = {0: "open", 1: "disorder", 2: "cwr", 3: "recovery", 4: "loss"}


class Local(Endpoint):
    """The local endpoint, in a column that begins narrow and grows with its text."""

    width = 15
    priority = 28


class Remote(Local):
    """The remote endpoint, after the letter of the kind."""

    width = 18
    priority = 60

    def cell(self, values: Values) -> str:
        """Return "R> 1.2.3.4:80"."""
        return f"{LETTERS.get(values['kind'], 'R')}> {super().cell(values)}"


class State(TcpState):
    """A TCP state; ESTABLISHED is ESTAB, as in ss."""

    width = 9

    def text(self, value: Any) -> str:
        """Return the state's name."""
        return super().text(value).replace("ESTABLISHED", "ESTAB")


class Kind(Enum):
    """Why TCP retransmitted; in text with the number of segments if there are several."""

    width = 6

    def cell(self, values: Values) -> str:
        """Return "FAST" or "FASTx7"."""
        segs = values["segs"]
        return f"{values['kind']}x{segs}" if segs > 1 else str(values["kind"])


# A connection, for -c.
Flow = key(
    "connection",
    object=Count("address of the socket, or of the request"),
    first_seq=Count("its first sequence number", ctype="u32"),
)
_ENDS: dict[str, Any] = {
    "pid": Pid("process"),
    "netns": Netns(),
    "lport": Port("local port"),
    "rport": Port("remote port"),
    "comm": Comm("its name"),
    "family": Family("address family"),
    "laddr": Addr("local address"),
    "raddr": Addr("remote address"),
}
# segs, failed: segments retransmitted or not, as seen here. retrans, sent: as the socket counts
# them, all_*: since the connection began. over: the connection has ended.
FlowSums = sums("flow_sums", "segs failed retrans sent", "all_retrans all_sent over", **_ENDS)
_ADDED = ("segs", "failed", "sent", "retrans")


def flow_rows(flows: Sequence[Entry], settings: Values) -> list[dict[str, Any]]:
    """Return a row per pair of endpoints, most retransmissions first: sums of its connections."""
    rows: dict[tuple[object, ...], dict[str, Any]] = {}
    for _, flow in flows:
        ends = tuple(flow[name] for name in ("netns", "laddr", "lport", "raddr", "rport"))
        shown = {name: flow[name] for name in (*_ENDS, *_ADDED)}
        row = rows.get(ends)
        if row is None:
            rows[ends] = shown
            continue
        if flow["pid"]:
            row.update(pid=flow["pid"], comm=flow["comm"])
        for name in _ADDED:
            row[name] += flow[name]
    for row in rows.values():
        row["retransmits"], again, sent = row.pop("segs"), row.pop("retrans"), row["sent"]
        row["share"] = round(again / sent, 4) if sent else None
        row["sent"] = sent or None
    return sorted(rows.values(), key=lambda row: (-row["retransmits"], -row["failed"]))


def count_unseen(totals: Values, counters: Values, missing: Sequence[str]) -> int:
    """Return at least how many segments the kernel counted that no program saw.

    It counts before it sends, including failures (TCPRetransFail, since 4.8), and calls the
    tracepoint afterwards. Some builds of the kernel run no BPF program in the context of certain
    processes.
    """
    failed = counters.get("TcpExt.TCPRetransFail", 0)
    sent = counters.get("Tcp.RetransSegs", 0) - failed
    unseen = max(0, sent - totals["in_namespace"])
    return int(unseen if "err" in missing else unseen + max(0, failed - totals["failed_there"]))


def compare_counters(summary: Values, settings: Values) -> list[str]:
    """Return notes that compare the totals with the kernel's own counters."""
    totals, counters, own = summary["totals"], summary["counters"], summary["own"]
    failed = own.get("TcpExt.TCPRetransFail", 0)
    unsent = f" and {failed} that then failed" if failed else ""
    scope = "the namespace of --netns" if settings["netns"] else "netbpf's own namespace"
    notes = [
        f"retransmitted segments: {totals['segs']} shown; {totals['in_namespace']}{unsent} in "
        f"{scope}, where Tcp.RetransSegs grew by {own.get('Tcp.RetransSegs', 0)}"
    ]
    kinds = {probe["name"]: probe["kind"] for probe in summary["probes"]}
    if settings["loss"] and not kinds["loss_probe"]:
        notes.append(
            "-l: loss probes that send new data cannot be traced on this kernel; "
            f"TcpExt.TCPLossProbes, which counts all of them, grew by "
            f"{counters.get('TcpExt.TCPLossProbes', 0)}"
        )
    return notes


def was_sent(values: Mapping[str, Any], ended: bool) -> bool:
    """Select segments that were retransmitted."""
    return values["kind"] not in ("FAILED", "PROBE")


def was_not_sent(values: Mapping[str, Any], ended: bool) -> bool:
    """Select segments that could not be sent."""
    return bool(values["kind"] == "FAILED")
