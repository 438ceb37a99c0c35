"""soaccept - accepted connections: remote address, time in the queue, errors

DESCRIPTION
  Shows each connection that accept(2) or accept4(2) returns to a program, and each accept that
  fails: no free descriptor, no memory, an aborted connection. Addresses are read from the accepted
  socket, so they are known even if the program does not ask for them (accept(fd, NULL, NULL)). A
  unix client usually has no address; -w shows the path that it connected to.

  wait_us is how long the connection waited in the accept queue until the program accepted it: since
  the handshake, with Fast Open since the SYN. queue is the number of connections left in the queue
  after the accept, queue_max its limit.

  EAGAIN, which means an empty queue, is counted in the summary (would_block), as are calls that a
  signal ended (interrupted) or that the kernel restarted after a signal (restarted).

EXAMPLES
  netbpf soaccept                     all accepts of this machine
  netbpf soaccept -L 443 -w           one port, with wait and queue
  netbpf soaccept --errors -T         only accepts that fail, with the time
  netbpf soaccept --summary 10        one row per listener, every 10 seconds
  netbpf soaccept --comm 'nginx*' --json | jq .wait_us

  A server that listens on IPv4 and IPv6 (netbpf soaccept):

        PID PROCESS         FAM  ADDRESS                  PORT RESULT
       9328 demo-serve      ipv4 127.0.0.1               57908 Success
       9328 demo-serve      ipv6 ::1                     49858 Success

OVERHEAD
  About six microseconds per accept, half of it for waking netbpf, and 0.1 per change of state and
  per end of a TCP socket, per signal and per request of io_uring. The syscall tracepoints are used:
  every system call of the machine costs about 20 ns more during the run.

LIMITS
  Connections that 32-bit programs accept are not seen if the syscall tracepoints are used, nor are
  connections accepted through io_uring before 5.18. Of a multishot accept of io_uring, only TCP
  connections that were established after the start and that get a descriptor of the process are
  seen; their queue is not known. The wait is known for TCP connections that were established after
  the start, the queue for calls that began after it. Connections that no program accepts have no
  line: see queue, or use tcpsynbl.
"""

from netbpf.declare import NETNS, PROCESS, SOCKET, Event, Option, Record, Row, Tool, accepts
from netbpf.declare import aggregation as a
from netbpf.declare import columns as c
from netbpf.declare import probes as p
from netbpf.declare.calls import RING, SIGNAL
from netbpf.declare.costs import Cost
from netbpf.declare.memory import Memory
from netbpf.declare.options import one_or_more
from netbpf.declare.sockets import AnyAddr, BoundAddr, CallResult, Elapsed, SockProto
from netbpf.declare.states import GONE, state_probe

_PROTO = "tcp or mptcp; for unix sockets stream or seqpacket"
_NO_QUEUE = c.U32_MAX  # NO_QUEUE in C: the queue is not known
_EXIT, _ENTER = "syscalls:sys_exit_accept", "syscalls:sys_enter_accept"
_EXITS = p.Tracepoint(_EXIT, f"{_EXIT}4", args=("ret",), every=True)


class Acceptance(Event):
    """An accepted connection, or an error."""

    cstruct = "acceptance"

    pid = c.Pid("process that accepts")
    comm = c.Comm("its name", width=15, header="PROCESS")
    fd = c.Column("descriptor of the new connection", ctype="s32", width=5, wide=True, null=-1)
    family = c.Family("address family, IPv4-mapped counts as ipv4", width=4, header="FAM")
    raddr = AnyAddr("remote address", width=23, header="ADDRESS")
    rport = c.Port("remote port", header="PORT", null=0)
    result = CallResult("OK or the error as text", {})
    proto = SockProto(_PROTO, wide=True)
    laddr = AnyAddr("local address, or path of a unix socket", wide=True, priority=28)
    lport = c.Port("local port", wide=True, null=0, priority=32)
    wait_us = Elapsed("time in the queue until accepted", header="WAIT(us)", wide=True)
    queue = c.Count("connections left in the accept queue", ctype="u32", width=5, wide=True,
                    null=_NO_QUEUE)  # fmt: skip
    queue_max = c.Count("limit of the accept queue", ctype="u32", header="MAX", width=5, wide=True,
                        null=_NO_QUEUE)  # fmt: skip
    errno = c.Errno("error by name", text=False)
    listener = BoundAddr("address that the listener is bound to, or its path", wide=True)
    uid = c.Uid("user id of the process", wide=True)
    netns = c.Netns()
    cgroup = c.Cgroup()


class Totals(Record):
    """Calls that are counted and not shown."""

    would_block = c.Count("calls that found nothing to accept (EAGAIN)")
    interrupted = c.Count("calls that a signal ended with EINTR, or io_uring canceled")
    restarted = c.Count("calls that a signal interrupted and the kernel restarted")


class ListenerRow(Row):
    """A listener in an interval."""

    listener = c.Addr("address that it is bound to, or its path", header="ADDRESS")
    lport = c.Port("its port", header="PORT")
    comm = c.Comm("process that accepted last", width=15, header="PROCESS", over=a.Last("comm"))
    accepts = c.Count("connections accepted", width=7, over=a.Number(when=a.without_error))
    errors = c.Count("accepts that failed", width=6, over=a.Number(when=a.with_error),
                     alert=True)  # fmt: skip
    p50_us = Elapsed("median wait", header="P50(us)", width=7, over=a.Percentile("wait_us", 50))
    p99_us = Elapsed("99 % waited no longer", header="P99(us)", width=7,
                     over=a.Percentile("wait_us", 99))  # fmt: skip
    queue = c.Count("longest queue after an accept", width=5, over=a.Largest("queue"))
    queue_max = c.Count("its limit", header="MAX", width=5, over=a.Last("queue_max"))
    top_error = c.Errno("the most frequent error", width=24, wide=True, over=a.MostCommon("errno"))
    pid = c.Pid("process that accepted last", wide=True, over=a.Last("pid"))
    proto = SockProto(_PROTO, wide=True)
    netns = c.Netns()


TOOL = Tool(
    __doc__,
    memory=Memory(450_000, cpu=30_000, entry=168),
    cost=Cost(2.8, 25.4),
    event=Acceptance,
    probes=(
        # Tracepoints first: they see calls that were waiting before the start.
        p.Probe("leave", _EXITS, p.Fexit("__sys_accept4", args=("return",), call="on_return"),
                p.Kretprobe("__sys_accept4", args=("return",), call="on_return")),
        # Calls that only the tracepoints show.
        p.Probe("inflight", _EXITS, optional=True, complements="leave"),
        p.Probe("enter", p.Tracepoint(_ENTER, f"{_ENTER}4", args=("fd",), every=True),
                p.Fentry("__sys_accept4", args=("fd",)), p.Kprobe("__sys_accept4", args=("fd",))),
        state_probe(optional=True, loses=("wait_us",)),
        GONE,
        SIGNAL,
        RING,
    ),
    interval=True,
    options=(
        *PROCESS,
        *NETNS,
        *SOCKET,
        Option("--proto", metavar="LIST", parse=one_or_more(*accepts.PROTOS),
               help="only these protocols, of tcp and unix; without this option, all"),
        Option("--tcp", help="same as --proto tcp", sets={"proto": ["tcp"]}),
        Option("--errors", help="only accepts that failed; with --summary rows with errors"),
        Option("--summary", help="show a row per listener instead of a line per accept"),
    ),
    constants=accepts.constants,
    counters=("Tcp.PassiveOpens", "TcpExt.ListenOverflows", "TcpExt.ListenDrops"),
    totals=Totals,
    aggregation=a.Aggregation(
        ListenerRow, ("netns", "proto", "listener", "lport"), order="accepts",
        having=lambda row, settings: row["errors"] or not settings["errors"],
    ),
    enrich=accepts.name_listener,
)  # fmt: skip
