"""sockstat - what sockets are doing: calls, errors and bytes per operation, per interval

DESCRIPTION
  Counts what programs do with sockets: socket, socketpair, bind, listen, connect, accept, send,
  recv and close, each split by protocol. A call that would only have had to wait (EAGAIN,
  EINPROGRESS) is no error and has a column of its own; top_error is the most frequent real error.
  send and recv count messages, whichever call moved them (write, sendmsg, recvmmsg, io_uring ...).
  Data that was only looked at (MSG_PEEK) adds no bytes.

  A signal may interrupt a call that waits. If the kernel makes the call again, as after a handler
  with SA_RESTART or a stop, the program notices nothing: that is one call, and "restarted" (in -w)
  counts how often it was made again. If the program gets EINTR, that is an error. A call in which
  its process is killed is a call without error.

  Below each table stand the kernel's own counters of the same time that tell of trouble: listen
  queues that overflowed, retransmissions, full receive buffers. With --netns they are those of that
  network namespace, otherwise those of the one that netbpf runs in.

EXAMPLES
  netbpf sockstat                    count until Ctrl-C, then show
  netbpf sockstat 1                  a table every second
  netbpf sockstat --top 3 10         every 10 seconds, with those that move the most bytes
  netbpf sockstat --top 3 --sort calls 10   with those that make the most calls
  netbpf sockstat --comm 'nginx*' 1  only what nginx does
  netbpf sockstat -L 443 -d 60       a minute of the sockets of one port
  netbpf sockstat --json 1 | jq 'select(.errors > 0)'

  A web server under load, one second (netbpf sockstat --comm nginx 1):

    OP         PROTO       CALLS ERRORS WOULD_BLOCK       KB TOP_ERROR
    accept     tcp4          112      0           0     0.00 -
    send       tcp4        85368      0           0    13255 -
    close      tcp4          112      0           0     0.00 -
    kernel: no counter grew

OVERHEAD
  Everything is counted in the kernel, per CPU: no event per call. A message costs about 0.2 us, one
  of the other calls about 0.4 us. Where the kernel has no fentry, the system calls are seen through
  their tracepoints: every system call of the machine then takes some 20 ns more. --top, a filter of
  processes, and one of addresses cost about 0.1 us more each.

LIMITS
  A send or recv that fails before it reaches a socket (a bad descriptor or buffer, denied by a
  security module) is not counted. close counts close(2) on sockets, not what ends with a process.
  A request of io_uring counts each attempt that it takes; of an accept that goes on and on
  (multishot) only the last result shows; before 5.18 only its messages are seen. Data that is
  spliced out of a socket is not seen, nor is sendfile before 6.5. Calls of 32-bit programs on a
  64-bit kernel are not seen, but their messages are. Messages of sockets that the kernel itself
  uses (NFS and others) count, too. An IPv6 socket with an IPv4-mapped address is tcp4 or udp4, and
  MPTCP counts as TCP. --top has room for 4 rows per --map-entries: a call of a process beyond that
  counts in the first table only, and as map_full; each INTERVAL makes room.
"""

from netbpf.declare import NETNS, PROCESS, SOCKET, Option, Record, Row, Table, Tool
from netbpf.declare import columns as c
from netbpf.declare.calls import (
    CALL_PROBES,
    MESSAGE_PROBES,
    OPS,
    PROTOS,
    RING_PROBES,
    SIGNAL,
    tally,
)
from netbpf.declare.costs import Cost
from netbpf.declare.memory import Memory
from netbpf.declare.options import count
from netbpf.errors import UsageError

ORDER = [*OPS.values(), *PROTOS.values()]
SORTABLE = ("bytes", "calls", "errors", "would_block", "restarted")
COUNTERS = (
    "TcpExt.ListenOverflows", "TcpExt.ListenDrops", "TcpExt.TCPReqQFullDrop", "Tcp.RetransSegs",
    "TcpExt.TCPSynRetrans", "Udp.RcvbufErrors", "Udp6.RcvbufErrors",
)  # fmt: skip


class CallKey(Record):
    """What calls are counted by."""

    cstruct = "call_key"

    error = c.Errno("how it failed")
    op = c.Enum("what was called", OPS)
    proto = c.Enum("protocol", PROTOS)


class ProcessKey(Record):
    """What calls are counted by with --top."""

    cstruct = "process_key"

    pid = c.Pid("process")
    error = c.Errno("how it failed")
    comm = c.Comm("its name")
    op = c.Enum("what was called", OPS)


class CallSums(Record):
    """Sums of calls."""

    cstruct = "call_sums"

    calls = c.Count("calls")
    bytes = c.Bytes("bytes")


class CallRow(Row):
    """What was done with the sockets of one protocol."""

    op = c.Enum("what was called", OPS, width=10)
    proto = c.Enum("protocol of the socket; null with --no-split", PROTOS, width=7)
    calls = c.Count("calls, or messages of send and recv, failed ones included")
    errors = c.Count("how many of them failed", width=6, alert=True)
    would_block = c.Count("how many would have had to wait: EAGAIN, EINPROGRESS", width=11)
    restarted = c.Count("how often a signal interrupted one that was then made again", wide=True)
    bytes = c.Bytes("bytes sent or received", header="KB", width=8)
    top_error = c.Errno("the most frequent error")


class ProcessRow(Row):
    """What one of the busiest processes did."""

    op = c.Enum("what was called", OPS, width=10)
    pid = c.Pid("one of the busiest processes")
    comm = c.Comm("its name", width=15)
    calls = c.Count("its calls, or messages of send and recv")
    errors = c.Count("how many of them failed", width=6, alert=True)
    would_block = c.Count("how many would have had to wait: EAGAIN, EINPROGRESS", width=11)
    restarted = c.Count("how often a signal interrupted one that was then made again", wide=True)
    bytes = c.Bytes("bytes that it sent or received", header="KB", width=8)
    top_error = c.Errno("its most frequent error", wide=True)


def by_protocol(groups, settings):
    """Return the rows of all operations, in the order of OPS and PROTOS or of --sort."""
    names = ("op",) if settings["no_split"] else ("op", "proto")
    rows = sorted(tally(groups, *names), key=lambda row: [ORDER.index(row[n]) for n in names])
    if settings["sort"]:
        rows.sort(key=lambda row: -row[settings["sort"]])
    return [{"op": row["op"], "proto": None, **row} for row in rows]


def busiest(groups, settings):
    """Return the processes with the most of --sort of each operation, calls in a tie."""
    comms = {key["pid"]: key["comm"] for key, _ in groups}
    most = settings["sort"] or SORTABLE[0]
    rows = sorted(tally(groups, "op", "pid"), key=lambda row: (-row[most], -row["calls"]))
    found = []
    for op in OPS.values():
        those = [row for row in rows if row["op"] == op][: settings["top"]]
        found += [{"op": op, "pid": row["pid"], "comm": comms[row["pid"]], **row} for row in those]
    return found


def constants(settings):
    """Count by process only with --top."""
    if settings["top"] and settings["output"] == "csv":
        raise UsageError("--top has no place in CSV: it has other columns", "use --json")
    return {"BY_PROCESS": 1} if settings["top"] else {}


def review(_, settings):
    """Name the column by which --top ranks processes."""
    if not settings["top"]:
        return []
    return [f"--top shows the processes with the most {settings['sort'] or SORTABLE[0]} (--sort)"]


TOOL = Tool(
    __doc__,
    memory=Memory(110_000, cpu=34_000, entry=632, entry_cpu=64),
    cost=Cost(2.3, 5.1),
    table=(
        Table("calls_by_protocol", CallKey, CallSums, CallRow, by_protocol),
        Table(
            "calls_by_process", ProcessKey, CallSums, ProcessRow, busiest, option="top", forget=True
        ),
    ),
    probes=(*CALL_PROBES, *MESSAGE_PROBES, *RING_PROBES, SIGNAL),
    options=(
        *PROCESS,
        *NETNS,
        *SOCKET,
        Option("--no-split", help="join the protocols"),
        Option(
            "--top",
            metavar="N",
            parse=count,
            help="show the N busiest processes of each operation, too",
        ),
        Option(
            "--sort",
            metavar="COLUMN",
            choices=SORTABLE,
            help="show rows with the most of it first; and the processes of --top (default bytes)",
        ),
        Option(
            "--map-entries",
            metavar="N",
            parse=count,
            default="4096",
            help="how many processes and calls can be followed at once",
        ),
    ),  # fmt: skip
    counters=COUNTERS,
    interval_counters=COUNTERS,
    constants=constants,
    notes=review,
)
