"""tcpnagle - how long TCP holds written data before it is sent, and why

DESCRIPTION
  When a program writes to a TCP socket, the data may not be sent immediately. Nagle's algorithm
  holds back a small write until earlier data is acknowledged, and if the peer delays its
  acknowledgements, that takes 40 ms: the classic pattern is write, write, read. This tool measures
  how long written data was held, from the end of the send until all of it was passed to the network
  device's queue, and shows the distribution per reason:

    nagle     small, and an earlier small segment is not acknowledged yet
    cork      small, and the program asked to wait: TCP_CORK, or MSG_MORE
    autocork  small, and earlier data is still in the device's queue (net.ipv4.tcp_autocorking)
    cwnd      the congestion window is full
    rwnd      the receiver's window is full: the other program does not read
    pacing    TCP paces the socket (SO_MAX_PACING_RATE, BBR)
    refused   TCP sent it, but the device's queue was full, a firewall rule rejected it, or there
              was no route: TCP tries again, and the data is held until a packet is accepted
    other     the device's queue has enough data of this socket (TCP small queues), segmentation
              waits for more data, or the connection is not established yet

  Sends whose data was sent immediately are not in the distribution. The table of sends counts them
  by the socket's setting: default (Nagle's algorithm is on), TCP_NODELAY (it is off), TCP_CORK,
  push (just set: the next data is sent immediately), and their combinations. JSON and CSV use ON,
  OFF, CORK and PUSH.

EXAMPLES
  netbpf tcpnagle                  all sockets, until Ctrl-C
  netbpf tcpnagle --top 10 5       every 5 seconds, with the ten sockets that held data longest
  netbpf tcpnagle --comm redis-server -d 10
  netbpf tcpnagle -D 5432 --json

  Write, write, read against a delayed acknowledgement (netbpf tcpnagle -d 2):

    reason=nagle
                       us : count     distribution
           32768 -> 65535 : 40        |****************************************|
    SETTING                        SENDS     SMALL      HELD
    default                          207       189        49

OVERHEAD
  A program of about 0.3 us per send, and one of less than 0.2 us per packet of the whole machine
  that checks whether its socket holds data, and per packet that is dropped. Data that is held costs
  about a microsecond more.

LIMITS
  The reason is the one at the end of the last send before the data left, or refused if its packet
  was refused after that. MSG_MORE counts as other, not cork, if the write is half of the largest
  window. Packets that the device's queue drops after accepting them, as fq_codel does, count as
  sent. P99 is the bound of a log2 bucket. A program that is blocked in send() because the socket's
  buffer is full is measured from its return. Writes while data is held start no new measurement.
  Data that was never sent because the socket was reset is not counted; data still held at the end
  is in the summary. Sends of the kernel itself and of MPTCP are not seen, nor is sendfile before
  6.5. Kernels before 6.3 need fentry or kprobes.
"""

from functools import partial

from netbpf.declare import (
    NETNS,
    PROCESS,
    SOCKET,
    Histogram,
    Option,
    Row,
    Table,
    Tool,
    stalls,
)
from netbpf.declare import columns as c
from netbpf.declare import probes as p
from netbpf.declare.calls import TCP_SEND
from netbpf.declare.costs import Cost
from netbpf.declare.memory import Memory
from netbpf.declare.options import count
from netbpf.declare.record import key, sums
from netbpf.declare.states import state_probe


class SettingRow(Row):
    """Sends by the socket's setting."""

    setting = stalls.Setting("the socket's setting after the send; ON: Nagle's algorithm is on")
    sends = c.Count("sends that sent something")
    small = c.Count("sends smaller than a segment")
    held = c.Count("sends after which data was held")


class StalledRow(Row):
    """A socket that held data in an interval, and for which reason."""

    pid = c.Pid("process that sent", width=6)
    comm = c.Comm("its name", width=8)
    laddr = c.Addr("local address", wide=True, priority=28)
    lport = c.Port("local port", wide=True, priority=32)
    raddr = c.Addr("remote address")
    rport = c.Port("remote port")
    holds = c.Count("how often it held data", width=5)
    held_us = c.Count("total time that data was held", width=9, wide=True)
    p99_us = stalls.Bound("99 % of the holds took at most this (bound of a log2 bucket)", width=8,
                          header="P99")  # fmt: skip
    small_writes = c.Count("writes below a segment whose data was held", width=5, header="SMALL",
                           wide=True)  # fmt: skip
    reason = c.Text("why it held data", width=8)
    advice = stalls.Advice("what would help, for the pattern write, write, read", width=18)
    netns = c.Netns()


SettingKey = key("setting_key", setting=c.Enum("setting", stalls.SETTINGS, ctype="u32"))
SettingSums = sums("setting_sums", "sends small held")
StalledSocket = key(
    "stalled_socket",
    sk=c.Count("address of the socket"),
    pid=c.Pid("process that sent"),
    netns=c.Netns(),
    lport=c.Port("local port"),
    rport=c.Port("remote port"),
    family=c.Family("address family"),
    comm=c.Comm("name of the process"),
    laddr=c.Addr("local address"),
    raddr=c.Addr("remote address"),
    reason=c.Enum("why it held data", stalls.REASONS),
)
StalledSums = sums(
    "stalled_sums", " ".join((*stalls.BUCKETS, "holds held_us small_writes rounds")),
    gauges="copied_seq",
)  # fmt: skip

TOOL = Tool(
    __doc__,
    memory=Memory(1_610_000, cpu=215_000, entry=840),
    cost=Cost(1.3, 8.7),
    histogram=Histogram("stall_times", stalls.StallKey, "us", fixed=("reason",),
                        unused=stalls.KEYS),
    table=(
        Table("settings", SettingKey, SettingSums, SettingRow, order="sends"),
        Table("stalled_sockets", StalledSocket, StalledSums, StalledRow, order="held_us",
              limit="top", complete=stalls.with_advice, per_cpu=False, option="top", forget=True),
    ),
    probes=(
        *TCP_SEND,
        p.tracepoint_probe("leave", "net:net_dev_queue", ("skb",), ("skbaddr",)),
        p.tracepoint_probe("free", "skb:kfree_skb", ("skb",), ("skbaddr",)),
        state_probe(),
    ),
    options=(
        *PROCESS,
        *NETNS,
        *SOCKET,
        Option("--top", metavar="N", parse=count, define="TOP",
               help="show the N sockets that held data longest"),
    ),
    counters=("TcpExt.TCPAutoCorking", "TcpExt.TCPFromZeroWindowAdv", "TcpExt.DelayedACKs"),
    histogram_notes=stalls.delayed_acks,
    pending_state=partial(stalls.still_held, StalledSocket),
    maps=("stalls",),
    summary_fields={
        "still_held": {"type": "integer", "description": "sockets that held data at the end"}
    },
)  # fmt: skip
