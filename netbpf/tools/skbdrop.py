"""skbdrop - dropped packets: reason, location in the kernel, and number

DESCRIPTION
  Counts every packet that the kernel frees as dropped by the kernel's drop reason, the location in
  its code, protocol, device and network namespace; rows with most packets come first, at each
  INTERVAL or once at the end. --events adds a line for each packet. Names of reasons are those of
  the running kernel; if there is none (NOT_SPECIFIED), the location distinguishes the drops.

  Below packets that an XDP or tc program dropped (reasons XDP, TC_INGRESS, TC_EGRESS) are the
  programs that are attached to that device, with how often each ran in the meantime.

  The summary shows by how much the kernel's counters of drops grew in the meantime, and which of
  them count packets for which no buffer was freed, so that this tool cannot show them.

EXAMPLES
  netbpf skbdrop 5                        dropped packets, every 5 seconds
  netbpf skbdrop --explain -d 60          a minute, with a description of each reason
  netbpf skbdrop --events --dev eth0 -T   each packet that is dropped at a device
  netbpf skbdrop --reason NETFILTER_DROP --events
                                          packets dropped by the firewall
  netbpf skbdrop --by dev,reason,saddr/24 5   by device, reason and sender's network
  netbpf skbdrop --stack -d 10            with the call stacks of the drops
  netbpf skbdrop --by dev,stack -d 10     by device and call stack

  Packets to ports without a socket (netbpf skbdrop -d 2):

    REASON               LOCATION                 PROTO  DEV        COUNT       KB
    NO_SOCKET            __udp4_lib_rcv+0x4bc     udp    lo            15     9.85
    NO_SOCKET            tcp_v4_rcv+0x91          tcp    lo             5     0.29

  An XDP program that drops everything (netbpf skbdrop --reason XDP -d 2):

    REASON               LOCATION                 PROTO  DEV        COUNT       KB
    XDP                  do_xdp_generic+0x33a     udp    eth0          23     0.65
        program 1186 drop_generic (xdpgeneric), runs: 25

OVERHEAD
  A program of about half a microsecond per dropped packet, three with --stack, less than a tenth
  for packets that --reason excludes, and none for packets that are not dropped. Connects, accepts
  and closes cost as much as in tcplife, to find owners.

LIMITS
  Frees that lose nothing are hidden and counted (--all shows them): queues of closed sockets
  (QUEUE_PURGE and others); messages that vsock has handled; and of TCP the reset that ended a
  session, keepalive and zero window probes, ACKs that a newer one has overtaken, ACKs of a socket
  whose peer has closed its half (each MPTCP session has one), and segments that a connection
  request or a session in TIME_WAIT has accepted, answered or may ignore. Duplicate data
  (TCP_OLD_DATA and others) is shown, as it was sent in vain. Before 5.17 there are no reasons, only
  locations, and nothing is hidden: the summary then has a note.
  Headers are read from the linear part of a packet. If they are in page fragments (PACKET_TX_RING,
  some network cards), addresses and ports are missing, and -4, -6 and --port exclude and count such
  packets.
  Drops without a buffer are not seen: drops by hardware and by XDP in the driver, and SYNs dropped
  because of a full listen queue. Netlink sockets, raw ones on recent kernels, and packet sockets
  that share a packet drop what does not fit without freeing anything: the summary lists those of
  one namespace that are open at the end.
  Programs that were attached to a device after the start, or by 'tc filter', are not listed. Those
  listed stay loaded until the end; a program on several devices counts its runs on all of them.
  Before 6.11 most received packets have no socket, so their owner is unknown. The owner of a UDP
  socket is known if the socket existed at the start.
"""

from netbpf.declare import NETNS, PROCESS, SOCKET, Event, Option, Record, Row, Table, Tool, drops
from netbpf.declare import columns as c
from netbpf.declare import probes as p
from netbpf.declare.attached_programs import AttachedPrograms, may_blame, name_programs
from netbpf.declare.costs import Cost
from netbpf.declare.harmless import reason_constants
from netbpf.declare.keyed import KeyedTable
from netbpf.declare.memory import Memory
from netbpf.declare.network import DropReason, Endpoint, KernelStack, KernelSymbol, Protocol
from netbpf.declare.options import by_name, count, devices, nonempty, ports
from netbpf.declare.reasons import explain


class Drop(Event):
    """A packet that was dropped."""

    cstruct = "drop"

    pid = c.Pid("process that owns the packet's socket")
    comm = c.Comm("its name", wide=True)
    owner = c.Owner("how the owner was found: exact, snapshot or unknown", wide=True)
    reason = DropReason("drop reason")
    location = KernelSymbol("location in the kernel", wide=True)
    family = c.Family("address family, IPv4-mapped counts as ipv4", wide=True)
    proto = Protocol("protocol", width=6)
    saddr = Endpoint("source address", "sport", header="SADDR:SPORT")
    sport = c.Port("source port", null=0, text=False)
    daddr = Endpoint("destination address", "dport", header="DADDR:DPORT")
    dport = c.Port("destination port", null=0, text=False)
    len = c.Count("bytes from the network header on", ctype="u32", wide=True, width=5)
    dev = c.Text("device", wide=True)
    netns = c.Netns()
    harmless = c.Enum("whether it is known to lose nothing (--all)", drops.YES_NO, wide=True)
    socket = c.Enum("whether the packet has a socket", drops.YES_NO, wide=True, width=6)
    uid = c.Uid("user id of the owner", wide=True)
    cgroup = c.Cgroup()


class DropRow(Row):
    """Packets dropped at one location for one reason in an interval."""

    reason = DropReason("drop reason, by the kernel's own name")
    location = KernelSymbol("location in the kernel: function+offset")
    proto = Protocol("protocol")
    dev = c.Text("device", width=8)
    count = c.Count("packets", width=7)
    bytes = c.Bytes("bytes from the network header on", header="KB")
    netns = c.Netns()
    example = c.Text("one of the packets: source > destination", width=44, wide=True)
    harmless = c.Enum("whether they are known to lose nothing (--all)", drops.YES_NO, wide=True)
    socket = c.Enum("whether the packets have a socket", drops.YES_NO, wide=True, width=6)
    meaning = c.Text("description of the reason (--explain)", text=False)
    programs = AttachedPrograms()
    stack = KernelStack("call stack, innermost function first (--stack)", header=" ",
                        option="stack")  # fmt: skip


class Totals(Record):
    """Packets that are not in the rows."""

    hidden = c.Count("frees that lose nothing and are not shown")
    unread = c.Count("packets that -4, -6 or --port excluded because of unreadable headers")


_DROP = "skb:kfree_skb"
_RAW, _FIELDS = ("ctx", "skb", "location"), ("ctx", "skbaddr", "location")

TOOL = Tool(
    __doc__,
    memory=Memory(5_900_000, cpu=55_000, entry=145, entry_cpu=7), cost=Cost(2.8, 6.2),
    event=Drop,
    event_option="events",
    table=(
        Table("drops", drops.DropKey, drops.DropSums, DropRow, drops.rows, warn=explain,
              refresh=("stale",), programs=name_programs, with_programs=may_blame),
        KeyedTable("drops_by_key", drops.DropBy, drops.DropCounts, DropRow.columns[4:6], "count",
                   warn=explain, refresh=("stale",), fold=drops.by_keys),
    ),
    totals=Totals,
    probes=(
        p.Probe(
            "drop",
            *p.tracepoints(_DROP, (*_RAW, "reason", "rx_sk"), (*_FIELDS, "reason", "rx_sk")),
            *p.tracepoints(_DROP, (*_RAW, "reason"), (*_FIELDS, "reason")),
            *p.tracepoints(_DROP, _RAW, _FIELDS, loses=("reason", "meaning")),
        ),
        p.tracepoint_probe("reset", "tcp:tcp_receive_reset", ("sk",), ("skaddr",), optional=True),
        p.Probe("stale", p.Iterator("bpf_map_elem", over="owners"), role=p.Role.STALE,
                optional=True),
    ),
    owners=True,
    refresh_owners="socket",
    options=(
        Option("--events", help="also show a line for each packet"),
        Option("--all", define="SHOW_ALL", help="also show frees that are known to lose nothing"),
        Option("--reason", metavar="LIST", parse=nonempty,
               help="only these reasons, by name or number (NO_SOCKET,NETFILTER_DROP)"),
        Option("--dev", metavar="LIST", parse=devices, help="only these network devices"),
        Option("--proto", metavar="LIST", parse=drops.protocols,
               help="only these protocols, by the name in the column PROTO (tcp,udp)"),
        Option("--port", metavar="LIST", parse=ports,
               help="only these ports, of source or destination (80,8000-8100)"),
        Option("--stack", define="USE_STACKS", help="count by call stack, and show the stacks"),
        Option("--explain", help="describe each reason"),
        Option("--map-entries", metavar="N", parse=count, default="16384",
               help="how many sockets can be tracked at once, and eight times as many rows"),
        *PROCESS,
        *NETNS,
        by_name(SOCKET)["ipv4"], by_name(SOCKET)["ipv6"],
    ),
    no_filter="a packet has a source and a destination, not a local and a remote end (see --port)",
    counters=drops.COUNTERS,
    constants=drops.constants,
    enrich=drops.without_addresses,
    notes=drops.notes,
    kernel_constants=reason_constants,
)  # fmt: skip
