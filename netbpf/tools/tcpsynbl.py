"""tcpsynbl - listening sockets: length, limit and drops of their queues

DESCRIPTION
  A listening TCP socket has two queues: the SYN queue, of handshakes that are not complete, and the
  accept queue, of connections that the program has not accepted yet. When the accept queue is full,
  the kernel silently drops new SYNs, and clients wait a second or more before they try again.

  The distribution shows how many connections were waiting in the accept queue whenever a handshake
  was completed, per limit of the queue: the backlog that the program passed to listen(), limited by
  net.core.somaxconn. The kernel lets one more connection wait than the limit. The table has a row
  per listener with activity: its handshakes, both queues, and the connections that it dropped. A
  listener that drops connections is reported on stderr immediately, with advice.

EXAMPLES
  netbpf tcpsynbl                  all listeners, until Ctrl-C
  netbpf tcpsynbl -w 1             every second, a distribution for each listener
  netbpf tcpsynbl -L 443 10 6      one port, six times ten seconds
  netbpf tcpsynbl --comm 'nginx*' -d 60 --json

  A listener that overflows, and one that does not (netbpf tcpsynbl -d 2):

    LADDR           LPORT     PID COMM        SYNS CONNS ACCQ AMAX LIMIT SYNQ DROPS
    127.0.0.1       33359    9330 demo-full      -     2    0    2     1    0     6
    ::1             43005    9328 demo-serve     -    17    0    1   128    0     0

OVERHEAD
  A program of about a microsecond per handshake, one of less than 0.1 us per other change of a TCP
  state and per packet that the kernel drops, and at the end of each interval a scan of the open
  files of all processes (2 to 3 ms per ten thousand files). At the start, a scan of the listeners
  of each network namespace. If SYNs can be probed, half a microsecond more per SYN.

LIMITS
  syns and cookies need a kernel with fentry or kprobes; without them the SYN queue is read when a
  handshake is completed and at the end of the interval, not at each SYN. dropped counts connections
  that the listener lost, as the kernel's ListenDrops does: usually SYNs that arrived when a queue
  was full, and handshakes that ended when the accept queue was full. Clients retry, and each try is
  counted; TCPReqQFullDrop is a part of ListenDrops. Packets that a listener rejects (an ACK under
  TCP_DEFER_ACCEPT, a repeated SYN, a reset, a missing signature) are not counted. Before 6.11,
  dropped needs fentry or kprobes, and is empty without them.

  -4, -6 and --laddr select listeners by the address that they listen on: a dual-stack listener is
  IPv6, even if its clients are not. The owner is the process that called listen(). If it has closed
  the listener by the end of an interval, the owner is another process that has it open. A listener
  without a file descriptor in any process (it is in a message, or in a table of io_uring) is shown
  without an owner if it existed at the start. Connections of TCP Fast Open are counted when the SYN
  is accepted. The kernel's counters are those of netbpf's own network namespace, or of the one that
  --netns names; rows are from all of them.
"""

from netbpf.declare import NETNS, PROCESS, SOCKET, Histogram, Record, Row, Table, Tool
from netbpf.declare import columns as c
from netbpf.declare import probes as p
from netbpf.declare.backlog import LOST_PROBES, by_key, checksum_reason, unattributed, warn
from netbpf.declare.costs import Cost
from netbpf.declare.memory import Memory
from netbpf.declare.record import copied, key, sums
from netbpf.declare.states import state_probe

_LISTENER_FILTERS = ("ipv4", "ipv6", "lport", "laddr")
_OVERFLOWS = tuple(f"TcpExt.{name}" for name in (
    "ListenOverflows", "ListenDrops", "TCPReqQFullDrop", "TCPReqQFullDoCookies", "SyncookiesSent",
))  # fmt: skip


class QueueKey(Record):
    """The key of the distribution: a listener and the limit of its accept queue."""

    cstruct = "queue_key"

    limit = c.Column("limit of the accept queue: the smaller of backlog and net.core.somaxconn")
    laddr = c.Addr("local address", wide=True)
    lport = c.Port("local port", wide=True)
    netns = c.Netns()


Listener = key(
    "listener",
    sk=c.Count("address of the socket"),
    since=c.Count("when it was first seen, in ns"),
    **copied(QueueKey, "netns lport laddr"),
)
ListenerSums = sums(
    "listener_sums", "handshakes syns dropped cookies",
    gauges="accept_max accept_peak accept_limit syn_max syn_peak dropped_total somaxconn "
    "syn_backlog syncookies session",
    shown="accept_queue syn_queue",
    pid=c.Pid("process"), comm=c.Comm("its name"), owner=c.Owner("how it was found"),
)  # fmt: skip


class ListenerRow(Row):
    """A listener in an interval."""

    laddr = c.Addr("local address")
    lport = c.Port("local port")
    pid = c.Pid("process that listens")
    comm = c.Comm("its name", width=10)
    owner = c.Owner("how it was found: exact (listen), snapshot (open file), unknown", wide=True)
    syns = c.Count("SYNs received", width=5, priority=45)
    handshakes = c.Count("completed handshakes", width=5, header="CONNS")
    accept_queue = c.Count("waiting connections at the end of the interval", width=4, header="ACCQ")
    accept_max = c.Count("largest accept queue in the interval", width=4, header="AMAX",
                         priority=60)  # fmt: skip
    accept_limit = c.Count("limit of the accept queue; one more can wait", width=5, header="LIMIT",
                           priority=60)  # fmt: skip
    syn_queue = c.Count("incomplete handshakes at the end of the interval", width=4, header="SYNQ",
                        priority=40)  # fmt: skip
    syn_max = c.Count("largest SYN queue seen in the interval", width=4, header="SMAX", wide=True)
    dropped = c.Count("connections lost (ListenDrops) in the interval", width=5,
                    header="DROPS", priority=80, alert=True)  # fmt: skip
    dropped_total = c.Count("connections lost since the start", width=6, header="DTOTAL", wide=True)
    cookies = c.Count("SYNs answered with a SYN cookie", width=7, wide=True)
    somaxconn = c.Count("net.core.somaxconn of the namespace", wide=True)
    syn_backlog = c.Count("net.ipv4.tcp_max_syn_backlog of the namespace", width=11, wide=True)
    syncookies = c.Count("net.ipv4.tcp_syncookies of the namespace", width=10, wide=True)
    netns = c.Netns()


def order(row):
    """Sort listeners that drop first, then those with the fullest queue."""
    return (-row["dropped"], -row["accept_max"] / (row["accept_limit"] + 1))


LISTENERS = Table(
    "listeners", Listener, ListenerSums, ListenerRow, order=order, per_cpu=False,
    first="unheld", refresh=("holders", "listeners"), warn=warn, main=True,
)  # fmt: skip

TOOL = Tool(
    __doc__,
    memory=Memory(2_000_000, cpu=520_000, entry=472, entry_cpu=21),
    cost=Cost(0.9, 11.5),
    histogram=Histogram("queues", QueueKey, "connections"),
    table=(LISTENERS, by_key(LISTENERS)),
    probes=(
        state_probe(),
        p.Probe("unheld", p.Iterator("tcp"), optional=True),
        p.Probe("holders", p.Iterator("task_file")),
        p.Probe("listeners", p.Iterator("bpf_map_elem", over="tracked")),
        *LOST_PROBES,
        p.Probe(
            "syn",
            p.Fentry("tcp_conn_request", args=("sk",)),
            p.Kprobe("tcp_conn_request", args=("sk",)),
            optional=True,
            loses=("syns",),
        ),
        p.Probe(
            "synack",
            p.Fentry("tcp_make_synack", args=("sk", "synack_type")),
            p.Kprobe("tcp_make_synack", args=("sk", "synack_type")),
            optional=True,
            loses=("cookies",),
        ),
    ),
    options=(*PROCESS, *NETNS, *(o for o in SOCKET if o.name in _LISTENER_FILTERS)),
    no_filter="it traces listeners, which have no remote end",
    counters=_OVERFLOWS,
    interval_counters=_OVERFLOWS,
    kernel_constants=checksum_reason,
    notes=unattributed,
)  # fmt: skip
