"""tcptop - which TCP sessions move how many bytes, per interval

DESCRIPTION
  Shows the TCP sessions that moved data in each interval (a second, if none is given), those with
  the most bytes first: the process, both ends, and how many bytes the process wrote (TX_KB) and
  read (RX_KB). Sessions that ended in the interval are included. With --by, sessions with the same
  process, address block, port, container ... are one row, and SESSIONS is how many of them moved
  data.

  Bytes are those of the programs: without headers, SYN, FIN and retransmissions. Data counts when
  the program has written or read it, by any system call (write, sendmsg, sendfile, splice, io_uring
  ...). Data that it only looks at (MSG_PEEK), or has not read yet, does not count.

  A session between two programs of this machine has two sockets, and therefore two rows.

EXAMPLES
  netbpf tcptop                           a table every second
  netbpf tcptop --top 10 5                the ten busiest sessions, every 5 s
  netbpf tcptop --by comm,pid             processes
  netbpf tcptop -L 443 --by raddr/24 60 1
                                          clients of a web server by network, for
                                          a minute
  netbpf tcptop --by container,lport --sort rx_bytes 10
  netbpf tcptop --json | jq -c 'select(.tx_bytes > 1000000)'

  iperf3 and a download over loopback, one second (netbpf tcptop):

      PID COMM       LADDR                 RADDR                    RX_KB    TX_KB
    25732 iperf3     127.0.0.1:5301        127.0.0.1:43846          24576     0.00
    25818 iperf3     127.0.0.1:43846       127.0.0.1:5301            0.00    24576
    25823 curl       [::1]:49420           [::1]:8099               64.14     0.07
    25730 python3    [::1]:8099            [::1]:49420               0.07    64.14

OVERHEAD
  Nothing per packet or system call: the kernel counts the bytes. A program of about 0.6 us runs per
  change of a TCP state, four to seven times per session, and one of 0.4 us when a socket is
  destroyed. The end of each interval takes 0.4 us per session, and netbpf itself about 20 us per
  row. The accept system calls are also traced, on kernels without kprobes through the syscall
  tracepoints. The start takes 0.3 us per open file.

LIMITS
  Bytes of sessions that are older than the run count from its start. All bytes of a session in an
  interval are those of its owner: the process that connected or accepted, or a child of it that has
  the socket instead at the end of the interval. The owner of a session accepted through io_uring is
  determined when it is closed, unless fentry or kprobes are used.

  Data in a sockmap bypasses TCP and is not counted. With kernel TLS, bytes are those of the TLS
  records. Data of TCP Fast Open counts once the handshake is complete. Data that is read after a
  reset counts, except if connect(AF_UNSPEC) follows in the same interval. MPTCP sessions are shown
  as subflows.

  There is room for as many sockets as --map-entries, and for four times as many sessions, including
  those that ended in the last two intervals. A session without room counts as map_full.
"""

from typing import Any

from netbpf.declare import NETNS, PROCESS, SOCKET, Option, Row, Table, Tool
from netbpf.declare import columns as c
from netbpf.declare import probes as p
from netbpf.declare.costs import Cost
from netbpf.declare.keyed import Keyed, KeyedTable
from netbpf.declare.memory import Memory
from netbpf.declare.network import Endpoint
from netbpf.declare.record import copied, key, named, sums
from netbpf.declare.states import GONE, state_probe
from netbpf.declare.table import sorted_rows


class SessionRow(Row):
    """A session that moved bytes in an interval."""

    pid = c.Pid("process that owns this end")
    comm = c.Comm("its name", width=12)
    owner = c.Owner("how the owner was found: exact, snapshot or unknown", wide=True)
    family = c.Family("address family, IPv4-mapped counts as ipv4", wide=True)
    laddr = Endpoint("local address", "lport", priority=28)
    lport = c.Port("local port", text=False)
    raddr = Endpoint("remote address", "rport", priority=68)
    rport = c.Port("remote port", text=False)
    rx_bytes = c.Bytes("bytes that the process read", header="RX_KB", priority=71)
    tx_bytes = c.Bytes("bytes that the process wrote", header="TX_KB", priority=71)
    bytes = c.Bytes("bytes that it read and wrote", header="KB", text=False)
    uid = c.Uid("user id of the owner", wide=True)
    netns = c.Netns()
    cgroup = c.Cgroup()


Session = key(
    "session",
    sk=c.Count("address of the socket"),
    since=c.Count("when it was first seen, in ns"),
)
_OF_THE_PROGRAM: Any = {
    **{name: c.Column(name, ctype="u32") for name in ("first_written", "first_read")},
    **{name: c.Column(name, ctype="u8") for name in ("finished", "gone", "pass")},
}
SessionSums = sums(
    "session_sums", "rx_bytes tx_bytes",
    gauges="cgroup over last_tx last_rx first_acked first_received",
    pid=c.Pid("process"), comm=c.Comm("its name"), owner=c.Owner("how it was found"),
    uid=c.Uid("its user"), netns=c.Netns(), family=c.Family("address family"),
    laddr=c.Addr("local address"), lport=c.Port("local port"),
    raddr=c.Addr("remote address"), rport=c.Port("remote port"),
    **_OF_THE_PROGRAM,
)  # fmt: skip


def complete(entries):
    """Return rows of all that is known of each session."""
    return [
        {**key, **values, "bytes": values["rx_bytes"] + values["tx_bytes"]}
        for key, values in entries
    ]


def by_session(entries, settings):
    """Return a row per session: the first --top of them, by --sort."""
    found = sorted_rows(complete(entries), settings["sort"] or "bytes")
    names = [column.name for column in SessionRow.columns]
    return [{name: row[name] for name in names} for row in found[: settings["top"] or None]]


class ByKey(KeyedTable):
    """Sessions added up by the keys of --by; the word session stands for no key."""

    def options(self):
        """Accept --by session, which is the default."""
        by, *rest = super().options()
        keys: Any = by.parse
        by.parse = lambda text: () if text == "session" else keys(text)
        by.help += "; default: session"
        return (by, *rest)

    def _groups(self, entries, settings):
        names = ("rx_bytes", "tx_bytes", "bytes")
        return [
            (row, {"sessions": 1, **{name: row[name] for name in names}})
            for row in complete(entries)
        ]


COMMON: Any = {"per_cpu": False, "first": "unheld", "refresh": ("totals",), "forget": "over"}
_KEYS = copied(SessionRow, "pid comm owner family laddr lport raddr rport uid netns cgroup")
KEYS = Keyed(type("Keys", (Row,), _KEYS), filled=tuple(_KEYS))
COUNTS = (*named(sessions=c.Count("sessions that moved bytes", width=8)),
          *copied(SessionRow, "rx_bytes tx_bytes bytes").values())  # fmt: skip

TOOL = Tool(
    __doc__,
    memory=Memory(1_450_000, cpu=26_000, entry=1400),
    cost=Cost(7.5, 35.2),
    table=(
        Table("moved", Session, SessionSums, SessionRow, by_session, **COMMON),
        ByKey("moved", Session, SessionSums, COUNTS, "bytes", keyed=KEYS, **COMMON),
    ),
    probes=(
        state_probe(),
        GONE,
        p.Probe("held", p.Iterator("task_file"), role=p.Role.SNAPSHOT),
        p.Probe("unheld", p.Iterator("tcp"), optional=True),
        p.Probe("totals", p.Iterator("bpf_map_elem", over="moved")),
    ),
    owners=True,
    default_interval=1,
    options=(
        *PROCESS,
        *NETNS,
        *SOCKET,
        Option("-C", "--noclear", help="no effect: the screen is never cleared (bcc's tcptop)"),
        Option("-S", "--nosummary", help="no effect: no system summary is shown (bcc's tcptop)"),
    ),
)
