"""so1stbyte has the phases that the programs themselves measure, and each connection once."""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import socket
import struct
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable, NamedTuple

import calls
import pytest
import traffic
from alternatives import Case, Stage, plain
from calls import Caller, needs_ring
from compared import compares
from crowd import NOBODY, Crowd
from harness import Json, Run, netbpf_once, seconds, wait_until
from packets import log2_buckets
from test_mptcp import MPTCP
from topology import Host, cgroup_of

from netbpf.kernel.btf import Btf

LINGER_0 = struct.pack("ii", 1, 0)  # close() sends a reset
PHASES = ("connect_us", "first_tx_us", "answer_us", "pickup_us")
# Pauses in seconds that are all different, so that exchanged phases show.
WRITES_AFTER, PICKS_UP_AFTER, ANSWERS_AFTER, READS_AFTER = 0.011, 0.017, 0.041, 0.029
STREAM = socket.SOCK_STREAM
Moment = tuple[int, int]  # between these times of CLOCK_MONOTONIC, in ns

libc = ctypes.CDLL(None, use_errno=True)


def timed(act: Callable[..., Any], *args: Any) -> Moment:
    """Call a function and return when it happened."""
    begin = time.monotonic_ns()
    act(*args)
    return begin, time.monotonic_ns()


def readable(sock: socket.socket) -> int:
    """Return a time at which the socket has something to read, soon after that has come."""
    ready, _, _ = select.select([sock], [], [], 10)
    assert ready
    return time.monotonic_ns()


def took(us: int | None, begin: Moment, end: Moment) -> bool:
    """Whether `us` can be the time from one moment to another, in whole microseconds."""
    low, high = max(0, end[0] - begin[1]), end[1] - begin[0]
    return us is not None and low // 1000 <= us <= high // 1000


def adds_up(event: Json) -> bool:
    """Whether the phases are the whole; each of them is rounded down."""
    return 0 <= event["first_rx_us"] - sum(event[name] or 0 for name in PHASES) <= len(PHASES)


def us() -> tuple[int, str]:
    return os.getpid(), Path("/proc/self/comm").read_text().strip()


FAMILIES = {
    "ipv4": (socket.AF_INET, "127.0.0.1", "127.0.0.1"),
    "ipv6": (socket.AF_INET6, "::1", "::1"),
    "mapped": (socket.AF_INET6, "::", "127.0.0.1"),
}


class Pair:
    """A listener and its clients, all in this process; the test says when it accepts."""

    def __init__(self, host: Host, family: str = "ipv4", protocol: int = 0) -> None:
        kind, address, self.address = FAMILIES[family]
        self.host, self.protocol = host, protocol
        self.family = socket.AF_INET6 if ":" in self.address else socket.AF_INET
        self.listener = host.socket(kind, STREAM, protocol)
        if family == "mapped":
            self.listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        self.listener.bind((address, 0))
        self.listener.listen(64)
        self.port = self.listener.getsockname()[1]
        self.stack = contextlib.ExitStack()
        self.stack.enter_context(self.listener)

    def client(self) -> socket.socket:
        """Return a socket that is not connected yet."""
        return self.stack.enter_context(self.host.socket(self.family, STREAM, self.protocol))

    def open(self) -> tuple[socket.socket, Moment, Moment]:
        """Connect a client; return it, when it connected, and when the listener had it."""
        client = self.client()
        moment = timed(client.connect, (self.address, self.port))
        return client, moment, (moment[0], readable(self.listener))

    def accept(self) -> socket.socket:
        """Accept a connection."""
        return self.stack.enter_context(self.listener.accept()[0])

    def connected(self) -> tuple[socket.socket, socket.socket]:
        """Return both ends of a new connection."""
        client, _, _ = self.open()
        return client, self.accept()


@pytest.fixture
def pairs(one_host: Host) -> Iterator[Callable[..., Pair]]:
    with contextlib.ExitStack() as stack:

        def new(*words: Any) -> Pair:
            pair = Pair(one_host, *words)
            stack.enter_context(pair.stack)
            return pair

        yield new


@pytest.fixture
def lines(netbpf: Any, one_host: Host) -> Callable[..., Any]:
    """Run the tool in the namespace of the pairs, a line per connection."""
    return lambda *words: netbpf("so1stbyte", "--events", "--netns", one_host.inode, *words)


def by_port(found: list[Json], role: str = "") -> dict[int, Json]:
    """Return the events of a role by the client's port; each has one."""
    local = {"active": "lport", "passive": "rport"}
    chosen = [event for event in found if not role or event["role"] == role]
    ports = {event[local[event["role"]]]: event for event in chosen}
    assert len(ports) == len(chosen)
    return ports


# --- phases ---------------------------------------------------------------------------------------


class Ledger(NamedTuple):
    """When a client and a server did what: the client's port, and moments."""

    port: int
    connected: Moment
    came: Moment  # to the listener
    asked: Moment  # the first write of the client
    question: Moment  # its arrival
    taken: Moment  # its read
    answered: Moment
    answer: Moment  # its arrival
    read: Moment


def conversation(pair: Pair) -> Ledger:
    """The client asks and the server answers, each of them late."""
    client, connected, came = pair.open()
    server = pair.accept()
    time.sleep(WRITES_AFTER)
    asked = timed(client.send, b"question")
    question = asked[0], readable(server)
    time.sleep(PICKS_UP_AFTER)
    taken = timed(server.recv, 100)
    time.sleep(ANSWERS_AFTER)
    answered = timed(server.send, b"answer")
    answer = answered[0], readable(client)
    time.sleep(READS_AFTER)
    read = timed(client.recv, 100)
    # Further messages are none of the tool's business.
    for end in (client, server) * 3:
        end.send(b"more")
    server.recv(100), client.recv(100)
    port = client.getsockname()[1]
    return Ledger(port, connected, came, asked, question, taken, answered, answer, read)


@compares("so1stbyte", "time", "role", "connect_us", "first_tx_us", "answer_us", "pickup_us")
@compares("so1stbyte", "first_rx_us", "duration_us", "end", "family", "lport", "rport")
@compares("so1stbyte", "pid", "comm")
@pytest.mark.parametrize("family", FAMILIES)
def test_phases_are_those_of_the_programs(lines: Any, pairs: Any, family: str) -> None:
    pair = pairs(family)
    with lines() as run:
        begin = time.time()
        ledgers = [conversation(pair) for _ in range(7)]
        end = time.time()
        run.wait_for(2 * len(ledgers))
    active, passive = (by_port(run.events, role) for role in ("active", "passive"))
    assert len(run.events) == 14 and run.summary["totals"] == {"without_data": 0}
    for ledger in ledgers:
        here, there = active.pop(ledger.port), passive.pop(ledger.port)
        assert took(here["connect_us"], ledger.connected, ledger.connected)
        assert took(here["first_tx_us"], ledger.connected, ledger.asked)
        assert took(here["answer_us"], ledger.asked, ledger.answer)
        assert took(here["pickup_us"], ledger.answer, ledger.read)
        assert took(here["first_rx_us"], ledger.connected, ledger.read)
        assert (there["connect_us"], there["first_tx_us"]) == (None, None)
        assert took(there["answer_us"], ledger.came, ledger.question)
        assert took(there["pickup_us"], ledger.question, ledger.taken)
        assert took(there["first_rx_us"], ledger.came, ledger.taken)
        for event in (here, there):
            assert adds_up(event) and event["duration_us"] == event["first_rx_us"]
            assert (event["pid"], event["comm"], event["end"]) == (*us(), "data")
            assert event["family"] == ("ipv6" if family == "ipv6" else "ipv4")
            assert pair.port == event["rport" if event is here else "lport"]
            assert begin <= seconds(event["time"]) <= end


def test_who_speaks_first_may_be_the_server(lines: Any, pairs: Any) -> None:
    pair = pairs()
    with lines() as run:
        client, connected, came = pair.open()
        server = pair.accept()
        time.sleep(WRITES_AFTER)
        greeted = timed(server.send, b"220 ready")
        greeting = greeted[0], readable(client)
        client.send(b"not the first")  # not part of the wait
        asked = greeting[1], readable(server)
        time.sleep(READS_AFTER)
        read = timed(client.recv, 100)
        time.sleep(PICKS_UP_AFTER)
        taken = timed(server.recv, 100)
        run.wait_for(2)
    (here,), (there,) = (by_port(run.events, role).values() for role in ("active", "passive"))
    assert here["first_tx_us"] is None
    assert took(here["answer_us"], connected, greeting) and took(here["pickup_us"], greeting, read)
    assert took(here["first_rx_us"], connected, read) and adds_up(here)
    assert took(there["first_tx_us"], came, greeted) and took(there["answer_us"], greeted, asked)
    assert took(there["pickup_us"], asked, taken) and adds_up(there)


def writes_until_reset(client: socket.socket) -> None:
    with contextlib.suppress(OSError):
        client.sendall(b"w" * 16_000_000)


def test_the_answer_may_come_before_the_write_returns(lines: Any, pairs: Any) -> None:
    """The server answers the first bytes and reads no more: the client's write waits."""
    pair = pairs()
    with lines("--role", "active") as run:
        for number in range(1, 6):
            client, connected, _ = pair.open()
            server = pair.accept()
            client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            time.sleep(WRITES_AFTER)
            began = time.monotonic_ns()
            writer = threading.Thread(target=writes_until_reset, args=(client,))
            writer.start()
            server.recv(1)
            answered = timed(server.send, b"too much")
            answer = answered[0], readable(client)
            assert writer.is_alive()
            read = timed(client.recv, 100)
            run.wait_for(number)
            event = run.events[-1]
            assert event["lport"] == client.getsockname()[1]
            assert took(event["first_tx_us"], connected, (began, answer[1]))
            assert took(event["answer_us"], (began, answer[1]), answer)
            assert took(event["pickup_us"], answer, read) and adds_up(event)
            server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_0)
            server.close()
            writer.join()
    assert len(run.events) == 5


def test_peeks_errors_and_empty_reads_are_no_first_bytes(lines: Any, pairs: Any) -> None:
    pair = pairs()
    with lines("--role", "active") as run:
        client, connected, _ = pair.open()
        server = pair.accept()
        client.setblocking(False)
        for _ in range(5):
            with pytest.raises(BlockingIOError):
                client.recv(1)
            assert libc.send(client.fileno(), ctypes.c_void_p(8), 100, 0) == -1  # EFAULT
            assert libc.recv(client.fileno(), ctypes.create_string_buffer(1), 0, 0) in (0, -1)
        time.sleep(WRITES_AFTER)
        asked = timed(client.send, b"question")
        time.sleep(ANSWERS_AFTER)
        answer = timed(server.send, b"answer")[0], readable(client)
        for _ in range(5):
            assert client.recv(100, socket.MSG_PEEK) == b"answer"
        time.sleep(READS_AFTER)
        assert libc.recv(client.fileno(), ctypes.create_string_buffer(1), 0, 0) == 0
        read = timed(client.recv, 1)
        run.wait_for(1)
    (event,) = run.events
    assert took(event["first_tx_us"], connected, asked) and took(event["answer_us"], asked, answer)
    assert took(event["pickup_us"], answer, read) and adds_up(event)


def test_two_threads_read_at_the_same_time(lines: Any, pairs: Any) -> None:
    """Only one of them reads the first byte."""
    pair = pairs()
    with lines("--role", "active") as run:
        for _ in range(31):
            client, server = pair.connected()
            threads = [threading.Thread(target=client.recv, args=(1,)) for _ in range(2)]
            for thread in threads:
                thread.start()
            server.send(b"xy")
            for thread in threads:
                thread.join()
        run.wait_for(31)
    assert len(run.events) == 31 and {event["end"] for event in run.events} == {"data"}


def sends_file(client: socket.socket) -> None:
    with tempfile.TemporaryFile() as file:
        file.write(b"question")
        file.flush()
        assert os.sendfile(client.fileno(), file.fileno(), 0, 8) == 8


def splices(client: socket.socket) -> None:
    ours, theirs = os.pipe()
    os.write(theirs, b"question")
    moved = libc.splice(ours, None, client.fileno(), None, ctypes.c_size_t(8), 0)
    os.close(ours)
    os.close(theirs)
    assert moved == 8


WRITES = {
    "send": lambda client: client.send(b"question"),
    "write": lambda client: os.write(client.fileno(), b"question"),
    "writev": lambda client: os.writev(client.fileno(), [b"ques", b"tion"]),
    "sendmsg": lambda client: client.sendmsg([b"question"]),
    "sendfile": sends_file,
    "splice": splices,
}
READS = {
    "recv": lambda client: client.recv(100),
    "read": lambda client: os.read(client.fileno(), 100),
    "readv": lambda client: os.readv(client.fileno(), [bytearray(100)]),
    "recvmsg": lambda client: client.recvmsg(100),
    "trunc": lambda client: client.recv(100, socket.MSG_TRUNC),
}


@pytest.mark.parametrize("writes, reads", [*zip(WRITES, [*READS, "recv"])])
def test_each_call_that_moves_bytes_counts(lines: Any, pairs: Any, writes: str, reads: str) -> None:
    pair = pairs()
    with lines("--role", "active") as run:
        client, connected, _ = pair.open()
        server = pair.accept()
        time.sleep(WRITES_AFTER)
        asked = timed(WRITES[writes], client)
        assert server.recv(100) == b"question"
        answered = timed(server.send, b"answer")
        answer = answered[0], readable(client)
        time.sleep(READS_AFTER)
        read = timed(READS[reads], client)
        run.wait_for(1)
    (event,) = run.events
    assert took(event["first_tx_us"], connected, asked) and took(event["answer_us"], asked, answer)
    assert took(event["pickup_us"], answer, read) and adds_up(event)


def test_io_uring_counts(netbpf: Any) -> None:
    with calls.callers() as start:
        caller: Caller = start()
        needs_ring(caller)
        with netbpf("so1stbyte", "--events", "-p", caller.pid) as run:
            caller.go("ring", 5)
            run.wait_for(10)
    # The client writes, and reads nothing.
    ends = Counter((event["role"], event["end"]) for event in run.events)
    assert ends == {("active", "closed"): 5, ("passive", "data"): 5}
    for event in run.events:
        assert (event["first_tx_us"] is not None) == (event["role"] == "active")
        assert event["end"] == "closed" or adds_up(event)


def test_bytes_that_are_spliced_out_of_the_socket(lines: Any, pairs: Any) -> None:
    """No receive call reads them: when is not known, and the line comes at the end."""
    pair = pairs()
    with lines("--role", "active") as run:
        client, server = pair.connected()
        server.send(b"spliced!")
        readable(client)
        ours, theirs = os.pipe()
        assert libc.splice(client.fileno(), None, theirs, None, ctypes.c_size_t(8), 0) == 8
        assert os.read(ours, 100) == b"spliced!"
        os.close(ours)
        os.close(theirs)
        client.close()
        run.wait_for(1)
    (event,) = run.events
    assert (event["end"], event["first_rx_us"], event["pickup_us"]) == ("data", None, None)
    assert event["answer_us"] is not None and run.summary["totals"] == {"without_data": 0}


# --- connections without a byte -------------------------------------------------------------------


def closes(client: socket.socket, server: socket.socket) -> None:
    client.close()
    assert server.recv(1) == b""
    server.close()


def aborts(client: socket.socket, server: socket.socket) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_0)
    client.close()
    with pytest.raises(ConnectionResetError):
        server.recv(1)
    server.close()


def leaves_unread(client: socket.socket, server: socket.socket) -> None:
    """The server has written: the client knows, and does not care."""
    server.send(b"unread")
    readable(client)
    client.close()
    with pytest.raises(ConnectionResetError):
        server.recv(1)
    server.close()


def shuts_down(client: socket.socket, server: socket.socket) -> None:
    """Both ends say that they will not write, and wait for the other one."""
    client.shutdown(socket.SHUT_WR)
    assert server.recv(1) == b""
    server.shutdown(socket.SHUT_WR)
    assert client.recv(1) == b""
    client.close()
    server.close()


def shuts_down_both_ways(client: socket.socket, server: socket.socket) -> None:
    client.shutdown(socket.SHUT_RDWR)
    assert server.recv(1) == b""
    server.close()
    client.close()


ENDS = {
    closes: ("closed", "eof"),
    aborts: ("closed", "reset"),
    leaves_unread: ("closed", "reset"),
    shuts_down: ("eof", "eof"),
    shuts_down_both_ways: ("closed", "eof"),
}


@compares("so1stbyte", "without_data", shape="summary")
@pytest.mark.parametrize("act", ENDS, ids=lambda act: act.__name__)
def test_a_connection_without_a_byte_has_a_line(lines: Any, pairs: Any, act: Any) -> None:
    pair = pairs()
    with lines() as run:
        for _ in range(5):
            client, connected, _ = pair.open()
            server = pair.accept()
            time.sleep(0.003)
            act(client, server)
        run.wait_for(10)
    ends = Counter((event["role"], event["end"]) for event in run.events)
    assert ends == {("active", ENDS[act][0]): 5, ("passive", ENDS[act][1]): 5}
    for event in run.events:
        assert (event["pid"], event["owner"]) == (os.getpid(), "exact")
        assert event["first_rx_us"] is None and event["pickup_us"] is None
        assert event["duration_us"] >= 3000
        arrived = act is leaves_unread and event["role"] == "active"
        assert (event["answer_us"] is not None) == arrived
    assert run.summary["totals"] == {"without_data": 10}


def test_a_connection_that_times_out(netbpf: Any, two_hosts: tuple[Host, Host]) -> None:
    left, right = two_hosts
    listener = right.socket(socket.AF_INET, STREAM)
    client = left.socket(socket.AF_INET, STREAM)
    with listener, client, netbpf("so1stbyte", "--events", "--netns", left.inode) as run:
        listener.bind((right.ipv4, 0))
        listener.listen()
        client.connect(listener.getsockname())
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 100)
        with right.dropping("tcp dport != 0"):
            asked = timed(client.send, b"question")
            with pytest.raises(TimeoutError):
                client.recv(1)
            run.wait_for(1)
    (event,) = run.events
    assert (event["end"], event["answer_us"], event["first_rx_us"]) == ("timeout", None, None)
    assert event["first_tx_us"] is not None and event["duration_us"] >= 100_000, asked


def test_attempts_that_fail_are_no_connections(lines: Any, pairs: Any) -> None:
    pair = pairs()
    with lines() as run:
        with pytest.raises(ConnectionRefusedError):
            pair.client().connect(("127.0.0.1", 9))
        client, server = pair.connected()
        server.send(b"x")
        assert client.recv(1) == b"x"
        run.wait_for(1)
    assert [event["rport"] for event in run.events] == [pair.port]


def answers_and_closes(client: socket.socket, server: socket.socket) -> None:
    """The client reads when both FINs have been exchanged, and its socket is in CLOSE."""
    client.shutdown(socket.SHUT_WR)
    assert server.recv(1) == b""
    server.send(b"late")
    server.close()
    wait_until(lambda: state_of(client) == 7, what="CLOSE")


def answers_and_resets(client: socket.socket, server: socket.socket) -> None:
    server.send(b"late")
    server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_0)
    server.close()
    wait_until(lambda: state_of(client) == 7, what="CLOSE")


def answers_after_both_ways(client: socket.socket, server: socket.socket) -> None:
    """What had arrived before shutdown(SHUT_RDWR) can be read after it."""
    server.send(b"late")
    readable(client)
    client.shutdown(socket.SHUT_RDWR)
    server.close()


def state_of(sock: socket.socket) -> int:
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]


@pytest.mark.parametrize(
    "act", [answers_and_closes, answers_and_resets, answers_after_both_ways],
    ids=lambda act: act.__name__,
)  # fmt: skip
@pytest.mark.parametrize("reads", [True, False])
def test_bytes_can_be_read_after_the_connection(
    lines: Any, pairs: Any, act: Any, reads: bool
) -> None:
    pair = pairs()
    with lines("--role", "active") as run:
        for _ in range(5):
            client, server = pair.connected()
            act(client, server)
            if reads:
                assert client.recv(100) == b"late"
            client.close()
        run.wait_for(5)
    wanted = "data" if reads else "reset" if act is answers_and_resets else "closed"
    assert Counter(event["end"] for event in run.events) == {wanted: 5}
    for event in run.events:
        assert (event["pid"], event["owner"]) == (os.getpid(), "exact")
        assert (event["first_rx_us"] is not None) == reads and event["answer_us"] is not None


def test_nobody_has_accepted_the_connection(lines: Any, pairs: Any) -> None:
    pair = pairs()
    with lines("--role", "passive") as run:
        client, _, _ = pair.open()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_0)
        client.close()
        run.wait_for(1)
    (event,) = run.events
    assert (event["pid"], event["owner"], event["end"]) == (os.getpid(), "listener", "reset")


# --- which connections ----------------------------------------------------------------------------


def test_connections_of_before_are_not_counted(lines: Any, pairs: Any) -> None:
    pair = pairs()
    old = [pair.connected() for _ in range(5)]
    with lines() as run:
        new = pair.connected()
        for client, server in [*old, new]:
            client.send(b"question")
            server.recv(100)
            server.send(b"answer")
            client.recv(100)
        run.wait_for(2)
    port = new[0].getsockname()[1]
    assert set(by_port(run.events, "active")) == set(by_port(run.events, "passive")) == {port}
    assert len(run.events) == 2


def test_a_descriptor_that_is_used_again(lines: Any, pairs: Any) -> None:
    """The first connection ends without a byte; the next one has its number."""
    pair = pairs()
    with lines("--role", "active") as run:
        first, _, _ = pair.open()
        pair.accept()
        number, port = first.fileno(), first.getsockname()[1]
        time.sleep(ANSWERS_AFTER)
        first.close()
        other = pair.client()
        os.dup2(other.fileno(), number)
        other.close()
        second = pair.stack.enter_context(socket.socket(fileno=number))
        connected = timed(second.connect, (pair.address, pair.port))
        server = pair.accept()
        server.send(b"x")
        readable(second)
        read = timed(second.recv, 1)
        run.wait_for(2)
    events = by_port(run.events)
    assert (events[port]["end"], events[port]["first_rx_us"]) == ("closed", None)
    again = events[second.getsockname()[1]]
    assert again["end"] == "data" and took(again["first_rx_us"], connected, read)


def test_fast_open(lines: Any, pairs: Any, one_host: Host) -> None:
    """Data goes with the SYN, and the server may answer before the handshake ends."""
    one_host.sysctl(net__ipv4__tcp_fastopen=3)
    pair = pairs()
    pair.listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN, 5)
    before = one_host.snmp()["TcpExtTCPFastOpenActive"]
    reads = {}
    with lines() as run:
        for _ in range(5):
            client = pair.client()
            to = (pair.address, pair.port)
            asked = timed(client.sendto, b"question", socket.MSG_FASTOPEN, to)
            server = pair.accept()
            assert server.recv(100) == b"question"
            answer = timed(server.send, b"answer")[0], readable(client)
            time.sleep(READS_AFTER)
            reads[client.getsockname()[1]] = asked, answer, timed(client.recv, 100)
        run.wait_for(10)
    # The first connection only got a cookie.
    assert one_host.snmp()["TcpExtTCPFastOpenActive"] == before + 4
    assert {event["end"] for event in run.events} == {"data"} and all(map(adds_up, run.events))
    active = by_port(run.events, "active")
    assert by_port(run.events, "passive").keys() == active.keys() == reads.keys()
    for port, (asked, answer, read) in reads.items():
        assert took(active[port]["first_rx_us"], asked, read)
        assert took(active[port]["pickup_us"], answer, read)
        assert active[port]["first_tx_us"] is not None


def test_children_of_a_listener_are_told_apart(lines: Any, pairs: Any) -> None:
    """All connect before the first is accepted, and write in another order."""
    pair = pairs()
    with lines("--role", "passive") as run:
        clients, came = {}, {}
        for _ in range(11):
            client, connected, _ = pair.open()
            clients[client.getsockname()[1]] = client
            came[client.getsockname()[1]] = connected
        servers = {server.getpeername()[1]: server for server in (pair.accept() for _ in clients)}
        end = time.monotonic_ns()
        read = {}
        for port in sorted(clients, reverse=True):
            clients[port].send(b"x")
            readable(servers[port])
            read[port] = timed(servers[port].recv, 1)
        run.wait_for(11)
    events = by_port(run.events)
    assert events.keys() == clients.keys()
    for port, event in events.items():
        assert took(event["first_rx_us"], (came[port][0], end), read[port])


@compares("so1stbyte", "open", shape="summary")
def test_connections_that_still_wait_are_listed_at_the_end(lines: Any, pairs: Any) -> None:
    pair = pairs()
    with lines() as run:
        client, server = pair.connected()
        server.send(b"arrived")
        readable(client)
        run.stop()
    rows = {row["role"]: row for row in run.rows}
    assert set(rows) == {"active", "passive"} and run.summary["open"] == len(run.rows) == 2
    assert run.events == []
    for row in rows.values():
        assert (row["end"], row["first_rx_us"], row["pickup_us"]) == ("waiting", None, None)
        assert (row["pid"], row["comm"], row["owner"]) == (*us(), "exact")
    assert rows["active"]["answer_us"] is not None and rows["passive"]["answer_us"] is None
    assert rows["active"]["lport"] == rows["passive"]["rport"] == client.getsockname()[1]


@pytest.mark.skipif(
    not (Path("/proc/sys/net/mptcp").exists() and Btf().parameters("__traceiter_sock_recv_length")),
    reason="needs a kernel with CONFIG_MPTCP that shows what MPTCP moves: 6.3",
)
@compares("so1stbyte", "proto")
@pytest.mark.parametrize("protocol, name", [(0, "tcp"), (MPTCP, "mptcp")])
def test_mptcp_is_its_first_subflow(lines: Any, pairs: Any, protocol: int, name: str) -> None:
    pair = pairs("ipv4", protocol)
    with lines() as run:
        client, connected, _ = pair.open()
        server = pair.accept()
        asked = timed(client.send, b"question")
        assert server.recv(100) == b"question"
        answer = timed(server.send, b"answer")[0], readable(client)
        read = timed(client.recv, 100)
        run.wait_for(2)
    here = by_port(run.events, "active").popitem()[1]
    assert {event["proto"] for event in run.events} == {name}
    assert {event["end"] for event in run.events} == {"data"}
    assert took(here["first_rx_us"], connected, read) and took(
        here["first_tx_us"], connected, asked
    )
    assert took(here["answer_us"], asked, answer)


# --- who, and filters -----------------------------------------------------------------------------

FACTS = ("pid", "comm", "owner", "family", "laddr", "lport", "raddr", "rport")


def converse(crowd: Crowd, number: int) -> list[traffic.Session]:
    """Make sessions of all families in which both ends read."""
    sessions = []
    for i in range(number):
        session = traffic.connect(*crowd.pairs[i % 2], traffic.FAMILIES[i % 3])
        session.transfer(up=1009, down=503)
        session.end()
        sessions.append(session)
    return sessions


@compares("so1stbyte", "pid", "comm", "owner", "family", "laddr", "lport", "raddr", "rport")
@compares("so1stbyte", "uid", "netns", "cgroup")
def test_each_connection_has_its_process(netbpf: Any, crowd: Crowd) -> None:
    with netbpf("so1stbyte", "--events") as run:
        sessions = converse(crowd, 23)
        run.wait_for(lambda found: len(crowd.ours(found)) >= 46)
    found = crowd.ours(run.events)
    told = Counter(tuple(getattr(line, name) for name in FACTS)
                   for session in sessions for line in session.lines())  # fmt: skip
    assert Counter(tuple(event[name] for name in FACTS) for event in found) == told
    for event in found:
        is_client = event["comm"].startswith("nb-client")
        assert event["role"] == ("active" if is_client else "passive")
        assert event["netns"] == (crowd.left if is_client else crowd.right).inode
        assert event["uid"] == (NOBODY if event["pid"] == crowd.nobody.pid else 0)
        assert event["cgroup"] == cgroup_of(event["pid"])


def test_filters(netbpf: Any, crowd: Crowd) -> None:
    """Each filter shows what matches, and nothing else."""
    filters = {
        **crowd.filters(),
        ("--role", "active"): lambda line: line.role == "active",
        ("--role", "passive"): lambda line: line.role == "passive",
    }
    with contextlib.ExitStack() as stack:
        runs = [stack.enter_context(netbpf("so1stbyte", "--events", *words)) for words in filters]
        sessions = converse(crowd, 12)
    told = [line for session in sessions for line in session.lines()]
    for (words, passes), run in zip(filters.items(), runs):
        wanted = Counter(tuple(getattr(line, name) for name in FACTS)
                         for line in told if passes(line))  # fmt: skip
        assert 0 < wanted.total() < len(told), words
        found = Counter(tuple(event[name] for name in FACTS) for event in crowd.ours(run.events))
        assert found == wanted, words


def test_only_connections_that_took_long(lines: Any, pairs: Any) -> None:
    """With and without a byte."""
    pair = pairs()
    with lines("--role", "active") as all_of_them, lines("--role", "active", "--min-ms", 40) as run:
        for wait in (0, ANSWERS_AFTER):
            for sends in (True, False):
                client, server = pair.connected()
                time.sleep(wait)
                if sends:
                    server.send(b"x")
                    client.recv(1)
                client.close()
        all_of_them.wait_for(4)
    events = by_port(all_of_them.events)
    slow = {port for port, event in events.items() if event["duration_us"] >= 40_000}
    assert set(by_port(run.events)) == slow
    assert Counter(events[port]["end"] for port in slow) >= Counter(["data", "closed"])


# --- distributions and rows -----------------------------------------------------------------------


def test_distributions_by_key(netbpf: Any, pairs: Any, one_host: Host) -> None:
    pair = pairs()
    words = ("so1stbyte", "--netns", one_host.inode)
    with (
        netbpf(*words) as usual,
        netbpf(*words, "--histogram", "pickup_us", "--by", "role,lport") as pickups,
        netbpf(*words, "--by", "raddr/8") as blocks,
        netbpf(*words, "--events") as events,
    ):
        ledgers = [conversation(pair) for _ in range(5)]
        closing, _ = pair.connected()
        closing.close()
        events.wait_for(11)
    pid, comm = us()
    keys = [histogram["key"] for histogram in usual.histograms]
    assert keys == [{"comm": comm, "pid": pid, "role": role} for role in ("active", "passive")]
    for histogram, begin, end in zip(usual.histograms, ("connected", "came"), ("read", "taken")):
        spans = [(getattr(one, begin), getattr(one, end)) for one in ledgers]
        assert histogram["count"] == 5 and histogram["unit"] == "us"
        assert sum(max(0, e[0] - b[1]) // 1000 for b, e in spans) <= histogram["sum"]
        assert histogram["sum"] <= sum((e[1] - b[0]) // 1000 for b, e in spans)
    assert {tuple(h["key"].values()): h["count"] for h in pickups.histograms} == {
        **{("active", ledger.port): 1 for ledger in ledgers}, ("passive", pair.port): 5
    }  # fmt: skip
    for histogram in pickups.histograms:
        (bucket, *_) = histogram["buckets"]
        least = READS_AFTER if histogram["key"]["role"] == "active" else PICKS_UP_AFTER
        assert bucket["high"] >= least * 1e6 * 0.9
    assert [(h["key"], h["count"]) for h in blocks.histograms] == [({"raddr": "127.0.0.0/8"}, 10)]
    assert (
        "1 connection ended before a byte was read: --events shows them" in (usual.summary["notes"])
    )
    # Each event's value is in the distribution of another run, to the bucket's bounds.
    values = [e["first_rx_us"] for e in events.events if e["role"] == "active" and e["first_rx_us"]]
    assert sum(log2_buckets(values).values()) == usual.histograms[0]["count"]


@compares("so1stbyte", "comm", "pid", "role", "connections", "silent", shape="--summary")
@compares("so1stbyte", "waiting", "connect_p99_us", "first_tx_p99_us", shape="--summary")
@compares("so1stbyte", "answer_p99_us", "pickup_p99_us", "p50_us", "p99_us", shape="--summary")
def test_rows_show_who_was_slow(netbpf: Any, pairs: Any, one_host: Host) -> None:
    pair = pairs()
    with netbpf("so1stbyte", "--netns", one_host.inode, "--summary") as run:
        ledgers = [conversation(pair) for _ in range(3)]
        for _ in range(2):
            client, _ = pair.connected()
            client.close()
        pair.open()
        run.stop()
    rows = {row["role"]: row for row in run.rows}
    active, passive = rows["active"], rows["passive"]
    assert (active["pid"], active["comm"]) == (passive["pid"], passive["comm"]) == us()
    assert (active["connections"], active["silent"], active["waiting"]) == (3, 2, 1)
    assert (passive["connections"], passive["silent"]) == (3, 0)
    spans = {
        "connect_p99_us": ("connected", "connected"), "first_tx_p99_us": ("connected", "asked"),
        "answer_p99_us": ("asked", "answer"), "pickup_p99_us": ("answer", "read"),
        "p50_us": ("connected", "read"), "p99_us": ("connected", "read"),
    }  # fmt: skip
    for column, (begin, end) in spans.items():
        if column != "connect_p99_us":  # of all connections, also of those without a byte
            moments = [(getattr(one, begin), getattr(one, end)) for one in ledgers]
            assert any(took(active[column], *pair) for pair in moments), column
    assert 0 < active["connect_p99_us"] < min(active["first_tx_p99_us"], active["p50_us"])


@pytest.mark.parametrize("words", [("--summary",), ("--by", "comm")])
def test_events_and_rows_exclude_each_other(words: tuple[str, ...]) -> None:
    done = netbpf_once("so1stbyte", "--events", *words)
    assert done.returncode == 2 and "--events" in done.stderr


def test_connections_without_room_are_counted(netbpf: Any, pairs: Any, one_host: Host) -> None:
    pair = pairs()
    words = ("--netns", one_host.inode, "--map-entries", 4, "--role", "active")
    with netbpf("so1stbyte", "--events", *words) as run:
        clients = [pair.open()[0] for _ in range(7)]
        for client in clients:
            server = pair.accept()
            server.send(b"x")
            client.recv(1)
        run.wait_for(4)
    assert len(run.events) == 4 and run.summary["lost"]["map_full"] >= 3
    assert run.summary["complete"] is False


# --- whatever the kind of probe -------------------------------------------------------------------


def act(stage: Stage, run: Run) -> None:
    for family in ("ipv4", "ipv6", "mapped"):
        for up, down in ((1009, 503), (0, 503), (1009, 0), (0, 0)):
            session = traffic.connect(stage.client, stage.server, family)
            session.transfer(up=up, down=down)
            session.end()
    run.wait_for(12)


def facts(run: Run, lost: set[str]) -> Any:
    return Counter(plain(event, lost) for event in run.events)


ALTERNATIVES = Case(lambda stage: ("--events", "--netns", stage.left.inode), act, facts)
