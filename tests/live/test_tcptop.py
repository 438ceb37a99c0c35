"""tcptop shows what programs wrote and read, to the byte, however a session ends."""

from __future__ import annotations

import contextlib
import ctypes
import ipaddress
import os
import socket
import struct
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Callable

import pytest
import topology
import traffic
from alternatives import Case
from alternatives import sessions as sessions_of
from compared import compares
from crowd import CONTAINER, NOBODY, QUICK_ENDS, Crowd
from harness import Json, Run, seconds, wait_until
from topology import Host, cgroup_of

LINGER_0 = struct.pack("ii", 1, 0)  # close() sends a reset
ENDS = ("laddr", "lport", "raddr", "rport")
Totals = dict[Any, tuple[int, int]]
# Bytes up and down; all are prime, some are more than a segment or a buffer.
UP, DOWN = 100_003, 16_411


def totals(rows: Sequence[Json], *names: str) -> Totals:
    """Return {values of the columns `names`: (written, read)}, added up over intervals."""
    sums: Counter[tuple[Any, str]] = Counter()
    for row in rows:
        key = tuple(row[name] for name in names)
        for column in ("tx_bytes", "rx_bytes"):
            sums[key, column] += row[column]
        assert row["bytes"] == row["tx_bytes"] + row["rx_bytes"] > 0
    return {key: (sums[key, "tx_bytes"], sums[key, "rx_bytes"]) for key, _ in sums}


class Session:
    """A session between two sockets of this process, and what was written and read so far."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.socks = (client, server)
        self.ends = [(*s.getsockname()[:2], *s.getpeername()[:2]) for s in self.socks]
        self.written, self.read = [0, 0], [0, 0]

    def write(self, end: int, size: int) -> None:
        """Write `size` bytes to an end, while the other end's queues have room for them."""
        self.socks[end].sendall(b"w" * size)
        self.written[end] += size

    def fetch(self, end: int, size: int) -> None:
        """Read `size` bytes."""
        while size:
            got = len(self.socks[end].recv(min(size, 7919)))
            assert got, "the data has ended"
            self.read[end] += got
            size -= got

    def move(self, up: int = UP, down: int = DOWN) -> None:
        """Move bytes in both directions."""
        writer = threading.Thread(target=self.write, args=(0, up))
        writer.start()
        self.fetch(1, up)
        writer.join()
        self.write(1, down)
        self.fetch(0, down)

    def close(self, first: int = 0) -> None:
        """Close both sockets."""
        for sock in self.socks[:: -1 if first else 1]:
            sock.close()

    @property
    def ledger(self) -> Totals:
        """What the rows must add up to."""
        moved = zip(self.ends, self.written, self.read)
        return {ends: (written, read) for ends, written, read in moved if written or read}


@pytest.fixture
def connect(one_host: Host) -> Iterator[Callable[..., Session]]:
    """A function that opens a session."""
    with contextlib.ExitStack() as stack:

        def new(family: int = socket.AF_INET, client: socket.socket | None = None) -> Session:
            address = "127.0.0.1" if family == socket.AF_INET else "::1"
            with one_host.socket(family, socket.SOCK_STREAM) as listener:
                listener.bind((address, 0))
                listener.listen()
                client = client or one_host.socket(family, socket.SOCK_STREAM)
                client.connect(listener.getsockname())
                return Session(*map(stack.enter_context, (client, listener.accept()[0])))

        yield new


# --- endings -------------------------------------------------------------------------------------


def close_both(session: Session) -> None:
    session.close()


def half_close(session: Session) -> None:
    """The server answers after the client's FIN, and the client reads the end."""
    client, server = session.socks
    client.shutdown(socket.SHUT_WR)
    assert server.recv(1) == b""
    session.write(1, 4099)
    server.close()
    session.fetch(0, 4099)
    assert client.recv(1) == b""
    client.close()


def reset(session: Session) -> None:
    """A reset; the other end writes before that, and nobody reads it."""
    client, server = session.socks
    session.write(1, 1009)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_0)
    client.close()
    with pytest.raises(ConnectionResetError):
        server.recv(1)
    server.close()


def unread(session: Session) -> None:
    """The close of a socket with unread data sends a reset."""
    session.write(0, 1013)
    session.fetch(1, 13)
    session.close(first=1)


def read_after_fin(session: Session) -> None:
    session.write(0, 2003)
    session.socks[0].close()
    session.fetch(1, 2003)
    assert session.socks[1].recv(1) == b""
    session.socks[1].close()


def read_after_reset(session: Session) -> None:
    """Data that came before a reset can be read after the state is CLOSE."""
    client, server = session.socks
    session.write(0, 3001)
    session.write(1, 11)  # which the client does not read: its close sends a reset
    client.close()
    with pytest.raises(ConnectionResetError):
        server.send(b"!")
    session.fetch(1, 3001)
    server.close()


def peek(session: Session) -> None:
    session.write(0, 5003)
    for _ in range(3):
        assert len(session.socks[1].recv(5003, socket.MSG_PEEK | socket.MSG_WAITALL)) == 5003
    session.fetch(1, 4001)
    session.close()


def urgent(session: Session) -> None:
    """A byte out of band is a byte of the stream."""
    session.socks[0].send(b"u", socket.MSG_OOB)
    session.written[0] += 1
    session.write(0, 101)
    session.fetch(1, 101)
    session.read[1] += 1
    session.close()


def shut_down_twice(session: Session) -> None:
    for sock in session.socks:
        sock.shutdown(socket.SHUT_RDWR)
    session.close()


def file_and_pipe(session: Session) -> None:
    """sendfile into the session, splice out of it."""
    client, server = session.socks
    with tempfile.TemporaryFile() as file:
        file.truncate(60_013)
        sent = 0
        while sent < 60_013:
            sent += os.sendfile(client.fileno(), file.fileno(), sent, 60_013 - sent)
    session.written[0] += sent
    reader, writer = os.pipe()
    with open(reader, "rb"), open(writer, "wb"):
        while session.read[1] < session.written[0]:
            moved = os.splice(server.fileno(), writer, 8192)
            session.read[1] += moved
            while moved:
                moved -= len(os.read(reader, moved))
    session.close()


ENDINGS = (close_both, half_close, reset, unread, read_after_fin, read_after_reset, peek, urgent,
           shut_down_twice, file_and_pipe)  # fmt: skip


@compares("tcptop", "rx_bytes", "tx_bytes", "bytes", shape="rows")
@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("old", [False, True])
def test_bytes_are_those_of_the_program(
    netbpf: Any, one_host: Host, connect: Any, ending: Callable[[Session], None], old: bool
) -> None:
    """Also of sessions that are older than the run, and of those that live for intervals."""
    families = (socket.AF_INET, socket.AF_INET6)
    sessions = [connect(family) for family in families if old]
    for session in sessions:
        session.move()
        session.write(0, 509)  # waits to be read at the start
        session.written, session.read = [0, 0], [0, 0]
    with netbpf("tcptop", "--netns", one_host.inode, "0.1") as run:
        sessions += [connect(family) for family in families if not old]
        for session in sessions:
            if old:
                session.fetch(1, 509)
            session.move()
        wait_until(lambda: sum(totals(run.rows).get((), ())) >= 2 * 2 * (UP + DOWN))
        for session in sessions:
            ending(session)
    wanted = {ends: moved for session in sessions for ends, moved in session.ledger.items()}
    assert totals(run.rows, *ENDS) == wanted
    assert run.summary["complete"]


# --- other sessions ------------------------------------------------------------------------------


def disconnect(sock: socket.socket) -> None:
    """Call connect(AF_UNSPEC), which Python's sockets cannot."""
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.connect(sock.fileno(), bytes(16), 16) == 0, os.strerror(ctypes.get_errno())


@pytest.mark.parametrize("unread", [0, 1013])
def test_a_socket_that_is_connected_again(
    netbpf: Any, one_host: Host, connect: Any, unread: int
) -> None:
    """From the same port to the same listener: the ends of all its sessions are the same."""
    wanted: Counter[tuple[Any, str]] = Counter()
    with one_host.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        client = one_host.socket(socket.AF_INET, socket.SOCK_STREAM)
        client.bind(("127.0.0.1", 20_021))  # a socket keeps a port that the program has chosen
        with netbpf("tcptop", "--netns", one_host.inode, "0.1") as run, client:
            for number in range(7):
                client.connect(listener.getsockname())
                server = listener.accept()[0]
                session = Session(client, server)
                session.move(up=1009 * number, down=503)
                session.write(1, unread)
                if number % 2:  # in another interval than its beginning
                    wait_until(lambda: shown(run) >= sum(wanted.values()) + 503)  # noqa: B023
                disconnect(client)
                server.close()
                for ends, (written, read) in session.ledger.items():
                    wanted[ends, "tx"] += written
                    wanted[ends, "rx"] += read
    assert totals(run.rows, *ENDS) == {
        ends: (wanted[ends, "tx"], wanted[ends, "rx"]) for ends in session.ends
    }


def shown(run: Run) -> int:
    """Return the bytes of all rows so far."""
    return sum(row["bytes"] for row in run.rows)


def test_a_socket_that_is_connected_to_itself(netbpf: Any, one_host: Host) -> None:
    """Both ends send a SYN, and there is one socket."""
    with netbpf("tcptop", "--netns", one_host.inode, "0.1") as run:
        with one_host.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
            sock.bind(("127.0.0.1", 0))
            sock.connect(sock.getsockname())
            session = Session(sock, sock)
            session.move(up=1009, down=503)
    assert totals(run.rows, *ENDS) == {session.ends[0]: (1512, 1512)}


def test_fast_open(netbpf: Any, one_host: Host) -> None:
    """Data comes with the SYN, and is read before the session is established."""
    one_host.sysctl(net__ipv4__tcp_fastopen=0x207)  # without cookies
    address = ("127.0.0.1", 20_011)
    before = one_host.snmp()["TcpExtTCPFastOpenPassive"]
    with one_host.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN, 5)
        listener.bind(address)
        listener.listen()
        with netbpf("tcptop", "--netns", one_host.inode, "0.1") as run:
            client = one_host.socket(socket.AF_INET, socket.SOCK_STREAM)
            with client:
                assert client.sendto(b"f" * 1009, socket.MSG_FASTOPEN, address) == 1009
                server = listener.accept()[0]
                session = Session(client, server)
                session.written[0] += 1009
                session.fetch(1, 1009)
                session.write(1, 2003)
                session.fetch(0, 2003)
                server.close()
    assert one_host.snmp()["TcpExtTCPFastOpenPassive"] == before + 1
    assert totals(run.rows, *ENDS) == session.ledger


def test_more_than_32_bits(netbpf: Any, one_host: Host, connect: Any) -> None:
    """Sequence numbers come round after 4 GiB, once within an interval and once in a later one."""
    size, rounds = 1 << 30, 5
    with netbpf("tcptop", "--netns", one_host.inode, 300) as run, tempfile.TemporaryFile() as file:
        file.truncate(size)
        session = connect()
        client, server = session.socks
        reader = threading.Thread(target=discard, args=(session,))
        reader.start()
        for _ in range(rounds):
            sent = 0
            while sent < size:
                sent += os.sendfile(client.fileno(), file.fileno(), sent, size - sent)
            session.written[0] += sent
        client.close()
        reader.join()
        server.close()
    assert session.read[1] == session.written[0] == rounds * size > 1 << 32
    assert totals(run.rows, *ENDS) == session.ledger


def discard(session: Session) -> None:
    """Read to the end without copying."""
    buffer = bytearray(1 << 20)
    while size := session.socks[1].recv_into(buffer, 0, socket.MSG_TRUNC):
        session.read[1] += size


def test_an_idle_session_has_no_rows(netbpf: Any, one_host: Host, connect: Any) -> None:
    with netbpf("tcptop", "--netns", one_host.inode, "0.1") as run:
        idle, busy = connect(), connect()
        idle.move(up=7, down=5)
        wait_until(lambda: totals(run.rows, *ENDS).keys() >= idle.ledger.keys())
        for _ in range(3):
            before = shown(run)
            busy.move(up=1009, down=503)
            wait_until(lambda: shown(run) > before)  # noqa: B023
        idle.move(up=7, down=5)
    found = [row for row in run.rows if (row["laddr"], row["lport"]) == idle.ends[0][:2]]
    assert [row["tx_bytes"] for row in found if row["tx_bytes"]] == [7, 7]
    assert totals(run.rows, *ENDS) == {**idle.ledger, **busy.ledger}


# --- who, and by which key -----------------------------------------------------------------------


def wanted_of(sessions: Sequence[traffic.Session], *names: str) -> Totals:
    """Return {values of `names`: (written, read)} of sessions that moved bytes."""
    sums: Counter[tuple[Any, int]] = Counter()
    for line in (line for session in sessions for line in session.lines()):
        key = tuple(getattr(line, name) for name in names)
        sums[key, 0] += line.tx_bytes
        sums[key, 1] += line.rx_bytes
    return {key: (sums[key, 0], sums[key, 1]) for key, _ in sums if sums[key, 0] or sums[key, 1]}


ALL_READ = tuple(end for end in QUICK_ENDS if end != "refused" and not end.endswith("unread"))
FACTS = ("pid", "comm", "owner", "family", *ENDS)


@compares("tcptop", "pid", "comm", "owner", "family", "laddr", "lport", "raddr", shape="rows")
@compares("tcptop", "rport", "rx_bytes", "tx_bytes", "uid", "netns", "cgroup", shape="rows")
def test_each_session_has_its_process(netbpf: Any, crowd: Crowd) -> None:
    """Sessions of all families, of several processes, users and namespaces."""
    with netbpf("tcptop", "0.2") as run:
        sessions = crowd.play(67, ALL_READ)
    rows = crowd.ours(run.rows)
    assert totals(rows, *FACTS) == wanted_of(sessions, *FACTS)
    for row in rows:
        client = row["pid"] in (crowd.root.pid, crowd.nobody.pid)
        assert row["netns"] == (crowd.left if client else crowd.right).inode
        assert row["uid"] == (NOBODY if row["pid"] == crowd.nobody.pid else 0)
        assert (row["cgroup"] == crowd.cgroup.stat().st_ino) == (row["pid"] == crowd.nobody.pid)


@compares("tcptop", "comm", "pid", "uid", "container", "cgroup", "netns", "owner", shape="--by")
@compares("tcptop", "family", "laddr", "lport", "raddr", "rport", shape="--by")
@compares("tcptop", "sessions", "rx_bytes", "tx_bytes", "bytes", shape="--by")
def test_rows_by_key_add_up_to_the_sessions(netbpf: Any, crowd: Crowd) -> None:
    columns = ("comm", "pid", "uid", "container", "cgroup", "netns", "owner", "family", *ENDS)
    lists = [columns[:3], columns[3:6], columns[6:8], ENDS, ("container", "raddr")]
    lists += [(one,) for one in ("pid", "lport", "raddr")]
    with contextlib.ExitStack() as stack:
        # One interval: a session is in one row.
        runs = {
            names: stack.enter_context(
                netbpf("tcptop", "--by", ",".join(names), 300, "--netns", crowd.left.inode)
            )
            for names in lists
        }
        sessions = crowd.play(37, ALL_READ)
    nobody = crowd.nobody.pid
    facts = {
        "uid": lambda line: NOBODY if line.pid == nobody else 0,
        "container": lambda line: CONTAINER if line.pid == nobody else None,
        "cgroup": lambda line: cgroup_of(line.pid),
        "netns": lambda line: crowd.left.inode,
    }
    for names, run in runs.items():
        wanted: dict[Any, list[int]] = {}
        for session in sessions:
            line = session.lines()[0]  # the client's
            key = tuple(facts[n](line) if n in facts else getattr(line, n) for n in names)
            if line.tx_bytes + line.rx_bytes:
                sums = wanted.setdefault(key, [0, 0, 0])
                sums[:] = sums[0] + 1, sums[1] + line.tx_bytes, sums[2] + line.rx_bytes
        found = {
            tuple(row[n] for n in names): [row["sessions"], row["tx_bytes"], row["rx_bytes"]]
            for row in run.rows
        }
        assert found == wanted, names
        others = set(columns) - set(names)
        assert all(row[other] is None for row in run.rows for other in others)
        assert all(row["bytes"] == row["tx_bytes"] + row["rx_bytes"] for row in run.rows)
        assert [r["bytes"] for r in run.rows] == sorted(
            (r["bytes"] for r in run.rows), reverse=True
        )


def test_data_of_a_session_that_was_reset_before_the_start(
    netbpf: Any, one_host: Host, connect: Any
) -> None:
    session = connect()
    client, server = session.socks
    session.write(0, 3001)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_0)
    client.close()
    session.fetch(1, 1)
    session.written, session.read = [0, 0], [0, 0]
    with netbpf("tcptop", "--netns", one_host.inode, "0.1") as run:
        session.fetch(1, 2000)
        wait_until(lambda: shown(run) >= 2000)
        session.fetch(1, 1000)
        server.close()
    assert totals(run.rows, *ENDS) == session.ledger


def test_an_old_session_in_a_namespace_without_a_path(netbpf: Any) -> None:
    """Only its sockets keep the namespace: file tables have them."""
    with topology.one_host() as host:
        listener, client = (host.socket(socket.AF_INET, socket.SOCK_STREAM) for _ in "12")
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        client.connect(listener.getsockname())
        session = Session(client, listener.accept()[0])
        inode = host.inode
    with listener, netbpf("tcptop", "--by", "netns", 300) as run:
        session.move(up=1009, down=503)
        session.close()
    assert totals(run.rows, "netns")[inode,] == (1512, 1512)


@pytest.mark.parametrize("key", ["pid", "lport"])
def test_old_sessions_by_key(netbpf: Any, one_host: Host, connect: Any, key: str) -> None:
    """Also if no owner is shown; one session is in the listener's queue when the run begins."""
    session = connect()
    session.move()
    session.written, session.read = [0, 0], [0, 0]
    with one_host.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        client = one_host.socket(socket.AF_INET, socket.SOCK_STREAM)
        client.connect(listener.getsockname())
        client.sendall(b"q" * 11)
        words = ("--netns", one_host.inode, "--by", key, "-p" if key == "pid" else "-4")
        words += (os.getpid(),) if key == "pid" else ()
        with netbpf("tcptop", *words, 300) as run, client:
            session.move(up=1009, down=503)
            queued = Session(client, listener.accept()[0])
            queued.fetch(1, 11)
            queued.write(1, 7)
            queued.fetch(0, 7)
            queued.socks[1].close()
    wanted = {**session.ledger, **queued.ledger}
    ports = {(ends[1],): moved for ends, moved in wanted.items()}
    whole = {(os.getpid(),): tuple(map(sum, zip(*wanted.values())))}
    assert totals(run.rows, key) == (whole if key == "pid" else ports)


def test_rows_by_network(netbpf: Any, crowd: Crowd) -> None:
    with netbpf("tcptop", "--by", "raddr/16", 300, "-p", crowd.root.pid) as run:
        sessions = [crowd.connect(family) for family in ("ipv4", "ipv6", "ipv4")]
        for number, session in enumerate(sessions):
            session.transfer(up=1009 + number, down=503)
            session.end()
    blocks = [str(ipaddress.ip_network(f"{host}/16", strict=False))
              for host in (crowd.right.ipv4, crowd.right.ipv6)]  # fmt: skip
    assert totals(run.rows, "raddr") == {
        (blocks[0],): (2 * 1009 + 2, 2 * 503), (blocks[1],): (1010, 503)
    }  # fmt: skip


def test_filters(netbpf: Any, crowd: Crowd) -> None:
    """Each filter shows what matches, and nothing else."""
    filters = crowd.filters()
    with contextlib.ExitStack() as stack:
        runs = [stack.enter_context(netbpf("tcptop", *words, 300)) for words in filters]
        sessions = crowd.play(41, ALL_READ)
    lines = [line for session in sessions for line in session.lines()]
    lines = [line for line in lines if line.tx_bytes or line.rx_bytes]
    for (words, passes), run in zip(filters.items(), runs):
        wanted = {tuple(getattr(line, name) for name in FACTS): (line.tx_bytes, line.rx_bytes)
                  for line in lines if passes(line)}  # fmt: skip
        assert 0 < len(wanted) < len(lines), words
        assert totals(crowd.ours(run.rows), *FACTS) == wanted, words


def test_the_owner_is_the_child_that_has_the_socket(netbpf: Any, crowd: Crowd) -> None:
    """A server forks for a session and closes its own copy: then the child moves bytes."""
    with traffic.peers() as start:
        server = start("nb-top-parent", crowd.right)
        server.listen("ipv4")
        with netbpf("tcptop", "--netns", crowd.right.inode, "0.2") as run:
            session = traffic.connect(crowd.root, server)
            session.transfer(up=1009)
            wait_until(lambda: totals(run.rows, "pid").get((server.pid,)) == (0, 1009))
            child = server.fork("nb-top-child")
            server.ask("close", id=session.id)
            session.server = child
            session.transfer(up=2003)
            wait_until(lambda: totals(run.rows, "pid").get((child.pid,)) == (0, 2003))
            session.end()
            child.stop()
    assert totals(run.rows, "pid", "comm") == {
        (server.pid, "nb-top-parent"): (0, 1009),
        (child.pid, "nb-top-child"): (0, 2003),
    }


def test_a_process_that_is_killed(netbpf: Any, crowd: Crowd) -> None:
    """It leaves a session with unread data; it is gone when its rows are shown."""
    with netbpf("tcptop", "--netns", crowd.left.inode, 300) as run, traffic.peers() as start:
        client = start("nb-top-killed", crowd.left)
        session = traffic.connect(client, crowd.servers[0])
        session.transfer(up=2003, down=1009, client_leaves=9)
        client.stop()
        session.server.ask("ended", id=session.id)
    assert totals(run.rows, "pid", "comm") == {(client.pid, "nb-top-killed"): (2003, 1000)}


def test_first_rows_and_their_order(netbpf: Any, crowd: Crowd) -> None:
    words = ("-p", crowd.root.pid, 300)
    columns = ("bytes", "rx_bytes", "tx_bytes")
    with contextlib.ExitStack() as stack:
        runs = {c: stack.enter_context(netbpf("tcptop", *words, "--top", 3, "--sort", c))
                for c in columns}  # fmt: skip
        usual = stack.enter_context(netbpf("tcptop", *words, "--top", 3))
        for up, down in ((1009, 503), (2003, 7), (11, 3001), (5, 13), (4001, 1)):
            session = crowd.connect()
            session.transfer(up=up, down=down)
            session.end()
    moved = {"bytes": [4002, 3012, 2010], "rx_bytes": [3001, 503, 13],
             "tx_bytes": [4001, 2003, 1009]}  # fmt: skip
    assert {c: [row[c] for row in runs[c].rows] for c in columns} == moved
    assert [row["bytes"] for row in usual.rows] == moved["bytes"]


def test_tcplife_has_the_same_bytes(netbpf: Any, crowd: Crowd) -> None:
    """Of sessions whose bytes were all read; it counts what was received."""
    words = ("--netns", crowd.right.inode)
    with netbpf("tcptop", *words, "0.2") as run, netbpf("tcplife", *words) as life:
        sessions = crowd.play(29, ALL_READ)
        life.wait_for(len(sessions))
    finished = {tuple(event[name] for name in FACTS): (event["tx_bytes"], event["rx_bytes"])
                for event in life.events if event["tx_bytes"] or event["rx_bytes"]}  # fmt: skip
    assert totals(run.rows, *FACTS) == finished


# --- losses, text, kinds of probes ---------------------------------------------------------------


def test_a_session_without_room_counts(netbpf: Any, one_host: Host, connect: Any) -> None:
    """There is room for 4 sockets, and again when they are gone."""
    with netbpf("tcptop", "--netns", one_host.inode, "--map-entries", 4, "0.1") as run:
        fitting = [connect() for _ in range(2)]
        without = [connect() for _ in range(3)]
        for session in (*fitting, *without):
            session.move(up=7, down=5)
            session.close()
        wait_until(lambda: shown(run) >= 2 * 2 * 12)
        later = connect()
        later.move(up=11, down=3)
    assert run.summary["lost"]["map_full"] == 2 * len(without)
    assert run.summary["complete"] is False
    ledger = {ends: moved for one in (*fitting, later) for ends, moved in one.ledger.items()}
    assert totals(run.rows, *ENDS) == ledger


def test_text(netbpf: Any, one_host: Host, connect: Any) -> None:
    """bcc's columns; -C and -S of its users change nothing."""
    words = ("tcptop", "-CS", "--netns", one_host.inode, 300)
    with netbpf(*words, json_lines=False) as run:
        session = connect()
        session.move(up=2048, down=51200)
    head, *lines = run.stdout.splitlines()
    assert head.split() == ["PID", "COMM", "LADDR", "RADDR", "RX_KB", "TX_KB"]
    comm = Path("/proc/self/comm").read_text().strip()
    ends = ["{}:{} {}:{}".format(*one).split() for one in session.ends]
    assert sorted(line.split() for line in lines if line) == sorted(
        [[str(os.getpid()), comm, *one, *sizes]
         for one, sizes in zip(ends, (["50.00", "2.00"], ["2.00", "50.00"]))]
    )  # fmt: skip


def test_default_interval(netbpf: Any, one_host: Host, connect: Any) -> None:
    """Without INTERVAL, there are rows before the end."""
    with netbpf("tcptop", "--netns", one_host.inode) as run:
        session = connect()
        for _ in range(2):
            session.move(up=1009, down=503)
            wait_until(lambda: totals(run.rows, *ENDS) == session.ledger)
        times = [seconds(row["time"]) for row in run.rows]
    assert len(set(times)) >= 2 and times == sorted(times)


def session_totals(run: Run, lost: set[str]) -> Totals:
    """Return what each session moved, with its owner."""
    names = (*FACTS, "uid", "netns", "cgroup")
    return totals(run.rows, *(name for name in names if name not in lost))


ALTERNATIVES = Case(lambda s: ("--netns", s.right.inode, 300), sessions_of, session_totals)
