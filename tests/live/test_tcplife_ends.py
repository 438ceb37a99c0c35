"""tcplife against a table of ends: way x end x IPv4/IPv6, each with what was sent and received.

Truth: what this test itself did with sockets in two namespaces of its own, and each namespace's
Tcp.OutRsts, which says whether that end sent a RST. Addresses and ports tell the lines apart.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Callable, NamedTuple

import harness
import pytest
from harness import Json, Run, wait_until
from topology import Host

FAMILIES = {"ipv4": socket.AF_INET, "ipv6": socket.AF_INET6}
TCP_LINGER2, TCP_DEFER_ACCEPT, TCP_USER_TIMEOUT = 8, 9, 18
TCP_REPAIR, TCP_REPAIR_QUEUE, TCP_QUEUE_SEQ = 19, 20, 21
TCP_FASTOPEN, TCP_FASTOPEN_CONNECT, TCP_FASTOPEN_NO_COOKIE = 23, 30, 34
SEND_QUEUE, RECEIVE_QUEUE = 2, 1
RESET = struct.pack("ii", 1, 0)  # struct linger: close() sends a RST
PAUSE = 0.03  # a packet crosses a veth pair in much less


class Pair(NamedTuple):
    """A session of this test's own: the client's socket in one host, the server's in the other."""

    left: Host
    right: Host
    family: str
    client: socket.socket
    server: socket.socket
    listener: socket.socket
    ends: tuple[tuple[str, int], tuple[str, int]]

    @property
    def hosts(self) -> tuple[Host, Host]:
        """The client's and the server's."""
        return self.left, self.right


def address(host: Host, family: str) -> str:
    return host.ipv6 if family == "ipv6" else host.ipv4


def listen(host: Host, family: str, *options: tuple[int, int]) -> socket.socket:
    listener = host.socket(FAMILIES[family], socket.SOCK_STREAM)
    for name, value in options:
        listener.setsockopt(socket.IPPROTO_TCP, name, value)
    listener.bind((address(host, family), 0))
    listener.listen(16)
    return listener


def opened(left: Host, right: Host, family: str) -> Pair:
    listener = listen(right, family)
    client = left.socket(FAMILIES[family], socket.SOCK_STREAM)
    client.connect(listener.getsockname())
    server, _ = listener.accept()
    ends = (client.getsockname()[:2], client.getpeername()[:2])
    return Pair(left, right, family, client, server, listener, ends)


def error_of(sock: socket.socket) -> int:
    """Wait for the end of the other side; return its errno, 0 for an end in order."""
    sock.settimeout(harness.TIMEOUT)
    try:
        while sock.recv(65536):
            pass
    except OSError as error:
        return error.errno or -1
    return 0


def shut(pair: Pair) -> None:
    for sock in (pair.client, pair.server, pair.listener):
        sock.close()


# --- the ways to end ----------------------------------------------------------------------------


def fin(pair: Pair) -> None:
    pair.client.close()
    assert error_of(pair.server) == 0


def half(pair: Pair) -> None:
    pair.client.shutdown(socket.SHUT_WR)
    assert error_of(pair.server) == 0
    pair.server.sendall(b"d" * 70)
    pair.server.close()
    assert error_of(pair.client) == 0


def arrived(sock: socket.socket, size: int) -> None:
    """Wait until a socket has so many bytes, and leave them unread."""
    assert len(sock.recv(size, socket.MSG_PEEK | socket.MSG_WAITALL)) == size


def unread(pair: Pair) -> None:
    pair.server.sendall(b"d" * 70)
    arrived(pair.client, 70)
    pair.client.close()
    assert error_of(pair.server) == errno.ECONNRESET


def linger(pair: Pair) -> None:
    pair.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    pair.client.close()
    assert error_of(pair.server) == errno.ECONNRESET


def unspec(pair: Pair) -> None:
    """connect() to AF_UNSPEC, which ends a session without closing the socket."""
    disconnect(pair.client)
    assert error_of(pair.server) == errno.ECONNRESET


def disconnect(sock: socket.socket) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.connect(sock.fileno(), struct.pack("=H14x", socket.AF_UNSPEC), 16) == 0


def unread_after_fin(pair: Pair) -> None:
    """The server has the client's FIN, and closes with its request unread."""
    pair.client.sendall(b"u" * 70)
    pair.client.shutdown(socket.SHUT_WR)
    arrived(pair.server, 70)
    time.sleep(PAUSE)
    pair.server.close()
    assert error_of(pair.client) == errno.ECONNRESET


def unread_after_own_fin(pair: Pair) -> None:
    pair.client.shutdown(socket.SHUT_WR)
    pair.server.sendall(b"d" * 70)
    arrived(pair.client, 70)
    pair.client.close()
    with contextlib.suppress(OSError):
        pair.server.sendall(b"d")
    time.sleep(PAUSE)


def data_after_close(pair: Pair) -> None:
    """TCPAbortOnData: data reaches a socket whose FIN nobody has acknowledged.

    The FIN is lost, so that the socket waits in FIN_WAIT1, where the kernel calls tcp_reset() for
    the RST that it sends itself.
    """
    fins = f"tcp flags & fin == fin tcp sport {pair.ends[0][1]}"
    with pair.right.dropping(fins) as drops:
        pair.client.close()
        wait_until(drops.count, what="the FIN")
        pair.server.sendall(b"late")
        assert error_of(pair.server) == errno.ECONNRESET


def linger2(pair: Pair) -> None:
    """TCP_LINGER2 < 0: no FIN_WAIT2, the acknowledgement of the FIN is answered by a RST."""
    pair.client.setsockopt(socket.IPPROTO_TCP, TCP_LINGER2, -1)
    pair.client.close()
    wait_until(lambda: reset_seen(pair.server), what="a RST")


def reset_seen(sock: socket.socket) -> bool:
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)
    return info[0] == 7  # TCP_CLOSE


def linger2_after_fin(pair: Pair) -> None:
    """The same, closed in FIN_WAIT2."""
    pair.client.setsockopt(socket.IPPROTO_TCP, TCP_LINGER2, -1)
    pair.client.shutdown(socket.SHUT_WR)
    time.sleep(PAUSE)
    pair.client.close()
    wait_until(lambda: reset_seen(pair.server), what="a RST")


def destroyed(pair: Pair) -> None:
    """ss -K: the kernel resets on behalf of the administrator."""
    (_, port), _ = pair.ends
    pair.left.run("ss", "-K", "-tn", "sport", "=", f":{port}")
    assert error_of(pair.server) == errno.ECONNRESET


def in_repair(pair: Pair) -> None:
    """Closed in repair mode: nothing is sent."""
    pair.client.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
    pair.client.close()
    time.sleep(PAUSE)
    pair.server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    pair.server.close()


def user_timeout(pair: Pair) -> None:
    with pair.right.dropping(f"tcp sport {pair.ends[0][1]}"):
        pair.client.setsockopt(socket.IPPROTO_TCP, TCP_USER_TIMEOUT, 400)
        pair.client.sendall(b"u" * 70)
        assert error_of(pair.client) == errno.ETIMEDOUT
        pair.server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        pair.server.close()


def keepalive(pair: Pair) -> None:
    """The kernel gives up, and sends a RST, which is lost as everything else is."""
    with pair.right.dropping(f"tcp sport {pair.ends[0][1]}"):
        pair.client.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in ((4, 1), (5, 1), (6, 1)):  # idle, interval, count
            pair.client.setsockopt(socket.IPPROTO_TCP, option, value)
        assert error_of(pair.client) == errno.ETIMEDOUT
        pair.server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        pair.server.close()


def filtered(pair: Pair) -> None:
    """A firewall rejects the data; the timer gives up with ICMP's error."""
    table = f"netbpf-reject-{pair.ends[0][1]}"
    kind = "icmpv6 type admin-prohibited" if pair.family == "ipv6" else "icmp type net-unreachable"
    chain = f"type filter hook input priority 0\ntcp sport {pair.ends[0][1]} reject with {kind}"
    pair.right.run("nft", "-f", "-", input=f"table inet {table} {{\nchain i {{\n{chain}\n}}\n}}\n")
    try:
        pair.client.setsockopt(socket.IPPROTO_TCP, TCP_USER_TIMEOUT, 400)
        pair.client.sendall(b"u" * 70)
        assert error_of(pair.client) in (errno.ENETUNREACH, errno.EACCES, errno.EHOSTUNREACH)
        pair.server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        pair.server.close()
    finally:
        pair.right.run("nft", "delete", "table", "inet", table)


class Way(NamedTuple):
    """How a session is ended, and what each end must show: close, bytes written, bytes received.

    `resets` is how many RSTs the client's and the server's host must have sent.
    """

    end: Callable[[Pair], None]
    client: tuple[str, int, int]
    server: tuple[str, int, int]
    resets: tuple[int, int] = (0, 0)


WAYS = {
    "fin": Way(fin, ("fin-local", 0, 0), ("fin-remote", 0, 0)),
    "half": Way(half, ("fin-local", 0, 70), ("fin-remote", 70, 0)),
    "unread": Way(unread, ("rst-local", 0, 70), ("rst-remote", 70, 0), (1, 0)),
    "linger": Way(linger, ("rst-local", 0, 0), ("rst-remote", 0, 0), (1, 0)),
    "unspec": Way(unspec, ("rst-local", 0, 0), ("rst-remote", 0, 0), (1, 0)),
    "unread-after-fin": Way(unread_after_fin, ("rst-remote", 70, 0), ("rst-local", 0, 70), (0, 1)),
    "unread-after-own-fin": Way(
        unread_after_own_fin, ("rst-local", 0, 70), ("rst-remote", 70, 0), (1, 0)
    ),
    "data-after-close": Way(data_after_close, ("rst-local", 0, 0), ("rst-remote", 4, 0), (1, 0)),
    "linger2": Way(linger2, ("rst-local", 0, 0), ("rst-remote", 0, 0), (1, 0)),
    "linger2-after-fin": Way(linger2_after_fin, ("rst-local", 0, 0), ("rst-remote", 0, 0), (1, 0)),
    "destroyed": Way(destroyed, ("rst-local", 0, 0), ("rst-remote", 0, 0), (1, 0)),
    "in-repair": Way(in_repair, ("silent", 0, 0), ("rst-local", 0, 0), (1, 1)),
    "user-timeout": Way(user_timeout, ("timeout", 70, 0), ("rst-local", 0, 0), (1, 1)),
    "keepalive": Way(keepalive, ("timeout", 0, 0), ("rst-local", 0, 0), (1, 1)),
    "filtered": Way(filtered, ("unreachable", 70, 0), ("rst-local", 0, 0), (1, 1)),
}


class Watch:
    """One run for all tests of this file."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def between(self, local: tuple[str, int], remote: tuple[str, int], number: int = 1) -> Json:
        """Return the last event of the end `local` of a session, of `number` that must come."""

        def ours(events: list[Json]) -> list[Json]:
            both = (*local, *remote)
            return [e for e in events if (e["laddr"], e["lport"], e["raddr"], e["rport"]) == both]

        self.run.wait_for(lambda events: len(ours(events)) >= number)
        found = ours(self.run.events)
        assert len(found) == number, found
        return found[-1]


@pytest.fixture(scope="module")
def watch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watch]:
    with harness.running(tmp_path_factory.mktemp("ends"), "tcplife", "--buffer", "4m") as run:
        yield Watch(run)
    # No 64-bit difference that wrapped around, in any column of any session of the machine.
    for event in run.events:
        wrapped = {k: v for k, v in event.items() if isinstance(v, int) and v >= 1 << 62}
        assert not wrapped, event


def shown(event: Json) -> tuple[str, int, int]:
    return event["close"], event["tx_bytes"], event["rx_bytes"]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", WAYS)
def test_both_ends_show_what_ended_the_session_and_its_bytes(
    watch: Watch, two_hosts: tuple[Host, Host], name: str, family: str
) -> None:
    way = WAYS[name]
    pair = opened(*two_hosts, family)
    before = [host.snmp()["TcpOutRsts"] for host in pair.hosts]
    way.end(pair)
    after = [host.snmp()["TcpOutRsts"] for host in pair.hosts]
    shut(pair)
    local, remote = pair.ends
    client, server = watch.between(local, remote), watch.between(remote, local)
    assert (shown(client), shown(server)) == (way.client, way.server)
    assert (client["role"], server["role"]) == ("active", "passive")
    assert client["duration_us"] is not None and server["duration_us"] is not None
    # A host also answers packets to a socket that is gone: those RSTs come on top.
    sent = [b - a for a, b in zip(before, after)]
    if (way.client[0], way.server[0]) in (("rst-local", "rst-remote"), ("rst-remote", "rst-local")):
        assert tuple(sent) == way.resets, (name, sent)
    elif not any(way.resets):
        assert sent == [0, 0], (name, sent)


@pytest.mark.parametrize("family", FAMILIES)
def test_client_that_waits_to_be_accepted_is_reset_with_its_listener(
    watch: Watch, two_hosts: tuple[Host, Host], family: str
) -> None:
    left, right = two_hosts
    listener = listen(right, family)
    with left.socket(FAMILIES[family], socket.SOCK_STREAM) as client:
        client.connect(listener.getsockname())
        client.sendall(b"u" * 70)
        time.sleep(PAUSE)
        local, remote = client.getsockname()[:2], client.getpeername()[:2]
        listener.close()
        assert error_of(client) == errno.ECONNRESET
    assert shown(watch.between(local, remote)) == ("rst-remote", 70, 0)
    assert shown(watch.between(remote, local)) == ("rst-local", 0, 70)


@pytest.mark.parametrize("family", FAMILIES)
def test_killed_process_ends_its_session_as_close_does(
    watch: Watch, two_hosts: tuple[Host, Host], family: str
) -> None:
    pair = opened(*two_hosts, family)
    child = os.fork()
    if not child:
        time.sleep(60)
        os._exit(0)
    pair.client.close()
    os.kill(child, 9)
    os.waitpid(child, 0)
    assert error_of(pair.server) == 0
    shut(pair)
    local, remote = pair.ends
    assert watch.between(local, remote)["close"] == "fin-local"
    assert watch.between(remote, local)["close"] == "fin-remote"


MPTCP = 262  # IPPROTO_MPTCP


@pytest.mark.skipif(not Path("/proc/sys/net/mptcp").exists(), reason="needs CONFIG_MPTCP")
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("end", ["fin", "reset", "unread"])
def test_mptcp_shows_how_its_subflow_ended(
    watch: Watch, two_hosts: tuple[Host, Host], end: str, family: str
) -> None:
    """One subflow carries all, so that it has the program's bytes; FASTCLOSE sends RSTs."""
    left, right = two_hosts
    with right.socket(FAMILIES[family], socket.SOCK_STREAM, MPTCP) as listener:
        listener.bind((address(right, family), 0))
        listener.listen(1)
        client = left.socket(FAMILIES[family], socket.SOCK_STREAM, MPTCP)
        client.connect(listener.getsockname())
        server, _ = listener.accept()
        local, remote = client.getsockname()[:2], client.getpeername()[:2]
        client.sendall(b"u" * 1234)
        assert len(server.recv(1234, socket.MSG_WAITALL)) == 1234
        server.sendall(b"d" * 70)
        if end == "unread":
            time.sleep(PAUSE)
        else:
            assert len(client.recv(70, socket.MSG_WAITALL)) == 70
        if end == "reset":
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        before = [host.snmp()["TcpOutRsts"] for host in two_hosts]
        client.close()
        error_of(server)
        server.close()
    events = watch.between(local, remote), watch.between(remote, local)
    sent = [host.snmp()["TcpOutRsts"] - b for host, b in zip(two_hosts, before)]
    kind = "rst" if sent[0] else "fin"
    assert kind == ("fin" if end == "fin" else "rst"), sent
    assert shown(events[0]) == (f"{kind}-local", 1234, 70)
    assert shown(events[1]) == (f"{kind}-remote", 70, 1234)
    assert [event["role"] for event in events] == ["active", "passive"]


# --- beginnings ---------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_socket_that_connects_to_itself_is_the_active_end(
    watch: Watch, two_hosts: tuple[Host, Host], family: str
) -> None:
    """Simultaneous open: the SYNs cross, and bytes_acked has one all the same."""
    left, _ = two_hosts
    loop = "::1" if family == "ipv6" else "127.0.0.1"
    with left.socket(FAMILIES[family], socket.SOCK_STREAM) as sock:
        sock.bind((loop, 0))
        begin = time.monotonic()
        sock.connect(sock.getsockname())
        took = (time.monotonic() - begin) * 1e6
        end = sock.getsockname()[:2]
        sock.sendall(b"x" * 1234)
        sock.shutdown(socket.SHUT_WR)
        assert error_of(sock) == 0
    event = watch.between(end, end)
    assert (event["role"], event["tx_bytes"], event["rx_bytes"]) == ("active", 1234, 1234)
    assert 0 < event["handshake_us"] <= took


@pytest.mark.parametrize("family", FAMILIES)
def test_crossing_syns_of_two_hosts_are_active_at_both_ends(
    watch: Watch, two_hosts: tuple[Host, Host], family: str
) -> None:
    """The first SYNs are lost; the second ones, a second later, find each other."""
    left, right = two_hosts
    socks = [host.socket(FAMILIES[family], socket.SOCK_STREAM) for host in two_hosts]
    for sock, host in zip(socks, two_hosts):
        sock.bind((address(host, family), 0))
        sock.setblocking(False)
    ends = [sock.getsockname()[:2] for sock in socks]
    ports = f"tcp dport {{{ends[0][1]}, {ends[1][1]}}}"
    with left.dropping(ports) as one, right.dropping(ports) as other:
        began = time.monotonic()
        for sock, end in zip(socks, reversed(ends)):
            assert sock.connect_ex(end) == errno.EINPROGRESS
        wait_until(lambda: one.count() and other.count(), what="both SYNs")
    for sock in socks:
        sock.setblocking(True)
        wait_until(lambda: sock.getsockopt(6, socket.TCP_INFO, 1) == b"\1", what="a session")  # noqa: B023
    took = (time.monotonic() - began) * 1e6
    socks[0].sendall(b"u" * 70)
    socks[0].shutdown(socket.SHUT_WR)
    assert error_of(socks[1]) == 0
    for sock in reversed(socks):
        sock.close()
    events = [watch.between(*ends), watch.between(*reversed(ends))]
    assert [event["role"] for event in events] == ["active", "active"]
    assert [event["tx_bytes"] for event in events] == [70, 0]
    assert [event["rx_bytes"] for event in events] == [0, 70]
    assert all(900_000 < event["handshake_us"] <= took for event in events), events


def restored(host: Host, family: str, ports: tuple[int, int], *seqs: int) -> socket.socket:
    sock = host.socket(FAMILIES[family], socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
    for queue, seq in zip((SEND_QUEUE, RECEIVE_QUEUE), seqs):
        sock.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR_QUEUE, queue)
        sock.setsockopt(socket.IPPROTO_TCP, TCP_QUEUE_SEQ, seq)
    loop = "::1" if family == "ipv6" else "127.0.0.1"
    sock.bind((loop, ports[0]))
    sock.connect((loop, ports[1]))
    return sock


@pytest.mark.parametrize("up", [0, 777])
@pytest.mark.parametrize("family", FAMILIES)
def test_session_put_together_in_repair_mode_has_its_bytes_and_no_role(
    watch: Watch, two_hosts: tuple[Host, Host], family: str, up: int
) -> None:
    host = two_hosts[0]
    ports = (15001 + 2 * up, 15002 + 2 * up)
    one = restored(host, family, ports, 1000, 5000)
    other = restored(host, family, ports[::-1], 5000, 1000)
    for sock in (one, other):
        sock.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 0)
    if up:
        one.sendall(b"u" * up)
    one.shutdown(socket.SHUT_WR)
    assert error_of(other) == 0
    other.close()
    one.close()
    loop = "::1" if family == "ipv6" else "127.0.0.1"
    first = watch.between((loop, ports[0]), (loop, ports[1]))
    second = watch.between((loop, ports[1]), (loop, ports[0]))
    assert (shown(first), shown(second)) == (("fin-local", up, 0), ("fin-remote", 0, up))
    for event in (first, second):
        assert event["role"] is event["handshake_us"] is event["duration_us"] is None


@pytest.mark.parametrize("again", [False, True], ids=["new", "used-again"])
def test_connect_that_sends_no_syn_gets_no_line(
    watch: Watch, two_hosts: tuple[Host, Host], again: bool
) -> None:
    """No local port is free (EADDRNOTAVAIL): there was no packet, so there is no session.

    A socket that had a session keeps its sequence numbers and its sk_err (ECONNRESET).
    """
    left, right = two_hosts
    listener = listen(right, "ipv4")
    with left.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        if again:
            sock.connect(listener.getsockname())
            disconnect(sock)
        ports = left.run("sysctl", "-n", "net.ipv4.ip_local_port_range").split()
        left.sysctl(net__ipv4__ip_local_port_range="40000 40000")
        try:
            with left.socket(socket.AF_INET, socket.SOCK_STREAM) as taken:
                taken.connect(listener.getsockname())
                last = taken.getsockname()[:2]
                assert sock.connect_ex(listener.getsockname()) == errno.EADDRNOTAVAIL
        finally:
            left.run("sysctl", "-qw", f"net.ipv4.ip_local_port_range={ports[0]} {ports[1]}")
    remote = listener.getsockname()[:2]
    watch.between(last, remote)  # closed after the attempt: what came before it is there
    tries = [e for e in watch.run.events if (e["raddr"], e["rport"]) == remote]
    assert [e["close"] for e in tries] == ["rst-local"] * again + ["fin-local"], tries


def test_socket_that_is_used_again_counts_each_session_for_itself(
    watch: Watch, two_hosts: tuple[Host, Host]
) -> None:
    left, right = two_hosts
    listener = listen(right, "ipv4")
    sock = left.socket(socket.AF_INET, socket.SOCK_STREAM)
    for number, size in enumerate((1234, 70)):
        sock.connect(listener.getsockname())
        local, remote = sock.getsockname()[:2], sock.getpeername()[:2]
        server, _ = listener.accept()
        sock.sendall(b"u" * size)
        assert len(server.recv(size, socket.MSG_WAITALL)) == size
        if number == 0:
            disconnect(sock)
        else:
            sock.close()
        server.close()
        event = watch.between(local, remote)
        assert shown(event) == (("rst-local", "fin-local")[number], size, 0)


# --- Fast Open ----------------------------------------------------------------------------------


@pytest.fixture
def fast(two_hosts: tuple[Host, Host]) -> Iterator[tuple[Host, Host]]:
    """Both hosts, with Fast Open that needs no cookie."""
    for host in two_hosts:
        host.sysctl(net__ipv4__tcp_fastopen=0x207 | 0x400)
    yield two_hosts
    for host in two_hosts:
        host.sysctl(net__ipv4__tcp_fastopen=1)


def deferring(host: Host, family: str) -> socket.socket:
    """Return a socket whose SYN leaves with its first data."""
    sock = host.socket(FAMILIES[family], socket.SOCK_STREAM)
    sock.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN_NO_COOKIE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1)
    return sock


@pytest.mark.parametrize("family", FAMILIES)
def test_handshake_of_a_deferred_syn_begins_when_it_leaves(
    watch: Watch, fast: tuple[Host, Host], family: str
) -> None:
    left, right = fast
    listener = listen(right, family, (TCP_FASTOPEN, 16))
    with deferring(left, family) as sock:
        sock.connect(listener.getsockname())
        time.sleep(0.4)
        begin = time.monotonic()
        sock.sendall(b"u" * 321)
        server, _ = listener.accept()
        assert len(server.recv(1000)) == 321
        server.sendall(b"d" * 55)
        assert len(sock.recv(1000)) == 55
        took = (time.monotonic() - begin) * 1e6
        local, remote = sock.getsockname()[:2], sock.getpeername()[:2]
    server.close()
    client, accepted = watch.between(local, remote), watch.between(remote, local)
    assert shown(client) == ("fin-local", 321, 55)
    assert shown(accepted) == ("fin-remote", 55, 321)
    assert 0 < client["handshake_us"] <= took
    assert 0 < accepted["handshake_us"] <= took


@pytest.mark.parametrize("family", FAMILIES)
def test_deferred_syn_that_never_leaves_gets_no_line(
    watch: Watch, fast: tuple[Host, Host], family: str
) -> None:
    left, right = fast
    listener = listen(right, family, (TCP_FASTOPEN, 16))
    remote = listener.getsockname()[:2]
    with deferring(left, family) as sock:
        sock.connect(listener.getsockname())
    with left.socket(FAMILIES[family], socket.SOCK_STREAM) as last:
        last.connect(listener.getsockname())
        local = last.getsockname()[:2]
    watch.between(local, remote)
    assert len([e for e in watch.run.events if (e["raddr"], e["rport"]) == remote]) == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_fast_open_child_that_ends_before_the_third_packet_has_its_bytes(
    watch: Watch, fast: tuple[Host, Host], family: str
) -> None:
    """The server answers and closes while all its packets are lost: nothing is acknowledged."""
    left, right = fast
    listener = listen(right, family, (TCP_FASTOPEN, 16))
    port = listener.getsockname()[1]
    with left.dropping(f"tcp sport {port}"), deferring(left, family) as sock:
        sock.connect(listener.getsockname())
        sock.setblocking(False)  # or it waits for the SYN-ACK
        with contextlib.suppress(BlockingIOError):
            sock.send(b"u" * 21)
        server, _ = listener.accept()
        local, remote = server.getpeername()[:2], server.getsockname()[:2]
        assert len(server.recv(1000)) == 21
        server.sendall(b"d" * 55)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        server.close()
        accepted = watch.between(remote, local)
    assert shown(accepted) == ("rst-local", 55, 21)
    assert accepted["tx_unacked"] == 55
    assert accepted["duration_us"] is not None


# --- the passive end's handshake ----------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_deferred_accept_is_not_part_of_the_handshake(
    watch: Watch, two_hosts: tuple[Host, Host], family: str
) -> None:
    left, right = two_hosts
    listener = listen(right, family, (TCP_DEFER_ACCEPT, 5))
    with left.socket(FAMILIES[family], socket.SOCK_STREAM) as sock:
        sock.connect(listener.getsockname())
        time.sleep(0.3)
        sock.sendall(b"u" * 70)
        server, _ = listener.accept()
        local, remote = sock.getsockname()[:2], sock.getpeername()[:2]
    server.close()
    assert watch.between(remote, local)["handshake_us"] is None


@pytest.mark.parametrize("family", FAMILIES)
def test_handshake_with_a_syn_cookie_is_not_known(
    watch: Watch, two_hosts: tuple[Host, Host], family: str
) -> None:
    """tcp_syncookies=2 sends cookies without need: TcpExt.SyncookiesRecv says so."""
    left, right = two_hosts
    right.sysctl(net__ipv4__tcp_syncookies=2)
    try:
        before = right.snmp()["TcpExtSyncookiesRecv"]
        pair = opened(left, right, family)
        assert right.snmp()["TcpExtSyncookiesRecv"] == before + 1
    finally:
        right.sysctl(net__ipv4__tcp_syncookies=1)
    fin(pair)
    shut(pair)
    local, remote = pair.ends
    assert watch.between(remote, local)["handshake_us"] is None
    assert watch.between(local, remote)["handshake_us"] is not None


# --- filters and room ---------------------------------------------------------------------------


def test_sessions_that_a_filter_excludes_take_no_room(
    two_hosts: tuple[Host, Host], tmp_path: Path
) -> None:
    """A map of 64 sockets, 200 foreign sessions open at a time, and one that was asked for."""
    left, right = two_hosts
    listener, wanted = listen(right, "ipv4"), listen(right, "ipv4")
    listener.listen(512)
    port = wanted.getsockname()[1]
    words = ("--netns", left.inode, "-D", port, "--map-entries", 64)
    with contextlib.ExitStack() as stack:
        run = stack.enter_context(harness.running(tmp_path, "tcplife", *words))
        for _ in range(200):
            sock = stack.enter_context(left.socket(socket.AF_INET, socket.SOCK_STREAM))
            sock.connect(listener.getsockname())
        with left.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
            sock.connect(wanted.getsockname())
        run.wait_for(1)
    (event,) = run.events
    assert (event["rport"], event["pid"], event["owner"]) == (port, os.getpid(), "exact")
    assert event["duration_us"] is not None
    assert run.summary["lost"]["map_full"] == 0


def test_sessions_of_other_processes_take_no_room(
    two_hosts: tuple[Host, Host], tmp_path: Path
) -> None:
    """The same by process: this one is foreign, and a child makes the session that is asked for."""
    left, right = two_hosts
    listener, wanted = listen(right, "ipv4"), listen(right, "ipv4")
    listener.listen(512)
    begin, ready = os.pipe()
    child = os.fork()
    if not child:
        os.read(begin, 1)
        sock = left.socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.connect(wanted.getsockname())
        sock.sendall(b"u" * 70)
        os._exit(0)
    with contextlib.ExitStack() as stack:
        words = ("-p", child, "--map-entries", 256)
        run = stack.enter_context(harness.running(tmp_path, "tcplife", *words))
        for _ in range(400):
            sock = stack.enter_context(left.socket(socket.AF_INET, socket.SOCK_STREAM))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            sock.connect(listener.getsockname())
            stack.enter_context(listener.accept()[0])
        os.write(ready, b"!")
        os.waitpid(child, 0)
        run.wait_for(1)
    os.close(begin)
    os.close(ready)
    (event,) = run.events
    assert (event["pid"], event["tx_bytes"], event["close"]) == (child, 70, "fin-local")
    assert event["duration_us"] is not None
    assert run.summary["lost"]["map_full"] == 0


# --- beside TCP ---------------------------------------------------------------------------------

SYS_BPF = harness._SYS_BPF.get(platform.machine(), 280)  # noqa: SLF001
MAP_CREATE, MAP_UPDATE, SOCKMAP = 0, 2, 15


def bpf(command: int, attributes: bytes) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(attributes, 144)
    done = int(libc.syscall(SYS_BPF, command, buffer, len(buffer)))
    assert done >= 0, os.strerror(ctypes.get_errno())
    return done


@pytest.mark.parametrize("family", FAMILIES)
def test_bytes_of_a_socket_in_a_sockmap_are_reported_as_unknown(
    watch: Watch, two_hosts: tuple[Host, Host], family: str
) -> None:
    """A sockmap may move data beside TCP: no counter of the socket says how much."""
    sockmap = bpf(MAP_CREATE, struct.pack("=IIIII", SOCKMAP, 4, 4, 1, 0))
    pair = opened(*two_hosts, family)
    key = ctypes.create_string_buffer(struct.pack("=I", 0))
    value = ctypes.create_string_buffer(struct.pack("=I", pair.client.fileno()))
    pointers = (ctypes.addressof(key), ctypes.addressof(value))
    bpf(MAP_UPDATE, struct.pack("=I4xQQQ", sockmap, *pointers, 0))
    pair.client.sendall(b"u" * 70)
    fin(pair)
    shut(pair)
    os.close(sockmap)
    local, remote = pair.ends
    event = watch.between(local, remote)
    assert event["tx_bytes"] is event["rx_bytes"] is event["tx_unacked"] is None
    assert shown(watch.between(remote, local)) == ("fin-remote", 0, 70)
