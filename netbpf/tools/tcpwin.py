"""tcpwin - TCP congestion windows: their changes, and time per congestion state

DESCRIPTION
  Shows how TCP congestion control changes what a connection may send: a line whenever the
  congestion window (CWND, in segments), the slow start threshold (SSTHRESH) or the state of
  congestion control (CA_STATE) has changed, and one when a connection is first seen. Each line has
  the values of that moment, with the segments in flight (INFL) and what limits the sender
  (LIMITED):

    app      the program: all that it has written was sent
    cwnd     the congestion window
    rwnd     the window that the receiver advertises
    sndbuf   the send buffer, for which the program waits
    other    pacing, Nagle's algorithm, or a full queue of the device

  The states of congestion control are open (nothing unusual), disorder (duplicate or selective
  acknowledgements), cwr (congestion was signalled, by ECN or the local queue), recovery (fast
  retransmissions) and loss (the retransmission timer has expired).

  With INTERVAL, the current values of each open connection are shown once per interval instead,
  --each shows them at each segment that a connection receives, and --summary shows how long each
  connection was in each state of congestion control.

EXAMPLES
  netbpf tcpwin                         changes of all connections, as they happen
  netbpf tcpwin --raddr 10.1.0.0/16 -L 443
                                        those of a web server's clients in one network
  netbpf tcpwin -w 1                    all open connections, every second
  netbpf tcpwin --summary -d 60         a minute, the time in each congestion state
  netbpf tcpwin -D 5201 --json | jq 'select(.limited == "rwnd")'
                                        when a receiver was too slow
  netbpf tcpwin --each -D 5201 -o csv --columns sock,snd_cwnd,snd_ssthresh
                                        each segment, for a plot

OVERHEAD
  A program of about 0.25 us per segment that arrives for an established connection, of 0.9 us if
  it gets a line, of 0.15 us if filters of addresses and ports exclude it, and of 0.35 us if those
  of processes do; and the reader's time for each line. With INTERVAL, nothing per segment, but
  0.2 us per open file of the machine and interval. With --summary, 0.6 us per change of a
  connection's state. Connects, accepts and closes cost as much as in tcplife, to find owners.

LIMITS
  A change of the window is seen when the connection receives its next segment, retransmits, changes
  its congestion or its TCP state; several changes between these are one line. When this end has
  closed a connection that still sends, the windows are seen only at the latter three. Changes of
  CA_STATE are seen as they happen since 6.1, before that at the next segment or retransmission, and
  not those in between.
  --each has the segments that arrive in the state ESTABLISHED. SSTHRESH is unknown (-) until the
  first congestion, and always with BBR, which has none. Connections without room (--map-entries)
  have no lines and count as map_full. Handshakes are not shown. INTERVAL finds connections by the
  open files of processes, not those that wait to be accepted, or that were closed and still send.
  --summary adds up consecutive connections between the same ends. A connection that is older than
  the run counts from its start, or, if no process has it open, from its next change of state.
  MPTCP connections are shown as subflows.
"""

from typing import Any

from netbpf.declare import NETNS, PROCESS, SOCKET, Cost, Option, Row, SocketEvent, Table, Tool
from netbpf.declare import columns as c
from netbpf.declare import probes as p
from netbpf.declare.memory import Memory
from netbpf.declare.network import Endpoint, SocketAddress
from netbpf.declare.options import count
from netbpf.declare.record import copied, key, sums
from netbpf.declare.retransmissions import CA_STATES, Local
from netbpf.declare.sockets import ends_of
from netbpf.declare.states import state_probe
from netbpf.errors import UsageError

LIMITED = {0: "app", 1: "cwnd", 2: "rwnd", 3: "sndbuf", 4: "other"}
_HIDDEN: Any = {"ctype": "u32", "wide": True}


class Window(SocketEvent):
    """The windows and buffers of a connection at a moment."""

    cstruct = "window"

    comm = c.Comm("its name", width=8)
    laddr = c.Addr("local address", wide=True)
    lport = c.Port("local port")
    raddr = Local("remote address", "rport", header="RADDR:RPORT", priority=60)
    rport = c.Port("remote port", text=False)
    snd_cwnd = c.Count("congestion window in segments", header="CWND", ctype="u32", width=5)
    snd_ssthresh = c.Count("slow start threshold in segments, null before congestion",
                           header="SSTHRESH", ctype="u32", width=8, null=0x7FFFFFFF)  # fmt: skip
    inflight = c.Count("segments in flight", header="INFL", ctype="u32", width=5)
    ca_state = c.Enum("state of congestion control", CA_STATES, alert=("loss", "recovery"))
    limited = c.Enum("what limits the sender: app, cwnd, rwnd, sndbuf or other", LIMITED, width=7)
    srtt_us = c.Micros("smoothed round trip time", wide=True)
    unsent = c.Count("bytes written and not sent yet", **_HIDDEN)
    snd_wnd = c.Count("window that the peer advertises, in bytes", **_HIDDEN)
    rcv_wnd = c.Count("window that this end advertises, in bytes", **_HIDDEN)
    sndbuf = c.Count("size of the send buffer in bytes", **_HIDDEN)
    wmem_queued = c.Count("bytes of memory that the send queue takes", width=11, **_HIDDEN)
    retrans = c.Count("retransmitted segments since the connection began", **_HIDDEN)
    delivered = c.Count("segments that were acknowledged since the connection began", **_HIDDEN)
    sock = SocketAddress("address of the socket in the kernel", header="SKADDR", wide=True)


Flow = key("flow", **copied(Window, "netns lport rport laddr raddr"))
TimeSums = sums(
    "flow_times", "open_ns disorder_ns cwr_ns recovery_ns loss_ns changes",
    gauges="was_open was_disorder was_cwr was_recovery was_loss was_changes sk since over cgroup",
    **copied(Window, "pid comm owner family uid"), now=c.Column("congestion state", ctype="u8"),
)  # fmt: skip


TimesRow: Any = type("TimesRow", (Row,), {
    **copied(Window, "pid comm owner family"),
    "laddr": Endpoint("local address", "lport", header="LADDR:LPORT", wide=True),
    **copied(Window, "lport raddr rport"),
    "open_us": c.Duration("time without anything unusual", header="OPEN_MS", width=7),
    "disorder_us": c.Duration("time with duplicate acknowledgements", header="DIS_MS", width=6),
    "cwr_us": c.Duration("time after congestion was signalled", header="CWR_MS", width=6),
    "recovery_us": c.Duration("time with fast retransmissions", header="REC_MS", width=6),
    "loss_us": c.Duration("time after a timeout", header="LOSS_MS", width=7, alert=True),
    "changes": c.Count("changes of the congestion state", header="CHGS", width=4),
    **copied(Window, "uid netns cgroup"),
})  # fmt: skip


def in_microseconds(row, settings):
    """Return the times of a row in microseconds."""
    return {f"{state}_us": row[f"{state}_ns"] // 1000 for state in CA_STATES.values()}


def form(settings):
    """Define CHANGES for the default form; raise UsageError if --each is combined with another."""
    if settings["each"] and (settings["summary"] or settings.get("interval")):
        raise UsageError("--each excludes INTERVAL and --summary", "leave one out")
    rows = settings["each"] or settings["summary"] or settings.get("interval")
    return {} if rows else {"CHANGES": 1}


_STATE_SET = ("tcp:tcp_cong_state_set", ("sk", "ca_state"), ("skaddr", "cong_state"))
_PROBE = ("tcp:tcp_probe", ("sk",), ("skaddr",))
_SENT = ("tcp:tcp_retransmit_skb", ("sk",), ("skaddr",))
_ROWS = "each summary interval"  # the options that show no changes

TOOL = Tool(
    __doc__,
    memory=Memory(1_600_000, cpu=26_000, entry=400), cost=Cost(4.4, 19.7),
    event=Window,
    events_unless="summary",
    table=Table("flows", Flow, TimeSums, TimesRow, complete=in_microseconds, option="summary",
                order=lambda row: (-row["loss_ns"], -row["recovery_ns"], -row["changes"]),
                per_cpu=False, refresh=("times",), forget="over", limit="top"),
    probes=(
        state_probe(),
        p.tracepoint_probe("segment", *_PROBE, unless="summary interval"),
        p.tracepoint_probe("congestion", *_STATE_SET, unless=_ROWS, optional=True),
        p.tracepoint_probe("retransmit", *_SENT, call="on_segment", unless=_ROWS),
        p.Probe("open", p.Iterator("task_file"), role=p.Role.OPEN, option="interval",
                unless="summary"),
        p.Probe("ca_change", *p.tracepoints(*_STATE_SET),
                *p.tracepoints(*_PROBE, call="on_ca_segment"), option="summary"),
        p.tracepoint_probe("ca_retransmit", *_SENT, call="on_ca_segment", option="summary"),
        p.Probe("times", p.Iterator("bpf_map_elem", over="flows"), option="summary"),
    ),
    owners=True,
    interval=True,
    options=(
        *PROCESS, *NETNS, *SOCKET,
        Option("--each", define="EACH", help="show a line per segment received"),
        Option("--summary", define="SUMMARY", help="show the time in each congestion state"),
        Option("--top", metavar="N", parse=count, help="show the first N rows of --summary only"),
    ),
    constants=form,
    identity=ends_of,
    counters=("TcpExt.TCPTimeouts", "TcpExt.TCPFastRetrans", "Tcp.RetransSegs"),
    summary_fields={"open": {"type": "integer", "description": "open connections (INTERVAL)"}},
)  # fmt: skip
