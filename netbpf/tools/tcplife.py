"""tcplife - finished TCP sessions: process, duration, bytes and reason of the end

DESCRIPTION
  Shows each TCP session when it ends: both ends, the process that owned this machine's end, the
  bytes that programs wrote and read (without SYN and FIN, which the kernel counts as well), how
  long the handshake and the session took, and which end closed it how. An attempt to connect that
  failed is shown as refused or timeout, and not as an empty session.

  A session between two programs of this machine is two sockets, and so two lines.

EXAMPLES
  netbpf tcplife                          all sessions as they end
  netbpf tcplife -L 80,443                those to this machine's web server
  netbpf tcplife --raddr 10.1.0.0/16 -w   those with one network, all columns
  netbpf tcplife -p 1234 --json           one process's, as JSON lines
  netbpf tcplife --open -d 10             10 seconds, then those still open

  A client and a server of this machine, two lines per session (netbpf tcplife):

        PID COMM       LADDR           LPORT RADDR           RPORT TX_KB RX_KB    MS
       9328 demo-serve ::1             43005 ::1             49934  0.21  0.01  7.92
       9329 demo-ask   ::1             49934 ::1             43005  0.01  0.21  7.97
       9328 demo-serve ::1             43005 ::1             49936  4.00  0.01  5.63
       9329 demo-ask   ::1             49936 ::1             43005  0.01  4.00  5.69

HOW A SESSION ENDS
  close is what ended the session, by what this end sent and received:

    rst-local     a RST of this end: closed with data unread or with SO_LINGER 0, reset by ss -K,
                  by its listener's end, or by data that came after the close
    rst-remote    a RST of the other end
    fin-local     no RST; the first FIN was this end's. Both ends show this if their FINs crossed
    fin-remote    no RST; the first FIN was the other end's. ss -K sends none after both FINs
    timeout       the kernel gave up waiting: retransmission, keepalive, TCP_USER_TIMEOUT. It may
                  have sent a RST then
    unreachable   it gave up, and an ICMP error or its own routing had given a reason
    refused       an attempt to connect that a RST, or ICMP's port unreachable, answered
    aborted       an attempt to connect that this end gave up
    silent        this end dropped the session without a FIN or a RST: closed in repair mode (as
                  checkpoint tools do), its network namespace was gone, or memory ran out

  A socket that enters TIME_WAIT is closed for the program, and its line is written: a RST that is
  received or sent later is not part of it.

OVERHEAD
  A program of about a microsecond per change of a TCP state, four to seven times per session, and
  one per RST and per bpf(2) call; never one per packet. The accept system calls are traced as well,
  on kernels without kprobes through the syscall tracepoints. What filters exclude is left out at
  the first change of state, except for sessions that a process may still accept.

LIMITS
  Sessions that began before the start show no duration and no handshake, nor do sessions that were
  restored in repair mode, which have no role either. The owner is the process that connected,
  accepted, or last closed; for open sessions that a process passed on, it is the process that
  opened them. Sessions accepted through io_uring get their owner when they are closed, unless
  fentry or kprobes are used. tx_bytes counts what was written, tx_unacked the part that the peer
  never acknowledged. handshake_us of an accepted session is null where the kernel keeps no time of
  it: SYN-ACK sent again, TCP_DEFER_ACCEPT, SYN cookies. A connect() that sends no SYN (no free
  port, Fast Open that waits for data) gets no line. Bytes of a socket in a sockmap are null, as
  they bypass TCP; sockets that a BPF program put there are noticed when a session is set up,
  accepted, or closed by the other end. A line may come 20 ms late, as a RST can follow it. --open
  lists sockets that processes hold, not sockets that wait to be accepted. MPTCP shows its subflows,
  of which only the first one has its owner at once.
"""

from netbpf.declare import NETNS, PROCESS, SOCKET, U64_MAX, AmendedEvent, Option, Tool
from netbpf.declare import columns as c
from netbpf.declare import probes as p
from netbpf.declare.costs import Cost
from netbpf.declare.memory import Memory
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
    """A TCP session at its end, or still open."""

    cstruct = "session"
    amended = "close"

    pid = c.Pid("process that owns this end")
    comm = c.Comm("its name", width=10)
    owner = c.Owner(
        "how the owner is known: exact, snapshot (existed at start) or unknown", wide=True
    )
    family = c.Family("address family, IPv4-mapped counts as ipv4", wide=True)
    laddr = c.Addr("local address", priority=28)
    lport = c.Port("local port", priority=32)
    raddr = c.Addr("remote address")
    rport = c.Port("remote port")
    tx_bytes = c.Bytes("bytes that the owner wrote", header="TX_KB", width=5, null=U64_MAX)
    rx_bytes = c.Bytes(
        "bytes that were received from the peer", header="RX_KB", width=5, null=U64_MAX
    )
    handshake_us = c.Duration(
        "active: from the SYN on; passive: SYN-ACK to ACK", header="HS_MS", wide=True
    )
    duration_us = c.Duration("established to closed (or to now, if open)", header="MS", width=5)
    retrans = c.Count("segments that were sent again", ctype="u32", width=7, wide=True)
    srtt_us = c.Micros("smoothed round trip time", header="SRTT_US", wide=True)
    role = c.Enum("active: connected, passive: accepted", ROLES, wide=True)
    close = c.Enum("what ended it", CLOSES, width=11, wide=True, priority=75, alert=BROKEN)
    state = c.TcpState("TCP state: CLOSE, or what an open session is in", wide=True)
    tx_unacked = c.Count(
        "bytes written that the peer never acknowledged", wide=True, width=10, null=U64_MAX
    )
    uid = c.Uid("user id of the owner", wide=True)
    netns = c.Netns()
    cgroup = c.Cgroup()


TOOL = Tool(
    __doc__,
    memory=Memory(3_520_000, cpu=50_000, entry=224),
    cost=Cost(4.7, 42.5),
    event=Session,
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
        Option("--open", help="list sessions that are still open, at each INTERVAL and at exit"),
        Option("-s", help="same as --output csv (as in bcc)", sets={"output": "csv"}),
    ),
    counters=(
        "Tcp.ActiveOpens",
        "Tcp.PassiveOpens",
        "Tcp.AttemptFails",
        "Tcp.EstabResets",
        "Tcp.OutRsts",
    ),
    identity=ends_of,
    summary_fields={"open": {"type": "integer", "description": "sessions open at the end"}},
)
