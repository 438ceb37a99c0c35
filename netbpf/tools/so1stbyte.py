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

from netbpf.declare import NETNS, PROCESS, SOCKET, Option, Record, Row, SocketEvent, Tool
from netbpf.declare import aggregation as a
from netbpf.declare import columns as c
from netbpf.declare import probes as p
from netbpf.declare.memory import Memory
from netbpf.declare.options import milliseconds, nanoseconds
from netbpf.declare.sockets import SockProto, ends_of
from netbpf.declare.states import GONE, state_probe

ROLES = {1: "active", 2: "passive"}
_HEADERS = {"connect": "CONN", "first_tx": "WRITE", "answer": "ANSWR", "pickup": "READ"}
ENDS = {0: None, 1: "data", 2: "eof", 3: "reset", 4: "closed", 5: "timeout"}


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
    role = c.Enum("active: connected, passive: accepted", ROLES, width=7, wide=True, priority=85)
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
                 ENDS, width=7, priority=75, alert=("reset", "timeout"))  # fmt: skip


def with_data(values, ended):
    """Count connections whose first byte was read."""
    return values["end"] == "data"


def silent(values, ended):
    """Count connections that ended without a byte."""
    return ended and values["end"] != "data"


def _p99(phase):
    help, header = f"{phase}_us of 99 % of the connections", _HEADERS[phase]
    return c.Duration(help, header=header, width=6, over=a.Percentile(f"{phase}_us", 99, a.always))


class PhaseRow(Row):
    """The connections of a key in an interval."""

    comm = c.Comm("process that read the first byte, or that has the socket", width=8)
    pid = c.Pid("its id", width=6)
    role = c.Enum("active: connected, passive: accepted", ROLES, width=7)
    connections = c.Count("connections with a first byte", header="CONNS", width=5,
                          over=a.Number(when=with_data))  # fmt: skip
    silent = c.Count("connections that ended without one", header="NONE", width=5,
                     over=a.Number(when=silent))  # fmt: skip
    waiting = c.Count("connections that still waited", wide=True, width=7,
                      over=a.Number(when=a.pending))  # fmt: skip
    connect_p99_us = _p99("connect")
    first_tx_p99_us = _p99("first_tx")
    answer_p99_us = _p99("answer")
    pickup_p99_us = _p99("pickup")
    p50_us = c.Duration("median of first_rx_us", header="P50_MS", width=7,
                        over=a.Percentile("first_rx_us", 50))  # fmt: skip
    p99_us = c.Duration("first_rx_us of 99 %", header="P99_MS", width=7,
                        over=a.Percentile("first_rx_us", 99))  # fmt: skip


class Totals(Record):
    """What distributions do not show."""

    without_data = c.Count("connections that ended without a byte")


def notes(summary, settings):
    """Return how many connections the distributions do not have."""
    number = summary["totals"]["without_data"]
    if not number or not settings["histogram"]:
        return []
    return [f"{number} connections ended before a byte was read: --events shows them"]


_RECV = ("sk", "ret", "flags")

TOOL = Tool(
    __doc__,
    memory=Memory(1_650_000, cpu=40_000, entry=245),
    event=FirstByte,
    aggregation=a.Aggregation(
        PhaseRow, ("comm", "pid", "role"), order="connections", measure="first_rx_us"
    ),
    probes=(
        state_probe(),
        GONE,
        p.Probe("send", *p.tracepoints("sock:sock_send_length", ("sk", "ret"), ("sk", "ret")),
                p.Fexit("tcp_sendmsg", args=("sk", "return")),
                p.Kretprobe("tcp_sendmsg", args=("return",), call="on_send_return")),
        p.Probe("enter_send", p.Kprobe("tcp_sendmsg", args=("sk", "0", "0"), call="begin_call"),
                optional=True, with_probe="send"),
        p.Probe("recv", *p.tracepoints("sock:sock_recv_length", _RECV, _RECV),
                p.Fexit("tcp_recvmsg", args=("sk", "return", "flags")),
                p.Kretprobe("tcp_recvmsg", args=("return",), call="on_recv_return")),
        p.Probe("enter_recv",
                p.Kprobe("tcp_recvmsg", args=("sk", "flags", "0"), call="begin_call"),
                optional=True, with_probe="recv"),
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
        Option("--role", choices=tuple(ROLES.values()), define="ONLY_ROLE",
               number=lambda word: {w: n for n, w in ROLES.items()}.get(word, 0),
               help="only connections of this side: active (connected) or passive (accepted)"),
        Option("--min-ms", metavar="MS", parse=milliseconds, define="MIN_NS", number=nanoseconds,
               help="only connections that took at least this long, with or without a byte"),
    ),
    counters=("Tcp.ActiveOpens", "Tcp.PassiveOpens"),
    totals=Totals,
    notes=notes,
    identity=ends_of,
    summary_fields={"open": {"type": "integer", "description": "connections that still waited"}},
)  # fmt: skip
