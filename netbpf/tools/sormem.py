"""sormem - receive buffers of sockets: how full they are, and what they drop

DESCRIPTION
  Shows a row.

EXAMPLES
  netbpf sormem                          until Ctrl-C

OVERHEAD
  Some.

LIMITS
  Some.
"""

from netbpf.declare import NETNS, PROCESS, SOCKET, Cost, Histogram, Option, Tool, buffers
from netbpf.declare import probes as p
from netbpf.declare.calls import RECV_PROBES
from netbpf.declare.memory import Memory
from netbpf.declare.states import GONE

TOOL = Tool(
    __doc__,
    memory=Memory(1_450_000, cpu=26_000, entry=1400), cost=Cost(3.4, 8.4),
    table=buffers.BUFFERS,
    histogram=Histogram("sizes", buffers.SizeKey, "bytes", option="histogram"),
    probes=(
        p.Probe("arrival", *p.tracepoints("sock:sk_data_ready", ("sk",), ("skaddr",)),
                p.Fentry("sock_def_readable", args=("sk",)),
                p.Kprobe("sock_def_readable", args=("sk",))),
        *RECV_PROBES,
        p.Probe("drop", *p.tracepoints("skb:kfree_skb", ("skb", "reason", "rx_sk"),
                                       ("skbaddr", "reason", "rx_sk")),
                optional=True, loses=("backlog", "window", "pruned")),
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
