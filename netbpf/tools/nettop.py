"""nettop - who uses the network devices: packets and bytes by process, queue, CPU, remote end ...

DESCRIPTION
  Shows who sends and receives how much through the network devices, in each interval (a second, if
  none is given): the devices with the most traffic first, and of each device the rows with the most
  bytes. --by chooses what a row is: a process (the default), a queue, a CPU, a protocol, a remote
  end, a container, a call stack of the kernel ...

  The last row of a device (TRAFFIC is other) is the rest: what the device itself has counted and no
  other row has. So the rows of a device add up to its own counters, those of 'ip -s link'. DROPS in
  it (-w) are packets that the device dropped.

  If --by has a process, or a filter asks for one, TRAFFIC says whose packets a row has: of a socket
  (PID is '-' if it is not known whose), forwarded, or sent by the kernel itself (ARP, ICMP errors,
  resets). Received packets that no socket took are in the rest.

EXAMPLES
  netbpf nettop                           processes by device, every second
  netbpf nettop -i eth0 --top 5 10        the five busiest on one device, every 10 s
  netbpf nettop --by dev,queue 5          how packets spread over the queues
  netbpf nettop --by cpu,dev -d 10        which CPUs handle them
  netbpf nettop --by dev,proto,raddr/24   protocols and networks
  netbpf nettop --by process,remote --comm curl
                                          who curl talks to
  netbpf nettop --by container 60 1       containers, a minute
  netbpf nettop --by dev,stack -i eth0 -d 5
                                          code of the kernel that sends and receives
  netbpf nettop --json | jq -c 'select(.traffic == "other" and .drops > 0)'

OVERHEAD
  One program per packet.

LIMITS
  Bytes.
"""

from netbpf.declare import NETNS, PROCESS, SOCKET, Option, Tool, uses
from netbpf.declare import probes as p
from netbpf.declare.options import count, devices
from netbpf.declare.owners import USER_PROBES

TOOL = Tool(
    __doc__,
    table=uses.UseTable(),
    probes=(
        p.tracepoint_probe("start", "net:net_dev_start_xmit", ("ctx", "skb"), ("ctx", "skbaddr")),
        p.tracepoint_probe("sent", "net:net_dev_xmit", ("skb", "rc"), ("skbaddr", "rc")),
        p.tracepoint_probe("received", "net:netif_receive_skb", ("ctx", "skb"), ("ctx", "skbaddr")),
        p.tracepoint_probe("segment", "tcp:tcp_probe", ("ctx", "sk", "skb"),
                           ("ctx", "skaddr", "skbaddr"), role=p.Role.OWNERS),
        p.Probe("readable",
                *p.tracepoints("sock:sk_data_ready", ("ctx", "sk"), ("ctx", "skaddr")),
                p.Fentry("sock_def_readable", args=("ctx", "sk")),
                p.Kprobe("sock_def_readable", args=("ctx", "sk")),
                role=p.Role.OWNERS, optional=True),
        *USER_PROBES,
        p.Probe("stale", p.Iterator("bpf_map_elem", over="owners"), role=p.Role.STALE,
                optional=True),
    ),
    owners=True,
    default_interval=1,
    options=(
        *PROCESS,
        *NETNS,
        *SOCKET,
        Option("-i", "--interface", metavar="LIST", parse=devices,
               help="only these network devices"),
        Option("--map-entries", metavar="N", parse=count, default="16384",
               help="how many sockets can be tracked, and rows counted, at once"),
    ),
    constants=uses.constants,
)  # fmt: skip
