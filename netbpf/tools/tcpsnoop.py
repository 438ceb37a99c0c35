"""tcpsnoop - TCP segments: each one sent or received, and whose connection it is

DESCRIPTION
  Shows a line for each TCP segment that a network device sends or receives: the process that owns
  the socket, both ends, whether this machine sends (->) or receives (<-) the segment, the bytes of
  data in it, and its flags: F is FIN, S SYN, R RST, P PSH, A ACK, U URG, E ECE, C CWR. -w also
  shows sequence numbers, the window, and RETR: how many of the segments are sent again.

  The process is the one that has the socket, not the one that runs when the segment passes. What
  arrives for a connection that no program has accepted yet belongs to the process that listens
  (owner "listener"). What arrives for a connection that has ended belongs, for a minute, to its
  last owner.

  An INTERVAL or --summary counts segments by process and direction instead, --by by other keys:
  SEGS are the segments on the wire, KB is their data.

EXAMPLES
  netbpf tcpsnoop -p 1234                   the segments of a process
  netbpf tcpsnoop -D 443 -n 100             the first 100 from and to a remote port
  netbpf tcpsnoop --flags S,F,R             how connections begin and end
  netbpf tcpsnoop --flags R --dir tx -T     who resets connections, and when
  netbpf tcpsnoop -i eth0 --raddr 10.1.0.0/16 --comm 'nginx*' -w
                                            of one program, device and network
  netbpf tcpsnoop 5                         segments by process, every 5 s
  netbpf tcpsnoop --by raddr/24,dir,flags -d 60
                                            by network, direction and flags, a minute
  netbpf tcpsnoop -L 80 --json | jq -c 'select(.retrans > 0)'
                                            what a web server sends again

  A client of a server on the same machine (netbpf tcpsnoop -p 6850):

      PID COMM            LADDR:LPORT     DR RADDR:RPORT             LEN FLAGS
     6850 demo-ask        [::1]:39108     -> [::1]:43005               0 S
     6850 demo-ask        [::1]:39108     <- [::1]:43005               0 SA
     6850 demo-ask        [::1]:39108     -> [::1]:43005               0 A
     6850 demo-ask        [::1]:39108     -> [::1]:43005              17 PA
     6850 demo-ask        [::1]:39108     <- [::1]:43005               0 A
     6850 demo-ask        [::1]:39108     <- [::1]:43005            4099 PA
     6850 demo-ask        [::1]:39108     -> [::1]:43005               0 A
     6850 demo-ask        [::1]:39108     <- [::1]:43005               0 FA
     6850 demo-ask        [::1]:39108     -> [::1]:43005               0 FA
     6850 demo-ask        [::1]:39108     <- [::1]:43005               0 A

OVERHEAD
  A program of about 1 us per segment that has a line or is counted by process, of 0.7 us if it is
  counted by ends, direction or flags, of 0.5 us if ends or flags exclude it, and of 0.2 us if it is
  of another device or network namespace. The reader uses several microseconds per line: on a busy
  machine filter, or count with --by. Connects, accepts and closes cost as much as in tcplife, to
  find owners.

LIMITS
  Segments that are cut after they were sent (TSO, GSO), or that were merged before TCP receives
  them (GRO), are one line with their number in SEGS; tables count each of them.
  A segment has a line at each device that it passes, such as a bridge and its port, and on lo one
  of its sender and one of its receiver: -i selects devices. Segments that a machine forwards have
  lines without an owner.
  Sent segments are seen before the device's queue, received ones before the firewall and TCP: all
  of these may drop them.
  RETR is unknown for received segments and for SYN-ACKs. It can be too high if a segment waits for
  the link address of the next hop, and the connection has sent others again.
  A connection has no owner if no process has it open (NFS), or if none was seen to connect, accept
  or close it: those that io_uring accepts need --learn-sends. Of listeners that share a port
  (SO_REUSEPORT), or are bound to a device, connections have none until they are accepted, nor if
  listen() chose the port itself. Received segments of connections whose addresses the firewall
  translates (NAT) have none, as they have other ends than the socket.
  Later fragments of a packet have no TCP header, and no line. Packets whose headers are not in the
  linear part of the buffer cannot be read: the summary counts them (unread).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from netbpf.declare import NETNS, PROCESS, SOCKET, Option, Record, Row, SocketEvent, Table, Tool
from netbpf.declare import columns as c
from netbpf.declare import probes as p
from netbpf.declare.costs import Cost
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
    memory=Memory(1_600_000, cpu=72_000, entry=580, entry_cpu=24), cost=Cost(23.8, 47.2),
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
