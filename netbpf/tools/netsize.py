"""netsize - packet sizes at the network device and in the stack, both ways

DESCRIPTION
  Four distributions of packet sizes per device: nic_recv (as the device hands packets over),
  stack_recv (as the protocols get them, merged by GRO), stack_send (as the protocols send them)
  and nic_send (as the device gets them). Sizes never include the link header, so that the four
  can be compared, and packets that a device could not take are not counted twice.

  Large packets that hardware cuts (TSO) or that were merged (GRO, LRO) are one packet here; the
  merge factor says how much larger they are than on the wire. 1.0 on a busy bulk receiver means
  that GRO is not at work.

EXAMPLES
  netbpf netsize                 all devices, until Ctrl-C
  netbpf netsize -i eth0 1 10    one device, every second, ten times
  netbpf netsize -d 5 --json     5 seconds, as JSON lines

  What comes in through loopback (netbpf netsize -i lo -d 2), the upper part:

    dev=lo point=nic_recv: 1118 packets, 11275836 bytes, average 10085.7, ...
                    bytes : count     distribution
                 32 -> 63 : 542       |****************************************|
                64 -> 127 : 275       |*********************                   |
               128 -> 255 : 1         |*                                       |

OVERHEAD
  One program per packet at each of the four points, about 0.2 us each: on a machine that handles
  a million packets per second this costs most of a CPU. Narrowing to one device (-i) costs less.

LIMITS
  The kernel has no tracepoint for a packet that one device hands to another one on top of it
  (macvlan, ipvlan, VLAN, bond, team), and none for sends around the queueing discipline
  (PACKET_QDISC_BYPASS, AF_XDP in copy mode, netpoll, pktgen); XDP takes packets away before the
  first point. What devices counted themselves is in the summary (`devices`), with how much of
  it no point has seen at least, and a note for each device that has such packets. Devices that come
  while it runs are not compared.
  Wire packets are an estimate from the size and number of segments that the packet carries; the
  headers of tunnels (VXLAN, Geneve, GRE, IP in IP) are repeated with each, what ESP adds behind is
  not. Smaller than 128 bytes counts as small.
"""

from netbpf.declare import NETNS, Histogram, Option, Record, Tool
from netbpf.declare import columns as c
from netbpf.declare import probes as p
from netbpf.declare.constants import one_of_names
from netbpf.declare.costs import Cost
from netbpf.declare.memory import Memory
from netbpf.declare.options import count, devices

POINTS = {0: "nic_recv", 1: "stack_recv", 2: "stack_send", 3: "nic_send"}
_WAYS = {
    "by_gro": "napi_gro_receive",
    "by_netif_rx": "netif_rx",
    "by_direct": "netif_receive_skb",
}


class SizeKey(Record):
    """Where packets are counted."""

    cstruct = "size_key"

    dev = c.Text("network device")
    point = c.Enum("nic_recv, stack_recv, stack_send or nic_send", POINTS, width=10)
    netns = c.Netns()


class SizeSums(Record):
    """What is summed with the sizes."""

    cstruct = "sizes"

    small = c.Count("packets smaller than 128 bytes")
    wire_packets = c.Count("packets on the wire, estimated")
    wire_bytes = c.Count("bytes on the wire without link headers, estimated")
    by_gro = c.Count("packets that came in through GRO")
    by_netif_rx = c.Count("packets that came in through netif_rx")
    by_direct = c.Count("packets that came in through netif_receive_skb")
    hardware = c.Count("not 0 for a device with hardware of its own")


def describe(found, sums):
    """Add averages, the share of small packets, and the merge factor."""
    packets, total = found["count"] or 1, found["sum"]
    wire = sums["wire_bytes"] / (sums["wire_packets"] or 1)
    ways = [way for name, way in _WAYS.items() if sums[name]]
    more = {
        "average": round(total / packets, 1),
        "small_share": round(sums["small"] / packets, 4),
        "wire_packets": sums["wire_packets"],
        "wire_bytes": sums["wire_bytes"],
        "merge_factor": round(total / packets / wire, 2) if wire else 1.0,
        "entry": ways,
    }
    entry = f", in through {' and '.join(ways)}" if ways else ""
    headline = (
        f"{found['count']} packets, {total} bytes, average {more['average']:g}, "
        f"{more['small_share']:.0%} small, merge factor {more['merge_factor']:g}{entry}"
    )
    return {**more, "headline": headline}


def conclude(histograms):
    """Return a note for each device whose packets never passed GRO."""
    ways: dict[str, set[str]] = {}
    for one in histograms:
        if one["key"]["point"] == "nic_recv":
            ways.setdefault(one["key"]["dev"], set()).update(one["entry"])
    lacking = {dev: entries for dev, entries in ways.items() if "napi_gro_receive" not in entries}
    return [
        f"{dev} does not pass the GRO entry points: nic_recv was counted at {', '.join(entries)}"
        for dev, entries in sorted(lacking.items())
    ]


# Packets of a device that pass no probe of a point.
_BEHIND = (
    "received {} packets more than pass a probe: another device handed them over (macvlan, ipvlan, "
    "VLAN, bond, team), or XDP took them"
)
_AROUND = (
    "sent {} packets more than pass a probe: they went around the queueing discipline "
    "(PACKET_QDISC_BYPASS, AF_XDP, netpoll, pktgen), or came from XDP"
)
_WAY_OF_POINTS = (("received", "nic_recv", _BEHIND), ("sent", "nic_send", _AROUND))


def devices_own(histograms, risen, settings):
    """Compare with the devices' own counters: return how many packets at least were not seen."""
    seen = {tuple(one["key"].values()): one for one in histograms}
    found, notes = [], []
    for (netns, dev), counted in sorted(risen.items()):
        if settings["interface"] and dev not in settings["interface"]:
            continue
        row = {"dev": dev, "netns": netns}
        for packets, (way, point, words) in zip(counted, _WAY_OF_POINTS):
            one = seen.get((dev, point, netns), {"count": 0, "wire_packets": 0, "hardware": 0})
            # Hardware counts what is on the wire, and some of it reports it seconds later.
            most = max(one["count"], one["wire_packets"]) if one["hardware"] else one["count"]
            unseen = max(0, packets - most)
            if one["hardware"] and unseen * 100 < packets:
                unseen = 0
            row[way], row[f"{way}_unseen"] = packets, unseen
            if unseen:
                notes.append(f"{dev} (netns {netns}) {words.format(unseen)}")
        if any(counted):
            found.append(row)
    return {"devices": found}, notes


def constants(settings):
    """Return the filter of devices."""
    names = settings["interface"]
    return {"FILTER_DEV(a, b)": one_of_names("a", "b", names)} if names else {}


def _packets(name: str, event: str, point: str, way: str = "OTHER") -> p.Probe:
    """Return the probe of packets at one point; `way` is how a device hands them over."""
    more = (f"POINT_{point}", f"WAY_{way}")
    return p.Probe(
        name,
        p.RawTracepoint(event, args=("skb", *more), call="on_packet"),
        p.Tracepoint(f"net:{event}", args=("skbaddr", *more), call="on_packet"),
        optional=point == "NIC_RECV",
    )


TOOL = Tool(
    __doc__,
    memory=Memory(5_000, cpu=202_000, entry=96, entry_cpu=392),
    cost=Cost(3.9, 5.9),
    histogram=Histogram(
        "sizes",
        SizeKey,
        "bytes",
        extra=SizeSums,
        describe=describe,
        fields={
            "average": {"type": "number", "description": "bytes per packet"},
            "small_share": {"type": "number", "description": "share of packets below 128 bytes"},
            "wire_packets": {"type": "integer", "description": "packets on the wire, estimated"},
            "wire_bytes": {"type": "integer", "description": "their bytes, estimated"},
            "merge_factor": {"type": "number", "description": "bytes per packet here over wire"},
            "entry": {
                "type": "array",
                "items": {"type": "string"},
                "description": "how it came in",
            },
        },
    ),
    probes=(
        _packets("gro", "napi_gro_receive_entry", "NIC_RECV", "GRO"),
        _packets("gro_frags", "napi_gro_frags_entry", "NIC_RECV", "GRO"),
        _packets("netif_rx", "netif_rx", "NIC_RECV", "NETIF_RX"),
        _packets("direct", "netif_receive_skb_entry", "NIC_RECV", "DIRECT"),
        _packets("direct_list", "netif_receive_skb_list_entry", "NIC_RECV", "DIRECT"),
        _packets("stack_recv", "netif_receive_skb", "STACK_RECV"),
        _packets("stack_send", "net_dev_queue", "STACK_SEND"),
        _packets("nic_send", "net_dev_start_xmit", "NIC_SEND"),
        p.Probe(
            "sent",
            p.RawTracepoint("net_dev_xmit", args=("skb", "rc")),
            p.Tracepoint("net:net_dev_xmit", args=("skbaddr", "rc")),
        ),
    ),
    options=(
        *NETNS,
        Option(
            "-i", "--interface", metavar="LIST", parse=devices, help="only these network devices"
        ),
        Option(
            "--map-entries",
            metavar="N",
            parse=count,
            default="1024",
            help="how many pairs of device and point can be counted at once",
        ),
    ),  # fmt: skip
    no_filter="it counts packets at devices, before anything is known of processes and sockets",
    constants=constants,
    histogram_notes=conclude,
    compare_devices=devices_own,
    summary_fields={
        "devices": {
            "type": "array",
            "description": "packets that devices counted themselves, and how many were not seen",
            "items": {"type": "object"},
        }
    },
)
