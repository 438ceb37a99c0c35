"""soconnect - outgoing connections: destination, latency and result

DESCRIPTION
  Shows each attempt to connect when it ends: established, refused, timed out, unreachable, not
  permitted (also by seccomp), or given up by the program: RESULT is "Unanswered, closed" if the SYN
  was not answered by then. Attempts that fail before a packet is sent are also shown; RESULT says
  so if no local port was free.

  LAT is the time of the TCP handshake, from the first SYN to the answer, even if a non-blocking
  connect finishes long after the system call, or if Fast Open sends the SYN only with the first
  write; without a handshake it is the time of the system call. -w shows both. An attempt is one
  line, no matter how often the program asks for its result, and even if a signal interrupts the
  call and the kernel restarts it. connect(2) with AF_UNSPEC, which dissolves a connection, is not
  an attempt: the summary counts these calls (dissolved), and restarted calls.

  TCP is shown by default (MPTCP by its subflows); --udp and --unix add the others, --proto selects
  protocols. Attempts that have not ended are listed at the exit, and at each INTERVAL if one is
  given, with their age, including calls that wait because the backlog of a unix socket is full.

EXAMPLES
  netbpf soconnect                         all TCP connections of this machine
  netbpf soconnect --failed -T             only those that fail, with the time
  netbpf soconnect -D 5432 --min-ms 10     slow connections to a database
  netbpf soconnect -p 1234 --udp --unix    all connections of one process
  netbpf soconnect --proto udp             only UDP
  netbpf soconnect --summary -d 60         a minute, one row per destination
  netbpf soconnect --comm nginx --stack    by which code nginx connects
  netbpf soconnect --json | jq 'select(.errno == "ETIMEDOUT")'

  A successful and a refused attempt (netbpf soconnect):

        PID PROCESS         FAM  ADDRESS          PORT  LAT(us) RESULT
       9329 demo-ask        ipv6 ::1             43005       64 Success
       9329 demo-ask        ipv4 127.0.0.1       33411       70 Connection refused

OVERHEAD
  About ten microseconds per attempt, a third of it for waking netbpf, 0.3 per change of state and
  0.1 per end of a TCP socket, and 0.1 per signal. The syscall tracepoints are used, on kernels with
  fentry or kprobes only for calls that seccomp denies: every system call of the machine then costs
  about 20 ns more. --stack costs about 0.1 us per function of the stack, and ten more for the
  first attempts of a process.

LIMITS
  Connections through io_uring and by sendmsg(2) with MSG_FASTOPEN have no system call time. If they
  fail before a SYN they have no error ("No SYN was sent"), and if they fail before a local port is
  chosen they have no line. The same applies to connections of 32-bit programs if the syscall
  tracepoints are used. The time of attempts that began before the start is not known. UDP is shown
  as connected sockets, not as packets; SCTP, vsock and others are not shown. An undeliverable
  datagram makes a later call fail, never connect(2). How far a stack is known is in stack_end: see
  docs/results.md.
"""

from netbpf.declare import NETNS, PROCESS, SOCKET, Option, Record, Row, Tool, connects
from netbpf.declare import aggregation as a
from netbpf.declare import columns as c
from netbpf.declare import probes as p
from netbpf.declare.calls import SIGNAL
from netbpf.declare.costs import Cost
from netbpf.declare.memory import Memory
from netbpf.declare.options import milliseconds, one_or_more
from netbpf.declare.owners import SNAPSHOT
from netbpf.declare.sockets import AnyAddr, CallResult, Elapsed, Flag, LocalAddr, SockProto
from netbpf.declare.stacks import STACK, StackEvent
from netbpf.declare.states import GONE, state_probe


class Connection(StackEvent):
    """An attempt to connect that has ended, or is pending."""

    cstruct = "connection"

    pid = c.Pid("process that connects")
    comm = c.Comm("its name", width=15, header="PROCESS")
    family = c.Family("address family, IPv4-mapped counts as ipv4", width=4, header="FAM")
    raddr = AnyAddr("remote address, or path of a unix socket", header="ADDRESS")
    rport = c.Port("remote port", header="PORT", null=0)
    latency_us = Elapsed("handshake, or system call if there was none", header="LAT(us)", width=8)
    result = CallResult("OK or the error as text, null if pending", connects.RESULTS,
                        connects.SHORT_RESULTS)  # fmt: skip
    proto = SockProto("tcp or udp; for unix sockets stream, dgram or seqpacket", wide=True)
    laddr = LocalAddr("local address", wide=True)
    lport = c.Port("local port", wide=True, null=0, priority=32)
    syscall_us = Elapsed("time in connect(2)", header="CALL(us)", wide=True)
    handshake_us = Elapsed("SYN to established or failed, or to now", header="HS(us)", wide=True)
    errno = c.Errno("error by name", text=False)
    async_ = Flag("connect(2) returned before the attempt ended", header="ASYNC", wide=True)
    retransmits = c.Count("retransmitted SYNs", ctype="u32", width=7, header="RETRANS", wide=True)
    owner = c.Owner("how the process was found: exact, snapshot or unknown", wide=True)
    uid = c.Uid("user id of the process", wide=True)
    netns = c.Netns()
    cgroup = c.Cgroup()


class DestinationRow(Row):
    """A destination in an interval."""

    raddr = c.Addr("remote address, or path of a unix socket", header="ADDRESS", width=24)
    rport = c.Port("remote port", header="PORT")
    proto = SockProto("tcp or udp; for unix sockets stream, dgram or seqpacket")
    attempts = c.Count("attempts that ended", width=8, over=a.Number())
    failures = c.Count("attempts that failed", width=8, over=a.Number(when=a.failed),
                       alert=True)  # fmt: skip
    pending = c.Count("attempts that had not ended", width=7, over=a.Number(when=a.pending))
    p50_us = Elapsed("median time of successful attempts", header="P50(us)", width=7,
                     over=a.Percentile("latency_us", 50, a.succeeded))  # fmt: skip
    p99_us = Elapsed("99 % took no longer", header="P99(us)", width=7,
                     over=a.Percentile("latency_us", 99, a.succeeded))  # fmt: skip
    retransmits = c.Count("retransmitted SYNs", width=7, wide=True,
                          over=a.Sum("retransmits", a.always))  # fmt: skip
    top_error = c.Errno("the most frequent error", width=24, wide=True,
                        over=a.MostCommon("errno", a.failed))  # fmt: skip
    netns = c.Netns()


class Totals(Record):
    """Calls that are counted and not shown."""

    repeated = c.Count("calls on sockets that were already connecting or connected: no attempts")
    restarted = c.Count("calls that a signal interrupted and the kernel restarted")
    dissolved = c.Count("calls that end a connection or an association (AF_UNSPEC): no attempts")


TOOL = Tool(
    __doc__,
    memory=Memory(2_100_000, cpu=60_000, entry=976), cost=Cost(3.4, 27.5),
    event=Connection,
    probes=(
        # In this order: a call that begins before its return is probed would never end.
        p.Probe("leave",
                p.Fexit("__sys_connect", args=("return",)),
                p.Tracepoint("syscalls:sys_exit_connect", args=("ret",)),
                p.Kretprobe("__sys_connect", args=("return",))),
        p.Probe("enter",
                p.Fentry("__sys_connect", args=("fd", "uservaddr", "addrlen")),
                p.Tracepoint("syscalls:sys_enter_connect", args=("fd", "uservaddr", "addrlen")),
                p.Kprobe("__sys_connect", args=("fd", "uservaddr", "addrlen"))),
        # Calls that seccomp denies have no other end.
        p.Probe("inflight", p.Tracepoint("syscalls:sys_exit_connect", args=("ret",)),
                optional=True, complements="leave"),
        state_probe(),
        p.tracepoint_probe("again", "tcp:tcp_retransmit_skb", ("sk",), ("skaddr",), optional=True),
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
        Option("--proto", metavar="LIST", parse=one_or_more(*connects.PROTOS),
               help="only these protocols, of tcp, udp and unix; tcp without this option"),
        Option("--udp", help="also show UDP"),
        Option("--unix", help="also show unix sockets"),
        Option("--failed", help="only attempts that failed; with --summary rows with failures"),
        Option("--min-ms", metavar="MS", parse=milliseconds,
               help="only attempts of at least this time; with --summary rows with such a p99"),
        STACK,
        Option("--summary", help="show a row per destination instead of a line per attempt"),
    ),
    constants=connects.constants,
    counters=("Tcp.ActiveOpens", "Tcp.AttemptFails", "TcpExt.TCPSynRetrans"), totals=Totals,
    aggregation=a.Aggregation(
        DestinationRow, ("netns", "raddr", "rport", "proto"), order="attempts",
        having=connects.is_shown,
    ),
    identity=connects.same_attempt,
    summary_fields={"open": {"type": "integer", "description": "attempts open at the end"}},
)  # fmt: skip
