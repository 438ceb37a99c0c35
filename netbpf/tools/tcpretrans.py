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

    TIME        PID IP LADDR:LPORT     T> RADDR:RPORT     STATE     COMM      KINDxN
    10:11:12   9328 4  127.0.0.1:46767 L> 127.0.0.1:57940 FIN_WAIT1 python3   TLP
    10:11:12   9330 4  127.0.0.1:46600 R> 127.0.0.1:46247 SYN_SENT  python3   SYN

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

from netbpf.declare import NETNS, PROCESS, SOCKET, Event, Option, Record, Row, Table, Tool, sums
from netbpf.declare import columns as c
from netbpf.declare import probes as p
from netbpf.declare.costs import Cost
from netbpf.declare.memory import Memory
from netbpf.declare.network import Endpoint, IpVersion, SendError, Share
from netbpf.declare.resends import CA_STATES, KINDS, Kind, Local, Remote, State
from netbpf.declare.states import state_probe

_CLOCK_MONOTONIC_COARSE = 6  # its resolution is the kernel's tick


class Retransmission(Event):
    """Segments that were sent again, or not."""

    cstruct = "retransmission"

    pid = c.Pid("process that owns the socket", width=6)
    owner = c.Owner("how the owner is known: exact, snapshot or unknown", wide=True)
    family = IpVersion("address family, IPv4-mapped counts as ipv4", header="IP")
    laddr = Local("local address", "lport", header="LADDR:LPORT")
    lport = c.Port("local port", text=False)
    raddr = Remote("remote address", "rport", header="T> RADDR:RPORT")
    rport = c.Port("remote port", text=False)
    state = State("TCP state", priority=26)
    comm = c.Comm("name of the process", width=9)
    kind = Kind("SYN, SYNACK, RTO, FAST, TLP, FAILED, or PROBE (-l)", KINDS, header="KINDxN")
    segs = c.Count("segments", ctype="u32", width=4, wide=True)
    len = c.Count("bytes of data", ctype="u32", width=5, wide=True)
    seq = c.Column("first sequence number", option="sequence", width=10)
    attempt = c.Count("the how manyth attempt to send it again", ctype="u32", width=7, wide=True)
    rto_us = c.Micros("retransmission timeout in force", wide=True, width=8)
    srtt_us = c.Micros("smoothed round trip time", wide=True, width=8)
    err = SendError("why nothing was sent", wide=True)
    ca_state = c.Enum("congestion: open, disorder, cwr, recovery or loss", CA_STATES, wide=True)
    uid = c.Uid("user id of the owner", wide=True)
    netns = c.Netns()
    cgroup = c.Cgroup()


class Flow(Record):
    """Which connection, for -c: a socket, and the first sequence number that it used."""

    cstruct = "connection"

    object = c.Count("address of the socket, or of the request")
    first_seq = c.Count("first sequence number", ctype="u32")


_ENDS: dict[str, Any] = {
    "pid": c.Pid("process"),
    "netns": c.Netns(),
    "lport": c.Port("local port"),
    "rport": c.Port("remote port"),
    "comm": c.Comm("its name"),
    "family": c.Family("address family"),
    "laddr": c.Addr("local address"),
    "raddr": c.Addr("remote address"),
}
# segs, failed: segments sent again or not, as seen here. retrans, sent: as the socket counts them,
# all_*: since the connection began. over: no more can follow.
FlowSums = sums("flow_sums", "segs failed retrans sent", "all_retrans all_sent over", **_ENDS)


class FlowRow(Row):
    """A session's retransmissions in an interval."""

    family = IpVersion("address family, IPv4-mapped counts as ipv4", header="IP")
    laddr = Endpoint("local address", "lport", header="LADDR:LPORT", priority=28)
    lport = c.Port("local port", text=False)
    raddr = Endpoint("remote address", "rport", header="RADDR:RPORT")
    rport = c.Port("remote port", text=False)
    retransmits = c.Count("segments sent again", width=11)
    share = Share("part of the segments that it sent since its last row, or since it began")
    pid = c.Pid("process that owns the socket")
    comm = c.Comm("its name", wide=True)
    failed = c.Count("segments that could not be sent", wide=True, width=6)
    sent = c.Count("segments sent since its last row, or since it began", wide=True)
    netns = c.Netns()


class Totals(Record):
    """Segments, for comparing with the kernel's counters."""

    segs = c.Count("segments sent again that passed the filters")
    failed = c.Count("segments that could not be sent and passed the filters")
    in_namespace = c.Count("segments sent again in one namespace: of --netns, or netbpf's own")
    failed_there = c.Count("segments that could not be sent in that namespace")


def rows(entries, settings):
    """Add up the connections between the same ends; most retransmissions first."""
    added = ("segs", "failed", "sent", "retrans")
    joined: dict[tuple[object, ...], dict[str, Any]] = {}
    for _, flow in entries:
        ends = {name: flow[name] for name in _ENDS}
        key = tuple(ends[name] for name in ("netns", "laddr", "lport", "raddr", "rport"))
        row = joined.setdefault(key, {**ends, **dict.fromkeys(added, 0)})
        if ends["pid"]:
            row.update(pid=ends["pid"], comm=ends["comm"])
        for name in added:
            row[name] += flow[name]
    for row in joined.values():
        row["retransmits"], again, sent = row.pop("segs"), row.pop("retrans"), row["sent"]
        row["share"] = round(again / sent, 4) if sent else None
        row["sent"] = sent or None
    return sorted(joined.values(), key=lambda row: (-row["retransmits"], -row["failed"]))


def unseen(totals, counters, lacking):
    """Return how many segments the kernel counted and showed to no program, at least.

    It counts before it sends, failures as well (TCPRetransFail, since 4.8), and shows afterwards.
    Some builds of the kernel run no BPF program in the context of certain processes.
    """
    failed = counters.get("TcpExt.TCPRetransFail", 0)
    sent = counters.get("Tcp.RetransSegs", 0) - failed
    hidden = max(0, sent - totals["in_namespace"])
    return hidden if "err" in lacking else hidden + max(0, failed - totals["failed_there"])


def review(summary, settings):
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


def constants(settings):
    """Return the length of a tick of the kernel in us: its timeouts are in ticks."""
    return {"TICK_US": round(time.clock_getres(_CLOCK_MONOTONIC_COARSE) * 1e6)}


TOOL = Tool(
    __doc__,
    memory=Memory(1_600_000, cpu=27_000, entry=616),
    cost=Cost(2.4, 3.0),
    event=Retransmission,
    table=Table(
        "flows", Flow, FlowSums, FlowRow, rows, per_cpu=False, option="flows",
        forget="over",
    ),
    events_unless="flows",
    totals=Totals,
    probes=(
        p.Probe(
            "retransmit",
            p.RawTracepoint("tcp_retransmit_skb", args=("sk", "skb", "err")),
            p.Tracepoint("tcp:tcp_retransmit_skb", args=("skaddr", "skbaddr", "err")),
            p.RawTracepoint("tcp_retransmit_skb", args=("sk", "skb"), loses=("err",)),
            p.Tracepoint("tcp:tcp_retransmit_skb", args=("skaddr", "skbaddr"), loses=("err",)),
        ),
        p.Probe(
            "synack",
            p.RawTracepoint("tcp_retransmit_synack", args=("sk", "req")),
            p.Tracepoint("tcp:tcp_retransmit_synack", args=("skaddr", "req")),
        ),
        state_probe("state"),
        p.Probe(
            "loss_probe",
            p.Fentry("tcp_send_loss_probe", args=("sk",)),
            p.Kprobe("tcp_send_loss_probe", args=("sk",)),
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
        Option("-c", "--flows", define="COUNT_FLOWS",
               help="count per session instead, most first"),
        Option("-l", "--loss", help="also show tail loss probes that send new data (PROBE)"),
        Option("-s", "--sequence", help="show sequence numbers"),
    ),
    counters=(
        "Tcp.RetransSegs", "Tcp.OutSegs", "TcpExt.TCPRetransFail", "TcpExt.TCPSynRetrans",
        "TcpExt.TCPTimeouts", "TcpExt.TCPLossProbes", "TcpExt.TCPFastRetrans",
        "TcpExt.TCPSlowStartRetrans", "TcpExt.TCPLostRetransmit",
    ),
    constants=constants,
    notes=review,
    count_unseen=unseen,
)  # fmt: skip
