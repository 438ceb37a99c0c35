"""Connections that a listener loses: the probes that count them, notes and advice."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from netbpf.declare.keyed import RowsByKey
from netbpf.declare.probes import Fexit, Kprobe, Kretprobe, Probe, tracepoints
from netbpf.declare.table import Entry, Rows, Table

# Columns of listeners by which --by adds them up, and the columns of such a row.
_KEYS = ("comm", "pid", "owner", "netns", "laddr", "lport")
_COUNTS = (
    "syns", "handshakes", "accept_queue", "accept_max", "accept_limit", "syn_queue",
    "syn_max", "dropped", "dropped_total", "cookies",
)  # fmt: skip
_LARGEST = ("accept_max", "accept_limit", "syn_max")  # of one listener; the others are sums

# Their C functions are in include/lost.bpf.h.
LOST_PROBES = (
    Probe(
        "dropped",  # rx_sk, the socket of the packet, is an argument since 6.11
        *tracepoints("skb:kfree_skb", ("skb", "reason", "rx_sk"), ("skbaddr", "reason", "rx_sk")),
        Fexit("tcp_v4_syn_recv_sock", args=("sk", "return"), call="on_syn_recv"),
        Kretprobe("tcp_v4_syn_recv_sock", args=("return",), call="on_syn_recv_end"),
        optional=True,
        loses=("dropped", "dropped_total"),
    ),
    Probe(
        "dropped6",
        Fexit("tcp_v6_syn_recv_sock", args=("sk", "return", "skb"), call="on_syn_recv6"),
        Kretprobe("tcp_v6_syn_recv_sock", args=("return",), call="on_syn_recv_end"),
        optional=True,
        with_probe="dropped",
    ),
    Probe(
        "dropped_from",
        Kprobe(
            "tcp_v4_syn_recv_sock",
            "tcp_v6_syn_recv_sock",
            args=("sk",),
            every=True,
            call="on_syn_recv_begin",
        ),
        optional=True,
        with_probe="dropped",
    ),
    Probe(
        "syn_end",
        Fexit("tcp_conn_request"),
        Kretprobe("tcp_conn_request"),
        optional=True,
        with_probe="dropped",
    ),
)


def checksum_reason(settings: Mapping[str, Any], names: Any) -> dict[str, object]:
    """Return the kernel's number of TCP_CSUM, 0 if unknown; `names` is netbpf.run.names.Names."""
    return {"REASON_TCP_CSUM": names.reasons.get("TCP_CSUM", 0)}


def unattributed(summary: Mapping[str, Any], settings: Mapping[str, Any]) -> list[str]:
    """Return a note for a run that cannot attribute losses to listeners."""
    kinds = {probe["name"]: probe["kind"] for probe in summary["probes"]}
    if kinds["dropped"]:
        return []
    grown = summary["counters"].get("TcpExt.ListenDrops", 0)
    return [
        f"lost connections cannot be attributed to listeners (ListenDrops +{grown}): this needs "
        "Linux 6.11, or a kernel with fentry or kprobes"
    ]


def _together(groups: Sequence[Entry], names: Sequence[str]) -> list[dict[str, Any]]:
    """Return a row for the listeners with the same values of the columns `names`."""
    rows: dict[tuple[object, ...], dict[str, Any]] = {}
    for key, listener in groups:
        row = rows.setdefault(
            tuple(key[name] for name in names), {name: key[name] for name in names}
        )
        for name in _COUNTS:
            values = [value for value in (row.get(name), listener[name]) if value is not None]
            total = max(values) if name in _LARGEST else sum(values)
            row[name] = total if values else None
    return list(rows.values())


def by_key(listeners: Table) -> RowsByKey:
    """Return the table of listeners added up by the keys of --by."""
    return RowsByKey(listeners, _KEYS, _COUNTS, "handshakes", _together)


def warn(rows: Rows, settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield each listener that lost connections, with advice if one of its queues was full."""
    for row in rows:
        if not row["dropped"]:
            continue
        where = f"{row['laddr']} port {row['lport']}"
        who = f"{row['comm']}, pid {row['pid']}" if row["pid"] else "owner unknown"
        text = advice(row)
        head = f"{'OVERFLOW' if text else 'DROPS'}: the listener on {where} ({who})"
        lost = f"dropped {row['dropped']} (since the start {row['dropped_total']})"
        yield f"{where} {who} {row['netns']}", f"{head} {lost}: {text or _NOT_FULL}"


_NOT_FULL = (
    "neither queue was seen full; if it continues, check nstat's TcpExtListen*, routes and memory"
)


def advice(row: Mapping[str, Any]) -> str:
    """Return which queue was full and how to raise its limit, "" if neither was."""
    limit, most = row["accept_limit"], row["somaxconn"]
    if row["accept_max"] > limit:
        remedy = (
            f"raise its backlog in listen() (net.core.somaxconn allows {most})"
            if limit < most
            else f"raise net.core.somaxconn (now {most}) and its backlog in listen()"
        )
        return f"its accept queue of {limit} is full; make it accept faster, or {remedy}"
    # The last quarter of tcp_max_syn_backlog is for peers known to be alive (tcp_conn_request).
    most = min(limit, row["syn_backlog"] * 3 // 4 or limit)
    if not row["syncookies"] and row["syn_max"] >= most:
        return (
            f"its SYN queue is full ({row['syn_max']} incomplete handshakes); raise its backlog in "
            f"listen() (now {limit}) and net.ipv4.tcp_max_syn_backlog (now {row['syn_backlog']}), "
            "and enable net.ipv4.tcp_syncookies"
        )
    return ""
