"""soconnect - outgoing connections: destination, latency and result

DESCRIPTION
  Shows each attempt to connect when it ends: established, refused, timed out, unreachable, not
  permitted (also by seccomp), or given up by the program: RESULT is "Unanswered, closed" if the SYN
  had no answer by then. Attempts that fail before a packet is sent are shown as well; RESULT says
  so if no local port was free.

  LAT is the time of the TCP handshake, from the first SYN to the answer, also of a non-blocking
  connect that finishes long after the system call, and of Fast Open, which may send the SYN with
  the first write only; without a handshake it is the time of the system call. -w shows both. An
  attempt is one line, however often the program asks for its result, and also if a signal
  interrupts the call and the kernel restarts it. connect(2) with AF_UNSPEC, which undoes a
  connection, is no attempt: the summary counts these calls (dissolved), and restarted calls.

  TCP is shown by default (MPTCP by its subflows); --udp and --unix add the others. Attempts that
  have not ended are listed at the exit, and at each INTERVAL if one is given, with their age: also
  calls that wait because the backlog of a unix socket is full.

EXAMPLES
  netbpf soconnect                         all TCP connections of this machine
  netbpf soconnect --failed -T             only those that fail, with the time
  netbpf soconnect -D 5432 --min-ms 10     slow ones to a database
  netbpf soconnect -p 1234 --udp --unix    all that one process connects to
  netbpf soconnect --summary -d 60         a minute, one row per destination
  netbpf soconnect --json | jq 'select(.errno == "ETIMEDOUT")'

  One connects, one is refused (netbpf soconnect):

        PID PROCESS         FAM  ADDRESS          PORT  LAT(us) RESULT
       9329 demo-ask        ipv6 ::1             43005       64 Success
       9329 demo-ask        ipv4 127.0.0.1       33411       70 Connection refused

OVERHEAD
  About ten microseconds per attempt, a third of it for waking netbpf, 0.3 per change of state and
  0.1 per end of a TCP socket, and 0.1 per signal. The syscall tracepoints are used, on kernels with
  fentry or kprobes only for the calls that seccomp refuses: every system call of the machine costs
  about 20 ns more while this runs.

LIMITS
  Connections through io_uring and by sendmsg(2) (MSG_FASTOPEN) have no system call time, and no
  error if they fail before a SYN: "No SYN was sent", or no line if they fail before a local port is
  chosen. The same holds for connections of 32-bit programs where the syscall tracepoints are in
  use. The time of attempts that began before the start is not known. UDP is a connected socket and
  no packet; SCTP, vsock and others are not shown. An undeliverable datagram makes a later call
  fail, never connect(2).
"""

from netbpf.declare import NETNS, PROCESS, SOCKET, Event, Option, Record, Row, Tool
from netbpf.declare import columns as c
from netbpf.declare import probes as p
from netbpf.declare.aggregation import Aggregation, MostCommon, Number, Percentile, Sum
from netbpf.declare.calls import SIGNAL
from netbpf.declare.costs import Cost
from netbpf.declare.memory import Memory
from netbpf.declare.options import milliseconds, nanoseconds
from netbpf.declare.owners import SNAPSHOT
from netbpf.declare.sockets import AnyAddr, CallResult, Elapsed, Flag, LocalAddr, SockProto, ends_of
from netbpf.declare.states import GONE, state_probe

# Results that are no error numbers: RESULT_* in C.
NUMBERS = {
    "PENDING": -1,
    "PORTS_USED_UP": 1000,
    "CLOSED": 1001,
    "UNANSWERED": 1002,
    "NOT_SENT": 1003,
}
# Better or shorter words than the C library's.
RESULTS = {
    NUMBERS["PORTS_USED_UP"]: "Local ports used up",
    NUMBERS["CLOSED"]: "Closed by the program",
    NUMBERS["UNANSWERED"]: "SYN unanswered, closed by the program",
    NUMBERS["NOT_SENT"]: "No SYN was sent",
    11: "Backlog is full",
    99: "Address unavailable",
    101: "Network unreachable",
}
SHORT = {RESULTS[NUMBERS["UNANSWERED"]]: "Unanswered, closed"}


class Connection(Event):
    """An attempt to connect at its end, or still under way."""

    cstruct = "connection"

    pid = c.Pid("process that connects")
    comm = c.Comm("its name", width=15, header="PROCESS")
    family = c.Family("address family, IPv4-mapped counts as ipv4", width=4, header="FAM")
    raddr = AnyAddr("remote address, or path of a unix socket", header="ADDRESS")
    rport = c.Port("remote port", header="PORT", null=0)
    latency_us = Elapsed(
        "handshake, or system call where there was none", header="LAT(us)", width=8
    )
    result = CallResult("OK or the error in words, null if not ended", RESULTS, SHORT)
    proto = SockProto("tcp or udp; for unix sockets stream, dgram or seqpacket", wide=True)
    laddr = LocalAddr("local address", wide=True)
    lport = c.Port("local port", wide=True, null=0, priority=32)
    syscall_us = Elapsed("time in connect(2)", header="CALL(us)", wide=True)
    handshake_us = Elapsed("SYN to established or failed, or to now", header="HS(us)", wide=True)
    errno = c.Errno("error by name", text=False)
    async_ = Flag("connect(2) returned before the attempt ended", header="ASYNC", wide=True)
    retransmits = c.Count("SYNs sent again", ctype="u32", width=7, header="RETRANS", wide=True)
    owner = c.Owner("how the process is known: exact, snapshot or unknown", wide=True)
    uid = c.Uid("user id of the process", wide=True)
    netns = c.Netns()
    cgroup = c.Cgroup()


class Totals(Record):
    """What is counted and not shown."""

    repeated = c.Count("calls on sockets that were already connecting or connected: no attempts")
    restarted = c.Count("calls that a signal interrupted and the kernel restarted")
    dissolved = c.Count("calls that end a connection or an association (AF_UNSPEC): no attempts")


def succeeded(values, ended):
    """Return whether an attempt ended with a connection."""
    return ended and values["result"] == "OK"


def failed(values, ended):
    """Return whether an attempt ended without a connection."""
    return ended and values["result"] != "OK"


def going_on(values, ended):
    """Return whether an attempt had not ended."""
    return not ended


def any_attempt(values, ended):
    """Count all attempts."""
    return True


class DestinationRow(Row):
    """A destination in an interval."""

    raddr = c.Addr("remote address, or path of a unix socket", header="ADDRESS", width=24)
    rport = c.Port("remote port", header="PORT")
    proto = SockProto("tcp or udp; for unix sockets stream, dgram or seqpacket")
    attempts = c.Count("attempts that ended", width=8, over=Number())
    failures = c.Count("attempts that failed", width=8, over=Number(when=failed), alert=True)
    pending = c.Count("attempts that had not ended", width=7, over=Number(when=going_on))
    p50_us = Elapsed("median time of successful attempts", header="P50(us)", width=7,
                     over=Percentile("latency_us", 50, succeeded))  # fmt: skip
    p99_us = Elapsed("99 % took no longer", header="P99(us)", width=7,
                     over=Percentile("latency_us", 99, succeeded))  # fmt: skip
    retransmits = c.Count("SYNs sent again", width=7, wide=True,
                        over=Sum("retransmits", any_attempt))  # fmt: skip
    top_error = c.Errno("the most frequent error", width=24, wide=True,
                      over=MostCommon("errno", failed))  # fmt: skip
    netns = c.Netns()


def constants(settings):
    """Return the numbers of results, and what C leaves out; a summary is of all attempts."""
    results = {f"RESULT_{name}": number for name, number in NUMBERS.items()}
    found = {f"WITH_{name.upper()}": 1 for name in ("udp", "unix") if settings[name]}
    summary = settings["summary"]
    if settings["failed"] and not summary:
        found["ONLY_FAILED"] = 1
    return {**results, **found, "MIN_NS": nanoseconds(None if summary else settings["min_ms"])}


def keep(row, settings):
    """Return whether a row passes --failed and --min-ms."""
    if settings["failed"] and not row["failures"]:
        return False
    return not settings["min_ms"] or (row["p99_us"] or 0) >= settings["min_ms"] * 1000


def same_socket(values):
    """Two descriptors of one socket are one attempt; a unix socket is listed by its one call."""
    return object() if values["family"] == "unix" else ends_of(values)


TOOL = Tool(
    __doc__,
    memory=Memory(2_100_000, cpu=60_000, entry=976),
    cost=Cost(3.4, 27.5),
    event=Connection,
    probes=(
        # In this order: a call that begins before its return is probed would never end.
        p.Probe(
            "leave",
            p.Fexit("__sys_connect", args=("return",)),
            p.Tracepoint("syscalls:sys_exit_connect", args=("ret",)),
            p.Kretprobe("__sys_connect", args=("return",)),
        ),
        p.Probe(
            "enter",
            p.Fentry("__sys_connect", args=("fd", "uservaddr", "addrlen")),
            p.Tracepoint("syscalls:sys_enter_connect", args=("fd", "uservaddr", "addrlen")),
            p.Kprobe("__sys_connect", args=("fd", "uservaddr", "addrlen")),
        ),
        p.Probe(
            "inflight",  # calls that seccomp refuses have no other end
            p.Tracepoint("syscalls:sys_exit_connect", args=("ret",)),
            optional=True,
            complements="leave",
        ),
        state_probe(),
        p.Probe(
            "again",
            p.RawTracepoint("tcp_retransmit_skb", args=("sk",)),
            p.Tracepoint("tcp:tcp_retransmit_skb", args=("skaddr",)),
            optional=True,
        ),
        GONE,
        SIGNAL,
        p.Probe("open", p.Iterator("task_file"), role=p.Role.OPEN, optional=True),
        p.Probe("open_calls", p.Iterator("task"), role=p.Role.OPEN, optional=True),
        SNAPSHOT,
    ),
    interval=True,
    options=(
        *PROCESS,
        *NETNS,
        *SOCKET,
        Option("--udp", help="show UDP as well"),
        Option("--unix", help="show unix sockets as well"),
        Option("--failed", help="only attempts that failed; with --summary rows that have some"),
        Option("--min-ms", metavar="MS", parse=milliseconds,
               help="only attempts that took so long; with --summary rows with such a p99"),
        Option("--summary", help="a row per destination instead of a line per attempt"),
    ),
    constants=constants,
    counters=("Tcp.ActiveOpens", "Tcp.AttemptFails", "TcpExt.TCPSynRetrans"),
    totals=Totals,
    aggregation=Aggregation(
        DestinationRow, ("netns", "raddr", "rport", "proto"), order="attempts", having=keep
    ),
    identity=same_socket,
    summary_fields={"open": {"type": "integer", "description": "attempts open at the end"}},
)  # fmt: skip
