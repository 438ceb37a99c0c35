"""sormem - receive buffers of sockets: how full they are, and what they drop

DESCRIPTION
  Data that arrives for a socket waits in its receive buffer until the program reads it. If the
  program is too slow, a UDP socket drops what does not fit, and a TCP socket stops its peer. Shows
  a row for each socket in which data waits or arrived, that was read, or that dropped packets: how
  often data arrived (ARRIVED) and was read (READS), the most memory that the buffer took (MAX_KB),
  its size (LIMIT_KB), the largest share of it that was taken (FILL), and the packets that it
  dropped. Sockets with drops come first, then the fullest.

  The memory is that of packets, with the kernel's overhead: a datagram of one byte takes some
  hundred bytes. FILL can exceed 100 %: the limit is checked before a packet is added, and a buffer
  can be made smaller. What was dropped is counted by cause:

    no_room     the buffer was full (raise SO_RCVBUF or net.core.rmem_max, or read faster)
    memory      no memory left, of the protocol (net.ipv4.udp_mem, tcp_mem) or of a TCP buffer that
                could not be made to fit
    backlogged  a program held the TCP socket while too many packets came for it
    window      segments that did not fit into the TCP window: the buffer was full
    pruned      segments that had come out of order, and were removed to make room

  --histogram also shows the distribution of the memory (rmem_alloc) and of the limits (rmem_limit),
  at each arrival, with the data that arrived, and after each read.

EXAMPLES
  netbpf sormem                          until Ctrl-C
  netbpf sormem --proto udp 5            UDP sockets, every 5 seconds
  netbpf sormem --comm named -w          those of a program, with addresses and causes
  netbpf sormem --by comm,proto -d 60    a minute, by program and protocol
  netbpf sormem --histogram --proto udp -d 10
                                         with distributions
  netbpf sormem --json -d 10 | jq 'select(.fill_max > 0.9 or .dropped > 0)'

  A datagram receiver that is too slow, and a server that does not read (netbpf sormem -d 3):

       PID COMM         PROTO LPORT ARRIVED   READS MAX_KB LIMIT_KB    FILL DROPPED
      7613 slowlog      udp4   5514     576     565  207.0    208.0  99.51%    2155
      7613 slowlog      tcp4   8080       0       0  112.3    128.0  87.74%       0

OVERHEAD
  Everything is counted in the kernel: there is no event per packet. An arrival and a read cost
  about 0.4 us each, with --histogram 0.8 us, and 0.2 us if filters of addresses, ports or
  namespaces exclude the socket. An interval costs 0.3 us per open file of the machine, and 0.2 us
  per socket with a row. Connects, accepts and closes cost as much as in tcplife, to find owners.

LIMITS
  Sockets with IP addresses only: in AF_UNIX, data counts for the sender. ARRIVED counts how often
  the kernel tells the socket about data or an end of file: for each UDP datagram, since 6.18 for
  several that come at once; for each TCP segment, or several that were merged; below SO_RCVLOWAT,
  not at all. READS are calls that succeeded, without MSG_PEEK; spliced-out data is not seen. Memory
  is what the kernel compares with the limit, as in 'ss -m' (r): of a UDP buffer, it is given back
  with a delay of up to a quarter of the limit.
  MAX_KB and FILL count from the first row of the socket, also with INTERVAL; of datagrams that come
  to a UDP socket on several CPUs at the same moment, one may be missing in them. --by adds up
  used_bytes, and shows the largest of the other sizes. A TCP connection that follows another
  between the same ends, at the same place in memory, continues its row. A TCP socket that no
  program has accepted yet has a row only if data arrives.
  The owner is the process that read last, or connected or accepted (exact), or that has the socket
  at the start or at the end of an interval (snapshot). A new UDP socket that is closed before that
  and was never read has none, and with filters of processes, no row. These filters are applied
  when rows are shown: sockets of other processes take room, too. There is room for four times
  --map-entries; with INTERVAL, closed sockets give theirs back. --histogram with a filter of
  processes omits arrivals before the owner is known.
  Before 6.11, drops are known of UDP only: those of others are null. Drops of raw sockets are
  always null, as the kernel drops without a packet. 'ss -m' (d) counts more as drops, such as
  wrong checksums, and packets that lose nothing. MPTCP counts as TCP: data that arrives before
  accept() and drops of its subflows are not counted. Kernels before 6.3 need fentry or kprobes.
"""

from netbpf.declare import NETNS, PROCESS, SOCKET, Cost, Histogram, Option, Tool, buffers
from netbpf.declare import probes as p
from netbpf.declare.calls import IP_RECV_PROBES
from netbpf.declare.memory import Memory
from netbpf.declare.states import GONE

TOOL = Tool(
    __doc__,
    memory=Memory(1_450_000, cpu=55_000, entry=1500), cost=Cost(7.9, 45.9),
    table=buffers.BUFFERS,
    histogram=Histogram("sizes", buffers.SizeKey, "bytes", option="histogram"),
    probes=(
        p.Probe("arrival", *p.tracepoints("sock:sk_data_ready", ("sk",), ("skaddr",)),
                p.Fentry("sock_def_readable", args=("sk",)),
                p.Kprobe("sock_def_readable", args=("sk",))),
        *IP_RECV_PROBES,
        p.Probe("drop", *p.tracepoints("skb:kfree_skb", ("skb", "reason", "rx_sk"),
                                       ("skbaddr", "reason", "rx_sk")),
                optional=True, loses=("backlogged", "window", "pruned")),
        p.Probe("udp_drop", p.RawTracepoint("udp_fail_queue_rcv_skb", args=("sk", "rc")),
                optional=True),
        GONE,
        p.Probe("stale", p.Iterator("bpf_map_elem", over="owners"), optional=True),
        p.Probe("held", p.Iterator("task_file"), optional=True),
        p.Probe("publish", p.Iterator("bpf_map_elem", over="buffers")),
    ),
    owners=True,
    options=(
        *PROCESS,
        *NETNS,
        *SOCKET,
        buffers.PROTO,
        Option("--histogram", define="WITH_HISTOGRAM",
               help="also show distributions of memory in the buffers, and of their limits"),
    ),
    constants=buffers.constants,
    counters=(
        "Udp.RcvbufErrors", "Udp6.RcvbufErrors", "Udp.MemErrors", "Udp6.MemErrors",
        "TcpExt.TCPRcvQDrop", "TcpExt.TCPBacklogDrop", "TcpExt.TCPZeroWindowDrop",
        "TcpExt.BeyondWindow", "TcpExt.PruneCalled", "TcpExt.RcvPruned", "TcpExt.OfoPruned",
        "TcpExt.TCPToZeroWindowAdv",
    ),
)  # fmt: skip
