"""solife - sockets of any IP protocol as they end: process, duration, bytes, errors

DESCRIPTION
  Shows each socket of IPv4 and IPv6 when its last descriptor is closed: UDP, TCP, ICMP, raw and
  others, connected or not. A line has the process that closed it, both ends, the bytes and messages
  that programs sent and received on it, calls that failed, packets that the kernel dropped at the
  socket, and how long it existed. For TCP, 'netbpf tcplife' has more: how a session ends, and its
  round trip times.

  A UDP socket need not be connected: RADDR is then where it sent to last, PEERS (-w) to how many
  addresses: a DNS server answers many on one socket. ORIGIN (-w) is
  socket if a program made it with socket(2), and accept if a listener did. END is one of:

    close    a process closed it
    exit     a process exited, or was killed, that had it open
    open     not ended (--open)

EXAMPLES
  netbpf solife                           all sockets as they end
  netbpf solife --proto udp -D 53 -w      lookups, with messages and errors
  netbpf solife --proto udp --min-ms 5000  UDP sockets that exist for long
  netbpf solife --comm named --open 10    each 10 seconds, what a server has open
  netbpf solife --summary -d 60           who makes the most sockets
  netbpf solife --summary --by comm,raddr/24 --proto udp
  netbpf solife --json | jq 'select(.drops > 0)'

  A client of a DNS server and of a web server, and the servers (netbpf solife):

        PID COMM         PROTO LPORT RADDR           RPORT TX_KB RX_KB      MS END
      30846 dig          udp       - -                   -  0.00  0.00    0.01 close
      30846 dig          udp   33094 127.0.0.1        5353  0.03  0.05    0.54 close
      30757 webd         tcp    8080 127.0.0.1       51970  0.40  0.08    1.22 close
      30849 curl         tcp   51970 127.0.0.1        8080  0.08  0.40    1.57 close
      30852 curl         tcp   37676 127.0.0.1        8081  0.00  0.00    0.17 close
      30757 webd         tcp    8080 -                   -  0.00  0.00   949.3 exit
      30756 dnsd         udp    5353 127.0.0.1       33094  0.10  0.07    1170 exit

OVERHEAD
  About 2.5 us per socket, and 0.1 us for each message on any socket; 0.3 us more if it is sent by
  UDP to an address of the call. The programs run at hooks of cgroups, which no packet passes.

LIMITS
  Only sockets of IPv4 and IPv6: the kernel has no such hooks for unix, netlink and packet sockets,
  nor for its own sockets (NFS, MPTCP subflows). Of sockets that are older than the start, and of
  those accepted with MPTCP, only the end is seen: duration, bytes, messages, errors and origin are
  null, and --min-ms and --open do not show them. PID and COMM are of the process that closed the
  last descriptor, which inherited it perhaps; if a kernel thread did that for a process, END is
  null, and the process is the one that made the socket, or first used it. Sockets that exec(3)
  closes have the new program's name. A socket for which no descriptor was left also has a line.
  Connections that no program accepts have none. An accepted socket begins when the handshake ends,
  a closed TCP socket may still send what was written: the end of the session is not that of the
  socket.

  Bytes are what calls returned, as in 'netbpf socksize': bytes that are spliced out of a socket are
  not counted, nor is sendfile before 6.5, and with MSG_TRUNC it is more than the program received.
  Peeks (MSG_PEEK), the error queue, the end of file, and calls that would have to wait or were
  interrupted are no messages and no errors. PEERS counts up to 8, and is 9 for more; it has the
  addresses of calls to send that the kernel then may refuse. Two threads that send to new addresses
  at the same instant may count as one. Only UDP shows where sockets that are not connected send.
  DROPS are those of the socket's whole life.

  The hooks need a kernel with cgroups of version 2 (since 5.9), in the first cgroup namespace.
  Elsewhere fentry or kprobes are used. Before 6.3, where there are kretprobes only, -p, -u and
  other filters of processes also exclude messages of the others on the same socket.
"""

from netbpf.declare import NETNS, PROCESS, SOCKET, U64_MAX, Cost, Event, Option, Row, Tool, lives
from netbpf.declare import aggregation as a
from netbpf.declare import columns as c
from netbpf.declare import probes as p
from netbpf.declare.calls import MESSAGE_PROBES
from netbpf.declare.memory import Memory
from netbpf.declare.options import milliseconds, nanoseconds, one_or_more
from netbpf.declare.sockets import LocalAddr, SockProto
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
    lport = c.Port("local port; null if none was chosen", null=0)
    raddr = LocalAddr("remote address; if it is not connected, where it sent to last", priority=60)
    rport = c.Port("remote port, likewise", null=0)
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
    memory=Memory(1_460_000, cpu=26_000, entry=410), cost=Cost(5.0, 12.1),
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
