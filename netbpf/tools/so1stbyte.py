"""so1stbyte - time from connect to the first byte, and which side took how long

DESCRIPTION
  Shows how long a program waits until it reads the first byte of a TCP connection, as a
  distribution for each program. --events shows a line per connection, --summary a row per program.
  Both divide the time into phases, which name who was slow:

    CONN    connect_us   SYN to established: the network, or a full listener. Not of connections
                         that were accepted: theirs begin when they are established
    WRITE   first_tx_us  until the first write: this program. Empty if data arrived before one, as
                         from servers that speak first
    ANSWER  answer_us    until the first data arrived: the network and the other program
    READ    pickup_us    until the program read it: this program. If it accepted the connection,
                         that includes the wait to be accepted

  The phases add up to the time to the first byte. ROLE is active for connections that the program
  opened, and passive for those that it accepted, which have distributions of their own. --histogram
  selects another phase for the distributions. 'netbpf soconnect' shows why a connection is not
  established, 'netbpf tcplife' what happens after the first byte.

  A connection that ends without a byte also has a line. END is one of:

    data     the program read the first byte
    eof      the peer closed the connection, and had sent nothing
    reset    the peer reset it, or 'ss -K' did
    timeout  the kernel gave up: the peer did not acknowledge, or was unreachable
    closed   this program closed it, and had read nothing, even if data had arrived
    waiting  not ended: listed at the exit, and at each INTERVAL if one is given, with --events

EXAMPLES
  netbpf so1stbyte                      by program, until Ctrl-C
  netbpf so1stbyte --summary 10         every 10 seconds, how long each phase takes
  netbpf so1stbyte --events -D 443      a line for each connection to a web server
  netbpf so1stbyte --events --min-ms 100 --role active
                                        connections that waited long
  netbpf so1stbyte --histogram pickup_us --by comm --role passive
                                        how long requests wait for a server program
  netbpf so1stbyte --histogram answer_us --by raddr/24 -d 60
                                        the time that other hosts take
  netbpf so1stbyte --events --json | jq 'select(.end == "reset")'

  curl and a client that writes and reads late, with a server (netbpf so1stbyte --events):

       PID COMM     RADDR           RPORT  CONN WRITE ANSWER  READ TOTAL_MS END
     27722 python3  127.0.0.1       51698     -     -   1.15  1.36     2.52 data
     27766 curl     127.0.0.1        8080  0.05  1.17   2.73  0.17     4.12 data
     27722 python3  127.0.0.1       51714     -     -   0.04  0.32     0.36 data
     27768 curl     127.0.0.1        8080  0.03  0.05  50.67  0.20    50.95 data
     27722 python3  127.0.0.1       51720     -     -   0.04  2.03     2.07 data
     27772 curl     127.0.0.1        8080  0.04  0.06      -     -     2.45 eof
     27722 python3  127.0.0.1       51734     -     -  20.35  0.02    20.38 data
     27776 lateread 127.0.0.1        8080  0.05 20.38   0.23 99.89    120.5 data
     27776 lateread 127.0.0.1        8080  0.06     -      -     -    30.39 closed
     27722 python3  127.0.0.1       51744     -     -      -     -    30.55 eof
     27776 lateread 127.0.0.1        8080  0.03     -      -     -     2345 waiting
     27722 python3  127.0.0.1       51760     -     -      -     -     2345 waiting

  The same load, what 99 % of the connections took (netbpf so1stbyte --summary):

    COMM        PID ROLE    CONNS  NONE   CONN  WRITE ANSWER   READ  P50_MS  P99_MS
    python3   27722 passive     4     1      -      -  20.36   1.38    1.64   20.39
    curl      27903 active      1     0   0.05   6.36   0.20   1.08    7.69    7.69
    curl      27905 active      1     0   0.04   0.26  50.46   0.05   50.80   50.80
    lateread  27911 active      1     1   0.06  20.39   0.29  99.83   120.6   120.6
    curl      27909 active      0     1   0.04   0.27      -      -       -       -

OVERHEAD
  0.05 us for each send and receive on a socket, and for each segment that brings data to one, also
  of connections that have had their first byte. Each end of a connection costs about 2 us in all,
  and the reader 4 us. The accept system calls are also traced.

LIMITS
  Only TCP. Connections that were set up before the start are not counted. Peeks (MSG_PEEK), calls
  that fail and calls that move no byte are no first bytes. A write counts when its call returns; if
  the peer answers before that, it counts when the last acknowledged segment was sent. Bytes that no
  receive call reads (splice(2) out of the socket, TCP_ZEROCOPY_RECEIVE, a sockmap) have no time:
  the line appears at the end, with END data. Data below SO_RCVLOWAT has not arrived until that is
  reached. Attempts to connect that fail have no line. With Fast Open, data that goes with the SYN
  counts as written when the connection is established, and an accepted connection begins with its
  SYN. With TLS the first byte is one of the handshake. MPTCP is shown as its first subflow (since
  6.3), and not at all if it ends without a byte. The owner is the process that reads the first
  byte; that of a connection that no program has accepted is its listener's (OWNER is listener).

  Kernels before 6.3 need fentry or kprobes; where sock_def_readable cannot be traced, answer_us and
  pickup_us are unknown. Before 6.5, sendfile is a write only when the answer arrives.
"""

from netbpf.declare import (
    NETNS,
    PROCESS,
    SOCKET,
    Cost,
    Option,
    Record,
    SocketEvent,
    Tool,
    first_bytes,
)
from netbpf.declare import aggregation as a
from netbpf.declare import columns as c
from netbpf.declare import probes as p
from netbpf.declare.calls import TCP_RECV, TCP_SEND
from netbpf.declare.memory import Memory
from netbpf.declare.options import milliseconds, nanoseconds
from netbpf.declare.sockets import SockProto, ends_of
from netbpf.declare.states import GONE, state_probe


class FirstByte(SocketEvent):
    """A connection whose first byte was read, or that can bring none any more, or still waits."""

    cstruct = "first_byte"

    pid = c.Pid("process that read the first byte, or that has the socket", width=6)
    comm = c.Comm("its name", width=8)
    owner = c.Owner("how it was found: exact, listener (not accepted yet) or unknown", wide=True)
    family = c.Family("address family, IPv4-mapped counts as ipv4", wide=True)
    proto = SockProto("tcp, or mptcp: the first subflow", wide=True)
    laddr = c.Addr("local address", wide=True, priority=28)
    lport = c.Port("local port", wide=True, priority=32)
    raddr = c.Addr("remote address")
    rport = c.Port("remote port")
    role = c.Enum(
        "active: connected, passive: accepted", first_bytes.ROLES, width=7, wide=True, priority=85
    )
    connect_us = c.Duration("active: SYN to established", header="CONN", width=5)
    first_tx_us = c.Duration("established to the first write; null if data arrived before one",
                             header="WRITE", width=5)  # fmt: skip
    answer_us = c.Duration("first write (established, if there was none) to the first data",
                           header="ANSWER", width=6)  # fmt: skip
    pickup_us = c.Duration("first data to its read by the program", header="READ", width=5)
    first_rx_us = c.Duration("active: connect, passive: established, to the first byte read",
                             header="FIRST_RX", wide=True, priority=5)  # fmt: skip
    duration_us = c.Duration("the same to this line, also without a byte",
                             header="TOTAL_MS", width=8)  # fmt: skip
    end = c.Enum("data: a byte was read; waiting: not ended; others: how it ended without a byte",
                 first_bytes.ENDS, width=7, priority=75, alert=("reset", "timeout"))  # fmt: skip


class Totals(Record):
    """What distributions do not show."""

    without_data = c.Count("connections that ended without a byte")


TOOL = Tool(
    __doc__,
    memory=Memory(1_450_000, cpu=26_000, entry=340), cost=Cost(3.4, 8.4),
    event=FirstByte,
    aggregation=a.Aggregation(
        first_bytes.PhaseRow, ("comm", "pid", "role"), order="connections", measure="first_rx_us"
    ),
    probes=(
        state_probe(),
        GONE,
        *TCP_SEND,
        *TCP_RECV,
        p.Probe("arrival", *p.tracepoints("sock:sk_data_ready", ("sk",), ("skaddr",)),
                p.Fentry("sock_def_readable", args=("sk",)),
                p.Kprobe("sock_def_readable", args=("sk",)),
                optional=True, loses=("answer_us", "pickup_us")),
        p.Probe("open", p.Iterator("bpf_map_elem", over="waits"), role=p.Role.OPEN, optional=True),
    ),
    owners=True,
    interval=True,
    options=(
        *PROCESS,
        *NETNS,
        *SOCKET,
        Option("--role", choices=tuple(first_bytes.ROLES.values()), define="ONLY_ROLE",
               number=lambda word: {w: n for n, w in first_bytes.ROLES.items()}.get(word, 0),
               help="only connections of this side: active (connected) or passive (accepted)"),
        Option("--min-ms", metavar="MS", parse=milliseconds, define="MIN_NS", number=nanoseconds,
               help="only connections that took at least this long, with or without a byte"),
    ),
    counters=("Tcp.ActiveOpens", "Tcp.PassiveOpens"),
    totals=Totals,
    notes=first_bytes.notes,
    identity=ends_of,
    summary_fields={"open": {"type": "integer", "description": "connections that still waited"}},
)  # fmt: skip
