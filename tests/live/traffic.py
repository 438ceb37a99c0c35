"""Known TCP traffic: sessions between processes that do exactly what they are told.

A `Peer` is a process (programs/tcp_peer.py) with a known pid and name, in a namespace, cgroup and
under a user of choice. `connect(client, server)` makes a `Session`; whatever it is made to do, it
knows the lines with which tcplife must report it: `session.lines()`. `play(...)` makes many.

What makes the numbers certain: a step ends only when both programs have done their part, and data
counts as transferred when it is acknowledged, so nothing is in flight when a session is reset.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from harness import TIMEOUT, Json, accepting, kill, wait_until
from topology import Host

PROGRAM = Path(__file__).parent / "programs" / "tcp_peer.py"
REFUSED_PORT = 9  # nobody listens there
DROPPED_PORT = 10  # SYNs to it are dropped while `play` is at work
UNREAD = 17  # bytes that a closer leaves unread, or fewer if there are fewer
SIZES = (0, 1, 7, 1234, 1448, 4099, 16411, 65537, 100003)
# How a client reaches its server: ipv4 and ipv6 as the names say; `mapped` is an IPv4 client of a
# dual-stack listener, `mapped-client` an IPv6 socket that connects to ::ffff:a.b.c.d.
FAMILIES = ("ipv4", "ipv6", "mapped", "mapped-client")
# Name of an end -> how the client's and the server's line must call it.
ENDS = {
    "client-fin": ("fin-local", "fin-remote"),
    "server-fin": ("fin-remote", "fin-local"),
    "client-half": ("fin-local", "fin-remote"),  # the server answers after the client's FIN
    "client-reset": ("rst-local", "rst-remote"),  # SO_LINGER 0
    "server-reset": ("rst-remote", "rst-local"),
    "client-unread": ("rst-local", "rst-remote"),  # close with unread data
    "server-unread": ("rst-remote", "rst-local"),
    "refused": ("refused", ""),
    "timeout": ("timeout", ""),
}

ids = itertools.count(1)
# Below those that the kernel chooses; each is used once, as TIME_WAIT holds it for a minute.
OWN_PORTS = range(20000, 32768)
_own_ports = iter(OWN_PORTS)


class Line(NamedTuple):
    """What tcplife must say about one end of a session, as far as that is certain."""

    family: str
    laddr: str
    lport: int
    raddr: str
    rport: int
    tx_bytes: int
    rx_bytes: int
    role: str
    close: str | None
    owner: str
    pid: int
    comm: str

    @classmethod
    def of(cls, event: Json) -> Line:
        """Return the same facts of an event."""
        return cls(*(event[name] for name in cls._fields))


class Plan(NamedTuple):
    """A session to be made: bytes `up` from client to server, `down` back, and how it ends."""

    family: str
    end: str
    up: int
    down: int
    own_port: bool = False  # the client binds a port of its own before it connects


class Peer:
    """A process that is one end of sessions; `ask` waits for the answer, `tell` does not."""

    def __init__(self, control: socket.socket, comm: str, host: Host | None) -> None:
        control.settimeout(TIMEOUT * 2)  # the program's own limit comes first
        self._control = control
        self._process: subprocess.Popen[bytes] | None = None
        self.comm = comm
        self.host = host
        self.listeners: dict[str, tuple[int, int]] = {}  # family -> id, port
        self.pid = 0

    @classmethod
    def start(
        cls, comm: str, host: Host | None = None, uid: int = 0, cgroup: Path | None = None
    ) -> Peer:
        """Start a process named `comm`."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        program = [sys.executable, "-I", "-S", str(PROGRAM), str(theirs.fileno()), comm]
        program += [str(TIMEOUT), *([str(uid)] if uid else [])]
        if host:
            program = host.inside(*program)
        if cgroup:
            script = 'echo $$ > "$0/cgroup.procs"; exec "$@"'
            program = ["sh", "-c", script, str(cgroup), *program]
        peer = cls(ours, comm, host)
        with theirs:
            peer._process = subprocess.Popen(program, pass_fds=[theirs.fileno()])
        peer.pid = peer.ask("hello")["pid"]
        return peer

    def fork(self, comm: str) -> Peer:
        """Make the process fork: the child has the same sockets under the same ids."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        order = json.dumps({"do": "fork", "comm": comm}).encode()
        with theirs:
            socket.send_fds(self._control, [order], [theirs.fileno()])
        self.answer()
        child = Peer(ours, comm, self.host)
        child.listeners = dict(self.listeners)
        child.pid = child.ask("hello")["pid"]
        return child

    def tell(self, do: str, **words: Any) -> None:
        """Give an order whose answer is fetched later."""
        self._control.send(json.dumps({"do": do, **words}).encode())

    def answer(self) -> Json:
        """Return the answer to the oldest order without one."""
        answer = json.loads(self._control.recv(65536) or b'{"error": "the process has ended"}')
        assert "error" not in answer, f"{self.comm}: {answer['error']}"
        return dict(answer)

    def ask(self, do: str, **words: Any) -> Json:
        """Give an order and return the answer."""
        self.tell(do, **words)
        return self.answer()

    def listen(self, family: str, port: int = 0, backlog: int = 128) -> int:
        """Listen on all addresses for clients of this family and return the port."""
        stack = "ipv4" if family in ("ipv4", "mapped-client") else "ipv6"
        addr = "0.0.0.0" if stack == "ipv4" else "::"
        order = {"family": stack, "addr": addr, "port": port, "dual": family == "mapped"}
        ident = next(ids)
        port = self.ask("listen", id=ident, backlog=backlog, **order)["port"]
        self.listeners[family] = (ident, port)
        return port

    def stop(self) -> None:
        """End the process and all its sockets, and wait until it is gone."""
        self._control.close()
        if self._process is None:  # a grandchild: not ours to wait for
            wait_until(lambda: not Path(f"/proc/{self.pid}").exists(), what="the child's end")
            return
        try:
            self._process.wait(TIMEOUT)
        finally:
            kill(self._process)


@contextlib.contextmanager
def peers() -> Iterator[Any]:
    """Yield a function like Peer.start; all that it started end with the block."""
    with contextlib.ExitStack() as stack:

        def start(*words: Any, **options: Any) -> Peer:
            peer = Peer.start(*words, **options)
            stack.callback(peer.stop)
            return peer

        yield start


def address(host: Host | None, family: str) -> tuple[str, str]:
    """Return the socket family and the address by which clients of `family` reach `host`."""
    four, six = (host.ipv4, host.ipv6) if host else ("127.0.0.1", "::1")
    if family == "ipv6":
        return "ipv6", six
    return ("ipv6", f"::ffff:{four}") if family == "mapped-client" else ("ipv4", four)


def plain(name: Sequence[Any]) -> tuple[str, int]:
    """Return a socket's name as tools print it: IPv4-mapped addresses as IPv4."""
    return str(name[0]).replace("::ffff:", ""), int(name[1])


class Session:
    """A session between two peers; `server` is None for an attempt that failed."""

    def __init__(self, ident: int, client: Peer, server: Peer | None, family: str) -> None:
        self.id = ident
        self.client = client
        self.server = server
        self.family = "ipv6" if family == "ipv6" else "ipv4"
        self.up = self.down = 0
        self.closes: tuple[str | None, str | None] = ("", "")
        self.local = self.remote = ("", 0)
        # CLOCK_MONOTONIC seconds: around connect(2), after accept(2), before the first close, and
        # when all was over.
        self.begin = self.connected = self.accepted = self.closing = self.over = 0.0

    @property
    def ends(self) -> list[Peer]:
        """Both processes, the client first."""
        return [peer for peer in (self.client, self.server) if peer]

    def transfer(
        self,
        up: int = 0,
        down: int = 0,
        settle: bool = True,
        client_leaves: int = 0,
        server_leaves: int = 0,
    ) -> None:
        """Send `up` bytes to the server and `down` bytes back, both at once.

        Waits until all is acknowledged (`settle`); the last bytes may be left unread.
        """
        words = {"id": self.id, "settle": settle}
        self._both(
            {"do": "transfer", "send": up, "receive": down, "leave": client_leaves},
            {"do": "transfer", "send": down, "receive": up, "leave": server_leaves},
            **words,
        )
        self.up += up
        self.down += down

    def end(self, by: str = "client-fin") -> Session:
        """End the session in one of the ways of ENDS whose data is through."""
        assert self.server
        closer, other = (self.client, self.server)[:: 1 if by.startswith("client") else -1]
        if by == "client-half":
            # The half that was closed early: the other end closes, this one notices.
            closer, other = other, closer
        closed = closer.ask("close", id=self.id, reset=by.endswith("reset"))
        self.closing = self.closing or closed["at"]
        ended = other.ask("ended", id=self.id)
        wanted = "ECONNRESET" if by.endswith(("reset", "unread")) else "fin"
        assert ended["how"] == wanted, f"{by}: the other end saw {ended['how']}"
        self.over = max(closed["end"], ended["end"])
        self.closes = ENDS[by]
        return self

    def half_close(self) -> None:
        """Let the client say that it has nothing more to send."""
        self.closing = self.client.ask("shutdown", id=self.id)["at"]

    def lines(self, owner: str = "exact") -> list[Line]:
        """Return what tcplife must say, the client's line first."""
        own = (self.client.pid, self.client.comm)
        ends = (*self.local, *self.remote, self.up, self.down)
        lines = [Line(self.family, *ends, "active", self.closes[0], owner, *own)]
        if self.server:
            own = (self.server.pid, self.server.comm)
            ends = (*self.remote, *self.local, self.down, self.up)
            lines.append(Line(self.family, *ends, "passive", self.closes[1], owner, *own))
        return lines

    def _both(self, client: Json, server: Json, **words: Any) -> None:
        assert self.server
        self.client.tell(**client, **words)
        self.server.tell(**server, **words)
        self.client.answer()
        self.server.answer()


def accept_ahead(server: Peer, family: str = "ipv4") -> int:
    """Let `server` wait in accept for its next client; return the id of that session."""
    ident = next(ids)
    server.tell("accept", id=ident, listener=server.listeners[family][0])
    wait_until(lambda: accepting(server.pid), what="a call to accept")
    return ident


def connect(
    client: Peer, server: Peer, family: str = "ipv4", own_port: bool = False, ahead: int = 0
) -> Session:
    """Open a session from `client` to the listener of `server`, which accepts it.

    `ahead` is what accept_ahead() returned, if the server waits already.
    """
    session = Session(ahead or next(ids), client, server, family)
    listener, port = server.listeners[family]
    stack, addr = address(server.host, family)
    words = {"family": stack, "addr": addr, "port": port, "source": source_port(own_port)}
    client.tell("connect", id=session.id, **words)
    if not ahead:
        server.tell("accept", id=session.id, listener=listener)
    opened, accepted = client.answer(), server.answer()
    assert opened["errno"] == "", opened
    assert plain(opened["local"]) == plain(accepted["remote"])
    session.local, session.remote = plain(opened["local"]), plain(accepted["local"])
    session.begin, session.connected = opened["begin"], opened["end"]
    session.accepted = accepted["at"]
    return session


def source_port(own: bool) -> int:
    """Return a port of one's own, or 0: the kernel then chooses one during connect(2)."""
    return next(_own_ports) if own else 0


def attempt(client: Peer, target: Host, plan: Plan) -> Session:
    """Begin a connect that will fail: see `failed`."""
    session = Session(next(ids), client, None, plan.family)
    port = REFUSED_PORT if plan.end == "refused" else DROPPED_PORT
    stack, addr = address(target, plan.family)
    words = {"family": stack, "addr": addr, "port": port, "source": source_port(plan.own_port)}
    # The shortest way to ETIMEDOUT: the first retransmission, after 1 s, finds the time used up.
    opened = client.ask("connect", id=session.id, wait=False, user_timeout=500, **words)
    session.local, session.remote = plain(opened["local"]), plain((addr, port))
    session.begin = opened["begin"]
    session.closes = ENDS[plan.end]
    return session


def failed(session: Session) -> Session:
    """Wait until an attempt has failed as it should."""
    result = session.client.ask("connected", id=session.id)
    wanted = "ECONNREFUSED" if session.closes == ENDS["refused"] else "ETIMEDOUT"
    assert result["errno"] == wanted, result
    session.over = result["end"]
    session.client.ask("close", id=session.id)
    return session


def transfer(session: Session, plan: Plan) -> None:
    """Move the plan's bytes, as its end wants it."""
    if plan.end == "client-half":
        session.transfer(up=plan.up)
        session.half_close()
        # A socket that has closed its half acknowledges late; both FINs settle it anyway.
        session.transfer(down=plan.down, settle=False)
        return
    session.transfer(
        plan.up,
        plan.down,
        client_leaves=min(plan.down, UNREAD) if plan.end == "client-unread" else 0,
        server_leaves=min(plan.up, UNREAD) if plan.end == "server-unread" else 0,
    )


def plans(number: int, ends: Sequence[str] = tuple(ENDS)) -> list[Plan]:
    """Return that many sessions in which families, sizes and ends mix in every way."""
    found = []
    for i in range(number):
        end, turn = ends[i % len(ends)], i // len(ends)
        family = FAMILIES[turn % len(FAMILIES)]
        up, down = (SIZES[n % len(SIZES)] for n in (turn, 2 * turn + turn // len(SIZES)))
        if end == "client-unread":
            down = down or UNREAD
        elif end == "server-unread":
            up = up or UNREAD
        elif end in ("refused", "timeout"):
            up = down = 0
        found.append(Plan(family, end, up, down, own_port=i % 3 == 0))
    return found


def play(
    wanted: Iterable[Plan], pairs: Sequence[tuple[Peer, Peer]], target: Host, window: int = 16
) -> list[Session]:
    """Make all these sessions between pairs of peers in turn, and return them.

    `window` sessions are open at a time and end in another order than they began. `target` is
    where the servers are.
    """
    queue = list(wanted)
    sessions: list[Session] = []
    with target.dropping(f"tcp dport {DROPPED_PORT}"):
        slow = [attempt(pairs[0][0], target, plan) for plan in queue if plan.end == "timeout"]
        for at in range(0, len(queue), window):
            chunk = queue[at : at + window]
            sessions += _play_together(
                [plan for plan in chunk if plan.end != "timeout"], pairs, target
            )
        sessions += map(failed, slow)
    return sessions


def _play_together(
    chunk: Sequence[Plan], pairs: Sequence[tuple[Peer, Peer]], target: Host
) -> list[Session]:
    done, opened = [], []
    for i, plan in enumerate(chunk):
        client, server = pairs[i % len(pairs)]
        if plan.end == "refused":
            done.append(failed(attempt(client, target, plan)))
        else:
            opened.append((connect(client, server, plan.family, plan.own_port), plan))
    for session, plan in opened:
        transfer(session, plan)
    return done + [session.end(plan.end) for session, plan in opened[1::2] + opened[::2]]


def lines(sessions: Iterable[Session]) -> Counter[Line]:
    """Return the lines of all sessions; as a Counter, so that a line too many shows."""
    return Counter(line for session in sessions for line in session.lines())


def clients(sessions: Iterable[Session]) -> Counter[Line]:
    """Return the lines of the clients' ends."""
    return Counter(session.lines()[0] for session in sessions)


def difference(found: Counter[Line], wanted: Counter[Line]) -> str:
    """Return in words what two sets of lines differ in, or nothing."""
    words = [f"missing: {line}" for line in (wanted - found).elements()]
    words += [f"too many: {line}" for line in (found - wanted).elements()]
    return "\n".join(sorted(words, key=lambda word: word.partition(": ")[2])[:40])
