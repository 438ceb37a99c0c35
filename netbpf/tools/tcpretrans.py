"""tcpretrans - TCP retransmissions: session, cause, number and result

DESCRIPTION
  Shows each segment that TCP retransmits, with the session, the process that owns it, and the cause
  (KIND): SYN and SYNACK (the handshake), RTO (the retransmission timer; also what follows until
  everything that was lost then is retransmitted), FAST (acknowledgements of the peer), TLP (a tail
  loss probe) and FAILED (nothing was sent, with the error; since 6.17).

  One line can be for several segments: FASTx7 in text, SEGS with -w. They add up to the kernel's
  own counter, Tcp.RetransSegs; the summary has both numbers. The letter in text is R, L for tail
  loss probes, S for SYN-ACKs, and F for failures.

  -c counts per session, by its addresses and ports. SENT and SHARE refer to the segments that the
  connection sent since its last row, or since it began; consecutive connections between the same
  endpoints are added up.

EXAMPLES
  netbpf tcpretrans                     all retransmissions, as they happen
  netbpf tcpretrans -w -L 443           those of this machine's web server, all columns
  netbpf tcpretrans --raddr 10.1.0.0/16 -d 60 --json
                                        a minute, those to one network, as JSON lines
  netbpf tcpretrans -c 5                sessions with most retransmissions, every 5 seconds

  A tail loss probe, and a server that does not answer (netbpf tcpretrans):

    TIME        PID IP LADDR:LPORT     T> RADDR:RPORT     STATE     COMM      KINDxN
    10:11:12   9328 4  127.0.0.1:46767 L> 127.0.0.1:57940 FIN_WAIT1 python3   TLP
    10:11:12   9330 4  127.0.0.1:46600 R> 127.0.0.1:46247 SYN_SENT  python3   SYN

OVERHEAD
  A program of two to seven microseconds per retransmission and none for other segments. Connects,
  accepts and closes cost as much as in tcplife, to find owners.

LIMITS
  The kernel's counters are those of one network namespace, that of --netns or else netbpf's own,
  but lines are from all of them. What is retransmitted after an ICMP 'packet too big', or because a
  SYN-ACK did not acknowledge the data of the SYN, counts as RTO, as the kernel marks those segments
  lost; the latter counts as FAST before 6.10. ATTEMPT counts from the start of netbpf, unless the
  timer's own count is higher. It needs an entry for each segment until it is acknowledged, 4 per
  --map-entries; an attempt that may be too low because no entry was free counts as map_full. Before
  6.17 failures are not seen, only counted (TcpExt.TCPRetransFail). The owner of a SYN-ACK is that
  of the listener. Probes of -l that send new data are not retransmissions and have no SEGS; they
  need fentry or kprobes.

  If a kernel runs no BPF program in the context of some processes, segments that its timers send
  there are not seen. The kernel's counters reveal them: they are reported as lost (unseen).
"""

from netbpf.declare import NETNS, PROCESS, SOCKET, Event, Option, Record, Row, Table, Tool
from netbpf.declare import aggregation as a
from netbpf.declare import columns as c
from netbpf.declare import probes as p
from netbpf.declare import retransmissions as r
from netbpf.declare.constants import tick
from netbpf.declare.costs import Cost
from netbpf.declare.memory import Memory
from netbpf.declare.network import Endpoint, IpVersion, SendError, Share
from netbpf.declare.states import state_probe


class Retransmission(Event):
    """Segments that were retransmitted, or not."""

    cstruct = "retransmission"

    pid = c.Pid("process that owns the socket", width=6)
    owner = c.Owner("how the owner was found: exact, snapshot or unknown", wide=True)
    family = IpVersion("address family, IPv4-mapped counts as ipv4", header="IP")
    laddr = r.Local("local address", "lport", header="LADDR:LPORT")
    lport = c.Port("local port", text=False)
    raddr = r.Remote("remote address", "rport", header="T> RADDR:RPORT")
    rport = c.Port("remote port", text=False)
    state = r.State("TCP state", priority=26)
    comm = c.Comm("name of the process", width=9)
    kind = r.Kind("SYN, SYNACK, RTO, FAST, TLP, FAILED, or PROBE (-l)", r.KINDS, header="KINDxN")
    segs = c.Count("segments", ctype="u32", width=4, wide=True)
    len = c.Count("bytes of data", ctype="u32", width=5, wide=True)
    seq = c.Column("first sequence number", option="sequence", width=10)
    attempt = c.Count("number of the attempt to retransmit it", ctype="u32", width=7, wide=True)
    rto_us = c.Micros("current retransmission timeout", wide=True, width=8)
    srtt_us = c.Micros("smoothed round trip time", wide=True, width=8)
    err = SendError("why nothing was sent", wide=True)
    ca_state = c.Enum("congestion: open, disorder, cwr, recovery or loss", r.CA_STATES, wide=True)
    uid = c.Uid("user id of the owner", wide=True)
    netns = c.Netns()
    cgroup = c.Cgroup()


class SegmentsRow(Row):
    """The retransmissions of a key in an interval."""

    pid = c.Pid("process that owns the socket")
    comm = c.Comm("its name")
    retransmits = c.Count("retransmitted segments", width=11, over=a.Sum("segs", r.was_sent))
    failed = c.Count("segments that could not be sent", width=6, over=a.Sum("segs", r.was_not_sent))
    bytes = c.Bytes("data in them", header="KB", over=a.Sum("len", r.was_sent))


class FlowRow(Row):
    """A session's retransmissions in an interval."""

    family = IpVersion("address family, IPv4-mapped counts as ipv4", header="IP")
    laddr = Endpoint("local address", "lport", header="LADDR:LPORT", priority=28)
    lport = c.Port("local port", text=False)
    raddr = Endpoint("remote address", "rport", header="RADDR:RPORT")
    rport = c.Port("remote port", text=False)
    retransmits = c.Count("retransmitted segments", width=11)
    share = Share("share of the segments sent since its last row, or since it began")
    pid = c.Pid("process that owns the socket")
    comm = c.Comm("its name", wide=True)
    failed = c.Count("segments that could not be sent", wide=True, width=6)
    sent = c.Count("segments sent since its last row, or since it began", wide=True)
    netns = c.Netns()


class Totals(Record):
    """Segments, for comparing with the kernel's counters."""

    segs = c.Count("retransmitted segments that passed the filters")
    failed = c.Count("segments that could not be sent and passed the filters")
    in_namespace = c.Count("retransmitted segments in one namespace: of --netns, or netbpf's own")
    failed_there = c.Count("segments that could not be sent in that namespace")


_RETRANSMIT = "tcp:tcp_retransmit_skb"

TOOL = Tool(
    __doc__,
    memory=Memory(1_600_000, cpu=27_000, entry=616),
    cost=Cost(2.4, 3.0),
    event=Retransmission,
    aggregation=a.Aggregation(SegmentsRow, ("pid", "comm"), order="retransmits"),
    table=Table("flows", r.Flow, r.FlowSums, FlowRow, r.flow_rows, per_cpu=False, option="flows",
                forget="over"),
    events_unless="flows",
    totals=Totals,
    probes=(
        p.Probe(
            "retransmit",
            *p.tracepoints(_RETRANSMIT, ("sk", "skb", "err"), ("skaddr", "skbaddr", "err")),
            *p.tracepoints(_RETRANSMIT, ("sk", "skb"), ("skaddr", "skbaddr"), loses=("err",)),
        ),
        p.tracepoint_probe("synack", "tcp:tcp_retransmit_synack", ("sk", "req"), ("skaddr", "req")),
        state_probe("state"),
        p.Probe("loss_probe", p.Fentry("tcp_send_loss_probe", args=("sk",)),
                p.Kprobe("tcp_send_loss_probe", args=("sk",)), optional=True, option="loss"),
    ),
    owners=True,
    show_time="seconds",
    options=(
        *PROCESS,
        *NETNS,
        *SOCKET,
        Option("-c", "--flows", define="COUNT_FLOWS", help="count per session, most first"),
        Option("-l", "--loss", help="also show tail loss probes that send new data (PROBE)"),
        Option("-s", "--sequence", help="show sequence numbers"),
    ),
    counters=(
        "Tcp.RetransSegs", "Tcp.OutSegs", "TcpExt.TCPRetransFail", "TcpExt.TCPSynRetrans",
        "TcpExt.TCPTimeouts", "TcpExt.TCPLossProbes", "TcpExt.TCPFastRetrans",
        "TcpExt.TCPSlowStartRetrans", "TcpExt.TCPLostRetransmit",
    ),
    constants=tick,
    notes=r.compare_counters,
    count_unseen=r.count_unseen,
)  # fmt: skip
