"""skbdrop - packets that the kernel drops: why, where in the kernel, and how many

DESCRIPTION
  Counts every packet that the kernel frees as dropped, by the kernel's own reason, the place in its
  code, protocol, device and network namespace: most first, at each INTERVAL or once at the end.
  --events adds a line for each packet. Names of reasons are those of the running kernel; where it
  gives none (NOT_SPECIFIED), the location tells the drops apart.

  The summary tells how the kernel's counters of drops grew meanwhile, and which of them count
  packets that no buffer was freed for, and which this tool can therefore not show.

EXAMPLES
  netbpf skbdrop 5                        what is dropped, every 5 seconds
  netbpf skbdrop --explain -d 60          a minute, with a sentence about each reason
  netbpf skbdrop --events --dev eth0 -T   each packet that is dropped at a device
  netbpf skbdrop --reason NETFILTER_DROP --events
                                          what the firewall drops
  netbpf skbdrop --stack -d 10            with the kernel functions that led there

  Ports where nobody listens (netbpf skbdrop -d 2):

    REASON               LOCATION                 PROTO  DEV        COUNT       KB
    NO_SOCKET            __udp4_lib_rcv+0x4bc     udp    lo            15     9.85
    NO_SOCKET            tcp_v4_rcv+0x91          tcp    lo             5     0.29

OVERHEAD
  A program of about half a microsecond per dropped packet, three with --stack, less than a tenth
  for those that --reason leaves out, and nothing for packets that are not dropped. Connects,
  accepts and closes cost as in tcplife, to know owners.

LIMITS
  Frees that lose nothing are hidden and counted (--all shows them): queues of sockets that are
  closed (QUEUE_PURGE and the like); messages that vsock has handled; and of TCP the reset that
  ended a session, the probes of keepalive and of a closed window, ACKs that a newer one has
  overtaken, ACKs of a socket whose peer has closed its half (each MPTCP session has one), what a
  connection request or a session in TIME_WAIT has taken, answered or may ignore. Data that came
  twice (TCP_OLD_DATA and the like) is shown: it was sent for nothing. Before 5.17 there is no
  reason, only the location, and nothing is hidden: the summary has a note then.
  Headers are read where they lie in a packet's linear part. Where they lie in page fragments
  (PACKET_TX_RING, some network cards) there are no addresses and no ports, and -4, -6 and --port
  leave such packets out and count them.
  Drops without a buffer are not seen: those of hardware and of XDP in the driver, and SYNs that a
  full listen queue turns away. Netlink sockets, raw ones on recent kernels, and packet sockets that
  share a packet lose what does not fit without freeing anything: the summary names those of one
  namespace that are open at the end.
  Before 6.11 there is no socket for most packets that were received, so that their owner is
  unknown. The owner of a UDP socket is known if the socket was there at the start.
"""

from netbpf.declare import NETNS, PROCESS, SOCKET, Event, Option, Record, Row, Table, Tool
from netbpf.declare import columns as c
from netbpf.declare import probes as p
from netbpf.declare.constants import in_ranges, one_of, one_of_names
from netbpf.declare.costs import Cost
from netbpf.declare.memory import Memory
from netbpf.declare.network import (
    DropReason,
    Endpoint,
    KernelStack,
    KernelSymbol,
    Protocol,
    end,
    protocol_numbers,
    protocols,
)
from netbpf.declare.options import by_name, count, devices, nonempty, ports
from netbpf.declare.reasons import (
    ACKED,
    HARMLESS,
    OLD_PROBES,
    PROBES,
    PURGING,
    WAITING,
    meaning,
    place_in,
    reason_in,
)

YES_NO = {0: "no", 1: "yes"}
NO_REASON = 2**31  # a number that no reason has
# Drops that free no buffer, or that happen in hardware.
UNSEEN = {
    "TcpExt.ListenDrops": "SYNs that a full listen queue turned away",
    "TcpExt.TCPReqQFullDrop": "SYNs that a full SYN queue turned away",
    "TcpExt.TCPReqQFullDoCookies": "SYNs answered with cookies",
    "rx_fifo": "no room in the device's ring",
    "rx_frame": "frames that the device found damaged",
    "rx_errs": "errors of the device",
    "tx_fifo": "errors of the device",
    "tx_carrier": "errors of the device",
}
FULL = "its receive buffer was full: that need not free a packet, and then there is no row"
NO_REASONS = "this kernel gives no reasons: the rows have frees that lose nothing as well"


class Drop(Event):
    """A packet that was dropped."""

    cstruct = "drop"

    pid = c.Pid("process that owns the socket it was for or came from")
    comm = c.Comm("its name", wide=True)
    owner = c.Owner("how the owner is known: exact, snapshot or unknown", wide=True)
    reason = DropReason("why")
    location = KernelSymbol("where in the kernel", wide=True)
    family = c.Family("address family, IPv4-mapped counts as ipv4", wide=True)
    proto = Protocol("protocol", width=6)
    saddr = Endpoint("source address", "sport", header="SADDR:SPORT")
    sport = c.Port("source port", null=0, text=False)
    daddr = Endpoint("destination address", "dport", header="DADDR:DPORT")
    dport = c.Port("destination port", null=0, text=False)
    len = c.Count("bytes from the network header on", ctype="u32", wide=True, width=5)
    dev = c.Text("device", wide=True)
    netns = c.Netns()
    harmless = c.Enum("is it known to lose nothing? (--all)", YES_NO, wide=True)
    socket = c.Enum("was it for a socket or from one?", YES_NO, wide=True, width=6)
    uid = c.Uid("user id of the owner", wide=True)
    cgroup = c.Cgroup()


class DropKey(Record):
    """What drops are counted by."""

    cstruct = "drop_key"

    location = KernelSymbol("where")
    reason = DropReason("why")
    proto = Protocol("protocol")
    netns = c.Netns()
    stack = KernelStack("how it came there", option="stack")
    dev = c.Text("device")
    harmless = c.Enum("known to lose nothing", YES_NO)
    socket = c.Enum("was there one", YES_NO)


class DropSums(Record):
    """Packets and bytes, and the last one as an example."""

    cstruct = "drop_sums"

    count = c.Count("packets")
    bytes = c.Bytes("bytes")
    sport = c.Port("source port", null=0)
    dport = c.Port("destination port", null=0)
    family = c.Family("address family")
    saddr = c.Addr("source")
    daddr = c.Addr("destination")


class DropRow(Row):
    """Packets that were dropped in one place for one reason in an interval."""

    reason = DropReason("why, by the kernel's own name")
    location = KernelSymbol("where in the kernel: function+offset")
    proto = Protocol("protocol")
    dev = c.Text("device", width=8)
    count = c.Count("packets", width=7)
    bytes = c.Bytes("bytes from the network header on", header="KB")
    netns = c.Netns()
    example = c.Text("one of them: source > destination", width=44, wide=True)
    harmless = c.Enum("is it known to lose nothing? (--all)", YES_NO, wide=True)
    socket = c.Enum("was it for a socket or from one?", YES_NO, wide=True, width=6)
    meaning = c.Text("a sentence about the reason, if there is one", text=False)
    stack = KernelStack("kernel functions that led there, innermost first (--stack)",
                        header=" ", option="stack")  # fmt: skip


class Totals(Record):
    """What is not in the rows."""

    hidden = c.Count("frees that lose nothing and are not shown")
    unread = c.Count("packets that -4, -6 or --port left out, as their headers could not be read")


def trim(stack, location):
    """Return the stack from the function that dropped the packet on, without those that free it."""
    names = [frame.partition("+")[0] for frame in stack or ()]
    place = location.partition("+")[0]
    return stack[names.index(place) :] if place in names else stack


_OF_THE_KEY = ("reason", "location", "proto", "dev", "netns", "harmless", "socket")


def rows(groups, settings):
    """Return a row per place and reason, most packets first."""
    found = []
    for key, sums in groups:
        ends = [end(sums[f"{side}addr"], sums[f"{side}port"]) for side in "sd"]
        row = {
            **{name: key[name] for name in _OF_THE_KEY},
            **{name: sums[name] for name in ("count", "bytes")},
            "example": " > ".join(ends) if sums["family"] else None,
            "meaning": meaning(key["reason"]) if settings["explain"] else None,
            "stack": trim(key["stack"], key["location"]),
        }
        found.append(row)
    return sorted(found, key=lambda row: -row["count"])


def explain(found):
    """Yield the sentence of each reason, for --explain."""
    for row in found:
        if row["meaning"]:
            yield row["reason"], f"{row['reason']}: {row['meaning']}"


def no_addresses(values, settings):
    """Empty the addresses of packets that are not IP."""
    return values if values["family"] else {**values, "saddr": None, "daddr": None}


def review(summary, settings):
    """Note what was hidden, and what no program can see."""
    hidden, notes = summary["totals"]["hidden"], []
    (drop,) = [probe for probe in summary["probes"] if probe["name"] == "drop"]
    if any("lacks reason" in why for why in drop["rejected"]):
        notes.append(NO_REASONS)
    if hidden:
        notes.append(f"{hidden} frees that lose nothing are not shown (--all shows them)")
    unread = summary["totals"]["unread"]
    if unread:
        notes.append(f"{unread} packets whose headers could not be read were left out by a filter")
    for name, grown in summary["counters"].items():
        if grown and name.endswith(".drops"):
            notes.append(f"{name} +{grown}, {FULL}")
        why = UNSEEN.get(name) or UNSEEN.get(name.rpartition(".")[2])
        if grown and why:
            notes.append(f"not seen by this probe: {name} +{grown}, {why}")
    return notes


def constants(settings):
    """Return the C constants of this tool's options."""
    found = {"USE_STACKS": settings["stack"], "SHOW_ALL": settings["all"]}
    found = {name: 1 for name, wanted in found.items() if wanted}
    if settings["proto"]:
        numbers = [number for name in settings["proto"] for number in protocol_numbers(name)]
        found["FILTER_PROTO(x)"] = one_of("x", numbers)
    if settings["dev"]:
        found["FILTER_DEV(a, b)"] = one_of_names("a", "b", settings["dev"])
    if settings["port"]:
        found["FILTER_PORT(x)"] = in_ranges("x", settings["port"])
    return found


def named_constants(settings, names):
    """Return the numbers of reasons, and places in the kernel where it names no socket."""
    known = names.reasons
    single = ("NOT_SPECIFIED", "SOCKET_CLOSE", "TCP_OLD_ACK", "TCP_FASTOPEN")
    # Before TCP_LISTEN_OVERFLOW a full accept queue gave no reason at that place either.
    request = WAITING if "TCP_LISTEN_OVERFLOW" in known else ()
    found = {
        **{name: known.get(name, NO_REASON) for name in single},
        "HARMLESS_REASON(r)": reason_in(known, HARMLESS),
        "PROBE_REASON(r)": reason_in(known, PROBES if PROBES[0] in known else OLD_PROBES),
        "ACKED_PLACE(x)": place_in(names.span, ACKED if known else ()),
        "REQUEST_PLACE(x)": place_in(names.span, request),
    }
    if settings["reason"]:
        wanted = names.numbers(settings["reason"].split(","))
        found["FILTER_REASON(r)"] = one_of("r", wanted)
    if known and not names.offers("kfree_skb", "rx_sk"):
        waiting = WAITING if "QUEUE_PURGE" in known else (*WAITING, *PURGING)
        found["HARMLESS_PLACE(x)"] = place_in(names.span, waiting)
    return found


_REASON = ("reason", "meaning")  # columns that take the kernel's reason

TOOL = Tool(
    __doc__,
    memory=Memory(5_900_000, cpu=55_000, entry=145, entry_cpu=7),
    cost=Cost(2.8, 6.2),
    event=Drop,
    event_option="events",
    table=Table("drops", DropKey, DropSums, DropRow, rows, warn=explain, refresh=("stale",)),
    totals=Totals,
    probes=(
        p.Probe(
            "drop",
            p.RawTracepoint("kfree_skb", args=("ctx", "skb", "location", "reason", "rx_sk")),
            p.Tracepoint("skb:kfree_skb", args=("ctx", "skbaddr", "location", "reason", "rx_sk")),
            p.RawTracepoint("kfree_skb", args=("ctx", "skb", "location", "reason")),
            p.Tracepoint("skb:kfree_skb", args=("ctx", "skbaddr", "location", "reason")),
            p.RawTracepoint("kfree_skb", args=("ctx", "skb", "location"), loses=_REASON),
            p.Tracepoint("skb:kfree_skb", args=("ctx", "skbaddr", "location"), loses=_REASON),
        ),
        p.Probe(
            "reset",
            p.RawTracepoint("tcp_receive_reset", args=("sk",)),
            p.Tracepoint("tcp:tcp_receive_reset", args=("skaddr",)),
            optional=True,
        ),
        p.Probe(
            "stale",
            p.Iterator("bpf_map_elem", over="owners"),
            role=p.Role.STALE,
            optional=True,
        ),
    ),
    owners=True,
    refresh_owners="socket",
    options=(
        Option("--events", help="a line for each packet, too"),
        Option("--all", help="show also frees that are known to lose nothing"),
        Option("--reason", metavar="LIST", parse=nonempty,
               help="only these reasons, by name or number (NO_SOCKET,NETFILTER_DROP)"),
        Option("--dev", metavar="LIST", parse=devices, help="only these network devices"),
        Option("--proto", metavar="LIST", parse=protocols,
               help="only these protocols, by the name in the column PROTO (tcp,udp)"),
        Option("--port", metavar="LIST", parse=ports,
               help="only these ports, of source or destination (80,8000-8100)"),
        Option("--stack", help="count by the kernel functions that led there, and show them"),
        Option("--explain", help="say a sentence about each reason"),
        Option("--map-entries", metavar="N", parse=count, default="16384",
               help="how many sockets can be followed at once, and eight times as many as rows"),
        *PROCESS,
        *NETNS,
        by_name(SOCKET)["ipv4"],
        by_name(SOCKET)["ipv6"],
    ),
    no_filter="a packet has a source and a destination, not a local and a remote end (see --port)",
    counters=(
        "Ip.InHdrErrors", "Ip.InAddrErrors", "Ip.InUnknownProtos", "Ip.InDiscards",
        "Ip.OutDiscards", "Ip.OutNoRoutes", "Ip.ReasmFails", "IpExt.InNoRoutes",
        "IpExt.InTruncatedPkts", "IpExt.InCsumErrors", "Ip6.InDiscards", "Ip6.InNoRoutes",
        "Ip6.OutDiscards", "Ip6.OutNoRoutes", "Icmp.InErrors", "Icmp.InCsumErrors",
        "Udp.NoPorts", "Udp.InErrors", "Udp.RcvbufErrors", "Udp.SndbufErrors",
        "Udp.InCsumErrors", "Udp.MemErrors", "Udp6.NoPorts", "Udp6.InErrors",
        "Udp6.RcvbufErrors", "Udp6.InCsumErrors", "Tcp.InErrs", "Tcp.InCsumErrors",
        "TcpExt.ListenOverflows", "TcpExt.ListenDrops", "TcpExt.TCPReqQFullDrop",
        "TcpExt.TCPReqQFullDoCookies", "TcpExt.TCPBacklogDrop", "TcpExt.PFMemallocDrop",
        "TcpExt.TCPMinTTLDrop", "TcpExt.TCPDeferAcceptDrop", "TcpExt.IPReversePathFilter",
        "TcpExt.TCPRcvQDrop", "TcpExt.TCPZeroWindowDrop", "TcpExt.TCPOFODrop",
        "TcpExt.OfoPruned", "TcpExt.PruneCalled", "TcpExt.RcvPruned", "TcpExt.PAWSEstab",
        "TcpExt.TCPAbortOnData", "Softnet.dropped", "Softnet.flow_limit", "Device.*.rx_errs",
        "Device.*.rx_drop", "Device.*.rx_fifo", "Device.*.rx_frame", "Device.*.tx_errs",
        "Device.*.tx_drop", "Device.*.tx_fifo", "Device.*.tx_carrier", "Netlink.*.drops",
        "Raw.*.drops", "Raw6.*.drops", "Packet.*.drops",
    ),
    constants=constants,
    enrich=no_addresses,
    notes=review,
    kernel_constants=named_constants,
)  # fmt: skip
