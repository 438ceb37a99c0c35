"""What tcpsynbl reports as dropped are connections, and each listener's own.

The truth is the kernel's own count, ListenDrops in /proc/net/netstat of a namespace in which the
test's listener is the only one to lose anything, and what the test itself arranged.
"""

from __future__ import annotations

import array
import contextlib
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
from compared import compares
from harness import Json, Run, wait_until
from test_alternatives import offered
from test_tcpsynbl import Clients, listening, overflow, port_of, rows_of, total
from topology import Host

from netbpf.declare.backlog import LOST_PROBES

DROPPED = LOST_PROBES[0]
LOOPBACK = ("127.0.0.1", "::1")
FIN, SYN, RST, ACK = 1, 2, 4, 16


@pytest.fixture
def clients(one_host: Host) -> Iterator[Clients]:
    with contextlib.closing(Clients(one_host)) as made:
        yield made


class Rise:
    """How much a counter of a host grew since this was made."""

    def __init__(self, host: Host, name: str = "ListenDrops") -> None:
        self._host, self._name = host, f"TcpExt{name}"
        self._before = self._now()

    def _now(self) -> int:
        return self._host.snmp()[self._name]

    @property
    def count(self) -> int:
        return self._now() - self._before


def send_segments(
    host: Host, port: int, number: int, flags: int, address: str = "127.0.0.1", damaged: int = 0
) -> None:
    """Send that many segments to a local address, each from another port, where no socket is.

    With `damaged` they have so many bytes of data that their checksum does not fit.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    packed = socket.inet_pton(family, address)
    with host.socket(family, socket.SOCK_RAW, socket.IPPROTO_TCP) as raw:
        for index in range(number):
            fixed = struct.pack("!HHIIBBHHH", 1024 + index, port, 77, 78, 0x50, flags, 512, 0, 0)
            pseudo = packed * 2 + struct.pack("!HH", 6, len(fixed))
            words = struct.unpack(f"!{len(pseudo + fixed) // 2}H", pseudo + fixed)
            folded = sum(words) % 0xFFFF
            sealed = fixed[:16] + struct.pack("!H", 0xFFFF - folded) + fixed[18:]
            raw.sendto(sealed + b"d" * damaged, (address, 0))


def nothing_lost(run: Run, port: int) -> None:
    assert {row["dropped"] for row in rows_of(run, port)} == {0}
    assert {row["dropped_total"] for row in rows_of(run, port)} == {0}
    assert not any(word in run.stderr for word in ("OVERFLOW", "DROPS"))


# --- packets that are refused, and no connection is lost -----------------------------------------


@pytest.mark.parametrize("address", LOOPBACK)
def test_acks_that_wait_for_data_lose_nothing(
    netbpf: Any, one_host: Host, clients: Clients, address: str
) -> None:
    drops, deferred = Rise(one_host), Rise(one_host, "TCPDeferAcceptDrop")
    with listening(one_host, 23, address) as listener:
        port = port_of(listener)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 20)
        with netbpf("tcpsynbl", "--netns", one_host.inode) as run:
            clients.connect(port, 7, address)
            assert deferred.count == 7
            for client in clients.sockets:
                client.sendall(b"now")
                listener.accept()[0].close()
            run.stop()
    assert drops.count == 0
    nothing_lost(run, port)
    assert total(run, port, "handshakes") == 7


def test_handshakes_that_are_given_up_lose_nothing(
    netbpf: Any, one_host: Host, clients: Clients
) -> None:
    drops = Rise(one_host)
    with netbpf("tcpsynbl", "--netns", one_host.inode) as run:
        with listening(one_host, 23) as listener:
            port = port_of(listener)
            # The kernel, which has no such socket, answers each SYN-ACK with a reset.
            send_segments(one_host, port, 5, SYN)
            clients.connect(port)
            run.stop()
    assert drops.count == 0
    nothing_lost(run, port)


def test_syn_that_comes_again_loses_nothing(netbpf: Any, two_hosts: tuple[Host, Host]) -> None:
    left, right = two_hosts
    drops = Rise(right)
    with contextlib.closing(Clients(left)) as far, listening(right, 23, right.ipv4) as listener:
        port = port_of(listener)
        with netbpf("tcpsynbl", "--netns", right.inode) as run:
            with left.dropping("tcp flags & (syn | ack) == syn | ack") as lost:
                far.begin(port, 1, right.ipv4)
                wait_until(lambda: lost.count() >= 2, what="the SYN to be repeated")
            listener.settimeout(10)
            listener.accept()[0].close()
            run.stop()
    assert drops.count == 0
    nothing_lost(run, port)


@pytest.mark.parametrize("address", LOOPBACK)
@pytest.mark.parametrize("flags", [ACK, RST, SYN | FIN, 0], ids=["ack", "rst", "syn-fin", "none"])
def test_segments_of_no_connection_change_no_count(
    netbpf: Any, one_host: Host, clients: Clients, flags: int, address: str
) -> None:
    """Some of them raise the socket's own count, some do not: what is lost beside them is exact."""
    drops = Rise(one_host)
    with netbpf("tcpsynbl", "--netns", one_host.inode) as run:
        with listening(one_host, 2, address) as listener:
            port = port_of(listener)
            send_segments(one_host, port, 9, flags, address)
            clients.connect(port, 3, address)
            clients.attempt(port, 4, address)
            send_segments(one_host, port, 11, flags, address)
            run.stop()
    assert total(run, port, "dropped") == drops.count == 4


@pytest.mark.parametrize("address", LOOPBACK)
def test_damaged_segments_change_no_count(
    netbpf: Any, one_host: Host, clients: Clients, address: str
) -> None:
    """They reach the listener and are freed for it, and are not in its own count (TCP_CSUM)."""
    drops = Rise(one_host)
    damaged = one_host.snmp()["TcpInCsumErrors"]
    with netbpf("tcpsynbl", "--netns", one_host.inode) as run:
        with listening(one_host, 2, address) as listener:
            port = port_of(listener)
            # A checksum of up to 76 bytes is looked at before the listener is.
            send_segments(one_host, port, 9, SYN, address, damaged=200)
            clients.connect(port, 3, address)
            clients.attempt(port, 4, address)
            run.stop()
    assert one_host.snmp()["TcpInCsumErrors"] - damaged == 9
    assert total(run, port, "dropped") == drops.count == 4


def test_segment_without_the_signature_that_is_asked_for_loses_nothing(
    netbpf: Any, one_host: Host, clients: Clients
) -> None:
    drops, unsigned = Rise(one_host), Rise(one_host, "TCPMD5NotFound")
    with listening(one_host, 23) as listener:
        port = port_of(listener)
        # struct tcp_md5sig: struct sockaddr_storage, flags, prefix length, key length, 0, key
        peer = struct.pack("=H2x4s", socket.AF_INET, socket.inet_aton("127.0.0.1")).ljust(
            128, b"\0"
        )
        key = peer + struct.pack("=BBHI", 0, 0, 3, 0) + b"abc".ljust(80, b"\0")
        listener.setsockopt(socket.IPPROTO_TCP, 14, key)  # TCP_MD5SIG
        with netbpf("tcpsynbl", "--netns", one_host.inode) as run:
            clients.attempt(port, 6)
            assert unsigned.count == 6
            run.stop()
    assert drops.count == 0
    assert total(run, port, "dropped") == 0 and "dropped" not in run.stderr


# --- connections that are lost -------------------------------------------------------------------


@compares("tcpsynbl", "dropped_total", shape="rows")
@pytest.mark.parametrize("abort", [0, 1])
@pytest.mark.parametrize("address", [*LOOPBACK, "::"])
def test_queue_that_is_full_when_handshakes_end(
    netbpf: Any, one_host: Host, clients: Clients, address: str, abort: int
) -> None:
    """Some handshakes wait for their data, SYN cookies let others overtake them: five have room."""
    one_host.sysctl(net__ipv4__tcp_abort_on_overflow=abort, net__ipv4__tcp_syncookies=1)
    drops = Rise(one_host)
    near = "127.0.0.1" if address == "::" else address
    with netbpf("tcpsynbl", "--netns", one_host.inode) as run:
        with listening(one_host, 4, address, dual=True) as listener:
            port = port_of(listener)
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 20)
            clients.connect(port, 4 + 5, near)
            for client in clients.sockets:
                client.sendall(b"x")
            wait_until(lambda: drops.count >= 4)
            clients.close()
            run.stop()
            lost = run.summary["counters"]["TcpExt.ListenDrops"]
    assert lost >= 4 and (not abort or lost == 4)
    (row,) = rows_of(run, port)
    assert (row["dropped"], row["dropped_total"], row["handshakes"]) == (lost, lost, 5)
    assert row["accept_max"] == 5
    (note,) = [note for note in run.summary["notes"] if "OVERFLOW" in note]
    assert "accept queue of 4 is full" in note


def test_handshake_that_ends_with_much_data_is_one_loss(
    netbpf: Any, one_host: Host, clients: Clients
) -> None:
    """A packet of several segments counts as several in the listener's own count."""
    drops = Rise(one_host)
    with netbpf("tcpsynbl", "--netns", one_host.inode) as run:
        with listening(one_host, 4) as listener:
            port = port_of(listener)
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 20)
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 500)
            clients.connect(port, 4 + 4)
            for client in clients.sockets:
                client.sendall(b"x" * 4000)
            wait_until(lambda: drops.count >= 3)
            clients.close()
            run.stop()
            lost = run.summary["counters"]["TcpExt.ListenDrops"]
    (row,) = rows_of(run, port)
    assert row["dropped"] == lost >= 3
    assert row["handshakes"] == 5


@compares("tcpsynbl", "syncookies", "syns", "cookies", shape="rows")
@pytest.mark.parametrize("cookies", [0, 1, 2])
@pytest.mark.parametrize("address", LOOPBACK)
def test_syn_cookies_change_nothing_about_a_full_accept_queue(
    netbpf: Any, one_host: Host, clients: Clients, address: str, cookies: int
) -> None:
    one_host.sysctl(net__ipv4__tcp_syncookies=cookies)
    drops, sent = Rise(one_host), Rise(one_host, "SyncookiesSent")
    with netbpf("tcpsynbl", "--netns", one_host.inode) as run:
        with listening(one_host, 3, address) as listener:
            port = port_of(listener)
            clients.connect(port, 4, address)
            clients.attempt(port, 6, address)
            run.stop()
    (row,) = rows_of(run, port)
    assert row["dropped"] == drops.count == 6
    assert (row["handshakes"], row["accept_max"], row["syncookies"]) == (4, 4, cookies)
    assert sent.count == (4 if cookies == 2 else 0)
    # Null just where nothing shows SYNs or their answers.
    kinds = {probe["name"]: probe["kind"] for probe in run.summary["probes"]}
    assert row["cookies"] == (sent.count if kinds["synack"] else None)
    assert row["syns"] == (4 + 6 if kinds["syn"] else None)


def test_quiet_listener_beside_one_that_overflows(
    netbpf: Any, one_host: Host, clients: Clients
) -> None:
    drops = Rise(one_host)
    with listening(one_host, 23) as quiet, listening(one_host, 1, "::1") as full:
        quiet.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 20)
        with netbpf("tcpsynbl", "--netns", one_host.inode) as run:
            clients.connect(port_of(quiet), 9)
            for client in clients.sockets:
                client.sendall(b"x")
            clients.connect(port_of(full), 2, "::1")
            clients.attempt(port_of(full), 5, "::1")
            run.stop()
    assert drops.count == 5
    assert total(run, port_of_row(run, "::1"), "dropped") == 5
    assert total(run, port_of_row(run, "127.0.0.1"), "dropped") == 0
    assert [row["laddr"] for row in run.rows] == ["::1", "127.0.0.1"]
    (note,) = [note for note in run.summary["notes"] if "dropped" in note]
    assert "on ::1 port" in note


def port_of_row(run: Run, address: str) -> int:
    (port,) = {row["lport"] for row in run.rows if row["laddr"] == address}
    return int(port)


def test_those_that_lose_most_come_first_in_each_interval(
    netbpf: Any, one_host: Host, clients: Clients
) -> None:
    with contextlib.ExitStack() as stack:
        first, second, third = (stack.enter_context(listening(one_host, n)) for n in (1, 2, 3))
        ports = [port_of(one) for one in (first, second, third)]
        for port, size in zip(ports, (2, 3, 4)):
            clients.connect(port, size)
        with netbpf("tcpsynbl", "0.5", "--netns", one_host.inode) as run:
            rounds = [(2, 7, 0), (6, 3, 5)]
            for number, lost in enumerate(rounds, 1):
                for port, more in zip(ports, lost):
                    clients.attempt(port, more)
                wanted = sum(sum(each) for each in rounds[:number])
                wait_until(lambda: sum(row["dropped"] for row in run.rows) >= wanted)  # noqa: B023
            run.stop()
    for port, *lost in zip(ports, *rounds):
        rows = [row for row in rows_of(run, port) if row["dropped"]]
        totals = [row["dropped_total"] for row in rows_of(run, port)]
        assert sum(row["dropped"] for row in rows) == sum(lost) == totals[-1]
        assert totals == sorted(totals)
    for interval in intervals(run):
        falling = [row["dropped"] for row in interval]
        assert falling == sorted(falling, reverse=True)
    notes = [note for note in run.summary["notes"] if "OVERFLOW" in note]
    assert len(notes) == 3


def intervals(run: Run) -> list[list[Json]]:
    found: list[list[Json]] = [[]]
    for line in run.lines:
        if line["type"] == "interval":
            found[-1].append(line)
        elif line["type"] == "counters":
            found.append([])
    return [rows for rows in found if rows]


def test_listeners_that_share_a_port_lose_each_its_own(
    netbpf: Any, one_host: Host, clients: Clients
) -> None:
    drops = Rise(one_host)
    with netbpf("tcpsynbl", "--netns", one_host.inode) as run:
        with listening(one_host, 2) as first, listening(one_host, 5, port=port_of(first)) as twin:
            port = port_of(first)
            clients.begin(port, 60)
            wait_until(lambda: drops.count >= 60 - 3 - 6)
            counts = {2: backlog_of(first), 5: backlog_of(twin)}
            run.stop()
            lost = run.summary["counters"]["TcpExt.ListenDrops"]
    rows = rows_of(run, port)
    assert {row["accept_limit"]: row["accept_queue"] for row in rows} == counts == {2: 3, 5: 6}
    assert all(row["dropped"] > 0 for row in rows)
    assert sum(row["dropped"] for row in rows) == lost


def backlog_of(listener: socket.socket) -> int:
    """Return how many connections wait: tcpi_unacked of a listener (tcp_get_info)."""
    info = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
    return int(struct.unpack_from("=I", info, 24)[0])


def test_limit_that_is_changed_while_it_listens(
    netbpf: Any, one_host: Host, clients: Clients
) -> None:
    drops = Rise(one_host)
    with netbpf("tcpsynbl", "--netns", one_host.inode) as run:
        with listening(one_host, 1) as listener:
            port = port_of(listener)
            overflow(clients, port, 1, 3)
            listener.listen(4)
            clients.connect(port, 3)
            clients.attempt(port, 2)
            run.stop()
    (row,) = rows_of(run, port)
    assert row["dropped"] == drops.count == 5
    assert (row["accept_limit"], row["accept_queue"], row["handshakes"]) == (4, 5, 5)
    samples = {h["key"]["limit"]: (h["count"], h["sum"]) for h in run.histograms}
    assert samples == {1: (2, 0 + 1), 4: (3, 2 + 3 + 4)}


def test_mptcp_listener_loses_what_its_subflow_loses(
    netbpf: Any, one_host: Host, clients: Clients
) -> None:
    drops = Rise(one_host)
    with netbpf("tcpsynbl", "--netns", one_host.inode) as run:
        with one_host.socket(socket.AF_INET, socket.SOCK_STREAM, 262) as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen(2)
            port = port_of(listener)
            clients.connect(port, 3)
            clients.attempt(port, 4)
            run.stop()
    (row,) = rows_of(run, port)
    assert (row["dropped"], row["handshakes"], row["pid"]) == (drops.count, 3, os.getpid())
    assert drops.count == 4


@pytest.mark.parametrize("kind", [way.kind for way in DROPPED.alternatives])
def test_each_way_to_see_losses_is_exact_or_leaves_them_empty(
    netbpf: Any, one_host: Host, clients: Clients, kind: str
) -> None:
    """Where the kernel lacks a way that is asked for, its counters remain, and a note."""
    drops = Rise(one_host)
    words = ("--netns", one_host.inode, "--probe", f"dropped={kind}")
    with netbpf("tcpsynbl", *words) as run:
        with listening(one_host, 2) as listener, listening(one_host, 1, "::1") as other:
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 20)
            clients.connect(port_of(listener), 2)
            for client in clients.sockets:
                client.sendall(b"x")
            clients.connect(port_of(other), 2, "::1")
            clients.attempt(port_of(other), 3, "::1")
            ports = (port_of(listener), port_of(other))
            run.stop()
    assert drops.count == 3
    (row,), (full,) = (rows_of(run, port) for port in ports)
    assert (row["handshakes"], full["handshakes"], full["accept_max"]) == (2, 2, 2)
    notes = [note for note in run.summary["notes"] if "ListenDrops +3" in note]
    alarms = [note for note in run.summary["notes"] if "OVERFLOW" in note]
    if kind in offered(DROPPED):
        assert (row["dropped"], full["dropped"], full["dropped_total"]) == (0, 3, 3)
        assert (len(alarms), notes) == (1, [])
    else:
        assert row["dropped"] is full["dropped"] is full["dropped_total"] is None
        assert (alarms, len(notes)) == ([], 1)


def test_overflow_of_fast_open_is_no_loss(netbpf: Any, two_hosts: tuple[Host, Host]) -> None:
    """Data with the SYN is turned away (TCPFastOpenListenOverflow), its handshake is not."""
    left, right = two_hosts
    for host in two_hosts:
        host.sysctl(net__ipv4__tcp_fastopen=0x607)
    drops, turned_away = Rise(right), Rise(right, "TCPFastOpenListenOverflow")
    with listening(right, 23, right.ipv4) as listener, contextlib.ExitStack() as stack:
        port = port_of(listener)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN, 1)
        with netbpf("tcpsynbl", "--netns", right.inode) as run:
            with left.dropping("tcp flags & (syn | ack) == syn | ack") as answers:
                for _ in range(4):
                    client = stack.enter_context(left.socket(socket.AF_INET, socket.SOCK_STREAM))
                    client.setblocking(False)
                    with contextlib.suppress(BlockingIOError):
                        client.sendto(b"hello", socket.MSG_FASTOPEN, (right.ipv4, port))
                wait_until(lambda: answers.count() >= 4)
                assert turned_away.count >= 3
                run.stop()
    assert drops.count == 0
    nothing_lost(run, port)


def test_listener_that_is_closed_while_it_overflows(
    netbpf: Any, one_host: Host, clients: Clients
) -> None:
    drops = Rise(one_host)
    with netbpf("tcpsynbl", "--netns", one_host.inode) as run:
        with listening(one_host, 1) as listener:
            port = port_of(listener)
            clients.connect(port, 2)
            clients.begin(port, 50)
        clients.close()
        run.stop()
    (row,) = rows_of(run, port)
    assert row["dropped"] == drops.count == 50
    assert (row["handshakes"], row["accept_max"], row["accept_queue"]) == (2, 2, 0)


# --- listeners that no file table holds ----------------------------------------------------------


@contextlib.contextmanager
def in_flight(listener: socket.socket) -> Iterator[None]:
    """Close a listener while its only copy is in a message between two unix sockets."""
    left, right = socket.socketpair(socket.AF_UNIX)
    with left, right:
        rights = array.array("i", [listener.fileno()])
        left.sendmsg([b"!"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        listener.close()
        yield


@pytest.mark.parametrize("filled", ["before", "during"])
@pytest.mark.parametrize("packed", ["before", "during"])
def test_listener_in_a_message_is_followed(
    netbpf: Any, one_host: Host, clients: Clients, packed: str, filled: str
) -> None:
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(listening(one_host, 2))
        port = port_of(listener)
        if packed == "before":
            stack.enter_context(in_flight(listener))
        if filled == "before":
            clients.connect(port, 3)
        drops = Rise(one_host)
        with netbpf("tcpsynbl", "--netns", one_host.inode) as run:
            if packed == "during":
                stack.enter_context(in_flight(listener))
            if filled == "during":
                clients.connect(port, 3)
            clients.attempt(port, 4)
            run.stop()
        count = drops.count
    (row,) = rows_of(run, port)
    assert row["dropped"] == count == 4
    assert (row["accept_queue"], row["accept_max"], row["accept_limit"]) == (3, 3, 2)
    assert row["handshakes"] == (3 if filled == "during" else 0)
    if packed == "before":
        assert (row["pid"], row["owner"]) == (None, "unknown")
    else:
        assert (row["pid"], row["owner"]) == (os.getpid(), "snapshot")


def test_who_holds_a_listener_now_is_its_owner(
    netbpf: Any, one_host: Host, clients: Clients
) -> None:
    with netbpf("tcpsynbl", "0.3", "--netns", one_host.inode) as run:
        with listening(one_host, 7) as listener:
            port = port_of(listener)
            clients.connect(port)
            wait_until(lambda: rows_of(run, port), what="our row")
            code = "import sys; print(flush=True); sys.stdin.read()"
            heir = subprocess.Popen(
                [sys.executable, "-c", code],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[listener.fileno()],
            )  # fmt: skip
            assert heir.stdout and heir.stdout.readline()
            both = len(rows_of(run, port))
            wait_until(lambda: len(rows_of(run, port)) > both + 1)
            listener.close()
            wait_until(lambda: rows_of(run, port)[-1]["pid"] == heir.pid, what="the heir")
            heir.communicate()
    pids = [row["pid"] for row in rows_of(run, port)]
    assert pids[: both + 2] == [os.getpid()] * (both + 2)
    last = rows_of(run, port)[-1]
    assert (last["owner"], last["dropped_total"]) == ("snapshot", 0)


# --- every column, against what ss and /proc show ------------------------------------------------


def shown_by_ss(host: Host, port: int) -> tuple[int, int]:
    """Return (connections that wait, their limit) of a listener."""
    words = host.run("ss", "-Hltn", f"sport = :{port}").split()
    return int(words[1]), int(words[2])


@compares("tcpsynbl", "syn_backlog", "netns", shape="rows")
def test_each_column_is_what_others_show(netbpf: Any, two_hosts: tuple[Host, Host]) -> None:
    left, right = two_hosts
    right.sysctl(net__core__somaxconn=37, net__ipv4__tcp_max_syn_backlog=59)
    right.sysctl(net__ipv4__tcp_syncookies=1)
    before = right.snmp()
    with contextlib.closing(Clients(left)) as far, contextlib.ExitStack() as stack:
        one = stack.enter_context(listening(right, 99, right.ipv4))
        two = stack.enter_context(listening(right, 11, right.ipv6))
        ports = (port_of(one), port_of(two))
        with netbpf("tcpsynbl", "0.6", "--netns", right.inode) as run:
            far.connect(ports[0], 5, right.ipv4)
            far.connect(ports[1], 3, right.ipv6)
            wait_until(lambda: all(total(run, port, "handshakes") for port in ports))
            wait_until(lambda: sum(total(run, port, "handshakes") for port in ports) == 8)
            for _ in range(4):
                one.accept()[0].close()
            done = len(intervals(run))
            wait_until(lambda: len(intervals(run)) >= done + 2)
            with left.dropping("tcp flags & (syn | ack) == syn | ack") as drops:
                far.begin(ports[1], 6, right.ipv6)
                wait_until(lambda: drops.count() >= 6)
                under_way = right.run("ss", "-Htn", "state", "syn-recv").count("\n")
                waiting = [shown_by_ss(right, port) for port in ports]
                run.stop()
                rise = {k: v - before[k] for k, v in right.snmp().items()}
    ends = {row["lport"]: row for row in intervals(run)[-1]}
    found = [ends[port] for port in ports]
    assert [(row["accept_queue"], row["accept_limit"]) for row in found] == waiting
    assert waiting == [(1, 37), (3, 11)]
    assert [row["laddr"] for row in found] == [right.ipv4, right.ipv6]
    assert [row["syn_queue"] for row in found] == [0, 6] and under_way == 6
    assert found[1]["syn_max"] == 6
    assert {(row["somaxconn"], row["syn_backlog"], row["syncookies"]) for row in found} == {
        (37, 59, 1)
    }
    assert {row["netns"] for row in found} == {right.inode}
    handshakes = sum(total(run, port, "handshakes") for port in ports)
    assert handshakes == rise["TcpPassiveOpens"] == 8
    assert sum(total(run, port, "dropped") for port in ports) == rise["TcpExtListenDrops"] == 0
    # The most in the interval, not since the start: one waits now, five waited in the beginning.
    peaks = [row["accept_max"] for row in rows_of(run, ports[0])]
    assert (max(peaks), peaks[-1]) == (5, 1)


# --- maps that are full, each alone --------------------------------------------------------------


def lost(run: Run) -> tuple[int, bool]:
    return run.summary["lost"]["map_full"], run.summary["complete"]


def test_listeners_that_cannot_be_followed_are_counted_once(
    netbpf: Any, one_host: Host, clients: Clients
) -> None:
    words = ("--netns", one_host.inode, "--map-entries", "2")
    with netbpf("tcpsynbl", "0.2", *words) as run, contextlib.ExitStack() as stack:
        all_ = [stack.enter_context(listening(one_host, 30)) for _ in range(5)]
        for _ in range(4):
            for listener in all_:
                clients.connect(port_of(listener))
        time.sleep(0.5)  # some intervals
    assert lost(run) == (3, False)
    assert sum(row["handshakes"] for row in run.rows) == 4 * 2


def test_rows_that_find_no_room_are_counted_once(
    netbpf: Any, one_host: Host, clients: Clients
) -> None:
    """Rows of closed listeners stay; of one port and limit, they have one distribution together."""
    words = ("--netns", one_host.inode, "--map-entries", "3")
    with listening(one_host, 30) as first:
        port = port_of(first)
    with netbpf("tcpsynbl", *words, "-L", port) as run:
        for _ in range(5):
            with listening(one_host, 30, port=port):
                clients.connect(port, 2)
    assert lost(run) == (2, False)
    assert len(run.rows) == 3
    assert [h["count"] for h in run.histograms] == [2 * 5]


def test_listeners_that_are_closed_give_their_room_back(netbpf: Any, one_host: Host) -> None:
    """Each socket stays, so that no other one gets its address, and listens no more."""
    with contextlib.ExitStack() as stack:
        with netbpf("tcpsynbl", "--netns", one_host.inode, "--map-entries", "2") as run:
            for _ in range(5):
                stack.enter_context(listening(one_host, 9)).shutdown(socket.SHUT_RDWR)
    assert lost(run) == (0, True)


def test_distributions_that_find_no_room_are_counted_once(
    netbpf: Any, one_host: Host, clients: Clients
) -> None:
    """A listener whose limit changes has several: rows and listeners have room."""
    with netbpf("tcpsynbl", "--netns", one_host.inode, "--map-entries", "2") as run:
        with listening(one_host, 11) as listener:
            for limit in (12, 13, 14, 15):
                listener.listen(limit)
                clients.connect(port_of(listener), 2)
            run.stop()
    assert lost(run) == (1, False)
    assert sum(h["count"] for h in run.histograms) == 2 * 2
    (row,) = run.rows
    assert row["handshakes"] == 2 * 4


@pytest.mark.parametrize("filter_", ["lport", "ipv6", "laddr", "netns", "pid", "comm"])
def test_listeners_that_are_filtered_out_take_no_room(
    netbpf: Any,
    one_host: Host,
    two_hosts: tuple[Host, Host],
    clients: Clients,
    filter_: str,
) -> None:
    words = {
        "lport": ("--netns", one_host.inode, "-L", "1,2"),
        "ipv6": ("--netns", one_host.inode, "-6"),
        "laddr": ("--netns", one_host.inode, "--laddr", "10.0.0.0/8"),
        "netns": ("--netns", two_hosts[0].inode),
        "pid": ("--netns", one_host.inode, "-p", 1),
        "comm": ("--netns", one_host.inode, "--comm", "no-such*"),
    }[filter_]
    with contextlib.ExitStack() as stack:
        others = [stack.enter_context(listening(one_host, 9)) for _ in range(4)]
        with netbpf("tcpsynbl", "--map-entries", "1", *words) as run:
            more = [stack.enter_context(listening(one_host, 9)) for _ in range(4)]
            for listener in (*others, *more):
                clients.connect(port_of(listener), 10)
                clients.attempt(port_of(listener), 2)
            run.stop()
    assert lost(run) == (0, True)
    assert run.rows == run.histograms == []
