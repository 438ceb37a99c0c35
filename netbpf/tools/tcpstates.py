"""tcpstates - changes of TCP states, with the time in the old state

DESCRIPTION
  Shows each change of a TCP socket's state: the socket's owner, both endpoints, the old and the new
  state, and how long the socket was in the old one.

  The owner is the process that connected, listens or accepted, not the task that ran when a packet
  arrived. A connection that no process has accepted yet has the owner of its listener; OWNER (with
  -w) is 'listener' then.

  Three changes are steps of a connection, and STEP (with -w) names them: it is established, by a
  connect of this end or by one of the peer (accept), and it ends (close), when this end sends its
  FIN, for close(2) or shutdown(2), or when it is reset or given up. A connection that is
  established has each step once, one that fails has none. --step shows only these changes.

  --summary counts the changes from one state to another, with percentiles of the time in the old
  state.

EXAMPLES
  netbpf tcpstates                      all changes, as they happen
  netbpf tcpstates -D 443 --comm curl   changes of curl's connections to port 443
  netbpf tcpstates --step connect,accept,close
                                        connections as they open and close, a line for each
  netbpf tcpstates --summary 10         number of changes, every 10 seconds
  netbpf tcpstates -L 80 --json | jq 'select(.newstate == "CLOSE_WAIT")'
                                        connections of a server that the peer closed

  A connection over loopback, both ends (netbpf tcpstates):

        PID COMM     LADDR:LPORT     RADDR:RPORT     OLDSTATE   NEWSTATE         MS
      16290 curl     127.0.0.1       127.0.0.1:8080  CLOSE      SYN_SENT          -
      16284 python3  0.0.0.0:8080    0.0.0.0:0       LISTEN     SYN_RECV          -
      16284 python3  127.0.0.1:8080  127.0.0.1:46838 SYN_RECV   ESTAB          0.02
      16290 curl     127.0.0.1:46838 127.0.0.1:8080  SYN_SENT   ESTAB          0.10
      16284 python3  127.0.0.1:8080  127.0.0.1:46838 ESTAB      FIN_WAIT1      2.11

OVERHEAD
  A program of about one microsecond per change of state, of which a connection over loopback has
  about eight, counting both ends, and the reader's time for each line.

LIMITS
  The first change seen of a socket has no time. A connection in NEW_SYN_RECV has no socket yet and
  is not seen. On older kernels such as 6.1, the change from LISTEN to SYN_RECV has no remote
  address yet, and that of an IPv6 socket, which may get an IPv4 address, no family. TIME_WAIT has
  no full socket: it begins with the change from FIN_WAIT2 to CLOSE at the end that closed first.
  With -L, the change to SYN_SENT is shown together with the next one, as the local port is chosen
  after it. MPTCP connections are shown as subflows.
"""

from netbpf.declare import NETNS, PROCESS, SOCKET, U64_MAX, Cost, Option, Row, SocketEvent, Tool
from netbpf.declare import aggregation as a
from netbpf.declare import columns as c
from netbpf.declare.memory import Memory
from netbpf.declare.network import SocketAddress
from netbpf.declare.options import one_or_more
from netbpf.declare.retransmissions import Local, State
from netbpf.declare.states import STEPS, state_probe, step_filter


class StateChange(SocketEvent):
    """A change of a socket's state."""

    cstruct = "state_change"

    comm = c.Comm("its name", width=8)
    laddr = Local("local address", "lport", header="LADDR:LPORT")
    lport = c.Port("local port, null until it is chosen", text=False, null=0)
    raddr = Local("remote address", "rport", header="RADDR:RPORT", priority=60)
    rport = c.Port("remote port", text=False, null=0)
    oldstate = State("old state", width=10)
    newstate = State("new state", width=10)
    duration_us = c.Duration("time in the old state", header="MS", width=8, null=U64_MAX)
    step = c.Enum(
        "connect or accept: established, by this end or by the peer; close: it ends", STEPS,
        width=7, wide=True, priority=12,
    )  # fmt: skip
    sock = SocketAddress("address of the socket in the kernel", header="SKADDR", wide=True)
    errno = c.Errno("error of the socket, if an error closed it", header="ERROR", wide=True)


class ChangeRow(Row):
    """Changes between two states in an interval."""

    oldstate = c.TcpState("old state")
    newstate = c.TcpState("new state")
    changes = c.Count("number of changes", over=a.Number())
    p50_us = c.Micros("median time in the old state", over=a.Percentile("duration_us", 50))
    p99_us = c.Micros("99 % were in it no longer than this", over=a.Percentile("duration_us", 99))


TOOL = Tool(
    __doc__,
    memory=Memory(1_450_000, cpu=26_000, entry=236),
    cost=Cost(6.0, 38.7),
    event=StateChange,
    aggregation=a.Aggregation(ChangeRow, ("oldstate", "newstate"), order="changes"),
    probes=(state_probe(),),
    owners=True,
    interval=True,
    show_time=False,
    options=(
        *PROCESS,
        *NETNS,
        *SOCKET,
        Option("--step", metavar="LIST", parse=one_or_more(*filter(None, STEPS.values())),
               help="only these steps of connections: connect, accept, close"),
        Option("--summary", help="show a row per pair of states instead of a line per change"),
        Option("-s", help="same as --output csv, as in bcc's tcpstates", sets={"output": "csv"}),
    ),
    counters=("Tcp.ActiveOpens", "Tcp.PassiveOpens", "Tcp.AttemptFails", "Tcp.EstabResets"),
    constants=step_filter,
)  # fmt: skip
