"""skblife - where received packets spend their time until a program reads them

DESCRIPTION
  Shows the time of received packets in three stages, and their sum, as a distribution for each
  device and protocol:

    device  from the driver to the protocols: GRO, RPS, and the queue of the CPU
    stack   through the protocols, netfilter and routing, to the queue of the socket
    socket  in this queue, until the program reads it
    total   from the driver to the program

EXAMPLES
  netbpf skblife                        all packets that are read, until Ctrl-C

OVERHEAD
  x

LIMITS
  x
"""

from copy import copy

from netbpf.declare import NETNS, PROCESS, SOCKET, Event, Histogram, Option, Record, Tool, lifetimes
from netbpf.declare import columns as c
from netbpf.declare import probes as p
from netbpf.declare.calls import TCP_RECV
from netbpf.declare.network import Protocol
from netbpf.declare.options import count, devices, milliseconds, nanoseconds, one_or_more


class SlowPacket(Event):
    """A packet that a program has read, and that took long."""

    cstruct = "slow_packet"

    pid = c.Pid("process that read the packet", width=7)
    comm = c.Comm("its name", width=8)
    family = c.Family("address family, IPv4-mapped addresses count as ipv4", wide=True)
    proto = Protocol("protocol of the socket: tcp or udp", width=5)
    laddr = c.Addr("local address", wide=True, priority=28)
    lport = c.Port("local port")
    raddr = c.Addr("remote address")
    rport = c.Port("remote port", wide=True)
    dev = c.Text("network device by which the packet came in", wide=True, width=10)
    device_us = c.Duration("from the driver to the protocols", header="DEVICE", width=6)
    stack_us = c.Duration("through the protocols to the socket", header="STACK", width=6)
    socket_us = c.Duration("in the queue of the socket", header="SOCKET", width=6)
    total_us = c.Duration("from the driver to the program", header="TOTAL_MS", width=8)
    stage = c.Text("the stage that took longest", ctype="", width=6)
    netns = c.Netns("network namespace of the socket, by inode number")


class Totals(Record):
    """What no distribution has."""

    unknown = c.Count("packets that were read, or sent, and whose way was not seen")
    virtual = c.Count("--tx: packets to devices without hardware, which are left out unless -i")


def of_packet(name: str, event: str, call: str = "", **when: str) -> p.Probe:
    """Return a probe of a tracepoint whose argument is a packet."""
    return p.tracepoint_probe(name, event, ("skb",), ("skbaddr",), call=call, **when)


def freed(name: str, event: str, discarded: str) -> p.Probe:
    """Return the probe of one of the ways by which drivers free packets."""
    return p.tracepoint_probe(
        name, event, ("skb", discarded), ("skbaddr", discarded), call="on_freed", option="tx"
    )


def entry(event: str) -> p.Probe:
    """Return the probe of one of the ways by which drivers hand over packets."""
    return of_packet(event, f"net:{event}", "on_device", unless="tx")


def without_tx(probe: p.Probe) -> p.Probe:
    """Return a copy of a shared probe that --tx does not use."""
    found = copy(probe)
    found.unless = "tx"
    return found


NO_READER = dict.fromkeys((*(option.name for option in PROCESS), "min_ms"))

TOOL = Tool(
    __doc__,
    event=SlowPacket,
    event_option="min_ms",
    histogram=Histogram(
        "stages", lifetimes.StageKey, "us", extra=lifetimes.StageSums, fields=lifetimes.FIELDS,
        describe=lifetimes.describe, order=lifetimes.order, fixed=("way", "stage"),
        unused=("comm", "pid", "family", "lport", "raddr"),
    ),
    probes=(
        entry("napi_gro_receive_entry"),
        entry("napi_gro_frags_entry"),
        entry("netif_rx"),
        entry("netif_receive_skb_entry"),
        entry("netif_receive_skb_list_entry"),
        of_packet("stack", "net:netif_receive_skb", unless="tx"),
        p.Probe("queued", *p.tracepoints("sock:sk_data_ready", ("sk",), ("skaddr",)),
                p.Fentry("sock_def_readable", args=("sk",)),
                p.Kprobe("sock_def_readable", args=("sk",)), unless="tx"),
        of_packet("copy", "skb:skb_copy_datagram_iovec", unless="tx"),
        *map(without_tx, TCP_RECV),
        p.Probe("consumed", p.Fentry("skb_consume_udp", args=("sk", "skb", "len")),
                p.Kprobe("skb_consume_udp", args=("sk", "skb", "len")), optional=True, unless="tx"),
        of_packet("dropped", "skb:kfree_skb", unless="tx"),
        of_packet("queue", "net:net_dev_queue", option="tx"),
        of_packet("sent", "net:net_dev_start_xmit", option="tx"),
        p.tracepoint_probe("busy", "net:net_dev_xmit", ("skb", "rc"), ("skbaddr", "rc"),
                           option="tx"),
        freed("freed", "skb:consume_skb", "0"),
        freed("discarded", "skb:kfree_skb", "1"),
    ),
    options=(
        *PROCESS,
        *NETNS,
        *SOCKET,
        Option("-i", "--interface", metavar="LIST", parse=devices,
               help="only packets of these network devices"),
        Option("--rx", sets={"tx": False}, help="received packets (this is the default)"),
        Option("--tx", sets=NO_READER, define="TX",
               help="sent packets: how long until the device has sent them"),
        Option("--stage", metavar="LIST", parse=one_or_more(*lifetimes.STAGES.values()),
               help="only the distributions of these stages, such as socket,total"),
        Option("--min-ms", metavar="MS", parse=lambda text: milliseconds(text) or 1e-6,
               define="MIN_NS", number=nanoseconds,
               help="also show a line for each packet that took at least this long in total"),
        Option("--map-entries", metavar="N", parse=count, default="16384",
               help="how many packets can be on their way at once"),
    ),
    totals=Totals,
    constants=lifetimes.constants,
    enrich=lifetimes.slowest,
)  # fmt: skip
