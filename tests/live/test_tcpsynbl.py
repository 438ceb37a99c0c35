"""tcpsynbl tells the truth about listeners that this test made itself, and names what overflows."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import alternatives
import pytest
from alternatives import Case, Stage
from compared import compares
from harness import Json, Run, wait_until
from topology import Host

OVERFLOWS = ("ListenOverflows", "ListenDrops", "TCPReqQFullDrop")


@contextlib.contextmanager
def listening(
    host: Host, backlog: int, address: str = "127.0.0.1", port: int = 0, dual: bool = False
) -> Iterator[socket.socket]:
    """A listener that accepts nothing by itself."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with host.socket(family, socket.SOCK_STREAM) as listener:
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not dual)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind((address, port))
        listener.listen(backlog)
        yield listener


def port_of(listener: socket.socket) -> int:
    return int(listener.getsockname()[1])


class Clients:
    """Connections to listeners; all end with the block that they were made for."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.sockets: list[socket.socket] = []

    def connect(self, port: int, number: int = 1, address: str = "127.0.0.1") -> None:
        """Complete that many handshakes."""
        for _ in range(number):
            self._socket(address).connect((address, port))

    def attempt(self, port: int, number: int, address: str = "127.0.0.1") -> None:
        """Send that many SYNs, wait for no answer, and give up before they are sent again."""
        for client in self.begin(port, number, address):
            client.close()

    def begin(self, port: int, number: int, address: str = "127.0.0.1") -> list[socket.socket]:
        """Send that many SYNs, and wait for no answer."""
        clients = [self._socket(address) for _ in range(number)]
        for client in clients:
            client.setblocking(False)
            assert client.connect_ex((address, port)) == errno.EINPROGRESS
        return clients

    def _socket(self, address: str) -> socket.socket:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        client = self.host.socket(family, socket.SOCK_STREAM)
        client.settimeout(10)
        self.sockets.append(client)
        return client

    def close(self) -> None:
        for client in self.sockets:
            client.close()


@pytest.fixture
def clients(one_host: Host) -> Iterator[Clients]:
    with contextlib.closing(Clients(one_host)) as made:
        yield made


def overflow(clients: Clients, port: int, limit: int, more: int) -> None:
    """Fill an accept queue, which takes one more than its limit, and let `more` SYNs be dropped."""
    before = clients.host.snmp()["TcpExtListenOverflows"]
    clients.connect(port, limit + 1)
    clients.attempt(port, more)
    rise = clients.host.snmp()["TcpExtListenOverflows"] - before
    assert rise == more, "the kernel itself did not count what this test arranged"


def rows_of(run: Run, port: int) -> list[Json]:
    return [row for row in run.rows if row["lport"] == port]


def total(run: Run, port: int, name: str) -> int:
    return sum(row[name] for row in rows_of(run, port))


def counters(run: Run) -> dict[str, int]:
    """The kernel's counters, summed over all intervals."""
    found = dict.fromkeys(OVERFLOWS, 0)
    for line in run.lines:
        if line["type"] == "counters":
            for name in OVERFLOWS:
                found[name] += line["counters"][f"TcpExt.{name}"]
    return found


def shape(histogram: Json) -> list[tuple[int, int, int]]:
    return [(b["low"], b["high"], b["count"]) for b in histogram["buckets"]]


# --- the base case -------------------------------------------------------------------------------


@compares("tcpsynbl", "laddr", "netns", "buckets", "count", "sum", shape="histogram")
@compares("tcpsynbl", "percentiles", shape="histogram")
@compares(
    "tcpsynbl",
    "laddr",
    "pid",
    "comm",
    "owner",
    "handshakes",
    "accept_queue",
    "accept_max",
    "accept_limit",
    "syn_queue",
    "dropped",
    "somaxconn",
    shape="rows",
)
def test_nine_clients_of_listen_5_are_six_samples_and_three_drops(
    netbpf: Any, one_host: Host, clients: Clients
) -> None:
    with netbpf("tcpsynbl", "--netns", one_host.inode) as run:
        with listening(one_host, 5) as listener:
            port = port_of(listener)
            overflow(clients, port, 5, 3)
            run.stop()
    (histogram,) = run.histograms
    where = {"limit": 5, "laddr": "127.0.0.1", "lport": port, "netns": one_host.inode}
    assert histogram["key"] == where
    assert shape(histogram) == [(0, 0, 1), (1, 1, 1), (2, 3, 2), (4, 7, 2)]
    assert (histogram["count"], histogram["sum"]) == (6, 0 + 1 + 2 + 3 + 4 + 5)
    # Of 0, 1, 2, 3, 4, 5 the third is in the bucket of 2 and 3, the sixth in that of 4 to 7.
    assert 2 <= histogram["percentiles"]["p50"] <= 3
    assert 4 <= histogram["percentiles"]["p90"] <= histogram["percentiles"]["p99"] <= 7
    (row,) = rows_of(run, port)
    assert row["laddr"] == "127.0.0.1"
    assert (row["pid"], row["owner"]) == (os.getpid(), "exact")
    assert row["comm"] == Path("/proc/self/comm").read_text().strip()
    assert row["handshakes"] == row["accept_queue"] == row["accept_max"] == 6
    assert (row["accept_limit"], row["dropped"], row["syn_queue"]) == (5, 3, 0)
    assert row["somaxconn"] == int(one_host.run("cat", "/proc/sys/net/core/somaxconn"))
    assert counters(run) == {"ListenOverflows": 3, "ListenDrops": 3, "TCPReqQFullDrop": 0}
    assert run.summary["counters"]["TcpExt.ListenOverflows"] == 3
    (note,) = [note for note in run.summary["notes"] if "OVERFLOW" in note]
    assert f"port {port} " in note and f"pid {os.getpid()}" in note and "dropped 3 " in note
    assert "backlog" in note and "somaxconn" in note
    assert run.summary["complete"] is True


def test_overflow_is_announced_at_once_and_in_every_interval(
    netbpf: Any, one_host: Host, clients: Clients
) -> None:
    with netbpf("tcpsynbl", "0.2", "--netns", one_host.inode) as run:
        with listening(one_host, 2) as listener:
            port = port_of(listener)
            overflow(clients, port, 2, 2)
            wait_until(lambda: "OVERFLOW" in run.stderr, what="the loud line")
            assert f"port {port} " in run.stderr
            clients.attempt(port, 1)
            wait_until(lambda: total(run, port, "dropped") >= 3, what="the next interval")
            clients.close()
    assert total(run, port, "dropped") == counters(run)["ListenOverflows"]
    assert total(run, port, "handshakes") == 3
    intervals = [line for line in run.lines if line["type"] == "counters"]
    assert len(intervals) >= 2
    (note,) = [note for note in run.summary["notes"] if "OVERFLOW" in note]
    assert f"since the start {total(run, port, 'dropped')}" in note


def test_listener_that_keeps_up_raises_no_alarm(
    netbpf: Any, one_host: Host, clients: Clients
) -> None:
    with netbpf("tcpsynbl", "--netns", one_host.inode) as run:
        with listening(one_host, 16) as listener:
            port = port_of(listener)
            for _ in range(23):
                clients.connect(port)
                listener.accept()[0].close()
            run.stop()
    (histogram,) = run.histograms
    assert shape(histogram) == [(0, 0, 23)]
    (row,) = rows_of(run, port)
    assert (row["handshakes"], row["dropped"], row["accept_queue"]) == (23, 0, 0)
    assert row["accept_max"] == 1
    assert not any("OVERFLOW" in note for note in run.summary["notes"])
    assert "OVERFLOW" not in run.stderr
    assert counters(run) == dict.fromkeys(OVERFLOWS, 0)


def test_what_was_dropped_before_the_start_is_not_counted(
    netbpf: Any, one_host: Host, clients: Clients
) -> None:
    with listening(one_host, 1) as listener:
        port = port_of(listener)
        overflow(clients, port, 1, 5)
        clients.close()
        with netbpf("tcpsynbl", "--netns", one_host.inode) as run:
            late = Clients(one_host)
            late.attempt(port, 2)
            run.stop()
            late.close()
    assert run.histograms == []
    (row,) = rows_of(run, port)
    assert (row["dropped"], row["handshakes"], row["accept_queue"]) == (2, 0, 2)
    assert (row["pid"], row["owner"]) == (os.getpid(), "snapshot")


def test_listener_with_a_stuck_queue_is_shown_although_nothing_happens(
    netbpf: Any, one_host: Host, clients: Clients
) -> None:
    with listening(one_host, 7) as listener:
        clients.connect(port_of(listener), 3)
        with netbpf("tcpsynbl", "--netns", one_host.inode) as run:
            pass
    (row,) = run.rows
    assert (row["accept_queue"], row["accept_max"], row["accept_limit"]) == (3, 3, 7)
    assert row["handshakes"] == row["dropped"] == 0


def test_listener_that_is_closed_meanwhile_is_not_forgotten(
    netbpf: Any, one_host: Host, clients: Clients
) -> None:
    with netbpf("tcpsynbl", "--netns", one_host.inode) as run:
        with listening(one_host, 3) as listener:
            port = port_of(listener)
            overflow(clients, port, 3, 1)
            clients.close()
    (row,) = rows_of(run, port)
    assert (row["handshakes"], row["dropped"], row["accept_max"]) == (4, 1, 4)
    assert row["accept_queue"] == 0
    assert (row["pid"], row["owner"]) == (os.getpid(), "exact")


# --- which listener ------------------------------------------------------------------------------


def test_dual_stack_listener_counts_each_ipv4_handshake_once_and_as_its_own(
    netbpf: Any, one_host: Host, clients: Clients
) -> None:
    before = one_host.snmp()["TcpPassiveOpens"]
    with netbpf("tcpsynbl", "--netns", one_host.inode) as run:
        with listening(one_host, 23, "::", dual=True) as listener, listening(one_host, 23) as other:
            port = port_of(listener)
            clients.connect(port, 7)
            clients.connect(port, 4, "::1")
            clients.connect(port_of(other), 2)
            second = port_of(other)
            run.stop()
    assert one_host.snmp()["TcpPassiveOpens"] - before == 13
    found = {(h["key"]["laddr"], h["key"]["lport"]): h["count"] for h in run.histograms}
    assert found == {("::", port): 11, ("127.0.0.1", second): 2}
    (row,) = rows_of(run, port)
    assert (row["laddr"], row["handshakes"], row["accept_queue"]) == ("::", 11, 11)


@compares("tcpsynbl", "limit", "lport", shape="histogram")
@compares("tcpsynbl", "lport", shape="rows")
def test_listeners_of_one_limit_stay_apart(netbpf: Any, one_host: Host, clients: Clients) -> None:
    with netbpf("tcpsynbl", "--netns", one_host.inode) as run:
        with listening(one_host, 13) as first, listening(one_host, 13) as second:
            clients.connect(port_of(first), 2)
            clients.connect(port_of(second), 5)
            wanted = {port_of(first): 2, port_of(second): 5}
            run.stop()
    assert {h["key"]["lport"]: h["count"] for h in run.histograms} == wanted
    assert {h["key"]["limit"] for h in run.histograms} == {13}
    assert {row["lport"]: row["handshakes"] for row in run.rows} == wanted


@pytest.mark.parametrize("wide", [False, True])
def test_text_joins_listeners_of_one_limit_unless_wide(
    netbpf: Any, one_host: Host, clients: Clients, wide: bool
) -> None:
    words = ["--netns", one_host.inode, *(["-w"] if wide else [])]
    with netbpf("tcpsynbl", *words, json_lines=False) as run:
        with listening(one_host, 13) as first, listening(one_host, 13) as second:
            clients.connect(port_of(first), 2)
            clients.connect(port_of(second), 3)
            ports = [port_of(first), port_of(second)]
            run.stop()
    heads = [line for line in run.stdout.splitlines() if line.startswith("limit=")]
    if wide:
        assert len(heads) == 2 and all(f"lport={port}" in run.stdout for port in ports)
        return
    assert heads == ["limit=13"]
    # Samples 0, 1 of the first and 0, 1, 2 of the second.
    bars = [line.partition(":")[2].split()[0] for line in run.stdout.splitlines() if "|" in line]
    assert bars == ["2", "2", "1"]
    assert max(map(len, run.stdout.splitlines())) <= 80


def test_listeners_that_share_a_port_are_told_apart_in_the_table(
    netbpf: Any, one_host: Host, clients: Clients
) -> None:
    with netbpf("tcpsynbl", "--netns", one_host.inode) as run:
        with listening(one_host, 64) as first, listening(one_host, 64, port=port_of(first)) as twin:
            port = port_of(first)
            clients.connect(port, 31)
            counts = sorted(accept_all(one) for one in (first, twin))
            run.stop()
    assert sum(counts) == 31 and all(counts)
    assert sorted(row["handshakes"] for row in rows_of(run, port)) == counts
    assert sum(h["count"] for h in run.histograms) == 31


def accept_all(listener: socket.socket) -> int:
    """Accept what waits and return how many that were."""
    listener.setblocking(False)
    number = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            listener.accept()[0].close()
            number += 1
    return number


# --- the SYN queue -------------------------------------------------------------------------------


@compares("tcpsynbl", "syn_max", shape="rows")
def test_syn_queue_shows_handshakes_that_never_end(
    netbpf: Any, two_hosts: tuple[Host, Host]
) -> None:
    left, right = two_hosts
    far = Clients(left)
    with netbpf("tcpsynbl", "--netns", right.inode) as run:
        with listening(right, 23, right.ipv4) as listener:
            with left.dropping("tcp flags & (syn | ack) == syn | ack") as drops:
                far.attempt(port_of(listener), 5, right.ipv4)
                wait_until(lambda: drops.count() >= 5, what="the answers to be dropped")
                run.stop()
                far.close()
    (row,) = run.rows
    assert (row["syn_queue"], row["syn_max"], row["handshakes"]) == (5, 5, 0)
    assert run.histograms == []


def test_full_syn_queue_is_announced_with_its_own_hint(
    netbpf: Any, two_hosts: tuple[Host, Host]
) -> None:
    left, right = two_hosts
    right.sysctl(net__ipv4__tcp_syncookies=0)
    far = Clients(left)
    before = right.snmp()
    try:
        with netbpf("tcpsynbl", "--netns", right.inode) as run:
            with listening(right, 3, right.ipv4) as listener:
                with left.dropping("tcp flags & (syn | ack) == syn | ack"):
                    far.attempt(port_of(listener), 11, right.ipv4)
                    wait_until(lambda: rise(right, before, "TCPReqQFullDrop") >= 5)
                    run.stop()
                    dropped = rise(right, before, "ListenDrops")
                    far.close()
    finally:
        right.sysctl(net__ipv4__tcp_syncookies=1)
    (row,) = run.rows
    assert row["dropped"] == counters(run)["TCPReqQFullDrop"]
    assert 5 <= row["dropped"] <= dropped
    (note,) = [note for note in run.summary["notes"] if "OVERFLOW" in note]
    assert "SYN queue" in note and "tcp_max_syn_backlog" in note


def rise(host: Host, before: dict[str, int], name: str) -> int:
    return host.snmp()[f"TcpExt{name}"] - before[f"TcpExt{name}"]


# --- filters and losses --------------------------------------------------------------------------


def test_each_filter_shows_its_listeners_and_no_other(
    netbpf: Any, one_host: Host, two_hosts: tuple[Host, Host], clients: Clients
) -> None:
    comm = Path("/proc/self/comm").read_text().strip()
    with listening(one_host, 13) as first, listening(one_host, 13, "::1") as second:
        ports = {"4": port_of(first), "6": port_of(second)}
        both = {*ports.values()}
        cases: list[tuple[tuple[object, ...], set[int]]] = [
            (("-4",), {ports["4"]}),
            (("-6",), {ports["6"]}),
            (("-L", ports["4"]), {ports["4"]}),
            (("--laddr", "::1"), {ports["6"]}),
            (("--laddr", "10.0.0.0/8"), set()),
            (("-p", os.getpid()), both),
            (("-p", 1), set()),
            (("--comm", comm), both),
            (("--comm", "no-such"), set()),
            (("-u", os.getuid()), both),
            (("-u", 65533), set()),
            (("--netns", two_hosts[0].namespace), set()),
        ]
        for words, wanted in cases:
            scope = () if "--netns" in words else ("--netns", one_host.inode)
            with netbpf("tcpsynbl", *words, *scope) as run:
                clients.connect(ports["4"])
                clients.connect(ports["6"], 1, "::1")
                run.stop()
            found = {h["key"]["lport"] for h in run.histograms}
            assert found == {row["lport"] for row in run.rows} == wanted, words
            for listener in (first, second):
                listener.accept()[0].close()


def test_full_map_is_counted(netbpf: Any, one_host: Host, clients: Clients) -> None:
    words = ("--netns", one_host.inode, "--map-entries", "1", "--fail-on-loss")
    with netbpf("tcpsynbl", *words, returncode=3) as run:
        with listening(one_host, 5) as first, listening(one_host, 5) as second:
            clients.connect(port_of(first))
            clients.connect(port_of(second))
    assert run.summary["lost"]["map_full"] > 0
    assert run.summary["complete"] is False


# --- whatever the kind of probe ------------------------------------------------------------------


def overflowing(stage: Stage, run: Run) -> None:
    with contextlib.closing(Clients(stage.alone)) as clients:
        with listening(stage.alone, 5) as listener:
            overflow(clients, port_of(listener), 5, 3)


def samples_and_rows(run: Run, lost: set[str]) -> Any:
    samples = [(tuple(h["key"].values()), shape(h)) for h in run.histograms]
    return sorted(samples), alternatives.rows(run, lost)


ALTERNATIVES = Case(lambda s: ("--netns", s.alone.inode), overflowing, samples_and_rows)
