"""tcpsnoop - TCP segments: each one sent or received, and whose connection it is

DESCRIPTION
  Shows a line for each TCP segment that a network device sends or receives: the process that owns
  the socket, both ends, whether the segment is sent (->) or received (<-), the bytes of data in it
  and its flags: F is FIN, S SYN, R RST, P PSH, A ACK, U URG, E ECE, C CWR. -w shows sequence
  numbers, the window, and RETR: how many of the segments are sent again.

  The process is the one that has the socket, not the one that runs when the segment passes. What
  arrives for a connection that no program has accepted yet belongs to the process that listens.
  What still arrives within a minute after a connection has ended belongs to its last owner.

  This is for a few connections, or a short time: filter by process, ends or --flags, or end it with
  -n. netbpf tcptop counts bytes, netbpf tcpretrans shows only what is sent again.

EXAMPLES
  netbpf tcpsnoop -p 1234                    each segment of a process
  netbpf tcpsnoop -D 443 -n 100              the first 100 segments from or to a remote port
  netbpf tcpsnoop --flags S,F,R              how connections begin and end
  netbpf tcpsnoop --flags R --dir tx -w      who resets connections
  netbpf tcpsnoop -i eth0 --raddr 10.1.0.0/16 --comm 'nginx*'
                                             of one program, device and network
  netbpf tcpsnoop -L 80 --json | jq -c 'select(.retrans > 0)'
                                             what a web server sends again

OVERHEAD
  ...

LIMITS
  A segment that is cut into several after it was sent (TSO, GSO), or was merged from several before
  TCP receives it (GRO), is one line, with their number in SEGS. A segment has a line at each device
  that it passes, such as a bridge and its port, and two on lo, one of the sender and one of the
  receiver: -i selects devices. On a machine that forwards packets, those of others have a line,
  too, without an owner.
  Sent segments are seen before the queue of the device, which may drop them, received ones before
  the firewall and TCP, which may drop them.
  RETR is unknown for a SYN-ACK and for received segments. If the neighbour's link address had to be
  found first, RETR of a connection that has sent segments again can be too high.
  The owner of a connection is unknown if only other programs' probes could tell it: a socket that
  io_uring accepted (--learn-sends finds it at its first send) or that no process has open, such as
  those of NFS. Several listeners of one port (SO_REUSEPORT) share what has not been accepted yet:
  it has no owner.
  Later fragments of a packet have no TCP header and no line. Packets whose headers are not in the
  linear part of the buffer cannot be read: the summary counts them (unread).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from netbpf.declare import NETNS, PROCESS, SOCKET, Option, Record, Row, SocketEvent, Table, Tool
from netbpf.declare import columns as c
from netbpf.declare import probes as p
from netbpf.declare.keyed import Keyed, KeyedTable, add_up
from netbpf.declare.memory import Memory
from netbpf.declare.network import Endpoint
from netbpf.declare.options import devices
from netbpf.declare.record import copied, key, sums
from netbpf.declare.retransmissions import Local
from netbpf.declare.segments import Direction, TcpFlags, constants, flags
from netbpf.declare.states import state_probe
from netbpf.declare.table import Entry, sorted_rows


class Segment(SocketEvent):
    """A TCP segment at a device."""

    cstruct = "segment"

    pid = c.Pid("process that owns the socket")
    comm = c.Comm("its name", width=8)
    laddr = Local("local address", "lport", header="LADDR:LPORT", priority=59)
    lport = c.Port("local port", text=False)
    dir = Direction("tx: sent, rx: received", header="DR")
    raddr = Endpoint("remote address", "rport", header="RADDR:RPORT")
    rport = c.Port("remote port", text=False)
    len = c.Count("bytes of data", ctype="u32", width=5, priority=62)
    flags = TcpFlags("flags, a letter each: FIN, SYN, RST, PSH, ACK, URG, ECE, CWR (C)")
    segs = c.Count("segments that were merged, or will be cut from it", ctype="u16", wide=True,
                   width=4)  # fmt: skip
    seq = c.Count("sequence number", ctype="u32", wide=True, width=10)
    ack = c.Count("sequence number that is acknowledged", ctype="u32", wide=True, width=10)
    win = c.Count("window, as the header has it: without its scale", ctype="u16", wide=True,
                  width=5)  # fmt: skip
    retrans = c.Count("how many of the segments are sent again, null if unknown", header="RETR",
                      ctype="u16", wide=True, width=4, null=0xFFFF)  # fmt: skip
    dev = c.Text("device", width=8, wide=True)


SegmentKey = key(
    "segment_key",
    **copied(Segment, "pid comm dir owner family laddr lport raddr rport flags dev uid netns"),
    cgroup=c.Cgroup(),
)  # fmt: skip
SegmentSums = sums("segment_sums", "segs bytes retrans")


class ProcessRow(Row):
    """The segments that a process sent, or received."""

    pid = c.Pid("process that owns the sockets")
    comm = c.Comm("its name")
    dir = Direction("tx: sent, rx: received", header="DR")
    segs = c.Count("segments")
    bytes = c.Bytes("bytes of data", header="KB")
    retrans = c.Count("how many of the segments are known to be sent again", header="RETR",
                      alert=True)  # fmt: skip


def by_process(entries: Sequence[Entry], settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a row per process and direction, those with most segments first."""
    rows = sorted_rows(add_up(entries, ("pid", "comm", "dir")), settings["sort"] or "segs")
    return rows[: settings["top"] or None]


class Totals(Record):
    """Packets that have no line."""

    unread = c.Count("packets whose headers could not be read")


TOOL = Tool(
    __doc__,
    memory=Memory(1_600_000, cpu=72_000, entry=580, entry_cpu=24),
    event=Segment,
    events_unless="summary",
    table=(
        Table("segments", SegmentKey, SegmentSums, ProcessRow, by_process, option="summary",
              forget=True),
        KeyedTable("segments", SegmentKey, SegmentSums, ProcessRow.columns[3:], "segs",
                   keyed=Keyed(SegmentKey, default=("pid", "comm", "dir")), implies="summary"),
    ),
    totals=Totals,
    probes=(
        state_probe(),
        p.tracepoint_probe("sent", "net:net_dev_queue", ("skb", "1"), ("skbaddr", "1"),
                           call="on_segment"),
        p.tracepoint_probe("received", "net:netif_receive_skb", ("skb", "0"), ("skbaddr", "0"),
                           call="on_segment"),
    ),
    owners=True,
    options=(
        *PROCESS,
        *NETNS,
        *SOCKET,
        Option("--summary", help="count segments by process and direction instead"),
        Option("-i", "--interface", metavar="LIST", parse=devices,
               help="only these network devices"),
        Option("--flags", metavar="LIST", parse=flags,
               help="only segments with these flags (S,F,R; SA means both S and A)"),
        Option("--dir", metavar="WAY", choices=("tx", "rx"),
               help="only segments that are sent (tx) or received (rx)"),
    ),
    counters=("Tcp.InSegs", "Tcp.OutSegs", "Tcp.RetransSegs", "Tcp.OutRsts"),
    constants=constants,
    interval_option="summary",
)  # fmt: skip
