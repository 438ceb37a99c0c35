"""skblife - where packets spend their time on the way to a program or to the wire

DESCRIPTION
  Divides the time of each received packet that a program reads into stages, and shows their
  distributions for each device and protocol (TCP and UDP):

    device  from the driver to the protocols: GRO, RPS, and the queue of the CPU
    stack   through the protocols, netfilter and bridges, until the kernel wakes the reader
    socket  in the queue of the socket, until the program has read the packet, or its first byte
    total   all of them

  With --tx, the time of each sent packet:

    qdisc   in the queueing discipline of the device: see also 'netbpf qdisclat'
    driver  from there until the driver frees the packet, which most do when it was sent
    total   both

  All stages count the same packets, so their times add up. Much time in socket means that the
  program is slow, or waits for a CPU; much time in driver is a busy link, or a device that reports
  late what it has sent.

  Devices without hardware (lo, veth, bridges, tun) do not send: the receiver or another device
  frees the packet, not always in sight. With --tx they are left out, unless -i names them.

  With --min-ms, each received packet that took that long has a line with its reader and addresses.

EXAMPLES
  netbpf skblife                            packets that are read, until Ctrl-C
  netbpf skblife --comm nginx 1 10          those of a program, every second, ten times
  netbpf skblife --stage socket --by comm   which programs let their packets wait
  netbpf skblife --min-ms 20 -L 5432        which packets take 20 ms and more
  netbpf skblife --tx --by dev,proto 5      sent packets, every 5 seconds
  netbpf skblife --json -d 10 | jq 'select(.key.stage == "socket").average'

  A server that pauses for 3 ms after each request (netbpf skblife --comm slow-server
  --stage stack,socket -d 6):

    dev=lo proto=tcp stage=stack: 230 packets, average 17.5 us, 3% of their time
                       us : count     distribution
                   4 -> 7 : 4         |**                                      |
                  8 -> 15 : 110       |****************************************|
                 16 -> 31 : 98        |************************************    |
                 32 -> 63 : 18        |*******                                 |

    dev=lo proto=tcp stage=socket: 230 packets, average 611.2 us, 97% of their time
                       us : count     distribution
                  8 -> 15 : 2         |*                                       |
                 16 -> 31 : 108       |****************************************|
                 32 -> 63 : 52        |********************                    |
                64 -> 127 : 2         |*                                       |
               128 -> 255 : 0         |                                        |
               256 -> 511 : 1         |*                                       |
              512 -> 1023 : 5         |**                                      |
             1024 -> 2047 : 44        |*****************                       |
             2048 -> 4095 : 14        |******                                  |
             4096 -> 8191 : 2         |*                                       |

OVERHEAD
  A packet that is received costs 0.6 us in two runs of programs, one that is also read another
  microsecond in two more, and each dropped packet 0.2 us. Filters save only the last step. A line
  of --min-ms costs another microsecond. With --tx a sent packet costs 1.5 us, and each buffer that
  the kernel frees 0.1 us, also those of received packets.

LIMITS
  Only packets that a program reads from a socket of TCP or UDP by a receive call have a time: not
  those that are forwarded, spliced out of the socket or read by packet sockets, nor those of MPTCP
  and of kTLS. A read with MSG_PEEK does not end the wait. TCP adds data to a packet that waits, and
  GRO merges packets: they count once, with the times of the first. Fragments, copies for several
  readers of a multicast group and packets that the kernel cuts or collapses are unknown: they are
  in no distribution, and counted in the summary. So are packets that arrived before the start, and
  those for which --map-entries leaves no room. There is room for 1024 distributions (four for each
  value of --by); more of them count as map_full.
  A packet that leaves a tunnel or another namespace begins anew at that device; dev is the one by
  which it came in, also below a bridge, bond or VLAN. What waits in the ring of the device before
  the driver takes it is not seen. With SO_RCVLOWAT, the kernel wakes the reader when there is
  enough data: until then the time is in stack. Datagrams are matched to reads by the order of
  the queue: of several threads that read from one socket, some may be unknown.
  --tx: packets that the kernel cuts for a device without TSO are unknown, and those that bypass the
  queue (AF_XDP, PACKET_QDISC_BYPASS) are not seen. The time is that at which the driver frees the
  buffer: some notice late what was sent, or leave the buffer to another CPU. discarded counts those
  that it freed as dropped, which some drivers do with all packets.
  Kernels before 6.3 need fentry or kprobes.
"""

from copy import copy

from netbpf.declare import (
    NETNS,
    PROCESS,
    SOCKET,
    Cost,
    Histogram,
    Option,
    Tool,
    lifetimes,
)
from netbpf.declare import probes as p
from netbpf.declare.calls import TCP_RECV
from netbpf.declare.memory import Memory
from netbpf.declare.options import count, devices, milliseconds, nanoseconds, one_or_more


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
    memory=Memory(160_000, cpu=425_000, entry=500), cost=Cost(13.3, 3.0),
    event=lifetimes.SlowPacket,
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
    totals=lifetimes.Totals,
    constants=lifetimes.constants,
    enrich=lifetimes.slowest,
    notes=lifetimes.notes,
)  # fmt: skip
