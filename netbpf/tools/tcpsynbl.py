"""tcpsynbl - queues of listening sockets: how full, and who drops connections

DESCRIPTION
  A listening TCP socket has two queues: the SYN queue, of handshakes that are not complete, and the
  accept queue, of connections that the program has not accepted yet. When the accept queue is full,
  the kernel drops new SYNs in silence, and clients wait a second or more until they try again.

  The distribution shows how many connections were waiting in the accept queue whenever another
  handshake was completed, per limit of the queue: the backlog that the program asked for in
  listen(), cut at net.core.somaxconn. The kernel lets one more than the limit wait. The table has a
  row per listener that had something to do: its handshakes, both queues, and what it dropped. A
  listener that drops connections is named on stderr at once, with what to do about it.

EXAMPLES
  netbpf tcpsynbl                  all listeners, until Ctrl-C
  netbpf tcpsynbl -w 1             every second, a distribution for each listener
  netbpf tcpsynbl -L 443 10 6      one port, six times ten seconds
  netbpf tcpsynbl --comm 'nginx*' -d 60 --json

  A listener that overflows beside one that does not (netbpf tcpsynbl -d 2):

    LADDR           LPORT PID     COMM        SYNS CONNS ACCQ AMAX LIMIT SYNQ DROPS
    127.0.0.1       33359 9330    demo-full      -     2    0    2     1    0     6
    ::1             43005 9328    demo-serve     -    17    0    1   128    0     0

OVERHEAD
  A program of about a microsecond per handshake, a look of less than 0.1 us at each other change of
  a TCP state, and a walk through the open files of all processes at each interval's end (2 to 3 ms
  per ten thousand files). Where SYNs can be probed, half a microsecond more per SYN.

LIMITS
  syns and cookies need a kernel with fentry or kprobes; without them the SYN queue is looked at
  when a handshake is completed and at the interval's end, instead of at each SYN. dropped counts
  what the listener dropped for any reason, most often SYNs that found a queue full; clients repeat
  dropped SYNs, and each is counted. -4, -6 and --laddr choose listeners by the address that they
  listen on: a dual-stack listener is IPv6, also when its clients are not. The owner is the process
  that called listen(), or one that held the listener at the start. Connections that TCP Fast Open
  accepts with the SYN are counted then. The kernel's counters are those of netbpf's own network
  namespace, or of the one that --netns names; rows come from all of them.
"""

from netbpf.declare import (
    NETNS,
    PROCESS,
    SOCKET,
    Addr,
    Column,
    Comm,
    Count,
    Fentry,
    Histogram,
    Iterator,
    Kprobe,
    Netns,
    Owner,
    Pid,
    Port,
    Probe,
    Record,
    Row,
    Table,
    Tool,
)
from netbpf.declare.states import state_probe

_OF_THE_LISTENER = ("ipv4", "ipv6", "lport", "laddr")
_OVERFLOWS = tuple(f"TcpExt.{name}" for name in (
    "ListenOverflows", "ListenDrops", "TCPReqQFullDrop", "TCPReqQFullDoCookies", "SyncookiesSent",
))  # fmt: skip


class QueueKey(Record):
    """Whose accept queue, and its limit."""

    cstruct = "queue_key"

    limit = Column("most connections that may wait: backlog, cut at net.core.somaxconn")
    laddr = Addr("address that is listened on", wide=True)
    lport = Port("port that is listened on", wide=True)
    netns = Netns()


class Listener(Record):
    """A listening socket."""

    cstruct = "listener"

    sk = Count("address of the socket")
    pid = Pid("process that listens")
    netns = Netns()
    lport = Port("port")
    comm = Comm("name of the process")
    laddr = Addr("address")
    owner = Owner("how the process is known")


_GAUGES = (
    "accept_queue", "accept_max", "accept_peak", "accept_limit", "syn_queue", "syn_max", "syn_peak",
    "dropped_total", "somaxconn", "syn_backlog", "session",
)  # fmt: skip
_SUMS = ("handshakes", "syns", "dropped", "cookies", *_GAUGES)
ListenerSums = type(
    "ListenerSums", (Record,), {"cstruct": "listener_sums", **{n: Count("") for n in _SUMS}}
)


class ListenerRow(Row):
    """A listener in an interval."""

    laddr = Addr("address that is listened on")
    lport = Port("port that is listened on")
    pid = Pid("process that listens")
    comm = Comm("its name", width=10)
    owner = Owner("how it is known: exact, snapshot (existed at start), unknown", wide=True)
    syns = Count("SYNs that arrived", width=5)
    handshakes = Count("handshakes that were completed", width=5, header="CONNS")
    accept_queue = Count("connections waiting to be accepted, at the end", width=4, header="ACCQ")
    accept_max = Count("most that waited in the interval", width=4, header="AMAX")
    accept_limit = Count("limit of the accept queue; one more can wait", width=5, header="LIMIT")
    syn_queue = Count("handshakes under way, at the end", width=4, header="SYNQ")
    syn_max = Count("most seen under way in the interval", width=4, header="SMAX", wide=True)
    dropped = Count("what the listener dropped, in the interval", width=5, header="DROPS")
    dropped_total = Count("the same since the start", width=6, header="DTOTAL", wide=True)
    cookies = Count("SYNs answered with a SYN cookie", width=7, wide=True)
    somaxconn = Count("net.core.somaxconn of the namespace", wide=True)
    syn_backlog = Count("net.ipv4.tcp_max_syn_backlog of the namespace", width=11, wide=True)
    netns = Netns()


def rows(groups, settings):  # type: ignore[no-untyped-def]
    """Make a row per listener, those that drop first, then the fullest."""
    found = [{**key, **sums} for key, sums in groups]
    found.sort(key=lambda row: (-row["dropped"], -row["accept_max"] / (row["accept_limit"] + 1)))
    return [{column.name: row[column.name] for column in ListenerRow.columns} for row in found]


def alarm(found):  # type: ignore[no-untyped-def]
    """Name each listener that dropped something, and say what to do."""
    for row in found:
        if row["dropped"]:
            where = f"{row['laddr']} port {row['lport']}"
            who = f"{row['comm']}, pid {row['pid']}" if row["pid"] else "owner unknown"
            yield (
                f"{where} {who} {row['netns']}",
                (
                    f"OVERFLOW: the listener on {where} ({who}) dropped {row['dropped']} "
                    f"(since the start {row['dropped_total']}): {advice(row)}"
                ),
            )


def advice(row):  # type: ignore[no-untyped-def]
    """Say which queue is too small, and what limits it."""
    limit, most = row["accept_limit"], row["somaxconn"]
    if row["accept_max"] > limit:
        raise_it = (
            f"raise its backlog in listen() (net.core.somaxconn allows {most})"
            if limit < most
            else f"raise net.core.somaxconn (now {most}) and its backlog in listen()"
        )
        return f"its accept queue of {limit} is full; let it accept faster, or {raise_it}"
    if row["syn_max"] >= min(limit, row["syn_backlog"] * 3 // 4 or limit):
        return (
            f"its SYN queue is full ({row['syn_max']} handshakes under way); raise its backlog in "
            f"listen() (now {limit}) and net.ipv4.tcp_max_syn_backlog (now {row['syn_backlog']}), "
            "and see that net.ipv4.tcp_syncookies is on"
        )
    return (
        "neither queue was seen full; if it goes on, see nstat's TcpExtListen*, "
        "net.ipv4.tcp_max_syn_backlog and firewalls"
    )


TOOL = Tool(
    __doc__,
    histogram=Histogram("queues", QueueKey, "connections"),
    table=Table(
        "listeners", Listener, ListenerSums, ListenerRow, rows,
        per_cpu=False, gauges=_GAUGES, standing=("accept_queue", "syn_queue"),
        refresh="listeners", alarm=alarm, main=True,
    ),
    probes=(
        state_probe(),
        Probe("listeners", Iterator("task_file")),
        Probe(
            "syn",
            Fentry("tcp_conn_request", args=("sk",)),
            Kprobe("tcp_conn_request", args=("sk",)),
            optional=True,
            loses=("syns",),
        ),
        Probe(
            "synack",
            Fentry("tcp_make_synack", args=("sk", "synack_type")),
            Kprobe("tcp_make_synack", args=("sk", "synack_type")),
            optional=True,
            loses=("cookies",),
        ),
    ),
    options=(*PROCESS, *NETNS, *(o for o in SOCKET if o.name in _OF_THE_LISTENER)),
    no_filter="it watches listeners, which have no remote end",
    counters=_OVERFLOWS,
    interval_counters=_OVERFLOWS,
)  # fmt: skip
