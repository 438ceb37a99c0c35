"""nettop - who uses the network devices: bytes and packets by process or queue

DESCRIPTION
  Shows who sends and receives how much through the network devices, in each interval (a second, if
  none is given): the device with the most traffic first, and of each device the rows with the most
  bytes. --by chooses what a row is: a process (the default), a queue, a CPU, a protocol, a remote
  end, a container, a call stack of the kernel ...

  The last row of a device, whose TRAFFIC is other, is the rest: what the device itself has counted
  and no other row has. So the rows add up to the device's own counters, those of 'ip -s link'. With
  -w that row also shows how many packets the device dropped. There is no such row if filters of
  processes, ports or addresses are given; SHARE is of all that the device has counted also then.

  If rows or filters depend on processes, TRAFFIC tells whose packets they are: of a socket (PID is
  '-' if its process is not known), forwarded, or sent by the kernel itself (ARP, ICMP errors,
  resets). The rest then has what no socket has taken: packets that are forwarded, or answered or
  dropped by the kernel, and those with which TCP opens and closes connections.

EXAMPLES
  netbpf nettop                           processes by device, every second
  netbpf nettop -i eth0 --top 5 10        the five busiest of a device, every 10 s
  netbpf nettop --by dev,queue 5          how packets spread over the queues
  netbpf nettop --by cpu,dev -d 10        which CPUs handle them
  netbpf nettop --by dev,proto,raddr/24   protocols and networks
  netbpf nettop --by process,remote --comm curl
                                          with whom curl talks
  netbpf nettop --by container 60 1       containers, a minute
  netbpf nettop --by dev,stack -i eth0 10
                                          the kernel's code that sends and receives
  netbpf nettop --json | jq -c 'select(.traffic == "other" and .drops > 0)'

  A backup and some lookups, from start to Ctrl-C (netbpf nettop -i eth0 100):

    DEV          PID COMM         TRAFFIC     TX_KB TX_PKTS   RX_KB RX_PKTS  SHARE
    eth0       10059 backup       socket       3913     101    4.30      48 99.71%
    eth0       10752 resolver     socket       2.29      23    7.68      23  0.25%
    eth0        9561 python       socket       0.21       5    0.00       0  0.01%
    eth0           - -            kernel       0.04       1    0.00       0  0.00%
    eth0           - -            other        0.00       0    1.30      20  0.03%

OVERHEAD
  Packets are counted in the kernel, per CPU; none is sent to the reader. For each device that it
  passes, a packet costs 0.5 us when it is sent and 0.4 us when it is received, and with processes
  1.1 us and 1.4 us, and each message that a program sends or receives 0.1 us. A call stack costs
  4 us more. What -i and --netns exclude costs 0.2 us. Connects, accepts and closes cost as much as
  in tcplife, to find owners.

LIMITS
  Bytes include the link header, except on lo, which does not count it either. Bridges do not count
  it for what they receive: there the rows can have more than the device, and what a port of a
  bridge has received is in the rest of the port. A packet is a buffer of the kernel: those that the
  hardware cuts (TSO), or that GRO has merged, are several in the counters of the device, and so the
  rest has the difference. Packets of a device on top of another one (VLAN, macvlan) are received in
  the rows of the lower one. Packets that XDP takes, and those that bypass the queueing discipline
  (AF_XDP, PACKET_QDISC_BYPASS), are in the rest.
  The counters are read a moment after the rows, and of all namespaces that can be found, added up
  by the name of the device: on a busy device, a part of the rest belongs to the next interval.
  Namespaces that appear meanwhile are in the rest late or not at all.
  TCP segments that wait until a program lets go of its socket are merged: their headers are in the
  rest, and after a shutdown by this end the segments themselves. Which queue they came from is not
  known, nor is that of packets that a virtual device with several queues has received. A socket of
  UDP that is made during the run has no owner until it first sends or has received; a connection
  has none until it is accepted. Of several processes that share a UDP socket, the one that used it
  last has the packets.
  Before 6.3, received packets other than those of established TCP connections have a process only
  with fentry or kprobes, and owners of UDP sockets are those of the start.
  Without dev in --by, packets count on each device that they pass. In filters the remote end is the
  source of a received packet, and the destination of a sent one. A further row than --map-entries
  counts as map_full, and is in the rest.
"""

from netbpf.declare import NETNS, PROCESS, SOCKET, Cost, Option, Tool, uses
from netbpf.declare import probes as p
from netbpf.declare.memory import Memory
from netbpf.declare.options import count, devices
from netbpf.declare.owners import USER_PROBES

TOOL = Tool(
    __doc__,
    memory=Memory(5_800_000, cpu=60_000, entry=300, entry_cpu=40),
    cost=Cost(22.6, 3.2),
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
