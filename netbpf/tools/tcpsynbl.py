"""tcpsynbl - queues of listening sockets: how full, and who drops connections

DESCRIPTION
  A listening TCP socket has two queues: the SYN queue, of handshakes that are not complete, and the
  accept queue, of connections that the program has not accepted yet. When the accept queue is full,
  the kernel drops new SYNs in silence, and clients wait a second or more until they try again.

  The distribution shows how many connections were waiting in the accept queue whenever another
  handshake was completed, per limit of the queue: the backlog that the program asked for in
  listen(), cut at net.core.somaxconn. The kernel lets one more than the limit wait. The table has a
  row per listener that had something to do: its handshakes, both queues, and what it dropped. A
  listener that drops connections is reported on stderr immediately, with advice.

EXAMPLES
  netbpf tcpsynbl                  all listeners, until Ctrl-C
  netbpf tcpsynbl -w 1             every second, a distribution for each listener
  netbpf tcpsynbl -L 443 10 6      one port, six times ten seconds
  netbpf tcpsynbl --comm 'nginx*' -d 60 --json

  A listener that overflows beside one that does not (netbpf tcpsynbl -d 2):

    LADDR           LPORT     PID COMM        SYNS CONNS ACCQ AMAX LIMIT SYNQ DROPS
    127.0.0.1       33359    9330 demo-full      -     2    0    2     1    0     6
    ::1             43005    9328 demo-serve     -    17    0    1   128    0     0

OVERHEAD
  A program of about a microsecond per handshake, a look of less than 0.1 us at each other change of
  a TCP state and at each packet that the kernel drops, and at each interval's end a walk through
  the open files of all processes (2 to 3 ms per ten thousand files). At the start, a walk through
  the listeners of each network namespace. Where SYNs can be probed, half a microsecond more per
  SYN.

LIMITS
  syns and cookies need a kernel with fentry or kprobes; without them the SYN queue is looked at
  when a handshake is completed and at the interval's end, instead of at each SYN. dropped counts
  connections that the listener lost, as the kernel's ListenDrops does: most often SYNs that found a
  queue full, and handshakes that ended when the accept queue was full. Clients repeat them, and
  each is counted; TCPReqQFullDrop is a part of ListenDrops. Packets that a listener refuses (an ACK
  under TCP_DEFER_ACCEPT, a repeated SYN, a reset, a missing signature) are not counted. Before
  6.11, dropped needs fentry or kprobes, and is empty without them.

  -4, -6 and --laddr choose listeners by the address that they listen on: a dual-stack listener is
  IPv6, also when its clients are not. The owner is the process that called listen(), or at an
  interval's end another one that holds the listener when that one does so no more. A listener in no
  file table (its descriptor is in a message, or in a table of io_uring) is shown without an owner
  if it was there at the start. Connections that TCP Fast Open accepts with the SYN are counted
  then. The kernel's counters are those of netbpf's own network namespace, or of the one that
  --netns names; rows come from all of them.
"""

from netbpf.declare import NETNS, PROCESS, SOCKET, Histogram, Record, Row, Table, Tool, sums
from netbpf.declare import columns as c
from netbpf.declare import probes as p
from netbpf.declare.backlog import LOST_PROBES, alarm, reasons, review
from netbpf.declare.costs import Cost
from netbpf.declare.memory import Memory
from netbpf.declare.states import state_probe

_OF_THE_LISTENER = ("ipv4", "ipv6", "lport", "laddr")
_OVERFLOWS = tuple(f"TcpExt.{name}" for name in (
    "ListenOverflows", "ListenDrops", "TCPReqQFullDrop", "TCPReqQFullDoCookies", "SyncookiesSent",
))  # fmt: skip


class QueueKey(Record):
    """Whose accept queue, and its limit."""

    cstruct = "queue_key"

    limit = c.Column("most connections that may wait: backlog, cut at net.core.somaxconn")
    laddr = c.Addr("address that is listened on", wide=True)
    lport = c.Port("port that is listened on", wide=True)
    netns = c.Netns()


class Listener(Record):
    """A listening socket."""

    cstruct = "listener"

    sk = c.Count("address of the socket")
    since = c.Count("when it was first seen, in ns")
    netns = c.Netns()
    lport = c.Port("port")
    laddr = c.Addr("address")


ListenerSums = sums(
    "listener_sums", "handshakes syns dropped cookies",
    gauges="accept_max accept_peak accept_limit syn_max syn_peak dropped_total somaxconn "
    "syn_backlog syncookies session",
    shown="accept_queue syn_queue",
    pid=c.Pid("process"), comm=c.Comm("its name"), owner=c.Owner("how it is known"),
)  # fmt: skip


class ListenerRow(Row):
    """A listener in an interval."""

    laddr = c.Addr("address that is listened on")
    lport = c.Port("port that is listened on")
    pid = c.Pid("process that listens")
    comm = c.Comm("its name", width=10)
    owner = c.Owner("how it is known: exact (listen), snapshot (open file), unknown", wide=True)
    syns = c.Count("SYNs that arrived", width=5, priority=45)
    handshakes = c.Count("handshakes that were completed", width=5, header="CONNS")
    accept_queue = c.Count("connections waiting to be accepted, at the end", width=4, header="ACCQ")
    accept_max = c.Count("most that waited in the interval", width=4, header="AMAX", priority=60)
    accept_limit = c.Count(
        "limit of the accept queue; one more can wait", width=5, header="LIMIT", priority=60
    )
    syn_queue = c.Count("handshakes under way, at the end", width=4, header="SYNQ", priority=40)
    syn_max = c.Count("most seen under way in the interval", width=4, header="SMAX", wide=True)
    dropped = c.Count("connections that the listener lost (ListenDrops), in the interval", width=5,
                    header="DROPS", priority=80, alert=True)  # fmt: skip
    dropped_total = c.Count("the same since the start", width=6, header="DTOTAL", wide=True)
    cookies = c.Count("SYNs answered with a SYN cookie", width=7, wide=True)
    somaxconn = c.Count("net.core.somaxconn of the namespace", wide=True)
    syn_backlog = c.Count("net.ipv4.tcp_max_syn_backlog of the namespace", width=11, wide=True)
    syncookies = c.Count("net.ipv4.tcp_syncookies of the namespace", width=10, wide=True)
    netns = c.Netns()


def order(row):
    """Sort listeners that drop first, then those with the fullest queue."""
    return (-row["dropped"], -row["accept_max"] / (row["accept_limit"] + 1))


TOOL = Tool(
    __doc__,
    memory=Memory(2_000_000, cpu=520_000, entry=472, entry_cpu=21),
    cost=Cost(0.9, 11.5),
    histogram=Histogram("queues", QueueKey, "connections"),
    table=Table(
        "listeners", Listener, ListenerSums, ListenerRow, order=order, per_cpu=False,
        first="unheld", refresh=("holders", "listeners"), warn=alarm, main=True,
    ),
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
    options=(*PROCESS, *NETNS, *(o for o in SOCKET if o.name in _OF_THE_LISTENER)),
    no_filter="it watches listeners, which have no remote end",
    counters=_OVERFLOWS,
    interval_counters=_OVERFLOWS,
    kernel_constants=reasons,
    notes=review,
)  # fmt: skip
