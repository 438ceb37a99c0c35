"""socksize - sizes of the messages that programs send and receive on sockets

DESCRIPTION
  Shows how many bytes each send and each receive moved, as a distribution for each program and
  operation. Each message costs a system call, and often a packet: a program whose messages are
  small spends its time on them without moving much data. small_share is the share of messages of
  128 bytes and less.

  A message is what one call moved, no matter which call (write, sendmsg, io_uring ...); sendmmsg
  and recvmmsg move several. The distribution has the messages whose data was moved. Size 0 is the
  end of file, or an empty datagram. Calls that failed (errors), that would have had to wait
  (EAGAIN: would_block) and that only looked at data (MSG_PEEK, MSG_ERRQUEUE: peeks) are in calls,
  but not in the distribution. A call that the kernel makes again after a signal is one call.

EXAMPLES
  netbpf socksize                    by program and operation, until Ctrl-C
  netbpf socksize --comm nginx 1     of nginx, every second
  netbpf socksize --op send -d 10    only what is sent, 10 seconds
  netbpf socksize --top 5 10         every 10 seconds, where the most calls are
  netbpf socksize --by pid,comm,op,proto --proto tcp
  netbpf socksize --by op,raddr/24 -L 443
  netbpf socksize --json -d 10 | jq 'select(.small_share > 0.9)'

  A web server under load (netbpf socksize --comm nginx --op send -d 3), the first lines:

    op=send comm=nginx: 82776 calls, 14239060 bytes, average 172, 0% small
                    bytes : count     distribution
               128 -> 255 : 82745     |****************************************|
               256 -> 511 : 0         |                                        |

OVERHEAD
  Everything is counted in the kernel, per CPU: there is no event per message. A message costs about
  0.2 us, with addresses in --by 0.3 us. What a filter excludes costs 0.1 us.

LIMITS
  A size is what the call returned, not the size of a packet: TCP may send several messages in one
  packet, or one in several. With MSG_TRUNC that is more than the program received. Data that is
  spliced out of a socket is not seen, nor is sendfile before 6.5; since then, sendfile is several
  messages, whose sizes are the kernel's choice. A call that fails before it reaches a socket
  (invalid descriptor or buffer, denied by a security module) is not counted. A request of io_uring
  counts each attempt that it takes. Messages of sockets that the kernel itself uses (NFS and
  others) are counted. A call during which its process is killed is only in calls. An IPv6 socket
  with an IPv4-mapped address is tcp4 or udp4, and MPTCP counts as TCP. A further key than
  --map-entries counts as map_full. For the code that makes small calls, see stack in
  'netbpf sockstat --by'.
"""

from netbpf.declare import NETNS, PROCESS, SOCKET, Cost, Histogram, Option, Tool
from netbpf.declare import columns as c
from netbpf.declare.calls import MESSAGE_PROBES, OPS, PROTO_WORDS, PROTOS, SIGNAL, call_filters
from netbpf.declare.memory import Memory
from netbpf.declare.options import count, one_or_more
from netbpf.declare.record import key, sums
from netbpf.declare.sockets import AnyFamily

MESSAGES = {number: op for number, op in OPS.items() if op in ("send", "recv")}
FIELDS = {
    "calls": {"type": "integer", "description": "messages, peeks, and calls that moved nothing"},
    "bytes": {"type": "integer", "description": "bytes sent or received, the same as sum"},
    "errors": {"type": "integer", "description": "calls that failed"},
    "would_block": {"type": "integer", "description": "calls that would have had to wait"},
    "peeks": {"type": "integer", "description": "calls that left the data: MSG_PEEK, MSG_ERRQUEUE"},
    "average": {"type": "number", "description": "bytes per message"},
    "small_share": {"type": "number", "description": "share of messages of 128 bytes and less"},
}

SizeKey = key(
    "by_key", comm=c.Comm("name of the process"), pid=c.Pid("process"), uid=c.Uid("its user"),
    cgroup=c.Cgroup(), netns=c.Netns(), family=AnyFamily("address family"),
    proto=c.Enum("protocol of the socket", PROTOS), op=c.Enum("operation", MESSAGES),
    laddr=c.Addr("local address"), lport=c.Port("local port", null=0),
    raddr=c.Addr("remote address"), rport=c.Port("remote port", null=0),
)  # fmt: skip
SizeSums = sums("sizes", "calls errors would_block peeks small")


def describe(histogram, sums):
    """Return the counts of calls, the average, the share of small messages, and a headline."""
    messages, total = histogram["count"] or 1, histogram["sum"]
    average, small = round(total / messages, 1), round(sums["small"] / messages, 4)
    others = {name: sums[name] for name in ("errors", "would_block", "peeks")}
    more = [f", {number} {name.replace('_', ' ')}" for name, number in others.items() if number]
    return {
        "calls": sums["calls"],
        "bytes": total,
        **others,
        "average": average,
        "small_share": small,
        "headline": f"{sums['calls']} calls, {total} bytes, average {average:.12g}, "
        f"{small:.0%} small{''.join(more)}",
    }


TOOL = Tool(
    __doc__,
    memory=Memory(5_000, cpu=2_000, entry=400, entry_cpu=376), cost=Cost(0.2, 2.3),
    histogram=Histogram(
        "sizes", SizeKey, "bytes", extra=SizeSums, describe=describe, fields=FIELDS,
        default=("op", "comm"), order="calls", limit="top",
    ),
    probes=(*MESSAGE_PROBES, SIGNAL),
    options=(
        *PROCESS,
        *NETNS,
        *SOCKET,
        Option("--op", metavar="LIST", parse=one_or_more(*MESSAGES.values()),
               help="only these operations: send, recv"),
        Option("--proto", metavar="LIST", parse=one_or_more(*PROTO_WORDS),
               help="only these protocols, such as tcp,unix"),
        Option("--top", metavar="N", parse=count, help="show the N keys with the most calls only"),
        Option("--map-entries", metavar="N", parse=count, default="1024",
               help="how many keys can be counted at once"),
    ),
    constants=call_filters,
)  # fmt: skip
