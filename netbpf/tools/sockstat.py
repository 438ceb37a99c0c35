"""sockstat - socket calls, errors and bytes per operation, per interval

DESCRIPTION
  Counts what programs do with sockets: socket, socketpair, bind, listen, connect, accept, send,
  recv and close, each by protocol. A call that failed only because it would have had to wait
  (EAGAIN, EINPROGRESS) is not an error and has its own column; top_error is the most frequent real
  error. send and recv count messages, no matter which call moved them (write, sendmsg, recvmmsg,
  io_uring ...). Data that was only peeked at (MSG_PEEK) adds no bytes.

  A signal may interrupt a waiting call. If the kernel restarts the call, as it does after a handler
  with SA_RESTART or after a stop, the program does not notice: that is one call, and the column
  restarted (with -w) counts the restarts. If the program gets EINTR, that is an error. A call
  during which its process is killed is a call without an error.

  The line below each table shows by how much the kernel's own counters of problems grew in that
  interval: listen queue overflows, retransmissions, full receive buffers. They are those of the
  network namespace of --netns, or else of the one that netbpf runs in.

EXAMPLES
  netbpf sockstat                    count until Ctrl-C, then show
  netbpf sockstat 1                  a table every second
  netbpf sockstat --top 3 10         every 10 seconds, with the processes that move the most bytes
  netbpf sockstat --top 3 --sort calls 10   with the processes that make the most calls
  netbpf sockstat --comm 'nginx*' 1  only calls of nginx
  netbpf sockstat -L 443 -d 60       a minute of the sockets of one port
  netbpf sockstat --by comm,raddr/24 -d 10  by program and network
  netbpf sockstat --op connect --by container,proto,op 1
                                     who connects, per container
  netbpf sockstat --op connect --by comm,stack -d 10
                                     by which code programs connect
  netbpf sockstat --json 1 | jq 'select(.errors > 0)'

  A web server under load, one second (netbpf sockstat --comm nginx 1):

    OP         PROTO       CALLS ERRORS WOULD_BLOCK       KB TOP_ERROR
    accept     tcp4          112      0           0     0.00 -
    send       tcp4        85368      0           0    13255 -
    close      tcp4          112      0           0     0.00 -
    kernel: no counter grew

OVERHEAD
  Everything is counted in the kernel, per CPU: there is no event per call. A message costs about
  0.2 us, another call about 0.4 us. If the kernel has no fentry, system calls are seen through
  their tracepoints: every system call of the machine then takes about 20 ns more. --top, a filter
  of processes and a filter of addresses cost about 0.1 us each. The key stack costs about
  0.1 us per function of the stack, and ten more for the first calls of a process.

LIMITS
  A send or recv that fails before it reaches a socket (invalid descriptor or buffer, denied by a
  security module) is not counted. close counts close(2) on sockets, not sockets that are closed
  when a process ends. A request of io_uring counts each attempt that it takes; for a multishot
  accept only the last result is counted; before 5.18 only its messages are seen. Data that is
  spliced out of a socket is not seen, nor is sendfile before 6.5. Calls of 32-bit programs on a
  64-bit kernel are not seen, but their messages are. Messages of sockets that the kernel itself
  uses (NFS and others) are counted. An IPv6 socket with an IPv4-mapped address is tcp4 or udp4, and
  MPTCP counts as TCP. --top and --by hold 4 rows per --map-entries: a call of a further process or
  key counts as map_full, with --top also in the first table; each INTERVAL frees the rows. A socket
  that does not exist yet (socket, socketpair) has no addresses. Stacks are those of the program's
  own code, and how far they are known is in stack_end: see docs/results.md.
"""

from netbpf.declare import NETNS, PROCESS, SOCKET, Option, Row, Table, Tool
from netbpf.declare import columns as c
from netbpf.declare.call_rows import SORTABLE, busiest, by_protocol, ranking
from netbpf.declare.calls import ALL_PROBES, OPS, PROTO_WORDS, PROTOS, call_filters, call_rows
from netbpf.declare.costs import Cost
from netbpf.declare.keyed import KeyedTable
from netbpf.declare.memory import Memory
from netbpf.declare.options import count, one_or_more
from netbpf.declare.record import key, sums
from netbpf.declare.sockets import AnyFamily
from netbpf.declare.stacks import UserStack
from netbpf.errors import UsageError

COUNTERS = (
    "TcpExt.ListenOverflows", "TcpExt.ListenDrops", "TcpExt.TCPReqQFullDrop", "Tcp.RetransSegs",
    "TcpExt.TCPSynRetrans", "Udp.RcvbufErrors", "Udp6.RcvbufErrors",
)  # fmt: skip


class CallRow(Row):
    """Calls on the sockets of one protocol."""

    op = c.Enum("operation", OPS, width=10)
    proto = c.Enum("protocol of the socket; null with --no-split", PROTOS, width=7)
    calls = c.Count("calls, or messages of send and recv, including failed ones")
    errors = c.Count("calls that failed", width=6, alert=True)
    would_block = c.Count("calls that would have had to wait: EAGAIN, EINPROGRESS", width=11)
    restarted = c.Count("restarts of calls that a signal interrupted", wide=True)
    bytes = c.Bytes("bytes sent or received", header="KB", width=8)
    top_error = c.Errno("the most frequent error")


class ProcessRow(Row):
    """Calls of one of the busiest processes."""

    op = c.Enum("operation", OPS, width=10)
    pid = c.Pid("one of the busiest processes")
    comm = c.Comm("its name", width=15)
    calls = c.Count("its calls, or messages of send and recv")
    errors = c.Count("calls that failed", width=6, alert=True)
    would_block = c.Count("calls that would have had to wait: EAGAIN, EINPROGRESS", width=11)
    restarted = c.Count("restarts of calls that a signal interrupted", wide=True)
    bytes = c.Bytes("bytes that it sent or received", header="KB", width=8)
    top_error = c.Errno("its most frequent error", wide=True)


CallSums = sums("call_sums", "calls bytes")
CallKey = key(
    "call_key", error=c.Errno("error"), op=c.Enum("operation", OPS),
    proto=c.Enum("protocol", PROTOS),
)  # fmt: skip
ProcessKey = key(
    "process_key", pid=c.Pid("process"), error=c.Errno("error"), comm=c.Comm("its name"),
    op=c.Enum("operation", OPS),
)  # fmt: skip
ByKey = key(
    "by_key", comm=c.Comm("name of the process"), pid=c.Pid("process"), uid=c.Uid("its user"),
    cgroup=c.Cgroup(), netns=c.Netns(), family=AnyFamily("address family"),
    proto=c.Enum("protocol", PROTOS), op=c.Enum("operation", OPS, width=10),
    laddr=c.Addr("local address"), lport=c.Port("local port", null=0),
    raddr=c.Addr("remote address"), rport=c.Port("remote port", null=0), error=c.Errno("error"),
    stack=UserStack(),
)  # fmt: skip


def constants(settings):
    """Return the constants of --op, --proto and --top, which counts by process."""
    by_process = settings["top"] and not settings["by"]
    if by_process and settings["output"] == "csv":
        raise UsageError("--top cannot be used with CSV: it has other columns", "use --json")
    return {**call_filters(settings), **({"BY_PROCESS": 1} if by_process else {})}


TOOL = Tool(
    __doc__,
    memory=Memory(110_000, cpu=34_000, entry=840, entry_cpu=64),
    cost=Cost(2.3, 5.1),
    table=(
        Table("calls_by_protocol", CallKey, CallSums, CallRow, by_protocol),
        Table("calls_by_process", ProcessKey, CallSums, ProcessRow, busiest,
              option="top", forget=True),
        KeyedTable("calls_by_key", ByKey, CallSums, CallRow.columns[2:], "calls",
                   fold=lambda groups, names: call_rows(groups, *names), fixed=("error",)),
    ),
    probes=ALL_PROBES,
    options=(
        *PROCESS,
        *NETNS,
        *SOCKET,
        Option("--op", metavar="LIST", parse=one_or_more(*OPS.values()),
               help="only these operations, such as connect,accept"),
        Option("--proto", metavar="LIST", parse=one_or_more(*PROTO_WORDS),
               help="only these protocols, such as tcp,unix"),
        Option("--no-split", help="show one row per operation for all protocols"),
        Option("--top", metavar="N", parse=count,
               help="also show the N busiest processes of each operation; with --by N rows"),
        Option("--sort", metavar="COLUMN", choices=SORTABLE,
               help="sort rows, and rank the processes of --top, by this column (default bytes)"),
        Option("--map-entries", metavar="N", parse=count, default="4096",
               help="how many processes and calls can be tracked at once"),
    ),
    counters=COUNTERS,
    interval_counters=COUNTERS,
    constants=constants,
    notes=ranking,
)  # fmt: skip
