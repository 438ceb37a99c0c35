"""tcpretrans - TCP retransmissions: which session, why, how often, and whether it worked

DESCRIPTION
  Shows each segment that TCP sends again, with the session, the process that owns it, and what
  made TCP do it: SYN and SYNACK (the handshake), RTO (the retransmission timer, and what follows
  from it until everything lost then is sent again), FAST (the peer's acknowledgements told), TLP
  (a tail loss probe) and FAILED (nothing was sent, with the error; since 6.17).

  One line can stand for several segments: FASTx7 in text, SEGS with -w. Those add up to the
  kernel's own counter, Tcp.RetransSegs, and the summary has both. The letter in text is R, L for
  tail loss probes, S for SYN-ACKs, and F for failures.

  -c counts per session, by its addresses and ports. SENT and SHARE are those of the segments that
  its connection sent since the row before, or since it began; connections that follow each other
  between the same ports are added.

EXAMPLES
  netbpf tcpretrans                     all retransmissions, as they happen
  netbpf tcpretrans -w -L 443           those of this machine's web server, all columns
  netbpf tcpretrans --raddr 10.1.0.0/16 -d 60 --json
                                        a minute, those to one network, as JSON lines
  netbpf tcpretrans -c 5                which sessions retransmit most, every 5 seconds

  A tail loss probe, and a server that does not answer (netbpf tcpretrans):

    TIME     PID    IP LADDR:LPORT     T> RADDR:RPORT     STATE     COMM      KINDxN
    10:11:12 9328   4  127.0.0.1:46767 L> 127.0.0.1:57940 FIN_WAIT1 python3   TLP
    10:11:12 9330   4  127.0.0.1:46600 R> 127.0.0.1:46247 SYN_SENT  python3   SYN

OVERHEAD
  A program of two to seven microseconds per retransmission and none for other segments. Connects,
  accepts and closes cost as in tcplife, to know owners.

LIMITS
  Numbers of the kernel's counters are those of one network namespace, the one of --netns or else
  netbpf's own, while lines come from all of them. What is sent again after an ICMP 'packet too
  big', or as a SYN-ACK took no data of the SYN, counts as RTO, as the kernel declares those
  segments lost; the latter as FAST before 6.10. ATTEMPT counts from the start of netbpf on, unless
  the timer's own count is higher. It needs room for each segment until that is acknowledged, 4 per
  --map-entries; one that may be too low, as there was none, counts as map_full. Before
  6.17 failures are not seen, only counted (TcpExt.TCPRetransFail). A SYN-ACK has the listener's
  owner. Probes of -l that send new data are no retransmissions and have no SEGS; they take fentry
  or kprobes to see.

  Where a kernel runs no BPF program in the context of some processes, what its timers send there
  is not seen. The kernel's counters give that away: it is told as lost, 'unseen'.
"""

import time
from typing import Any

from netbpf.declare import (
    NETNS,
    PROCESS,
    SOCKET,
    Addr,
    Cgroup,
    Column,
    Comm,
    Count,
    Enum,
    Event,
    Family,
    Fentry,
    Kprobe,
    Micros,
    Netns,
    Option,
    Owner,
    Pid,
    Port,
    Probe,
    RawTracepoint,
    Record,
    Row,
    Table,
    Tool,
    Tracepoint,
    Uid,
)
from netbpf.declare.network import Endpoint, IpVersion, SendError, Share
from netbpf.declare.resends import CA_STATES, KINDS, Kind, Local, Remote, State
from netbpf.declare.states import state_probe

_CLOCK_MONOTONIC_COARSE = 6  # its resolution is the kernel's tick


class Retransmission(Event):
    """Segments that were sent again, or not."""

    cstruct = "retransmission"

    pid = Pid("process that owns the socket", width=6)
    owner = Owner("how the owner is known: exact, snapshot or unknown", wide=True)
    family = IpVersion("address family, IPv4-mapped counts as ipv4", header="IP")
    laddr = Local("local address", "lport", header="LADDR:LPORT")
    lport = Port("local port", text=False)
    raddr = Remote("remote address", "rport", header="T> RADDR:RPORT")
    rport = Port("remote port", text=False)
    state = State("TCP state")
    comm = Comm("name of the process", width=9)
    kind = Kind("SYN, SYNACK, RTO, FAST, TLP, FAILED, or PROBE (-l)", KINDS, header="KINDxN")
    segs = Count("segments", ctype="u32", width=4, wide=True)
    len = Count("bytes of data", ctype="u32", width=5, wide=True)
    seq = Column("first sequence number", option="sequence", width=10)
    attempt = Count("the how manyth attempt to send it again", ctype="u32", width=7, wide=True)
    rto_us = Micros("retransmission timeout in force", wide=True, width=8)
    srtt_us = Micros("smoothed round trip time", wide=True, width=8)
    err = SendError("why nothing was sent", wide=True)
    ca_state = Enum("congestion: open, disorder, cwr, recovery or loss", CA_STATES, wide=True)
    uid = Uid("user id of the owner", wide=True)
    netns = Netns()
    cgroup = Cgroup()


class Flow(Record):
    """Which connection, for -c: a socket, and the first sequence number that it used."""

    cstruct = "connection"

    object = Count("address of the socket, or of the request")
    first_seq = Count("first sequence number", ctype="u32")


# Segments sent again or not, as seen here; sent again and sent, as the socket counts; these two
# since the connection began; and whether it is over.
_SUMS = ("segs", "failed", "retrans", "sent", "all_retrans", "all_sent", "over")
_ENDS = {
    "pid": Pid("process"),
    "netns": Netns(),
    "lport": Port("local port"),
    "rport": Port("remote port"),
    "comm": Comm("its name"),
    "family": Family("address family"),
    "laddr": Addr("local address"),
    "raddr": Addr("remote address"),
}
FlowSums = type(
    "FlowSums", (Record,), {"cstruct": "flow_sums", **{n: Count("") for n in _SUMS}, **_ENDS}
)


class FlowRow(Row):
    """A session's retransmissions in an interval."""

    family = IpVersion("address family, IPv4-mapped counts as ipv4", header="IP")
    laddr = Endpoint("local address", "lport", header="LADDR:LPORT")
    lport = Port("local port", text=False)
    raddr = Endpoint("remote address", "rport", header="RADDR:RPORT")
    rport = Port("remote port", text=False)
    retransmits = Count("segments sent again", width=11)
    share = Share("part of the segments that it sent since its last row, or since it began")
    pid = Pid("process that owns the socket")
    comm = Comm("its name", wide=True)
    failed = Count("segments that could not be sent", wide=True, width=6)
    sent = Count("segments sent since its last row, or since it began", wide=True)
    netns = Netns()


class Totals(Record):
    """Segments, for comparing with the kernel's counters."""

    segs = Count("segments sent again that passed the filters")
    failed = Count("segments that could not be sent and passed the filters")
    in_namespace = Count("segments sent again in one namespace: of --netns, or netbpf's own")
    failed_there = Count("segments that could not be sent in that namespace")


def rows(groups, settings):  # type: ignore[no-untyped-def]
    """Join the connections between the same ends, one after the other or at once; most first."""
    none = {"retransmits": 0, "failed": 0, "sent": 0, "again": 0}
    names = {"segs": "retransmits", "failed": "failed", "sent": "sent", "retrans": "again"}
    joined: dict[tuple[object, ...], dict[str, Any]] = {}
    for _, sums in groups:
        ends = {name: sums[name] for name in _ENDS}
        flow = tuple(ends[n] for n in ("netns", "laddr", "lport", "raddr", "rport"))
        row = joined.setdefault(flow, {**ends, **none})
        if ends["pid"]:
            row.update(pid=ends["pid"], comm=ends["comm"])
        for theirs, ours in names.items():
            row[ours] += sums[theirs]
    for row in joined.values():
        again, sent = row.pop("again"), row["sent"]
        row["share"] = round(again / sent, 4) if sent else None
        row["sent"] = sent or None
    return sorted(joined.values(), key=lambda row: (-row["retransmits"], -row["failed"]))


def unseen(totals, counters, lacking):  # type: ignore[no-untyped-def]
    """Return how many segments the kernel counted and showed to no program, at least.

    It counts before it sends, failures as well (TCPRetransFail, since 4.8), and shows afterwards.
    Some builds of the kernel run no BPF program in the context of certain processes.
    """
    failed = counters.get("TcpExt.TCPRetransFail", 0)
    sent = counters.get("Tcp.RetransSegs", 0) - failed
    hidden = max(0, sent - totals["in_namespace"])
    return hidden if "err" in lacking else hidden + max(0, failed - totals["failed_there"])


def review(summary, settings):  # type: ignore[no-untyped-def]
    """Compare with the kernel's own count."""
    totals, counters, own = summary["totals"], summary["counters"], summary["own"]
    failed = own.get("TcpExt.TCPRetransFail", 0)
    unsent = f" and {failed} that then failed" if failed else ""
    one = "the namespace of --netns" if settings["netns"] else "netbpf's own namespace"
    notes = [
        f"segments sent again: {totals['segs']} shown; {totals['in_namespace']}{unsent} in {one}, "
        f"where Tcp.RetransSegs grew by {own.get('Tcp.RetransSegs', 0)}"
    ]
    probes = {probe["name"]: probe["kind"] for probe in summary["probes"]}
    if settings["loss"] and not probes["loss_probe"]:
        notes.append(
            "-l: this kernel shows no loss probes that send new data; TcpExt.TCPLossProbes, "
            f"which counts all that are sent, grew by {counters.get('TcpExt.TCPLossProbes', 0)}"
        )
    return notes


def constants(settings):  # type: ignore[no-untyped-def]
    """Say how long a tick of the kernel is: its timeouts are in ticks."""
    tick = {"TICK_US": round(time.clock_getres(_CLOCK_MONOTONIC_COARSE) * 1e6)}
    return {**tick, "COUNT_FLOWS": 1} if settings["flows"] else tick


TOOL = Tool(
    __doc__,
    event=Retransmission,
    table=Table(
        "flows", Flow, FlowSums, FlowRow, rows, per_cpu=False, option="flows",
        gauges=("all_retrans", "all_sent", "over"), forget="over",
    ),
    events_unless="flows",
    totals=Totals,
    probes=(
        Probe(
            "retransmit",
            RawTracepoint("tcp_retransmit_skb", args=("sk", "skb", "err")),
            Tracepoint("tcp:tcp_retransmit_skb", args=("skaddr", "skbaddr", "err")),
            RawTracepoint("tcp_retransmit_skb", args=("sk", "skb"), loses=("err",)),
            Tracepoint("tcp:tcp_retransmit_skb", args=("skaddr", "skbaddr"), loses=("err",)),
        ),
        Probe(
            "synack",
            RawTracepoint("tcp_retransmit_synack", args=("sk", "req")),
            Tracepoint("tcp:tcp_retransmit_synack", args=("skaddr", "req")),
        ),
        state_probe("state"),
        Probe(
            "loss_probe",
            Fentry("tcp_send_loss_probe", args=("sk",)),
            Kprobe("tcp_send_loss_probe", args=("sk",)),
            optional=True,
            option="loss",
        ),
    ),
    owners=True,
    show_time="seconds",
    options=(
        *PROCESS,
        *NETNS,
        *SOCKET,
        Option("-c", "--flows", help="count per session instead, most first"),
        Option("-l", "--loss", help="show tail loss probes that send new data, too (PROBE)"),
        Option("-s", "--sequence", help="show sequence numbers"),
    ),
    counters=(
        "Tcp.RetransSegs", "Tcp.OutSegs", "TcpExt.TCPRetransFail", "TcpExt.TCPSynRetrans",
        "TcpExt.TCPTimeouts", "TcpExt.TCPLossProbes", "TcpExt.TCPFastRetrans",
        "TcpExt.TCPSlowStartRetrans", "TcpExt.TCPLostRetransmit",
    ),
    constants=constants,
    hooks={"review": review, "unseen": unseen},
)  # fmt: skip
