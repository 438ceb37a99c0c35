"""solife - finished sockets of any kind: process, how long, how much, how they ended

DESCRIPTION
  Shows each socket of IPv4 and IPv6.

EXAMPLES
  netbpf solife                       all sockets as they end

OVERHEAD
  xxx

LIMITS
  xxx
"""

from netbpf.declare import NETNS, PROCESS, SOCKET, U64_MAX, Event, Option, Row, Tool, lives
from netbpf.declare import aggregation as a
from netbpf.declare import columns as c
from netbpf.declare import probes as p
from netbpf.declare.calls import MESSAGE_PROBES
from netbpf.declare.options import milliseconds, nanoseconds, one_or_more
from netbpf.declare.sockets import SockProto
from netbpf.declare.states import GONE, state_probe


class Finished(Event):
    """A socket that has ended, or is open."""

    cstruct = "finished"

    pid = c.Pid("process that closed the socket; of an open one, that made or first used it")
    comm = c.Comm("its name", width=10)
    owner = c.Owner("how the process was found: exact or unknown", wide=True)
    family = c.Family("address family, IPv4-mapped counts as ipv4", wide=True)
    proto = SockProto("protocol, or raw", width=5, priority=70)
    laddr = c.Addr("local address", wide=True, priority=28)
    lport = c.Port("local port")
    raddr = c.Addr("remote address; if never connected, where it sent to last")
    rport = c.Port("remote port, likewise")
    tx_bytes = c.Bytes("bytes that programs sent", header="TX_KB", width=5, null=U64_MAX)
    rx_bytes = c.Bytes("bytes that programs received", header="RX_KB", width=5, null=U64_MAX)
    tx_msgs = c.Count("sends", ctype="u32", width=7, wide=True, null=c.U32_MAX)
    rx_msgs = c.Count("receives of data", ctype="u32", width=7, wide=True, null=c.U32_MAX)
    errors = c.Count("sends and receives that failed", ctype="u32", width=6, wide=True,
                     null=c.U32_MAX)  # fmt: skip
    drops = c.Count("packets that were dropped at the socket", ctype="u32", width=5, wide=True)
    peers = c.Count("addresses that it sent to without being connected; 9: more than 8",
                    ctype="u32", width=5, wide=True, null=c.U32_MAX)  # fmt: skip
    duration_us = c.Duration("time from its making to its end, or to now", header="MS", width=7)
    origin = c.Enum("socket: socket(2) made it, accept: a listener", lives.ORIGINS, width=6,
                    wide=True)  # fmt: skip
    end = c.Enum("close: the last descriptor was closed; exit: its process ended; open: not ended",
                 lives.ENDS, width=5, priority=75)  # fmt: skip
    uid = c.Uid("user id of the process", wide=True)
    netns = c.Netns()
    cgroup = c.Cgroup()


class SocketsRow(Row):
    """The sockets of a key that ended in an interval."""

    pid = c.Pid("process that closed them")
    comm = c.Comm("its name", width=10)
    proto = SockProto("protocol, or raw", width=5)
    sockets = c.Count("sockets that ended", width=7, over=a.Number())
    open = c.Count("sockets that were open at the end (--open)", width=5,
                   over=a.Number(when=a.pending))  # fmt: skip
    tx_bytes = c.Bytes("bytes sent", header="TX_KB", width=7, over=a.Sum("tx_bytes"))
    rx_bytes = c.Bytes("bytes received", header="RX_KB", width=7, over=a.Sum("rx_bytes"))
    tx_msgs = c.Count("sends", width=7, wide=True, over=a.Sum("tx_msgs"))
    rx_msgs = c.Count("receives of data", width=7, wide=True, over=a.Sum("rx_msgs"))
    errors = c.Count("sends and receives that failed", width=6, wide=True, over=a.Sum("errors"))
    drops = c.Count("packets that were dropped", width=5, wide=True, over=a.Sum("drops"))
    p50_us = c.Duration("median duration", header="P50_MS", width=7,
                        over=a.Percentile("duration_us", 50))  # fmt: skip
    p99_us = c.Duration("99 % were no longer", header="P99_MS", width=7,
                        over=a.Percentile("duration_us", 99))  # fmt: skip


def _peer(number: int) -> p.Probe:
    family, function = ("AF_INET", "udp_sendmsg") if number == 4 else ("AF_INET6", "udpv6_sendmsg")
    args = ("sk", "msg", family)
    return p.Probe(
        f"peer{number}",
        p.CgroupAddr(f"sendmsg{number}", args=("sk", "uaddr", family), call="on_peer"),
        p.Fentry(function, args=args, call="on_udp_send"),
        p.Kprobe(function, args=args, call="on_udp_send"),
        optional=True, loses=("peers",),
    )  # fmt: skip


TOOL = Tool(
    __doc__,
    event=Finished,
    aggregation=a.Aggregation(SocketsRow, ("pid", "comm", "proto"), order="sockets"),
    probes=(
        p.Probe("create", p.CgroupSock("sock_create", args=("sk",)),
                p.Fentry("security_socket_post_create", args=("sock", "kern"), call="on_created"),
                p.Kprobe("security_socket_post_create", args=("sock", "kern"), call="on_created")),
        p.Probe("release", p.CgroupSock("sock_release", args=("sk",)),
                p.Fentry("inet_release", args=("sock",), call="on_released"),
                p.Kprobe("inet_release", args=("sock",), call="on_released")),
        state_probe(),
        GONE,
        *MESSAGE_PROBES,
        _peer(4),
        _peer(6),
        p.Probe("open", p.Iterator("bpf_map_elem", over="lives"), role=p.Role.OPEN, option="open"),
    ),
    interval=True,
    options=(
        *PROCESS,
        *NETNS,
        *SOCKET,
        Option("--proto", metavar="LIST", parse=one_or_more(*lives.PROTOS),
               help="only these protocols: tcp, udp, icmp, raw, sctp"),
        Option("--min-ms", metavar="MS", parse=milliseconds, define="MIN_NS", number=nanoseconds,
               help="only sockets that existed at least this long"),
        Option("--open", help="also list sockets that are open, at each INTERVAL and at exit"),
    ),
    constants=lives.constants,
    summary_fields={"open": {"type": "integer", "description": "sockets open at the end"}},
)  # fmt: skip
