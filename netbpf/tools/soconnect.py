"""soconnect - outgoing connections: to where, how long it took, and what came of it

DESCRIPTION
  Shows each attempt to connect when it is over, however it ends: established, refused, timed out,
  unreachable, not permitted (also by seccomp), or given up by the program: RESULT is "Unanswered,
  closed" if no answer to the SYN had come until then. Attempts that fail before a packet is sent
  are there as well, and RESULT names it if no local port was left.

  LAT is the time of the TCP handshake, from the first SYN that leaves to the answer, also of a
  non-blocking connect that finishes long after the system call, and of Fast Open, where the SYN may
  leave with the first write only; where there is no handshake it is the time of the system call. -w
  shows both. An attempt is one line, however often the program asks for its result, and also if a
  signal interrupts the call and the kernel begins it again. connect(2) with AF_UNSPEC, which undoes
  a connection, is none: the summary counts these calls (dissolved), and those that were restarted.

  TCP is shown by default (MPTCP by its subflows); --udp and --unix add the others. Attempts that
  have not ended are listed at the exit, and at each INTERVAL if one is given, with their age: also
  calls that wait as the backlog of a unix socket is full.

EXAMPLES
  netbpf soconnect                         all TCP connections of this machine
  netbpf soconnect --failed -T             only those that fail, with the time
  netbpf soconnect -D 5432 --min-ms 10     slow ones to a database
  netbpf soconnect -p 1234 --udp --unix    all that one process connects to
  netbpf soconnect --summary -d 60         a minute, one row per destination
  netbpf soconnect --json | jq 'select(.errno == "ETIMEDOUT")'

  One connects, one is refused (netbpf soconnect):

    PID     PROCESS         FAM  ADDRESS         PORT   LAT(us) RESULT
    9329    demo-ask        ipv6 ::1             43005       64 Success
    9329    demo-ask        ipv4 127.0.0.1       33411       70 Connection refused

OVERHEAD
  About ten microseconds per attempt, a third of it for waking netbpf, 0.3 per change of state and
  0.1 per end of a TCP socket, and 0.1 per signal. The syscall tracepoints are used, on kernels with
  fentry or kprobes for the calls that seccomp refuses, with which every system call of the machine
  costs some 20 ns more as long as this runs.

LIMITS
  Connections through io_uring and those that sendmsg(2) makes (MSG_FASTOPEN) have no system call
  time, and no error if they fail before a SYN: "No SYN was sent", or no line if that is before the
  choice of a local port. Those that 32-bit programs make likewise, where the syscall tracepoints
  are in use. Of attempts that began before the start the time is not known. UDP is a connected
  socket and no packet; SCTP, vsock and others are not shown. A datagram that could not be
  delivered shows up at later calls, never at connect(2).
"""

from array import array
from collections import Counter

from netbpf.declare import (
    NETNS,
    PROCESS,
    SOCKET,
    Addr,
    Cgroup,
    Comm,
    Count,
    Errno,
    Event,
    Family,
    Fentry,
    Fexit,
    Iterator,
    Kprobe,
    Kretprobe,
    Netns,
    Option,
    Owner,
    Pid,
    Port,
    Probe,
    RawTracepoint,
    Record,
    Row,
    Tool,
    Tracepoint,
    Uid,
)
from netbpf.declare.aggregation import Aggregation, percentile
from netbpf.declare.calls import SIGNAL
from netbpf.declare.options import milliseconds, nanoseconds
from netbpf.declare.owners import SNAPSHOT
from netbpf.declare.sockets import AnyAddr, CallResult, Elapsed, Flag, LocalAddr, SockProto
from netbpf.declare.states import GONE, state_probe

# Better or shorter words than the C library's; the first four are no error numbers.
RESULTS = {
    1000: "Local ports used up",
    1001: "Closed by the program",
    1002: "SYN unanswered, closed by the program",
    1003: "No SYN was sent",
    11: "Backlog is full",
    99: "Address unavailable",
    101: "Network unreachable",
}
SHORT = {RESULTS[1002]: "Unanswered, closed"}


class Connection(Event):
    """An attempt to connect at its end, or still under way."""

    cstruct = "connection"

    pid = Pid("process that connects")
    comm = Comm("its name", width=15, header="PROCESS")
    family = Family("address family, IPv4-mapped counts as ipv4", width=4, header="FAM")
    raddr = AnyAddr("remote address, or path of a unix socket", header="ADDRESS")
    rport = Port("remote port", header="PORT", null=0)
    latency_us = Elapsed(
        "handshake, or system call where there was none", header="LAT(us)", width=8
    )
    result = CallResult("OK or the error in words, null if it goes on", RESULTS, SHORT)
    proto = SockProto("tcp or udp; for unix sockets stream, dgram or seqpacket", wide=True)
    laddr = LocalAddr("local address", wide=True)
    lport = Port("local port", wide=True, null=0)
    syscall_us = Elapsed("time in connect(2)", header="CALL(us)", wide=True)
    handshake_us = Elapsed("SYN to established or failed, or to now", header="HS(us)", wide=True)
    errno = Errno("error by name", text=False)
    async_ = Flag("connect(2) returned before it was over", header="ASYNC", wide=True)
    retransmits = Count("SYNs sent again", ctype="u32", width=7, header="RETRANS", wide=True)
    owner = Owner("how the process is known: exact, snapshot or unknown", wide=True)
    uid = Uid("user id of the process", wide=True)
    netns = Netns()
    cgroup = Cgroup()


class Totals(Record):
    """What is counted and not shown."""

    repeated = Count("calls on sockets that were connecting or connected: no attempts of their own")
    restarted = Count("calls that a signal interrupted and the kernel began again")
    dissolved = Count("calls that end a connection or an association (AF_UNSPEC): no attempts")


class DestinationRow(Row):
    """A destination in an interval."""

    raddr = Addr("remote address, or path of a unix socket", header="ADDRESS", width=24)
    rport = Port("remote port", header="PORT")
    proto = SockProto("tcp or udp; for unix sockets stream, dgram or seqpacket")
    attempts = Count("attempts that ended", width=8)
    failures = Count("those that failed", width=8)
    pending = Count("attempts that had not ended", width=7)
    p50_us = Elapsed("median time of those that succeeded", header="P50(us)", width=7)
    p99_us = Elapsed("99 % took no longer", header="P99(us)", width=7)
    retransmits = Count("SYNs that were sent again", width=7, wide=True)
    top_error = Errno("the most frequent error", width=24, wide=True)
    netns = Netns()


class Destination:
    """What is kept of the attempts to one destination."""

    def __init__(self) -> None:
        """Begin with none."""
        self.taken = array("Q")
        self.errors: Counter[str] = Counter()
        self.attempts = self.failures = self.pending = self.retransmits = 0

    def add(self, values, ended):  # type: ignore[no-untyped-def]
        """Take an attempt."""
        self.retransmits += values["retransmits"]
        if not ended:
            self.pending += 1
            return
        self.attempts += 1
        if values["result"] == "OK":
            if values["latency_us"] is not None:
                self.taken.append(values["latency_us"])
            return
        self.failures += 1
        if values["errno"]:
            self.errors[values["errno"]] += 1

    def row(self):  # type: ignore[no-untyped-def]
        """Return the row."""
        taken = sorted(self.taken)
        top = self.errors.most_common(1)
        names = ("attempts", "failures", "pending", "retransmits")
        row = {name: getattr(self, name) for name in names}
        row.update({f"p{p}_us": percentile(taken, p) for p in (50, 99)})
        return {**row, "top_error": top[0][0] if top else None}


def constants(settings):  # type: ignore[no-untyped-def]
    """Tell the C side what to leave out; a summary is of all attempts."""
    found = {f"WITH_{name.upper()}": 1 for name in ("udp", "unix") if settings[name]}
    summary = settings["summary"]
    if settings["failed"] and not summary:
        found["ONLY_FAILED"] = 1
    return {**found, "MIN_NS": nanoseconds(None if summary else settings["min_ms"])}


def keep(row, settings):  # type: ignore[no-untyped-def]
    """Tell whether --failed and --min-ms want a row to be shown."""
    if settings["failed"] and not row["failures"]:
        return False
    return not settings["min_ms"] or (row["p99_us"] or 0) >= settings["min_ms"] * 1000


def same_socket(values):  # type: ignore[no-untyped-def]
    """Two descriptors of one socket are one attempt; a unix socket is listed by its one call."""
    if values["family"] == "unix":
        return object()
    return tuple(values[name] for name in ("netns", "laddr", "lport", "raddr", "rport"))


TOOL = Tool(
    __doc__,
    event=Connection,
    probes=(
        # In this order: a call whose return would be missed would wait for it.
        Probe(
            "leave",
            Fexit("__sys_connect"),
            Tracepoint("syscalls:sys_exit_connect", args=("ret",)),
            Kretprobe("__sys_connect"),
        ),
        Probe(
            "enter",
            Fentry("__sys_connect", args=("fd", "uservaddr", "addrlen")),
            Tracepoint("syscalls:sys_enter_connect", args=("fd", "uservaddr", "addrlen")),
            Kprobe("__sys_connect"),
        ),
        Probe(
            "inflight",  # calls that seccomp refuses end here only
            Tracepoint("syscalls:sys_exit_connect", args=("ret",)),
            optional=True,
            complements="leave",
        ),
        state_probe(),
        Probe(
            "again",
            RawTracepoint("tcp_retransmit_skb", args=("sk",)),
            Tracepoint("tcp:tcp_retransmit_skb", args=("skaddr",)),
            optional=True,
        ),
        GONE,
        SIGNAL,
        Probe("open", Iterator("task_file"), optional=True),
        Probe("open_calls", Iterator("task"), optional=True),
        SNAPSHOT,
    ),
    interval=True,
    options=(
        *PROCESS,
        *NETNS,
        *SOCKET,
        Option("--udp", help="UDP, too"),
        Option("--unix", help="unix sockets, too"),
        Option("--failed", help="only attempts that failed; with --summary rows that have some"),
        Option("--min-ms", metavar="MS", parse=milliseconds,
               help="only attempts that took so long; with --summary rows with such a p99"),
        Option("--summary", help="a row per destination instead of a line per attempt"),
    ),
    constants=constants,
    counters=("Tcp.ActiveOpens", "Tcp.AttemptFails", "TcpExt.TCPSynRetrans"),
    totals=Totals,
    aggregation=Aggregation(
        DestinationRow, ("netns", "raddr", "rport", "proto"), Destination, "attempts", keep
    ),
    hooks={"same": same_socket},
    summary_fields={"open": {"type": "integer", "description": "attempts open at the end"}},
)  # fmt: skip
