"""solisten - calls of listen(2): process, address, queue asked for and granted

DESCRIPTION
  Shows each call of listen(2): which program begins to accept connections, at which address and
  port or path, how many connections may wait until it accepts them (BACKLOG), and the result. The
  kernel limits that to net.core.somaxconn; -w shows the limit that is in force (queue_max), which
  is smaller than BACKLOG if the sysctl is. A program may call listen(2) again, to change it.

  With --by or --summary, calls are counted, by default per program and address.

EXAMPLES
  netbpf solisten                     all calls, as they happen
  netbpf solisten -w                  with the limit of the queue
  netbpf solisten --errors            only calls that fail
  netbpf solisten --comm 'nginx*' --json | jq '{lport, backlog, queue_max}'
  netbpf solisten --by container,lport -d 1m
                                      which ports containers open, for a minute

  Two servers, the second of which asks for more than net.core.somaxconn (netbpf solisten -w):

    PID COMM            PROTO  BACKLOG ADDRESS              PORT RESULT     MAX FAMILY
   5640 python3         tcp4         7 0.0.0.0             46027 Success      7 ipv4
   5712 nginx           tcp6    100000 ::1                 35717 Success   4096 ipv6

OVERHEAD
  About seven microseconds per call, which a server makes once per address. If the kernel has no
  fentry, system calls are seen through their tracepoints: every system call of the machine then
  takes about 20 ns more.

LIMITS
  Sockets that listened before the start have no line: netbpf tcpsynbl and ss -ltn list those of
  TCP. A call that seccomp refuses has none, nor has one of a 32-bit program on a 64-bit kernel. A
  listener that another process inherits or gets is shown for the one that called. queue_max of a
  socket that is neither TCP, MPTCP nor unix is null.
"""

from netbpf.declare import NETNS, PROCESS, SOCKET, Event, Option, Row, Tool, listens
from netbpf.declare import aggregation as a
from netbpf.declare import columns as c
from netbpf.declare.calls import PROTO_WORDS, PROTOS
from netbpf.declare.memory import Memory
from netbpf.declare.options import by_name, one_or_more
from netbpf.declare.sockets import AnyAddr, AnyFamily, CallResult


class Listen(Event):
    """A call of listen(2)."""

    cstruct = "listening"

    pid = c.Pid("process that calls")
    comm = c.Comm("its name", width=15)
    proto = c.Enum("protocol of the socket", PROTOS, width=6)
    backlog = c.Column("connections that may wait, as the program asks", ctype="s32", width=7)
    laddr = AnyAddr("address that the socket is bound to, or its path", width=23, header="ADDRESS")
    lport = c.Port("its port", header="PORT", null=0)
    result = CallResult("OK or the error as text", {})
    queue_max = c.Count("limit of the accept queue after the call", ctype="u32", header="MAX",
                        width=7, wide=True, null=c.U32_MAX, priority=60)  # fmt: skip
    errno = c.Errno("error by name", text=False)
    family = AnyFamily("address family, IPv4-mapped counts as ipv4", wide=True)
    uid = c.Uid("user id of the process", wide=True)
    netns = c.Netns()
    cgroup = c.Cgroup()


class ListenRow(Row):
    """Calls of a program with one address in an interval."""

    comm = c.Comm("name of the process", width=15)
    laddr = c.Addr("address that the sockets are bound to, or their path", header="ADDRESS")
    lport = c.Port("their port", header="PORT")
    listens = c.Count("calls that succeeded", width=7, over=a.Number(when=a.without_error))
    errors = c.Count("calls that failed", width=6, over=a.Number(when=a.with_error), alert=True)
    queue_max = c.Count("limit of the last one's accept queue", width=7, header="MAX",
                        over=a.Last("queue_max"))  # fmt: skip
    top_error = c.Errno("the most frequent error", width=24, wide=True, over=a.MostCommon("errno"))
    pid = c.Pid("process that called last", wide=True, over=a.Last("pid"))


TOOL = Tool(
    __doc__,
    memory=Memory(10_000, cpu=2_000, entry=100),
    event=Listen,
    aggregation=a.Aggregation(ListenRow, ("comm", "laddr", "lport"), order="listens"),
    probes=listens.PROBES,
    interval=True,
    options=(
        *PROCESS,
        *NETNS,
        *(by_name(SOCKET)[name] for name in ("ipv4", "ipv6", "lport", "laddr")),
        Option("--proto", metavar="LIST", parse=one_or_more(*PROTO_WORDS),
               help="only these protocols, such as tcp,unix"),
        Option("--errors", define="ONLY_ERRORS", help="only calls that fail"),
        Option("--summary", help="show a row per program and address instead of a line per call"),
    ),
    no_filter="a socket that listens has no remote end",
    constants=listens.constants,
)  # fmt: skip
