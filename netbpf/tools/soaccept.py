"""soaccept - incoming connections as programs accept them: from where, wait and errors

DESCRIPTION
  Shows each connection that accept(2) or accept4(2) hands to a program, and each accept that fails:
  no descriptors left, no memory, an aborted connection. Addresses come from the accepted socket, so
  that programs which do not ask for them (accept(fd, NULL, NULL)) are there, too. A unix client has
  no address of its own as a rule; -w shows the path that it connected to.

  wait_us is how long the connection had waited in the accept queue until the program came for it:
  since the handshake, with Fast Open since the SYN. queue and queue_max say how many were left in
  the queue then, and how many may be.

  EAGAIN, which is an empty queue, is counted in the summary (would_block), as are calls that a
  signal ended (interrupted) or that the kernel began again after one (restarted).

EXAMPLES
  netbpf soaccept                     all that this machine accepts
  netbpf soaccept -L 443 -w           one port, with wait and queue
  netbpf soaccept --errors -T         only accepts that fail, with the time
  netbpf soaccept --summary 10        one row per listener, every 10 seconds
  netbpf soaccept --comm 'nginx*' --json | jq .wait_us

  A server on two families (netbpf soaccept):

        PID PROCESS         FAM  ADDRESS                  PORT RESULT
       9328 demo-serve      ipv4 127.0.0.1               57908 Success
       9328 demo-serve      ipv6 ::1                     49858 Success

OVERHEAD
  About six microseconds per accept, half of it for waking netbpf, and 0.1 per change of state and
  per end of a TCP socket, per signal and per request of io_uring. The syscall tracepoints are used,
  with which every system call of the machine costs some 20 ns more as long as this runs.

LIMITS
  Connections accepted by 32-bit programs are not seen where the syscall tracepoints are in use, nor
  on kernels before 5.18 those accepted through io_uring. Of an accept of io_uring that goes on and
  on (multishot), connections are seen that are TCP, were established after the start, and get a
  descriptor of the process; their queue is not known. The wait is known of TCP connections that
  were established after the start, the queue of calls that began after it. Connections that nobody
  accepts are no lines: see the queue, or tcpsynbl.
"""

from netbpf.declare import NETNS, PROCESS, SOCKET, Event, Option, Record, Row, Tool
from netbpf.declare import columns as c
from netbpf.declare import probes as p
from netbpf.declare.aggregation import Aggregation, Largest, Last, MostCommon, Number, Percentile
from netbpf.declare.calls import RING, SIGNAL
from netbpf.declare.costs import Cost
from netbpf.declare.memory import Memory
from netbpf.declare.sockets import AnyAddr, BoundAddr, CallResult, Elapsed, SockProto
from netbpf.declare.states import GONE, state_probe

_NONE = 2**32 - 1  # NO_QUEUE in C: the queue is not known
_PROTO = "tcp or mptcp; for unix sockets stream or seqpacket"


class Acceptance(Event):
    """An accepted connection, or an error."""

    cstruct = "acceptance"

    pid = c.Pid("process that accepts")
    comm = c.Comm("its name", width=15, header="PROCESS")
    fd = c.Column("descriptor of the new connection", ctype="s32", width=5, wide=True, null=-1)
    family = c.Family("address family, IPv4-mapped counts as ipv4", width=4, header="FAM")
    raddr = AnyAddr("remote address", width=23, header="ADDRESS")
    rport = c.Port("remote port", header="PORT", null=0)
    result = CallResult("OK or the error in words", {})
    proto = SockProto(_PROTO, wide=True)
    laddr = AnyAddr("local address, or path of a unix socket", wide=True, priority=28)
    lport = c.Port("local port", wide=True, null=0, priority=32)
    wait_us = Elapsed("in the queue until accepted", header="WAIT(us)", wide=True)
    queue = c.Count("connections left in the accept queue", ctype="u32", width=5, wide=True,
                  null=_NONE)  # fmt: skip
    queue_max = c.Count("how many may be in there", ctype="u32", header="MAX", width=5, wide=True,
                      null=_NONE)  # fmt: skip
    errno = c.Errno("error by name", text=False)
    listener = BoundAddr("address that the listener is bound to, or its path", wide=True)
    uid = c.Uid("user id of the process", wide=True)
    netns = c.Netns()
    cgroup = c.Cgroup()


class Totals(Record):
    """What is counted and not shown."""

    would_block = c.Count("calls that found nothing to accept (EAGAIN)")
    interrupted = c.Count("calls that a signal ended with EINTR, or io_uring canceled")
    restarted = c.Count("calls that a signal interrupted and the kernel began again")


def accepted(values, ended):
    """Return whether an accept returned a connection."""
    return not values["errno"]


def failed(values, ended):
    """Return whether an accept failed."""
    return values["errno"]


class ListenerRow(Row):
    """A listener in an interval."""

    listener = c.Addr("address that it is bound to, or its path", header="ADDRESS")
    lport = c.Port("its port", header="PORT")
    comm = c.Comm("process that accepted last", width=15, header="PROCESS", over=Last("comm"))
    accepts = c.Count("connections accepted", width=7, over=Number(when=accepted))
    errors = c.Count("accepts that failed", width=6, over=Number(when=failed), alert=True)
    p50_us = Elapsed("median wait", header="P50(us)", width=7, over=Percentile("wait_us", 50))
    p99_us = Elapsed(
        "99 % waited no longer", header="P99(us)", width=7, over=Percentile("wait_us", 99)
    )
    queue = c.Count("longest queue after an accept", width=5, over=Largest("queue"))
    queue_max = c.Count("its limit", header="MAX", width=5, over=Last("queue_max"))
    top_error = c.Errno("the most frequent error", width=24, wide=True, over=MostCommon("errno"))
    pid = c.Pid("process that accepted last", wide=True, over=Last("pid"))
    proto = SockProto(_PROTO, wide=True)
    netns = c.Netns()


def enrich(values, settings):
    """Name a unix listener by its path."""
    if values["family"] == "unix":
        values["listener"] = values["laddr"]
    return values


def constants(settings):
    """Return the C constants of --tcp and --errors; a summary counts all accepts."""
    wanted = {"ONLY_TCP": settings["tcp"], "ONLY_ERRORS": settings["errors"]}
    if settings["summary"]:
        del wanted["ONLY_ERRORS"]
    return {name: 1 for name, given in wanted.items() if given}


_ENTER, _LEAVE = "syscalls:sys_enter_accept", "syscalls:sys_exit_accept"

TOOL = Tool(
    __doc__,
    memory=Memory(450_000, cpu=30_000, entry=168),
    cost=Cost(2.8, 25.4),
    event=Acceptance,
    probes=(
        p.Probe(
            "leave",  # tracepoints first: they see calls that were waiting before the start
            p.Tracepoint(_LEAVE, f"{_LEAVE}4", args=("ret",), every=True),
            p.Fexit("__sys_accept4", args=("return",), call="on_return"),
            p.Kretprobe("__sys_accept4", args=("return",), call="on_return"),
        ),
        p.Probe(
            "inflight",  # calls that only the tracepoints show
            p.Tracepoint(_LEAVE, f"{_LEAVE}4", args=("ret",), every=True),
            optional=True,
            complements="leave",
        ),
        p.Probe(
            "enter",
            p.Tracepoint(_ENTER, f"{_ENTER}4", args=("fd",), every=True),
            p.Fentry("__sys_accept4", args=("fd",)),
            p.Kprobe("__sys_accept4", args=("fd",)),
        ),
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
        Option("--tcp", help="only TCP, no unix sockets"),
        Option("--errors", help="only accepts that failed; with --summary rows that have some"),
        Option("--summary", help="a row per listener instead of a line per accept"),
    ),
    constants=constants,
    counters=("Tcp.PassiveOpens", "TcpExt.ListenOverflows", "TcpExt.ListenDrops"),
    totals=Totals,
    aggregation=Aggregation(
        ListenerRow, ("netns", "proto", "listener", "lport"), order="accepts",
        having=lambda row, settings: row["errors"] or not settings["errors"],
    ),
    enrich=enrich,
)  # fmt: skip
