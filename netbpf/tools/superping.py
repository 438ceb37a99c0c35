"""superping - ping (ICMP echo): round trip times of the network, lost requests

DESCRIPTION
  Shows each echo request (ping) that a program of this machine sends, when the program has read the
  answer, or none can come any more.

    RTT_MS   rtt_us   the request is handed to a device's queue, to: the answer comes off a device.
                      This is the network, with the queues of devices on both sides, and without the
                      time that the program takes, which is part of what ping prints
    READ_MS  wait_us  the answer comes off a device, to: the program has read it

  RESULT is one of:

    reply          the other host replied
    unreachable, time-exceeded, too-big, bad-header
                   an ICMP error came instead. FROM (-w) is the address that sent it: a router, or
                   this machine, if the other host does not answer ARP or neighbour discovery
    dropped        this machine dropped the request on its way to the device, and no answer came:
                   'netbpf skbdrop' shows why
    lost           no answer came until the program closed its socket or ended, or within --timeout
    waiting        not over: listed at the exit, and at each INTERVAL if one is given. If an answer
                   has come, and waits to be read, its result is shown instead

  --forwarded also shows requests of other hosts that pass this machine, a router or a host of
  virtual machines: then rtt_us is the time between this machine and the destination. No process
  belongs to them, and they are lost after --timeout.

  AGE_MS is how long a request without an answer has been waiting. A reply without READ_MS was never
  read. --summary counts requests by destination, or by the keys of --by.

EXAMPLES
  netbpf superping                    each ping, until Ctrl-C
  netbpf superping --raddr 192.0.2.0/24 -w
                                      those of a network, also with who answered
  netbpf superping --lost             only those without a reply
  netbpf superping --min-ms 100       those that took longer, or that have no answer
  netbpf superping --summary 10       every 10 seconds, losses and times by destination
  netbpf superping --histogram rtt_us --by raddr -d 60
                                      the distribution of times by destination
  netbpf superping --json | jq 'select(.result == "unreachable") | .from_addr'

  Pings of a host that replies, of one behind a router that cannot be reached, of one that is not
  in the local network, and of one that does not reply (netbpf superping):

       PID COMM         RADDR              ID   SEQ    RTT_MS READ_MS RESULT
     14220 ping         10.91.7.2       14220     1      0.03    0.03 reply
     14220 ping         10.91.7.2       14220     2      0.04    0.03 reply
     14243 ping         198.51.100.7    14243     1      0.03    0.02 unreachable
     14245 ping         10.91.7.99      14245     1         -    0.06 unreachable
     14364 ping         10.91.7.2       14364     1         -       - lost
     14524 ping         fd00:97::2      14524     1      0.03    0.02 reply

OVERHEAD
  About 0.2 us for each packet that is handed to a device or its driver, comes off a device, is read
  or dropped, and for each message that is sent, to see that it is no ICMP. An echo request costs
  about 8 us in all, and the reader 10 us.

LIMITS
  Requests of packet sockets (nmap) count as forwarded. Replies of this machine to others are not
  shown. Answers to requests that were sent before the start have no
  line, nor have answers that come after the request was given up (--timeout).
  A closed socket is noticed within a second: AGE_MS of a lost request ends then.
  The owner is the process that read the answer, or that sent last on the socket of the request.
  Kernels before 6.3 need fentry or kprobes for the second; otherwise it is unknown, and filters of
  processes pass only requests whose answer was read.
  RTT_MS is unknown if the request never got to a device. It ends with the first fragment of a reply
  in fragments; LEN is unknown of a request in fragments. A request to a broadcast or multicast
  address ends with the first answer that is read. Looking at an answer (MSG_PEEK) is a read.
"""

from netbpf.declare import NETNS, PROCESS, SOCKET, Cost, Event, Option, Tool, echoes
from netbpf.declare import aggregation as a
from netbpf.declare import columns as c
from netbpf.declare import probes as p
from netbpf.declare.memory import Memory
from netbpf.declare.options import by_name, milliseconds, nanoseconds, seconds
from netbpf.declare.sockets import LocalAddr

ADDRESSES = tuple(by_name(SOCKET)[name] for name in ("ipv4", "ipv6", "laddr", "raddr"))


class Echo(Event):
    """An echo request, and what came of it."""

    cstruct = "echo"

    pid = c.Pid("process that read the answer, or that sent last on the socket")
    comm = c.Comm("its name", width=8)
    owner = c.Owner("exact if the process is known, else unknown", wide=True)
    family = c.Family("address family", wide=True)
    laddr = c.Addr("local address", wide=True, priority=28)
    raddr = c.Addr("address that was asked")
    ident = c.Count("identifier of the request", ctype="u16", width=5, header="ID")
    seq = c.Count("number of the request", ctype="u16", width=5)
    len_ = c.Count("length of the request with its IP header", ctype="u32", width=5, null=0,
                   wide=True)  # fmt: skip
    ttl = c.Count("TTL or hop limit that the answer came with", ctype="u8", width=3, null=0,
                  wide=True)  # fmt: skip
    rtt_us = c.Duration("request at the device's queue to answer off a device", header="RTT_MS")
    wait_us = c.Duration("answer off the device to its read by the program", header="READ_MS",
                         width=7)  # fmt: skip
    age_us = c.Duration("without an answer: since the request", header="AGE_MS", wide=True)
    result = c.Enum("what came of it", echoes.RESULTS, width=13, priority=75,
                    alert=(*echoes.ERRORS, *echoes.UNANSWERED))  # fmt: skip
    from_addr = LocalAddr("address that sent the answer", header="FROM", wide=True)
    dev = c.Text("device that the request left by", width=8, wide=True)
    uid = c.Uid("user id of the owner", wide=True)
    netns = c.Netns()
    cgroup = c.Cgroup()


TOOL = Tool(
    __doc__,
    memory=Memory(1_000_000, cpu=26_000, entry=400), cost=Cost(3.7, 8.0),
    event=Echo,
    aggregation=a.Aggregation(echoes.PingRow, ("raddr",), order="requests"),
    interval=True,
    probes=(
        p.tracepoint_probe("sent", "net:net_dev_queue", ("skb", "QUEUED"), ("skbaddr", "QUEUED"),
                           call="on_echo"),
        p.tracepoint_probe("driver", "net:net_dev_start_xmit", ("skb", "WITH_DRIVER"),
                           ("skbaddr", "WITH_DRIVER"), call="on_echo"),
        p.tracepoint_probe("dropped", "skb:kfree_skb", ("skb", "DROPPED"), ("skbaddr", "DROPPED"),
                           call="on_echo"),
        p.tracepoint_probe("answer", "net:netif_receive_skb", ("skb",), ("skbaddr",)),
        p.tracepoint_probe("taken", "skb:skb_copy_datagram_iovec", ("skb",), ("skbaddr",)),
        p.Probe("send", *p.tracepoints("sock:sock_send_length", ("sk",), ("sk",)),
                p.Fentry("inet_sendmsg", args=("sock",), call="on_sendmsg"),
                p.Kprobe("inet_sendmsg", args=("sock",), call="on_sendmsg"),
                optional=True, loses=("pid", "comm")),
        p.Probe("sweep", p.Iterator("bpf_map_elem", over="echoes"), role=p.Role.SWEEP),
        p.Probe("forget", p.Iterator("bpf_map_elem", over="pingers"), role=p.Role.SWEEP),
        p.Probe("open", p.Iterator("bpf_map_elem", over="echoes"), role=p.Role.OPEN),
    ),
    options=(
        *PROCESS, *NETNS, *ADDRESSES,
        Option("--forwarded", define="FORWARDED",
               help="also show requests that this machine only forwards"),
        Option("--lost", define="ONLY_LOST", help="only requests that got no reply"),
        Option("--min-ms", metavar="MS", parse=milliseconds, define="MIN_NS", number=nanoseconds,
               help="only requests whose answer took at least this long, or has not come by then"),
        Option("--timeout", metavar="TIME", parse=seconds, default="10", define="TIMEOUT_NS",
               number=lambda span: int(span * 1e9),
               help="how long to wait for an answer, and for the program to read it"),
    ),
    no_filter="ICMP has no ports",
    counters=("Icmp.OutEchos", "Icmp.InEchoReps", "Icmp6.OutEchos", "Icmp6.InEchoReplies"),
    identity=echoes.request_of,
    summary_fields={"open": {"type": "integer", "description": "requests that were not over"}},
)  # fmt: skip
