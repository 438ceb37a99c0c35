"""so1stbyte - time from connect to the first byte, and who was slow: network, peer or program

DESCRIPTION
  TODO

EXAMPLES
  netbpf so1stbyte                      by program, until Ctrl-C

OVERHEAD
  TODO

LIMITS
  TODO
"""

from netbpf.declare import NETNS, PROCESS, SOCKET, Option, Record, SocketEvent, Tool, first_bytes
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
                           header="ANSWR", width=5)  # fmt: skip
    pickup_us = c.Duration("first data to its read by the program", header="READ", width=5)
    first_rx_us = c.Duration("active: connect, passive: established, to the first byte read",
                             header="FIRST_RX", wide=True, priority=5)  # fmt: skip
    age_us = c.Duration("the same to this line, also without a byte", header="MS", width=6)
    end = c.Enum("data: a byte was read; eof, reset, closed, timeout: none was; null: it waits",
                 first_bytes.ENDS, width=7, priority=75, alert=("reset", "timeout"))  # fmt: skip


class Totals(Record):
    """What distributions do not show."""

    without_data = c.Count("connections that ended without a byte")


TOOL = Tool(
    __doc__,
    memory=Memory(1_650_000, cpu=40_000, entry=245),
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
