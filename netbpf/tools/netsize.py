"""netsize - packet sizes at the device and in the stack, both directions

DESCRIPTION
  Shows four distributions of packet sizes per device: nic_recv (packets as the device delivers
  them), stack_recv (as the protocols receive them, after GRO merged them), stack_send (as the
  protocols send them) and nic_send (as the device receives them). Sizes never include the link
  header, so that the four can be compared. A packet that a device could not accept is not counted
  again when it is sent again.

  Large packets that hardware splits (TSO) or that were merged (GRO, LRO) are one packet here; the
  merge factor is the ratio of their size to the size on the wire. A factor of 1.0 on a busy bulk
  receiver means that GRO does not work.

EXAMPLES
  netbpf netsize                 all devices, until Ctrl-C
  netbpf netsize -i eth0 1 10    one device, every second, ten times
  netbpf netsize -i eth0 --queues 5
                                 each queue of a device, every 5 seconds
  netbpf netsize --by dev,cpu    by the CPU that handles the packets
  netbpf netsize -d 5 --json     5 seconds, as JSON lines

  Packets received through loopback (netbpf netsize -i lo -d 2), the first lines:

    dev=lo point=nic_recv: 1118 packets, 11275836 bytes, average 10085.7, ...
                    bytes : count     distribution
                 32 -> 63 : 542       |****************************************|
                64 -> 127 : 275       |*********************                   |
               128 -> 255 : 1         |*                                       |

OVERHEAD
  One program per packet at each of the four points, about 0.2 us each: on a machine that handles a
  million packets per second this uses most of a CPU. Restricting it to one device (-i) costs less.

LIMITS
  The kernel has no tracepoint for a packet that one device passes to a device on top of it
  (macvlan, ipvlan, VLAN, bond, team), and none for packets that bypass the queueing discipline
  (PACKET_QDISC_BYPASS, AF_XDP in copy mode, netpoll, pktgen); XDP takes packets before the first
  point. The summary has the packets that the devices themselves counted (devices), the least number
  of them that no point saw, and a note for each device with such packets. Devices that appear
  during the run are not compared.
  Wire packets are an estimate from the size and number of the packet's segments. Headers of tunnels
  (VXLAN, Geneve, GRE, IP in IP) are counted for each of them, the trailer of ESP is not. Packets
  smaller than 128 bytes count as small. In which of several queues a virtual device received a
  packet is unknown.
"""

from netbpf.declare import NETNS, Histogram, Option, Record, Tool
from netbpf.declare import columns as c
from netbpf.declare import probes as p
from netbpf.declare.constants import device_filter
from netbpf.declare.costs import Cost
from netbpf.declare.keys import Key
from netbpf.declare.memory import Memory
from netbpf.declare.options import count, devices
from netbpf.declare.sizes import FIELDS, compare_devices, describe, without_gro

POINTS = {0: "nic_recv", 1: "stack_recv", 2: "stack_send", 3: "nic_send"}


class SizeKey(Record):
    """The key by which packets are counted."""

    cstruct = "size_key"

    dev = c.Text("network device")
    point = c.Enum("nic_recv, stack_recv, stack_send or nic_send", POINTS, width=10)
    netns = c.Netns()
    queue = c.Count("queue of the device (--by); null if a packet has none", ctype="u16",
                    null=0xFFFF)  # fmt: skip
    cpu = c.Count("CPU that handled the packets (--by)", ctype="u16", width=5)


class SizeSums(Record):
    """Sums that are kept with the sizes."""

    cstruct = "sizes"

    small = c.Count("packets smaller than 128 bytes")
    wire_packets = c.Count("packets on the wire, estimated")
    wire_bytes = c.Count("bytes on the wire without link headers, estimated")
    by_gro = c.Count("packets that came in through GRO")
    by_netif_rx = c.Count("packets that came in through netif_rx")
    by_direct = c.Count("packets that came in through netif_receive_skb")
    hardware = c.Count("not 0 for a hardware device")


def packets(name: str, event: str, point: str, way: str = "OTHER") -> p.Probe:
    """Return the probe of packets at one point; `way` is how a device delivers them."""
    numbers = (f"POINT_{point}", f"WAY_{way}")
    return p.tracepoint_probe(
        name, f"net:{event}", raw=("skb", *numbers), fields=("skbaddr", *numbers),
        call="on_packet", optional=point == "NIC_RECV",
    )  # fmt: skip


TOOL = Tool(
    __doc__,
    memory=Memory(5_000, cpu=202_000, entry=96, entry_cpu=392),
    cost=Cost(3.9, 5.9),
    histogram=Histogram(
        "sizes", SizeKey, "bytes", extra=SizeSums, describe=describe, fields=FIELDS,
        fixed=("point",), unused=("queue", "cpu"),
    ),
    probes=(
        packets("gro", "napi_gro_receive_entry", "NIC_RECV", "GRO"),
        packets("gro_frags", "napi_gro_frags_entry", "NIC_RECV", "GRO"),
        packets("netif_rx", "netif_rx", "NIC_RECV", "NETIF_RX"),
        packets("direct", "netif_receive_skb_entry", "NIC_RECV", "DIRECT"),
        packets("direct_list", "netif_receive_skb_list_entry", "NIC_RECV", "DIRECT"),
        packets("stack_recv", "netif_receive_skb", "STACK_RECV"),
        packets("stack_send", "net_dev_queue", "STACK_SEND"),
        packets("nic_send", "net_dev_start_xmit", "NIC_SEND"),
        p.tracepoint_probe("sent", "net:net_dev_xmit", ("skb", "rc"), ("skbaddr", "rc")),
    ),
    options=(
        *NETNS,
        Option("-i", "--interface", metavar="LIST", parse=devices,
               help="only these network devices"),
        Option("--queues", help="each queue of a device: same as --by dev,netns,queue",
               sets={"by": [Key("dev"), Key("netns"), Key("queue")]}),
        Option("--map-entries", metavar="N", parse=count, default="1024",
               help="how many pairs of device and point can be counted at once"),
    ),
    no_filter="it counts packets at devices, where their process and socket are not known",
    constants=lambda settings: device_filter(settings["interface"]),
    histogram_notes=without_gro,
    compare_devices=compare_devices,
    summary_fields={
        "devices": {
            "type": "array",
            "description": "packets that devices counted themselves, and how many were not seen",
            "items": {"type": "object"},
        }
    },
)  # fmt: skip
