"""qdisclat - how long packets wait in queueing disciplines, by device and kind

DESCRIPTION
  What a device is to send first passes its queueing discipline (fq, fq_codel, tbf, pfifo_fast ...:
  see 'tc qdisc'). There packets wait until the device takes them, or until a rate limit lets them
  pass. This tool shows the distribution of these waits for each device and kind of discipline, from
  the moment at which the stack hands over a packet to the moment at which the discipline gives it
  out. A table has the same in a row for each discipline.

  Not in the distribution, but counted with it: packets that found an empty queue and did not wait
  (bypassed), packets that the discipline dropped, large packets that it cut into smaller ones
  (split; each piece has its wait), and packets that left the queue and were not seen to enter it
  (unknown): those that were in it at the start, copies that netem makes, and pieces of UDP packets.

  With --min-ms, each packet that waited that long has a line with its addresses.

EXAMPLES
  netbpf qdisclat                        all devices, until Ctrl-C
  netbpf qdisclat -i eth0 1 10           one device, every second, ten times
  netbpf qdisclat --kind fq,fq_codel -d 5 --json
  netbpf qdisclat -i eth0 --queues 5     each transmit queue of a device, every 5 seconds
  netbpf qdisclat --by kind 5            all devices together, by kind
  netbpf qdisclat --min-ms 20            which packets wait 20 ms and more

  A burst of 23 datagrams in a tbf that lets one pass per 10 ms (netbpf qdisclat -i eth0 -d 2):

    dev=eth0 kind=tbf: 12 waited, 11 dropped
                       us : count     distribution
             8192 -> 16383 : 1         |********                                |
            16384 -> 32767 : 2         |****************                        |
            32768 -> 65535 : 3         |************************                |
           65536 -> 131071 : 5         |****************************************|

    DEV      KIND       QUEUE   WAITED      P50      P99  MAX(ms) BYPASSED DROPPED
    eth0     tbf            -       12 <=65.6ms  <=132ms    109.1        0      11

OVERHEAD
  A packet that waits costs 0.6 us in five runs of programs, one that bypasses the queue 0.4 us, a
  piece of a packet that the discipline cuts 1 us, and one of a device without a queue (noqueue: lo,
  most veth) 0.15 us. Each buffer that the kernel frees costs about 0.05 us, also those of packets
  that are received. A line of --min-ms costs another microsecond.

LIMITS
  The discipline of a transmit queue is measured as a whole: classes and inner disciplines of htb,
  tbf, prio and others are part of it. mq has no queue of its own: its children are shown. Without
  --queues, those of the same kind and handle are one row.
  A packet is one buffer, which may be as large as 64 KB with segmentation offload; tc counts the
  segments. A packet that the device refused and that goes back to the queue counts once, with its
  first wait. Of packets that leave at once, the first 64 are followed; more of them count as
  bypassed. Packets that remain in a discipline that is removed count as dropped.
  Pieces are recognised by their ports and TCP sequence number: those of UDP and other protocols, of
  packets in a tunnel, those beyond the 64th of a packet, and those that TCP sends again while the
  first one waits are unknown. If a discipline drops all pieces of a packet, that counts once.
  max_us and qlen_max are of the whole run, also with an INTERVAL; qlen and backlog_bytes are those
  at its end. There is room for 1024
  disciplines; more of them, and packets beyond --map-entries, count as map_full.
"""

from netbpf.declare import NETNS, Cost, Event, Histogram, Option, Row, Table, Tool, queues
from netbpf.declare import columns as c
from netbpf.declare import probes as p
from netbpf.declare.memory import Memory
from netbpf.declare.network import Endpoint, Protocol, Share
from netbpf.declare.options import count, devices, milliseconds, nanoseconds
from netbpf.declare.stalls import Bound


class QueueRow(Row):
    """A queueing discipline in an interval, or one of its transmit queues."""

    dev = c.Text("network device", width=8)
    kind = c.Text("kind of queueing discipline", width=10)
    handle = queues.Handle("handle of the discipline, as tc shows it", wide=True)
    queue = c.Count("transmit queue of the device (--queues)", width=5)
    waited = c.Count("packets that waited", width=8)
    share = Share("share of the packets that waited, of those that passed", wide=True)
    p50_us = Bound("half of the waits took at most this (bound of a log2 bucket)", width=8,
                   header="P50")  # fmt: skip
    p99_us = Bound("99 % of the waits took at most this (bound of a log2 bucket)", width=8,
                   header="P99")  # fmt: skip
    max_us = c.Duration("longest wait since the start", width=8, header="MAX(ms)")
    bypassed = c.Count(queues.COUNTED["bypassed"], width=8)
    dropped = c.Count(queues.COUNTED["dropped"], width=7)
    qlen = c.Count("packets in the queue now; null where backlog_bytes is", width=8, wide=True)
    backlog_bytes = c.Count("bytes in the queue now, with link headers; null for disciplines that "
                            "have no lock, and for several transmit queues in a row", width=8,
                            header="BACKLOG", wide=True)  # fmt: skip
    qlen_max = c.Count("longest queue since the start, in packets; null for disciplines without a "
                       "lock (pfifo_fast)", width=8, wide=True)  # fmt: skip
    netns = c.Netns()


class LongWait(Event):
    """A packet that waited for long."""

    cstruct = "long_wait"

    wait_us = c.Duration("how long the packet waited", header="WAIT(ms)", width=8)
    dev = c.Text("network device", width=10)
    kind = c.Text("kind of queueing discipline", width=10)
    handle = queues.Handle("handle of the discipline, as tc shows it", wide=True)
    family = c.Family("address family, IPv4-mapped counts as ipv4", wide=True)
    proto = Protocol("protocol", width=6)
    saddr = Endpoint("source address", "sport", header="SADDR:SPORT")
    sport = c.Port("source port", null=0, text=False)
    daddr = Endpoint("destination address", "dport", header="DADDR:DPORT")
    dport = c.Port("destination port", null=0, text=False)
    len = c.Count("bytes from the network header on", ctype="u32", wide=True, width=5)
    netns = c.Netns()


def end(event: str, how: str) -> p.Probe:
    """Return the probe of the end of packets at a tracepoint."""
    return p.tracepoint_probe(how.lower(), event, ("skb", how), ("skbaddr", how), call="on_end")


TOOL = Tool(
    __doc__,
    memory=Memory(160_000, cpu=440_000, entry=232), cost=Cost(1.2, 2.4),
    event=LongWait,
    event_option="min_ms",
    histogram=Histogram(
        "queues", queues.QueueKey, "us", extra=queues.QueueSums, describe=queues.describe,
        fields=queues.FIELDS, unused=("queue",),
    ),
    table=Table("queues", queues.QueueKey, queues.AllSums, QueueRow, order="count",
                complete=queues.complete, refresh=("lengths",)),
    probes=(
        p.tracepoint_probe("begin", "net:net_dev_queue", ("skb",), ("skbaddr",)),
        p.tracepoint_probe("dequeue", "qdisc:qdisc_dequeue", ("qdisc", "txq", "packets", "skb"),
                           ("qdisc", "txq", "packets", "skbaddr")),
        end("net:net_dev_start_xmit", "SENT"),
        end("skb:kfree_skb", "DROPPED"),
        end("skb:consume_skb", "CONSUMED"),
        p.Probe("lengths", p.Iterator("bpf_map_elem", over="waiting"), optional=True),
        p.tracepoint_probe("busy", "net:net_dev_xmit", ("skb", "rc"), ("skbaddr", "rc")),
    ),
    options=(
        *NETNS,
        Option("-i", "--interface", metavar="LIST", parse=devices,
               help="only these network devices"),
        Option("--kind", metavar="LIST", parse=queues.kinds,
               help="only these kinds of queueing disciplines (fq,fq_codel)"),
        Option("--queues", help="show a row of the table for each transmit queue (mq)"),
        Option("--min-ms", metavar="MS", parse=lambda text: milliseconds(text) or 1e-6,
               define="MIN_NS", number=nanoseconds,
               help="also show a line for each packet that waited at least this long"),
        Option("--map-entries", metavar="N", parse=count, default="16384",
               help="how many packets can be in queues at once"),
    ),
    no_filter="it measures queues of devices, in which packets of all processes wait",
    constants=queues.constants,
    notes=queues.notes,
)  # fmt: skip
