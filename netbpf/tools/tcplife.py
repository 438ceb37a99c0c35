"""tcplife - TCP sessions, finished or open: process, duration, bytes, how they ended

DESCRIPTION
  Shows each TCP session when it ends: both endpoints, the process that owned the local end, the
  bytes that programs wrote and read (without SYN and FIN, which the kernel also counts), how long
  the handshake and the session took, which end closed it, and how. A failed attempt to connect is
  shown as refused or timeout, not as an empty session.

  A session between two programs of this machine has two sockets, and therefore two lines.

  --open lists the sessions that are still open, with their state, age, idle time and the bytes that
  wait: received and not read by the owner (UNREAD), written and not sent (UNSENT), and written and
  not acknowledged by the peer (UNACKED, those not sent included). --state, --min-idle and --min-age
  list only such sessions, and no session that ends. "Which connections are old and idle" is

    netbpf tcplife --min-idle 10m -d 1

EXAMPLES
  netbpf tcplife                          all sessions as they end
  netbpf tcplife -L 80,443                sessions with this machine's web server
  netbpf tcplife --raddr 10.1.0.0/16 -w   sessions with one network, all columns
  netbpf tcplife -p 1234 --json           sessions of one process, as JSON lines
  netbpf tcplife --open -d 10             trace for 10 seconds, then list open sessions
  netbpf tcplife --min-idle 10m -d 1      open sessions without data for ten minutes
  netbpf tcplife --state close-wait -d 1  sessions that a program of this machine does not close
  netbpf tcplife --open --by comm,state 5  how many sessions each program has open, by state

  A client and a server of this machine, two lines per session (netbpf tcplife):

        PID COMM       LADDR           LPORT RADDR           RPORT TX_KB RX_KB    MS
       9328 demo-serve ::1             43005 ::1             49934  0.21  0.01  7.92
       9329 demo-ask   ::1             49934 ::1             43005  0.01  0.21  7.97
       9328 demo-serve ::1             43005 ::1             49936  4.00  0.01  5.63
       9329 demo-ask   ::1             49936 ::1             43005  0.01  4.00  5.69

HOW A SESSION ENDS
  The column close shows what ended the session, derived from what the local end sent and received:

    rst-local     this end sent a RST: the program closed it with unread data or with SO_LINGER 0,
                  ss -K reset it, its listener was closed, or data arrived after the close
    rst-remote    the other end sent a RST
    fin-local     no RST; this end sent the first FIN. Both ends show this if their FINs crossed
    fin-remote    no RST; the other end sent the first FIN. ss -K sends no RST after both FINs
    timeout       the kernel gave up waiting: retransmission, keepalive, TCP_USER_TIMEOUT. It may
                  have sent a RST then
    unreachable   the kernel gave up after an ICMP error or a routing failure
    refused       a RST, or an ICMP port unreachable, answered an attempt to connect
    aborted       this end gave up an attempt to connect
    silent        this end dropped the session without a FIN or a RST: closed in repair mode (by
                  checkpoint tools), its network namespace was removed, or memory ran out

  The line of a session is written when its socket enters TIME_WAIT, as the program has closed it
  then; a RST that is received or sent later is ignored.

OVERHEAD
  A program of about a microsecond per change of a TCP state, four to seven times per session, and
  one per RST and per bpf(2) call; none per packet. The accept system calls are also traced, on
  kernels without kprobes through the syscall tracepoints. Sessions that filters exclude are ignored
  from the first change of state on, unless a process may still accept them.

LIMITS
  The kernel does not store when a session began. For sessions older than the start, age_us is at
  least that long (">" in text): the time since the earlier of the last data sent and received.
  idle_us is as exact as the kernel's tick, 1 to 10 ms. Data in a sockmap is in none of these.
  duration_us and handshake_us are null for sessions that began before the start, and for sessions
  that were restored in repair mode, whose role is also null. The owner is the process that
  connected, accepted, or last closed; for an open session that was passed to another process, it is
  the process that opened it. The owner of a session accepted through io_uring is determined when it
  is closed, unless fentry or kprobes are used. tx_bytes counts the bytes written, tx_unacked those
  that the peer never acknowledged. handshake_us of an accepted session is null where the kernel
  does not store it: retransmitted SYN-ACK, TCP_DEFER_ACCEPT, SYN cookies. A connect() that sends no
  SYN (no free port, Fast Open without data yet) has no line. Byte counts of a socket in a sockmap
  are null, as its data bypasses TCP; if a BPF program added the socket, netbpf notices when a
  session is set up, accepted, or closed by the other end. A line may be 0.1 s late, as a RST can
  follow it. --open lists sockets that processes hold open, not sockets that wait to be accepted.
  MPTCP sessions are shown as subflows; only the first one has an owner immediately.
"""

from netbpf.declare import NETNS, PROCESS, SOCKET, U64_MAX, AmendedEvent, Option, Row, Tool
from netbpf.declare import aggregation as a
from netbpf.declare import columns as c
from netbpf.declare import probes as p
from netbpf.declare.constants import tick
from netbpf.declare.costs import Cost
from netbpf.declare.memory import Memory
from netbpf.declare.open_sessions import FILTERS_OF_OPEN, OPEN_ROWS, only_open, open_columns, passes
from netbpf.declare.resets import RESET_PROBES
from netbpf.declare.sockets import ends_of
from netbpf.declare.states import state_probe

ROLES = {0: None, 1: "active", 2: "passive"}
CLOSES = dict(enumerate((
    None, "fin-local", "fin-remote", "rst-local", "rst-remote", "timeout", "refused", "unreachable",
    "aborted", "silent",
)))  # fmt: skip
BROKEN = ("rst-remote", "timeout", "refused", "unreachable")  # ends that deserve attention


class Session(AmendedEvent):
    """A TCP session that has ended, or is open."""

    cstruct = "session"
    amended = "close"

    pid = c.Pid("process that owns this end")
    comm = c.Comm("its name", width=10)
    owner = c.Owner(
        "how the owner was found: exact, snapshot (open at the start) or unknown", wide=True
    )
    family = c.Family("address family, IPv4-mapped counts as ipv4", wide=True)
    laddr = c.Addr("local address", priority=28)
    lport = c.Port("local port", priority=32)
    raddr = c.Addr("remote address")
    rport = c.Port("remote port")
    tx_bytes = c.Bytes("bytes that the owner wrote", header="TX_KB", width=5, null=U64_MAX)
    rx_bytes = c.Bytes("bytes received from the peer", header="RX_KB", width=5, null=U64_MAX)
    handshake_us = c.Duration(
        "active: SYN to established; passive: SYN-ACK to ACK", header="HS_MS", wide=True
    )
    duration_us = c.Duration("established to closed (or to now, if open)", header="MS", width=5)
    retrans = c.Count("retransmitted segments", ctype="u32", width=7, wide=True)
    srtt_us = c.Micros("smoothed round trip time", header="SRTT_US", wide=True)
    role = c.Enum("active: connected, passive: accepted", ROLES, wide=True)
    close = c.Enum("how the session ended", CLOSES, width=11, wide=True, priority=75,
                   alert=BROKEN)  # fmt: skip
    state = c.TcpState("TCP state: CLOSE, or the state of an open session", wide=True)
    tx_unacked = c.Count(
        "written bytes that the peer never acknowledged", wide=True, width=10, null=U64_MAX
    )
    uid = c.Uid("user id of the owner", wide=True)
    netns = c.Netns()
    cgroup = c.Cgroup()
    age_us, idle_us, rx_unread, tx_unsent = open_columns().values()


class SessionsRow(Row):
    """The sessions of a key that ended in an interval."""

    pid = c.Pid("process that owns this end")
    comm = c.Comm("its name", width=10)
    sessions = c.Count("sessions that ended", width=8, over=a.Number())
    open = c.Count(
        "sessions that were open at the end (--open)", width=5, over=a.Number(when=a.pending)
    )
    tx_bytes = c.Bytes(
        "bytes that the owner wrote", header="TX_KB", width=8, over=a.Sum("tx_bytes")
    )
    rx_bytes = c.Bytes("bytes received", header="RX_KB", width=8, over=a.Sum("rx_bytes"))
    retrans = c.Count("retransmitted segments", width=7, over=a.Sum("retrans"))
    p50_us = c.Duration(
        "median duration", header="P50_MS", width=8, over=a.Percentile("duration_us", 50)
    )
    p99_us = c.Duration(
        "99 % were no longer", header="P99_MS", width=8, over=a.Percentile("duration_us", 99)
    )


TOOL = Tool(
    __doc__,
    memory=Memory(3_520_000, cpu=50_000, entry=224),
    cost=Cost(4.7, 42.5),
    event=Session,
    aggregation=a.Aggregation(SessionsRow, ("pid", "comm"), order="sessions"),
    probes=(
        state_probe(),
        *RESET_PROBES,
        p.Probe(
            "sockmap", p.Tracepoint("syscalls:sys_enter_bpf", args=("cmd", "uattr")), optional=True
        ),
        p.Probe("open", p.Iterator("task_file"), role=p.Role.OPEN, option="open"),
    ),
    owners=True,
    interval=True,
    options=(
        *PROCESS,
        *NETNS,
        *SOCKET,
        *FILTERS_OF_OPEN,
        Option("-s", help="same as --output csv, as in bcc's tcplife", sets={"output": "csv"}),
    ),
    counters=(
        "Tcp.ActiveOpens", "Tcp.PassiveOpens", "Tcp.AttemptFails", "Tcp.EstabResets", "Tcp.OutRsts",
    ),
    constants=tick,
    enrich=passes,
    enriches=only_open,
    identity=ends_of,
    open_rows=OPEN_ROWS,
    summary_fields={"open": {"type": "integer", "description": "sessions open at the end"}},
)  # fmt: skip
