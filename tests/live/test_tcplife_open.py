"""Open sessions of tcplife: state, age, idle time, unread and unsent bytes, and filters by these.

Truth: what this test sent and when, and what the kernel told the programs (FIONREAD, SIOCOUTQNSD).
"""

from __future__ import annotations

import contextlib
import fcntl
import socket
import struct
import termios
import time
from collections.abc import Iterator
from typing import Any, Callable, NamedTuple

import pytest
from compared import compares
from harness import Run, netbpf_once, seconds, wait_until
from topology import Host

TICK = time.clock_getres(6)  # CLOCK_MONOTONIC_COARSE: s
SIOCOUTQNSD = 0x894B  # include/uapi/linux/sockios.h: bytes that were not sent
DROPPED = 10
OWN = ("age_us", "idle_us", "rx_unread", "tx_unsent")


class Pair(NamedTuple):
    """Both ends of a session."""

    client: socket.socket
    server: socket.socket

    @property
    def port(self) -> int:
        """The client's port."""
        return int(self.client.getsockname()[1])

    def row(self, run: Run, server: bool = False) -> dict[str, Any]:
        """Return the last row of the client, or of the server."""
        name = "rport" if server else "lport"
        return [row for row in run.rows if row[name] == self.port][-1]


@pytest.fixture
def listener(one_host: Host) -> Iterator[socket.socket]:
    with one_host.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)  # for the accepted ones
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        yield sock


@pytest.fixture
def pair(one_host: Host, listener: socket.socket) -> Iterator[Any]:
    with contextlib.ExitStack() as stack:

        def connect() -> Pair:
            client = stack.enter_context(one_host.socket(socket.AF_INET, socket.SOCK_STREAM))
            client.connect(listener.getsockname())
            return Pair(client, stack.enter_context(listener.accept()[0]))

        yield connect


def number(sock: socket.socket, request: int) -> int:
    return int(struct.unpack("i", fcntl.ioctl(sock, request, bytes(4)))[0])


def still(value: Callable[[], int]) -> int:
    """Return a value when it has not changed for half a second."""
    seen = [value()]

    def unchanged() -> bool:
        time.sleep(0.1)
        seen.append(value())
        return len(seen) > 5 and len(set(seen[-6:])) == 1 and seen[-1] > 0

    wait_until(unchanged, what="a closed window")
    return seen[-1]


@compares("tcplife", "idle_us", "age_us", "rx_unread")
def test_idle_time_is_the_time_since_the_last_data(netbpf: Any, one_host: Host, pair: Any) -> None:
    with netbpf("tcplife", "--open", "--netns", one_host.inode) as run:
        one, two = pair(), pair()
        begun = time.time()
        time.sleep(0.3)
        begin = time.time()
        one.client.sendall(b"i" * 1234)
        assert one.server.recv(1234, socket.MSG_WAITALL | socket.MSG_PEEK)
        end = time.time()
        time.sleep(0.7)
    for server in (False, True):
        row, other = one.row(run, server), two.row(run, server)
        now = seconds(row["time"])
        assert now - end - 2 * TICK <= row["idle_us"] / 1e6 <= now - begin + 2 * TICK
        assert row["rx_unread"] == (1234 if server else 0)
        assert row["age_us"] == row["duration_us"] >= (now - begun) * 1e6
        # Nothing was sent in the other session: it has been idle since its beginning.
        assert abs(other["idle_us"] - other["age_us"]) <= 2e6 * TICK
        assert other["rx_unread"] == other["tx_unsent"] == row["tx_unsent"] == 0


def test_age_before_the_start_is_at_least_what_data_proves(
    netbpf: Any, one_host: Host, pair: Any
) -> None:
    begin = time.time()
    one, two = pair(), pair()
    time.sleep(0.4)
    two.server.sendall(b"!")  # which proves nothing of its age, but the other direction does
    assert two.client.recv(1) == b"!"
    sent = time.time()
    with netbpf("tcplife", "--open", "--netns", one_host.inode) as run:
        pass
    for each, idle_since in ((one, begin), (two, sent)):
        for server in (False, True):
            row = each.row(run, server)
            now = seconds(row["time"])
            assert row["duration_us"] is None
            assert (now - begin - 0.2) * 1e6 <= row["age_us"] <= (now - begin + 2 * TICK) * 1e6
            assert abs((now - idle_since) * 1e6 - row["idle_us"]) <= 0.2e6


@compares("tcplife", "tx_unsent", "rx_unread")
@pytest.mark.parametrize("fin", [False, True])
def test_bytes_that_wait(netbpf: Any, one_host: Host, pair: Any, fin: bool) -> None:
    """The reader reads nothing: its window closes, and the rest waits at the writer."""
    one = pair()
    one.client.setblocking(False)
    written = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            written += one.client.send(b"w" * 5000)
    received = still(lambda: number(one.server, termios.FIONREAD))
    assert number(one.client, SIOCOUTQNSD) == written - received
    if fin:
        one.client.shutdown(socket.SHUT_WR)
    with netbpf("tcplife", "--open", "--netns", one_host.inode) as run:
        pass
    writer, reader = one.row(run), one.row(run, server=True)
    assert (writer["tx_unsent"], reader["rx_unread"]) == (written - received, received)
    assert number(one.client, SIOCOUTQNSD) == writer["tx_unsent"] + fin
    assert (writer["rx_unread"], reader["tx_unsent"]) == (0, 0)
    assert writer["state"] == ("FIN_WAIT1" if fin else "ESTABLISHED")


def test_a_fin_is_no_unread_byte(netbpf: Any, one_host: Host, pair: Any) -> None:
    unread, read, all_read = pair(), pair(), pair()
    for each in (unread, read, all_read):
        each.client.sendall(b"f" * 777)
        each.client.shutdown(socket.SHUT_WR)
        wait_until(lambda sock=each.server: number(sock, termios.FIONREAD) == 777)
    assert len(read.server.recv(777, socket.MSG_WAITALL)) == 777
    while all_read.server.recv(777):
        pass
    wanted = {unread.port: 777, read.port: 0, all_read.port: 0}
    states = ("CLOSE_WAIT", "FIN_WAIT2")

    def all_arrived(run: Run) -> bool:
        return {row["state"] for row in run.rows} == set(states)

    with netbpf("tcplife", "--open", "0.2", "--netns", one_host.inode) as run:
        wait_until(lambda: all_arrived(run))
    for each in (unread, read, all_read):
        row = each.row(run, server=True)
        assert (row["state"], row["rx_unread"]) == ("CLOSE_WAIT", wanted[each.port])


@compares("tcplife", "state")
def test_before_the_handshake(netbpf: Any, one_host: Host) -> None:
    with (
        one_host.dropping(f"tcp dport {DROPPED}"),
        netbpf("tcplife", "--open", "--netns", one_host.inode) as run,
        one_host.socket(socket.AF_INET, socket.SOCK_STREAM) as sock,
    ):
        sock.setblocking(False)
        begin = time.time()
        sock.connect_ex(("127.0.0.1", DROPPED))
        end = time.time()
        time.sleep(0.3)
        run.stop()
    (row,) = run.rows
    now = seconds(row["time"])
    assert (row["state"], row["duration_us"]) == ("SYN_SENT", None)
    assert now - end - 0.002 <= row["age_us"] / 1e6 <= now - begin + 0.002
    assert (row["idle_us"], row["rx_unread"], row["tx_unsent"]) == (None, None, None)


def test_ended_sessions_have_none_of_it(netbpf: Any, one_host: Host, pair: Any) -> None:
    with netbpf("tcplife", "--netns", one_host.inode) as run:
        one = pair()
        one.client.close()
        one.server.close()
        run.wait_for(2)
    assert [event[name] for event in run.events for name in OWN] == [None] * 8


def test_filters_of_open_sessions(netbpf: Any, one_host: Host, pair: Any) -> None:
    """One session is old and idle, one old and busy, one half closed, and one new in each run."""
    idle, busy, half = pair(), pair(), pair()
    half.client.shutdown(socket.SHUT_WR)
    time.sleep(2)

    def found(*words: str) -> set[str]:
        with netbpf("tcplife", *words, "--netns", one_host.inode) as run:
            new = pair()
            for one, other in (busy, reversed(busy)):
                one.sendall(b"b")
                assert other.recv(1) == b"b"
        assert run.events == []
        assert len(run.rows) == run.summary["open"]
        names = {idle.port: "idle", busy.port: "busy", half.port: "half", new.port: "new"}
        return {names[row["lport"]] for row in run.rows if row["lport"] in names}

    assert found("--open") == {"idle", "busy", "half", "new"}
    assert found("--min-idle", "1.9") == {"idle", "half"}
    assert found("--min-idle", "1m") == set()
    assert found("--min-age", "1.9") == {"idle", "half"}  # data does not prove busy's age
    assert found("--state", "established") == {"idle", "busy", "new"}
    assert found("--state", "fin-wait-2,SYN_SENT") == {"half"}
    assert found("--state", "ESTABLISHED", "--min-idle", "1.9s") == {"idle"}


def test_filters_leave_out_what_ends(netbpf: Any, one_host: Host, pair: Any) -> None:
    for words in (("--min-idle", "0.001"), ("--min-age", "0.001"), ("--state", "ESTABLISHED")):
        with (
            netbpf("tcplife", *words, "--netns", one_host.inode) as run,
            netbpf("tcplife", "--netns", one_host.inode) as all_of_them,
        ):
            one = pair()
            one.client.close()
            one.server.close()
            all_of_them.wait_for(2)
        assert (run.events, run.rows) == ([], [])


@pytest.mark.parametrize("words", [("--state", "open"), ("--state", ""), ("--min-idle", "soon")])
def test_nonsense_is_a_usage_error(netbpf: Any, words: tuple[str, str]) -> None:
    done = netbpf_once("tcplife", *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert words[0] in done.stderr


def test_text_of_nothing_but_open_sessions(netbpf: Any, one_host: Host, pair: Any) -> None:
    one = pair()
    one.client.sendall(b"o" * 42)
    words = ("tcplife", "--netns", one_host.inode, "--state", "established")
    with netbpf(*words, json_lines=False) as run:
        pass
    head, *rows = run.stdout.splitlines()
    assert head.split()[:4] == ["PID", "COMM", "RADDR", "RPORT"]
    assert {row.split()[4] for row in rows} == {"ESTABLISHED"} and len(rows) == 2
    with netbpf(*words, "--by", "state,rport", json_lines=False) as summed:
        pass
    head, *rows = summed.stdout.splitlines()
    assert head.split()[:4] == ["STATE", "RPORT", "SESSIONS", "OPEN"]
    ports = {str(one.port), str(one.client.getpeername()[1])}
    assert {tuple(row.split()[:4]) for row in rows} == {
        ("ESTABLISHED", port, "0", "1") for port in ports
    }


def test_text_tells_open_from_ended_sessions(netbpf: Any, one_host: Host, pair: Any) -> None:
    earlier = pair()
    with netbpf("tcplife", "--open", "--netns", one_host.inode, json_lines=False) as run:
        one = pair()
        later = pair()
        later.client.sendall(b"t" * 99)
        one.client.close()
        one.server.close()
        wait_until(lambda: len(run.stdout.splitlines()) >= 3, what="two lines")
        time.sleep(0.2)
    ended, still = run.stdout.split("\n\n")
    assert "CLOSE" not in ended and len(ended.splitlines()) == 3
    head, *rows = still.splitlines()
    assert head.split() == [
        "PID", "COMM", "RADDR", "RPORT", "STATE", "AGE_S", "IDLE_S", "UNREAD", "UNSENT",
    ]  # fmt: skip
    found = {int(row.split()[3]): row.split()[4:] for row in rows}  # servers, by the client's port
    assert found[later.port][:1] == ["ESTABLISHED"] and found[later.port][3:] == ["99", "0"]
    assert found[earlier.port][3:] == ["0", "0"]
    assert found[earlier.port][1].startswith(">")
    assert not found[later.port][1].startswith(">")
