"""tcpnagle - how long written data waits in TCP before it leaves, and why

DESCRIPTION
  When a program writes to a TCP socket, the data need not leave at once. Nagle's algorithm holds a
  small write back until earlier data is acknowledged, and if the other end delays its
  acknowledgements, that takes 40 ms: the classic pattern is write, write, read. This tool measures
  how long written data was held, from the end of the send to the moment when all of it has passed
  to the network device's queue, and shows the distribution per reason:

    nagle     small, and an earlier small segment is not acknowledged yet
    cork      small, and the program asked to wait: TCP_CORK, or MSG_MORE
    autocork  small, and earlier data is still in the device's queue (net.ipv4.tcp_autocorking)
    cwnd      the congestion window is full
    rwnd      the receiver's window is full: the other program does not read
    pacing    TCP paces the socket (SO_MAX_PACING_RATE, BBR)
    refused   TCP sent it, and the device's queue was full, a firewall's rule forbade it, or it had
              no route: TCP tries again, and the data is held until a packet is not refused
    other     the device has enough of this socket (TCP small queues), segmentation waits for more
              data, or the connection is not established yet

  Sends whose data left at once are not in the distribution. The table of sends has their number, by
  the socket's own setting: default (Nagle's algorithm is on), TCP_NODELAY (it is off), TCP_CORK,
  push (just set, the next data leaves at once), and their combinations. JSON and CSV call them ON,
  OFF, CORK and PUSH.

EXAMPLES
  netbpf tcpnagle                  all sockets, until Ctrl-C
  netbpf tcpnagle --top 10 5       every 5 seconds, and the ten sockets that held most
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
  that looks whether its socket holds data, as well as per packet that is dropped. Data that is held
  costs about a microsecond more.

LIMITS
  The reason is that of the moment when the last send before the data left ended, or refused, if its
  packet was refused since then. MSG_MORE counts as other, not cork, where what it wrote is half of
  the largest window. Packets that the device's queue drops after it has taken them, as fq_codel
  does, have left. P99 is the bound of a log2 bucket. A program that is blocked in send() as the
  socket's buffer is full shows from its return on. Writes while data is held begin no measurement
  of their own. Data that never left, as the socket was reset, is not counted; what is still held at
  the end is in the summary. Sends of the kernel itself and of MPTCP are not seen, and below 6.5
  neither is sendfile. Kernels before 6.3 need fentry or kprobes.
"""

import struct

from netbpf.declare import NETNS, PROCESS, SOCKET, Histogram, Option, Record, Row, Table, Tool, sums
from netbpf.declare import columns as c
from netbpf.declare import probes as p
from netbpf.declare.costs import Cost
from netbpf.declare.histogram import SLOTS, bucket_bounds
from netbpf.declare.holds import Advice, Bound, Setting
from netbpf.declare.memory import Memory
from netbpf.declare.options import count
from netbpf.declare.states import state_probe

REASONS = dict(enumerate("nagle cork autocork cwnd rwnd pacing other refused".split()))
# TCP_NAGLE_OFF 1, TCP_NAGLE_CORK 2, TCP_NAGLE_PUSH 4
SETTINGS = dict(enumerate("ON OFF CORK OFF+CORK PUSH OFF+PUSH CORK+PUSH OFF+CORK+PUSH".split()))
ADVICE = "TCP_NODELAY or one write"


class StallKey(Record):
    """Why data was held."""

    cstruct = "stall_key"

    reason = c.Enum("why the data did not leave at once", REASONS, ctype="u32")


class SettingKey(Record):
    """The setting of the socket that is sent on."""

    cstruct = "setting_key"

    setting = c.Enum("setting", SETTINGS, ctype="u32")


class SettingSums(Record):
    """Sends with one setting."""

    cstruct = "setting_sums"

    sends = c.Count("sends")
    small = c.Count("smaller than a segment")
    held = c.Count("sends after which data was held")


class SettingRow(Row):
    """Sends by the socket's setting."""

    setting = Setting("the socket's own setting after the send; ON: Nagle's algorithm is on")
    sends = c.Count("sends that sent something")
    small = c.Count("of these, smaller than a segment")
    held = c.Count("of these, after which data was held")


class StalledSocket(Record):
    """A socket that held data."""

    cstruct = "stalled_socket"

    sk = c.Count("address of the socket")
    pid = c.Pid("process that sent")
    netns = c.Netns()
    lport = c.Port("local port")
    rport = c.Port("remote port")
    family = c.Family("address family")
    comm = c.Comm("name of the process")
    laddr = c.Addr("local address")
    raddr = c.Addr("remote address")
    reason = c.Enum("why it held data", REASONS)


# As struct histogram: buckets, number and sum.
_SLOTS = [f"slot{number}" for number in range(SLOTS)]
StalledSums = sums(
    "stalled_sums", " ".join((*_SLOTS, "holds held_us small_writes rounds")), gauges="copied_seq"
)


class StalledRow(Row):
    """A socket that held data in an interval, and for which reason."""

    pid = c.Pid("process that sent", width=6)
    comm = c.Comm("its name", width=8)
    laddr = c.Addr("local address", wide=True, priority=28)
    lport = c.Port("local port", wide=True, priority=32)
    raddr = c.Addr("remote address")
    rport = c.Port("remote port")
    holds = c.Count("how often it held data", width=5)
    held_us = c.Count("time of all holds", width=9, wide=True)
    p99_us = Bound(
        "99 % of the holds were at most so long (bound of a log2 bucket)", width=8, header="P99"
    )
    small_writes = c.Count(
        "writes below a segment whose data was held", width=5, header="SMALL", wide=True
    )
    reason = c.Text("why", width=8)
    advice = Advice("what would help, where it is write-write-read", width=18)
    netns = c.Netns()


def stalled_rows(groups, settings):
    """Make a row for each of the sockets that held data longest."""
    found = sorted(groups, key=lambda group: -group[1]["held_us"])[: settings["top"]]
    return [_stalled_row({**key, **sums}) for key, sums in found]


def _stalled_row(row):
    rank, seen, row["p99_us"] = -(-row["holds"] * 99 // 100), 0, None
    for slot, name in enumerate(_SLOTS):
        seen += row[name]
        if seen >= rank:
            row["p99_us"] = bucket_bounds(slot)[1]
            break
    # A write waits for the acknowledgement of the one before it, then an answer is read.
    pattern = row["reason"] == "nagle" and row["holds"] > 1 and row["rounds"] * 2 >= row["holds"]
    row["advice"] = ADVICE if pattern else None
    return {column.name: row[column.name] for column in StalledRow.columns}


def still_held(now, maps):
    """Return how many sockets still hold data, and notes on the oldest: no distribution has it."""
    decode, layout, start = StalledSocket.decoder(), StalledSocket.layout(), struct.Struct("=Q")
    waiting = [
        (now - start.unpack_from(raw, StalledSocket.size)[0], decode(layout.unpack_from(raw)))
        for raw in maps["stalls"]
    ]
    waiting.sort(key=lambda one: -one[0])
    notes = [
        f"still held: {sk['comm']} (pid {sk['pid']}) to {sk['raddr']} port "
        f"{sk['rport']}, for {age / 1e6:.1f} ms ({sk['reason']})"
        for age, sk in waiting[:5]
    ]
    return {"still_held": len(waiting)}, notes


def conclude(found):
    """Return a note if the stalls are typical of delayed acknowledgements."""
    slow = [h for h in found if h["key"]["reason"] == "nagle" and h["percentiles"]["p50"] > 32000]
    return ["nagle holds of 32 ms and more: the other end delays its acknowledgements"] * len(slow)


TOOL = Tool(
    __doc__,
    memory=Memory(1_610_000, cpu=215_000, entry=840),
    cost=Cost(1.3, 8.7),
    histogram=Histogram("stall_times", StallKey, "us"),
    table=(
        Table("settings", SettingKey, SettingSums, SettingRow, order="sends"),
        Table("stalled_sockets", StalledSocket, StalledSums, StalledRow, stalled_rows,
              per_cpu=False, option="top", forget=True),
    ),
    probes=(
        p.Probe(
            "send",
            p.RawTracepoint("sock_send_length", args=("sk", "ret")),
            p.Tracepoint("sock:sock_send_length", args=("sk", "ret")),
            p.Fexit("tcp_sendmsg", args=("sk", "return")),
            p.Kretprobe("tcp_sendmsg", args=("return",), call="on_send_return"),
        ),
        p.Probe("enter_send", p.Kprobe("tcp_sendmsg", args=("sk", "0", "0"), call="begin_call"),
              optional=True, with_probe="send"),
        p.Probe(
            "leave",
            p.RawTracepoint("net_dev_queue", args=("skb",)),
            p.Tracepoint("net:net_dev_queue", args=("skbaddr",)),
        ),
        p.Probe(
            "free",
            p.RawTracepoint("kfree_skb", args=("skb",)),
            p.Tracepoint("skb:kfree_skb", args=("skbaddr",)),
        ),
        state_probe(),
    ),
    options=(
        *PROCESS,
        *NETNS,
        *SOCKET,
        Option("--top", metavar="N", parse=count, help="show the N sockets that held data longest"),
    ),
    constants=lambda settings: {"TOP": 1} if settings.get("top") else {},
    counters=("TcpExt.TCPAutoCorking", "TcpExt.TCPFromZeroWindowAdv", "TcpExt.DelayedACKs"),
    histogram_notes=conclude,
    pending_state=still_held,
    maps=("stalls",),
    summary_fields={
        "still_held": {"type": "integer", "description": "sockets that held data at the end"}
    },
)  # fmt: skip
