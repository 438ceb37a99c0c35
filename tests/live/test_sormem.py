"""sormem shows how full receive buffers are as ss does, and each packet that they drop."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import mmap
import os
import re
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import traffic
from alternatives import Case
from bpf_maps import keys_of
from compared import compares
from crowd import CONTAINER, NOBODY, Crowd
from harness import Json, Run, netbpf_once, seconds, wait_until
from packets import log2_buckets
from test_mptcp import MPTCP
from topology import Host, cgroup_of

DATAGRAMS, BYTES = 23, 700
SMALL = 4096  # SO_RCVBUF: the kernel doubles it
ENDS = ("laddr", "lport", "raddr", "rport")
CAUSES = ("no_room", "memory", "backlogged", "window", "pruned")
COMM = Path("/proc/self/comm").read_text().rstrip("\n")
TCP_REPAIR, TCP_REPAIR_QUEUE, TCP_QUEUE_SEQ = 19, 20, 21  # linux/tcp.h
RECV_QUEUE, SEND_QUEUE = 1, 2


class Memory(NamedTuple):
    """What ss -m says about the receive buffer of a socket."""

    used: int
    limit: int
    drops: int


_SKMEM = re.compile(r"skmem:\(r(\d+),rb(\d+),.*d(\d+)\)")


def memory(host: Host, sock: socket.socket) -> Memory:
    """Return what ss says about an open socket of this process."""
    inode = os.fstat(sock.fileno()).st_ino
    lines = host.run("ss", "-Hanmtuwe").replace("\n\t", " ").splitlines()
    (line,) = [line for line in lines if f"ino:{inode} " in line]
    match = _SKMEM.search(line)
    assert match, line
    return Memory(*map(int, match.groups()))


def receiver(host: Host, family: int = socket.AF_INET, size: int = SMALL) -> socket.socket:
    """Return a bound UDP socket with a small receive buffer."""
    sock = host.socket(family, socket.SOCK_DGRAM)
    if size:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)
    sock.bind(("127.0.0.1" if family == socket.AF_INET else "::1", 0))
    sock.setblocking(False)
    return sock


def send(host: Host, to: socket.socket, number: int = DATAGRAMS) -> int:
    """Send datagrams from a new socket; return its port."""
    with host.socket(to.family, socket.SOCK_DGRAM) as sender:
        for _ in range(number):
            sender.sendto(bytes(BYTES), to.getsockname())
        return int(sender.getsockname()[1])


def drain(sock: socket.socket) -> int:
    """Read all datagrams that wait; return their number."""
    number = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            assert len(sock.recv(2 * BYTES)) == BYTES
            number += 1
    return number


def connected(
    host: Host, size: int = 0, family: int = socket.AF_INET, protocol: int = 0
) -> tuple[Any, Any]:
    """Return a client and the accepted socket of a TCP connection, whose buffer has this size."""
    with host.socket(family, socket.SOCK_STREAM, protocol) as listener:
        if size:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)
        listener.bind(("127.0.0.1" if family == socket.AF_INET else "::1", 0))
        listener.listen()
        client = host.socket(family, socket.SOCK_STREAM, protocol)
        client.connect(listener.getsockname())
        accepted = listener.accept()[0]
        client.setblocking(False)
        return client, accepted


def flood(client: socket.socket) -> int:
    """Write until there is no room; return the number of bytes."""
    written = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            written += client.send(bytes(65536))
    return written


def read_all(sock: socket.socket, size: int) -> int:
    """Read this many bytes; return the number of calls."""
    reads = 0
    while size:
        got = len(sock.recv(16411))
        assert got
        size -= got
        reads += 1
    return reads


def ends_of(sock: socket.socket) -> tuple[Any, ...]:
    """Return a connected socket's ends."""
    return (*sock.getsockname()[:2], *sock.getpeername()[:2])


def row_of(run: Run, sock: Any) -> Json:
    """Return the only row of a socket (or of a local port)."""
    port = sock if isinstance(sock, int) else sock.getsockname()[1]
    (row,) = [row for row in run.rows if row["lport"] == port]
    return row


def counted(before: dict[str, int], after: dict[str, int], *names: str) -> list[int]:
    """Return by how much the kernel's counters grew."""
    return [after.get(name, 0) - before.get(name, 0) for name in names]


# --- full buffers --------------------------------------------------------------------------------


@compares("sormem", "pid", "comm", "owner", "proto", "family", "laddr", "lport", "raddr", "rport",
          shape="rows")  # fmt: skip
@compares("sormem", "arrivals", "reads", "used_bytes", "used_max_bytes", "limit_bytes", "fill_max",
          "dropped", "no_room", "uid", "netns", "cgroup", shape="rows")  # fmt: skip
@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_a_udp_socket_that_nobody_reads(netbpf: Any, one_host: Host, family: int) -> None:
    with receiver(one_host, family) as sock:
        before = one_host.snmp()
        with netbpf("sormem", "--netns", one_host.inode) as run:
            send(one_host, sock)
            full = memory(one_host, sock)
        waiting = drain(sock)
        limit = sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        ends = sock.getsockname()[:2]
    row = row_of(run, ends[1])
    assert 0 < waiting < DATAGRAMS and full.drops == DATAGRAMS - waiting and full.limit == limit
    assert (row["arrivals"], row["reads"]) == (waiting, 0)
    assert (row["dropped"], row["no_room"]) == (full.drops, full.drops)
    assert (row["used_bytes"], row["used_max_bytes"], row["limit_bytes"]) == (
        full.used,
        full.used,
        limit,
    )
    assert row["fill_max"] == pytest.approx(full.used / limit, abs=1e-4)
    assert [row[name] for name in CAUSES[1:]] == [0, 0, 0, 0]
    assert (row["pid"], row["comm"], row["owner"]) == (os.getpid(), COMM, "snapshot")
    six = family == socket.AF_INET6
    assert (row["proto"], row["family"]) == (("udp6", "ipv6") if six else ("udp4", "ipv4"))
    assert tuple(row[name] for name in ENDS) == (*ends, "::" if six else "0.0.0.0", 0)
    assert (row["uid"], row["netns"]) == (0, one_host.inode)
    assert row["cgroup"] == cgroup_of(os.getpid())
    if not six:
        after = one_host.snmp()
        assert counted(before, after, "UdpRcvbufErrors") == [full.drops]
        assert run.summary["counters"]["Udp.RcvbufErrors"] >= full.drops


@compares("sormem", "pid", "comm", "owner", "proto", "family", "laddr", "lport", "raddr", "rport",
          "used_bytes", "used_max_bytes", "limit_bytes", "fill_max", shape="rows")  # fmt: skip
@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_a_tcp_socket_that_nobody_reads(netbpf: Any, one_host: Host, family: int) -> None:
    with netbpf("sormem", "--netns", one_host.inode) as run:
        client, accepted = connected(one_host, 16384, family)
        with client, accepted:
            flood(client)
            full = memory(one_host, accepted)
            ends = ends_of(accepted)
            run.stop()
    row = row_of(run, ends[1])
    assert tuple(row[name] for name in ENDS) == ends
    six = family == socket.AF_INET6
    assert (row["proto"], row["family"]) == (("tcp6", "ipv6") if six else ("tcp4", "ipv4"))
    assert (row["pid"], row["comm"], row["owner"]) == (os.getpid(), COMM, "exact")
    assert (row["used_bytes"], row["limit_bytes"]) == (full.used, full.limit)
    assert row["used_max_bytes"] >= full.used > full.limit // 2
    assert row["fill_max"] == pytest.approx(row["used_max_bytes"] / full.limit, abs=1e-4)
    assert row["arrivals"] > 0 and row["reads"] == 0
    # ss also counts packets that lose nothing, such as probes of the closed window.
    assert row["dropped"] == sum(row[name] for name in CAUSES) == 0


@compares("sormem", "arrivals", "reads", "used_bytes", "used_max_bytes", "fill_max", shape="rows")
def test_a_socket_that_is_read(netbpf: Any, one_host: Host) -> None:
    """Each datagram and each segment arrives alone, and is read by one call."""
    client, accepted = connected(one_host)
    with client, accepted, receiver(one_host, size=0) as sock:
        with netbpf("sormem", "--netns", one_host.inode) as run:
            most = [0, 0]
            for _ in range(17):
                send(one_host, sock, 1)
                client.send(bytes(1009))
                wait_until(lambda: memory(one_host, accepted).used)
                most[0] = max(most[0], memory(one_host, sock).used)
                most[1] = max(most[1], memory(one_host, accepted).used)
                assert drain(sock) == 1 and len(accepted.recv(2000)) == 1009
            after = memory(one_host, sock), memory(one_host, accepted)
    rows = {row["proto"]: row for row in run.rows if row["reads"]}
    for proto, now, peak in zip(("udp4", "tcp4"), after, most):
        row = rows[proto]
        assert (row["arrivals"], row["reads"], row["dropped"]) == (17, 17, 0)
        assert (row["used_bytes"], row["used_max_bytes"]) == (now.used, peak)
        assert row["fill_max"] == pytest.approx(peak / now.limit, abs=1e-4)


def test_full_buffers_that_nothing_comes_to(netbpf: Any, one_host: Host) -> None:
    """A row shows what waits since before the start, until it is read."""
    client, accepted = connected(one_host, 16384)
    with client, accepted, receiver(one_host) as sock:
        flood(client)
        send(one_host, sock)
        full = {"tcp4": memory(one_host, accepted), "udp4": memory(one_host, sock)}
        words = ("sormem", "--netns", one_host.inode)
        with netbpf(*words, "-p", os.getpid()) as run, netbpf(*words, "-p", 1) as other:
            pass
        rows = {row["proto"]: row for row in run.rows}
        assert rows.keys() == full.keys() and not other.rows
        for proto, row in rows.items():
            assert (row["used_bytes"], row["limit_bytes"]) == full[proto][:2]
            assert row["used_max_bytes"] == full[proto].used
            assert (row["arrivals"], row["reads"], row["dropped"]) == (0, 0, 0)
            assert (row["pid"], row["owner"]) == (os.getpid(), "snapshot")
        client.close()
        with netbpf(*words, "0.2") as run, receiver(one_host) as other_sock:
            wait_until(lambda: {row["proto"] for row in run.rows} == {"tcp4", "udp4"})
            drain(sock)
            while accepted.recv(65536):
                pass
            port = other_sock.getsockname()[1]
            for number in (1, 2):  # the second time, nothing else has happened before
                send(one_host, other_sock, 1)
                assert drain(other_sock) == 1
                wait_until(lambda n=number: len([r for r in run.rows if r["lport"] == port]) == n)
            times = sorted({row["time"] for row in run.rows})
            last = [row["lport"] for row in run.rows if row["time"] == times[-1]]
    assert last == [port]


def test_sockets_that_are_closed(netbpf: Any, one_host: Host) -> None:
    """They have a row with what came before, and no memory; then they take no room in the map."""
    with netbpf("sormem", "--netns", one_host.inode, "0.2") as run:
        client, accepted = connected(one_host)
        sock = receiver(one_host)
        with client, accepted, sock:
            ports = {accepted.getsockname()[1], sock.getsockname()[1]}
            send(one_host, sock)
            client.send(bytes(1009))
            assert drain(sock) and accepted.recv(2000)
        wait_until(lambda: ports <= {row["lport"] for row in run.rows if row["used_bytes"] is None})
        wait_until(lambda: not keys_of(run, "buffers"), what="an empty map")
    totals = sums(run.rows, "proto", "arrivals", "reads", "dropped")
    assert totals["udp4"][0] == totals["udp4"][1] == DATAGRAMS - totals["udp4"][2]
    assert totals["tcp4"][1:] == (1, 0)
    assert {(row["pid"], row["comm"]) for row in run.rows} == {(os.getpid(), COMM)}


@pytest.mark.skipif(
    not Path("/proc/sys/net/mptcp").exists(), reason="needs a kernel with CONFIG_MPTCP"
)
def test_mptcp_is_the_socket_that_the_program_has(netbpf: Any, one_host: Host) -> None:
    """Its subflows, which are sockets of TCP with the same ends, have no rows."""
    with netbpf("sormem", "--netns", one_host.inode) as run:
        client, accepted = connected(one_host, protocol=MPTCP)
        with client, accepted:
            for unread in (False, False, False, True):
                client.send(bytes(1009))
                assert accepted.recv(2000, socket.MSG_PEEK)
                assert unread or len(accepted.recv(2000)) == 1009
            port = accepted.getsockname()[1]
            text = one_host.run("ss", "-HMnm", "state", "established", f"sport = :{port}")
            run.stop()
    match = _SKMEM.search(text)
    assert match, text
    assert len(run.rows) == 1, run.rows
    (row,) = run.rows
    assert tuple(row[name] for name in ENDS[:2]) == ("127.0.0.1", port)
    assert (row["arrivals"], row["reads"], row["proto"]) == (4, 3, "tcp4")
    assert (row["used_bytes"], row["limit_bytes"]) == (int(match[1]), int(match[2]))


def sums(rows: Sequence[Json], name: str, *columns: str) -> dict[Any, tuple[int, ...]]:
    """Return {value of the column `name`: sums of `columns`}."""
    added: dict[Any, list[int]] = {}
    for row in rows:
        one = added.setdefault(row[name], [0] * len(columns))
        one[:] = [so_far + row[column] for so_far, column in zip(one, columns)]
    return {value: tuple(one) for value, one in added.items()}


# --- what TCP drops ------------------------------------------------------------------------------


class Forger:
    """Sends segments to a connected TCP socket that its peer did not send."""

    def __init__(self, host: Host, accepted: socket.socket) -> None:
        self._raw = host.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
        self._from, self._to = accepted.getpeername(), accepted.getsockname()
        self._received = self._sequence(accepted, RECV_QUEUE)
        self._ack = self._sequence(accepted, SEND_QUEUE)

    @staticmethod
    def _sequence(sock: socket.socket, queue: int) -> int:
        sock.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
        sock.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR_QUEUE, queue)
        number = sock.getsockopt(socket.IPPROTO_TCP, TCP_QUEUE_SEQ)
        sock.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, -1)  # without a probe
        return number

    def segment(self, at: int, size: int) -> None:
        """Send `size` bytes that follow `at` bytes after what the socket has received."""
        ack, seq = self._ack & 0xFFFFFFFF, (self._received + at) & 0xFFFFFFFF
        ports = self._from[1], self._to[1]
        ips = [socket.inet_aton(one[0]) for one in (self._from, self._to)]
        head = struct.pack("!HHIIBBHHH", *ports, seq, ack, 5 << 4, 0x18, 512, 0, 0)
        data = bytes(size)
        pseudo = ips[0] + ips[1] + struct.pack("!HH", socket.IPPROTO_TCP, len(head) + size)
        check = checksum(pseudo + head + data)
        ip = struct.pack("!BBHHHBBH", 0x45, 0, 40 + size, 0, 0, 64, socket.IPPROTO_TCP, 0)
        packet = ip + ips[0] + ips[1] + head[:16] + struct.pack("!H", check) + head[18:] + data
        self._raw.sendto(packet, (self._to[0], 0))

    def close(self) -> None:
        """Close the raw socket."""
        self._raw.close()


def checksum(data: bytes) -> int:
    """Return the Internet checksum."""
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


@contextlib.contextmanager
def both(netbpf: Any, host: Host) -> Iterator[tuple[Run, Run]]:
    """Run the tool in its two forms."""
    words = ("sormem", "--netns", host.inode)
    with netbpf(*words) as run, netbpf(*words, "--by", "lport") as by:
        yield run, by


def check_by_key(run: Run, row: Json) -> None:
    """With --by, the only socket of its port has the same figures."""
    found = row_of(run, row["lport"])
    assert found["sockets"] == 1
    for name in (
        "arrivals",
        "reads",
        "used_bytes",
        "used_max_bytes",
        "fill_max",
        "dropped",
        *CAUSES,
    ):
        assert found[name] == row[name], name


@compares("sormem", "dropped", "window", shape="rows")
@compares("sormem", "dropped", "window", shape="--by")
def test_segments_that_do_not_fit_into_the_window(netbpf: Any, one_host: Host) -> None:
    client, accepted = connected(one_host, 16384)
    with client, accepted:
        flood(client)
        with contextlib.closing(Forger(one_host, accepted)) as forger:
            before = one_host.snmp()
            with both(netbpf, one_host) as (run, by):
                for _ in range(17):
                    forger.segment(0, 40001)
            after = one_host.snmp()
        row = row_of(run, accepted)
        check_by_key(by, row)
    assert sum(counted(before, after, "TcpExtTCPZeroWindowDrop", "TcpExtBeyondWindow")) == 17
    assert (row["dropped"], row["window"]) == (17, 17)
    assert (row["pid"], row["owner"]) == (os.getpid(), "snapshot")


@compares("sormem", "dropped", "memory", "pruned", shape="rows")
@compares("sormem", "dropped", "memory", "pruned", shape="--by")
def test_a_buffer_that_is_made_smaller(netbpf: Any, one_host: Host) -> None:
    """First what came out of order is removed, then what is in order finds no room."""
    client, accepted = connected(one_host)
    with client, accepted, contextlib.closing(Forger(one_host, accepted)) as forger:
        with both(netbpf, one_host) as (run, by):
            for number in range(5):
                forger.segment(20000 + 2003 * number, 1009)
            client.send(bytes(10007))
            wait_until(lambda: memory(one_host, accepted).used > 10007)
            accepted.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
            before = one_host.snmp()
            for _ in range(11):
                forger.segment(10007, 7)
            after = one_host.snmp()
            limit = accepted.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        row = row_of(run, accepted)
        check_by_key(by, row)
    names = ("TcpExtTCPRcvQDrop", "TcpExtTCPZeroWindowDrop", "TcpExtBeyondWindow")
    memory_drops, *window_drops = counted(before, after, *names)
    assert memory_drops > 0 and memory_drops + sum(window_drops) == 11
    assert (row["memory"], row["window"]) == (memory_drops, sum(window_drops))
    assert (row["pruned"], row["dropped"]) == (5, 16)
    assert row["limit_bytes"] == limit and row["fill_max"] > 4


# --- memory that page faults wait for ------------------------------------------------------------

_SYS_USERFAULTFD = {"x86_64": 323}.get(os.uname().machine, 282)
UFFDIO_API, UFFDIO_REGISTER, UFFDIO_ZEROPAGE = 0xC018AA3F, 0xC020AA00, 0xC020AA04


class HeldPage:
    """A page of memory: who writes to it waits until release()."""

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, mmap.PAGESIZE)
        self._fd = ctypes.CDLL(None).syscall(_SYS_USERFAULTFD, os.O_CLOEXEC)
        assert self._fd >= 0
        address = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        self._range = struct.pack("QQ", address, mmap.PAGESIZE)
        fcntl.ioctl(self._fd, UFFDIO_API, bytearray(struct.pack("QQQ", 0xAA, 0, 0)))
        fcntl.ioctl(self._fd, UFFDIO_REGISTER, bytearray(self._range + struct.pack("QQ", 1, 0)))

    def wait_for_fault(self) -> None:
        """Wait until somebody waits for the page."""
        assert os.read(self._fd, 32)

    def release(self) -> None:
        """Fill in the page."""
        fcntl.ioctl(self._fd, UFFDIO_ZEROPAGE, bytearray(self._range + struct.pack("Qq", 0, 0)))
        os.close(self._fd)


@compares("sormem", "dropped", "backlogged", shape="rows")
@compares("sormem", "dropped", "backlogged", shape="--by")
def test_a_backlog_that_is_full(netbpf: Any, one_host: Host) -> None:
    """A reader holds the socket's lock, as its memory is not there yet: packets have to wait."""
    client, accepted = connected(one_host)
    with client, accepted, contextlib.closing(Forger(one_host, accepted)) as forger:
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            accepted.setsockopt(socket.SOL_SOCKET, option, 1)
        client.send(bytes(7))
        page = HeldPage()
        with both(netbpf, one_host) as (run, by):
            reader = threading.Thread(target=accepted.recv_into, args=(page.memory,))
            reader.start()
            page.wait_for_fault()
            before = one_host.snmp()
            for number in range(101):
                forger.segment(7 + 1009 * number, 1009)
            after = one_host.snmp()
            page.release()
            reader.join()
        row = row_of(run, accepted)
        check_by_key(by, row)
    (dropped,) = counted(before, after, "TcpExtTCPBacklogDrop")
    assert row["backlogged"] == dropped > 0
    assert row["dropped"] >= dropped and row["reads"] == 1


# --- distributions -------------------------------------------------------------------------------


def distributions(run: Run) -> dict[tuple[str, str, str], Json]:
    """Return {(what, proto, at): histogram}."""
    found = {}
    for one in run.histograms:
        key = tuple(one["key"][name] for name in ("what", "proto", "at"))
        assert key not in found
        found[key] = one
    return found


@compares("sormem", "what", "proto", "at", "buckets", "count", "sum", "percentiles",
          shape="histogram")  # fmt: skip
def test_distributions_of_each_arrival_and_each_read(netbpf: Any, one_host: Host) -> None:
    sizes: dict[tuple[str, str, str], list[int]] = {}

    def note(sock: socket.socket, proto: str, at: str) -> None:
        now = memory(one_host, sock)
        for what, size in (("rmem_alloc", now.used), ("rmem_limit", now.limit)):
            sizes.setdefault((what, proto, at), []).append(size)

    client, accepted = connected(one_host)
    with client, accepted, receiver(one_host, size=0) as four:
        with receiver(one_host, socket.AF_INET6) as six:
            with netbpf("sormem", "--histogram", "--netns", one_host.inode) as run:
                for _ in range(7):
                    client.send(bytes(1009))
                    assert accepted.recv(1, socket.MSG_PEEK)  # no read, as nothing is taken
                    note(accepted, "tcp4", "arrival")
                    send(one_host, four, 1)
                    note(four, "udp4", "arrival")
                for _ in range(3):
                    send(one_host, six, 1)
                    note(six, "udp6", "arrival")
                for _ in range(5):
                    assert accepted.recv(503)
                    note(accepted, "tcp4", "read")
                    assert four.recv(2 * BYTES)
                    note(four, "udp4", "read")
    found = distributions(run)
    assert found.keys() == sizes.keys()
    for key, histogram in found.items():
        of = sorted(sizes[key])
        buckets = {(b["low"], b["high"]): b["count"] for b in histogram["buckets"] if b["count"]}
        assert buckets == log2_buckets(of), key
        assert (histogram["count"], histogram["sum"]) == (len(of), sum(of)), key
        for percent in (50, 90, 99):
            exact = of[-(-len(of) * percent // 100) - 1]
            assert histogram["percentiles"][f"p{percent}"] == (1 << exact.bit_length()) - 1


@pytest.mark.parametrize("old", [True, False])
def test_distributions_of_a_process(netbpf: Any, one_host: Host, old: bool) -> None:
    """An arrival counts once it is known whose it is: for a new socket, from its first read on."""
    words = ("sormem", "--histogram", "--netns", one_host.inode)
    sock = receiver(one_host)
    with netbpf(*words, "-p", os.getpid()) as run, netbpf(*words, "-p", 1) as other:
        if not old:
            sock.close()
            sock = receiver(one_host)
        with sock:
            for _ in range(5):
                send(one_host, sock, 1)
                assert drain(sock) == 1
            port = sock.getsockname()[1]
            run.stop()
    assert not other.histograms and not other.rows
    found = distributions(run)
    assert found["rmem_alloc", "udp4", "read"]["count"] == 5
    assert found["rmem_alloc", "udp4", "arrival"]["count"] == (5 if old else 4)
    row = row_of(run, port)
    assert (row["arrivals"], row["reads"]) == (5, 5)


# --- who, and which ------------------------------------------------------------------------------

ALL_READ = ("client-fin", "server-fin")


def ledger(sessions: Sequence[traffic.Session]) -> dict[tuple[Any, ...], traffic.Line]:
    """Return {ends: line} of the ends of sessions that bytes came to."""
    lines = [line for session in sessions for line in session.lines()]
    return {tuple(getattr(line, name) for name in ENDS): line for line in lines if line.rx_bytes}


def test_filters(netbpf: Any, crowd: Crowd) -> None:
    """Each filter shows what matches, and nothing else."""
    filters = crowd.filters()
    with contextlib.ExitStack() as stack:
        runs = [stack.enter_context(netbpf("sormem", *words)) for words in filters]
        sessions = crowd.play(23, ALL_READ)
    lines = ledger(sessions)
    for (words, passes), run in zip(filters.items(), runs):
        wanted = {ends for ends, line in lines.items() if passes(line)}
        rows = crowd.ours(run.rows)
        assert 0 < len(wanted) < len(lines), words
        found = {tuple(row[name] for name in ENDS): row for row in rows}
        assert wanted <= found.keys(), words
        for ends in wanted:
            assert (found[ends]["pid"], found[ends]["comm"]) == (lines[ends].pid, lines[ends].comm)
            assert found[ends]["uid"] == (NOBODY if lines[ends].pid == crowd.nobody.pid else 0)
        # Others had only the end of file to read.
        ours = {tuple(getattr(line, name) for name in ENDS)
                for session in sessions for line in session.lines() if passes(line)}  # fmt: skip
        assert found.keys() <= ours, words


KEYS = ("comm", "pid", "uid", "container", "cgroup", "netns", "owner", "proto", "family", *ENDS)


@compares("sormem", "comm", "pid", "uid", "container", "cgroup", "netns", "owner", shape="--by")
@compares("sormem", "proto", "family", "laddr", "lport", "raddr", "rport", "sockets", shape="--by")
def test_rows_by_key_add_up_to_the_sockets(netbpf: Any, crowd: Crowd) -> None:
    lists = [KEYS[:3], KEYS[3:6], KEYS[6:9], ENDS, ("container", "laddr")]
    lists += [(one,) for one in ("pid", "proto", "rport")]
    with contextlib.ExitStack() as stack:
        pids = ",".join(str(peer.pid) for pair in crowd.pairs for peer in pair)
        words = ("sormem", "--proto", "tcp", "-p", pids)
        plain = stack.enter_context(netbpf(*words))
        runs = {names: stack.enter_context(netbpf(*words, "--by", ",".join(names)))
                for names in lists}  # fmt: skip
        sessions = []
        for family in ("ipv4", "ipv6", "ipv4"):
            for pair in crowd.pairs:
                sessions.append(traffic.connect(*pair, family))
                sessions[-1].transfer(up=1009, down=503)
                sessions[-1].end()
    lines = [line for session in sessions for line in session.lines()]
    facts: dict[str, Callable[[traffic.Line], Any]] = {
        "uid": lambda line: NOBODY if line.pid == crowd.nobody.pid else 0,
        "container": lambda line: CONTAINER if line.pid == crowd.nobody.pid else None,
        "cgroup": lambda line: cgroup_of(line.pid),
        "netns": lambda line: (
            (crowd.left if line.comm.startswith("nb-client") else crowd.right).inode
        ),
        "proto": lambda line: {"ipv4": "tcp4", "ipv6": "tcp6"}[line.family],
    }
    for names, run in runs.items():
        wanted = Counter(
            tuple(facts[n](line) if n in facts else getattr(line, n) for n in names)
            for line in lines
        )
        found = {tuple(row[n] for n in names): row["sockets"] for row in run.rows}
        assert found == wanted, names
        for column in ("arrivals", "reads", "dropped"):
            assert sum(r[column] for r in run.rows) == sum(r[column] for r in plain.rows), column
        others = set(KEYS) - set(names)
        assert all(row[other] is None for row in run.rows for other in others)


@compares("sormem", "sockets", "arrivals", "reads", "used_bytes", "used_max_bytes", "fill_max",
          "dropped", "no_room", shape="--by")  # fmt: skip
def test_sums_and_the_largest(netbpf: Any, one_host: Host) -> None:
    with receiver(one_host) as one, receiver(one_host, size=2 * SMALL) as two:
        with netbpf("sormem", "--by", "pid,proto", "--netns", one_host.inode) as run:
            send(one_host, one)
            send(one_host, two)
            full = memory(one_host, one), memory(one_host, two)
            reads = drain(one)
            now = memory(one_host, one).used + full[1].used
        waiting = drain(two)
    (row,) = run.rows
    drops = 2 * DATAGRAMS - reads - waiting
    assert (row["pid"], row["proto"], row["sockets"]) == (os.getpid(), "udp4", 2)
    assert (row["arrivals"], row["reads"]) == (reads + waiting, reads)
    assert row["used_bytes"] == now
    assert row["used_max_bytes"] == max(one.used for one in full)
    shares = [one.used / one.limit for one in full]
    assert row["fill_max"] == pytest.approx(max(shares), abs=1e-4)
    assert (row["dropped"], row["no_room"]) == (drops, drops) and drops > DATAGRAMS // 2


def test_protocols(netbpf: Any, one_host: Host) -> None:
    """--proto shows these protocols only; a raw socket is of none of them."""
    words = ("tcp", "udp", "tcp4", "udp6", "other", "udp4,tcp6")
    found = {
        "tcp": {"tcp4", "tcp6"}, "udp": {"udp4", "udp6"}, "tcp4": {"tcp4"}, "udp6": {"udp6"},
        "other": {"other"}, "udp4,tcp6": {"udp4", "tcp6"},
    }  # fmt: skip
    with contextlib.ExitStack() as stack:
        only = ("sormem", "--netns", one_host.inode, "--proto")
        runs = {word: stack.enter_context(netbpf(*only, word)) for word in words}
        raw = stack.enter_context(one_host.socket(socket.AF_INET, socket.SOCK_RAW, 253))
        for family in (socket.AF_INET, socket.AF_INET6):
            sock = stack.enter_context(receiver(one_host, family))
            send(one_host, sock, 3)
            client, accepted = map(stack.enter_context, connected(one_host, 0, family))
            client.send(b"x")
            assert accepted.recv(1)
        raw.sendto(bytes(7), ("127.0.0.1", 0))
        assert raw.recv(100)
        for run in runs.values():
            run.stop()
    for word, run in runs.items():
        assert {row["proto"] for row in run.rows} == found[word], word
    (row,) = runs["other"].rows
    assert (row["arrivals"], row["reads"], row["dropped"]) == (1, 1, None)
    assert all(row[name] is None for name in CAUSES)


def test_sockets_that_find_no_room_are_counted(netbpf: Any, one_host: Host) -> None:
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(receiver(one_host)) for _ in range(11)]
        words = ("--netns", one_host.inode, "--map-entries", 1)
        with netbpf("sormem", *words) as run:
            for sock in socks:
                send(one_host, sock, 2)
    shown = len(run.rows)
    assert 0 < shown < 11 and run.summary["lost"]["map_full"] >= 11 - shown
    assert run.summary["complete"] is False
    assert all(row["arrivals"] == 2 for row in run.rows)


def test_order_and_first_rows(netbpf: Any, one_host: Host) -> None:
    """Those with drops come first, then the fullest; --sort and --top."""
    words = ("sormem", "--netns", one_host.inode)
    with contextlib.ExitStack() as stack:
        usual, sort, top = (stack.enter_context(netbpf(*words, *more))
                            for more in ((), ("--sort", "arrivals"), ("--top", 1)))  # fmt: skip
        sizes = {DATAGRAMS: SMALL, 5: 0, 29: 0}
        ports = {}
        for number, size in sizes.items():
            sock = stack.enter_context(receiver(one_host, size=size))
            send(one_host, sock, number)
            ports[sock.getsockname()[1]] = number
        for run in (usual, sort, top):
            run.stop()
    assert [ports[row["lport"]] for row in usual.rows] == [DATAGRAMS, 29, 5]
    assert [ports[row["lport"]] for row in sort.rows] == [29, 5, DATAGRAMS]
    assert [ports[row["lport"]] for row in top.rows] == [DATAGRAMS]


def test_intervals_add_up(netbpf: Any, one_host: Host) -> None:
    with receiver(one_host) as sock, netbpf("sormem", "--netns", one_host.inode, "0.2") as run:
        for number in (1, 2, 3):
            begin = len(run.rows)
            send(one_host, sock, number)
            assert drain(sock) == number
            wait_until(lambda begin=begin: len(run.rows) > begin)
        times = [seconds(row["time"]) for row in run.rows]
    assert sums(run.rows, "proto", "arrivals", "reads")["udp4"] == (6, 6)
    assert len(times) >= 3 and times == sorted(times)


def test_text(netbpf: Any, one_host: Host) -> None:
    with receiver(one_host) as sock:
        with netbpf("sormem", "--netns", one_host.inode, json_lines=False) as run:
            send(one_host, sock)
            full = memory(one_host, sock)
        port = sock.getsockname()[1]
    head, line = [line for line in run.stdout.splitlines() if line]
    assert len(head) <= 80 and len(line) <= 80
    assert head.split() == ["PID", "COMM", "PROTO", "LPORT", "ARRIVED", "READS", "MAX_KB",
                            "LIMIT_KB", "FILL", "DROPPED"]  # fmt: skip
    assert line.split() == [
        str(os.getpid()), COMM[:10], "udp4", str(port), str(DATAGRAMS - full.drops), "0",
        f"{full.used / 1024:.2f}", f"{full.limit / 1024:.2f}",
        f"{int(full.used / full.limit * 10000) / 100:.2f}%", str(full.drops),
    ]  # fmt: skip


def test_a_histogram_has_no_keys() -> None:
    done = netbpf_once("sormem", "--histogram", "--by", "pid")
    assert done.returncode == 2 and "excludes --by" in done.stderr


def full_buffers(stage: Any, run: Run) -> None:
    """Let a datagram socket and a session of TCP get more than they read."""
    with receiver(stage.alone) as sock:
        send(stage.alone, sock)
        drain(sock)
        client, accepted = connected(stage.alone, 16384)
        with client, accepted:
            client.send(bytes(1009))
            assert accepted.recv(503)
            run.stop()


def facts(run: Run, lost: set[str]) -> Counter[Any]:
    """Return the rows of a run, but for the ports."""
    names = ("pid", "comm", "proto", "family", "laddr", "raddr", "arrivals", "reads",
             "used_max_bytes", "limit_bytes", "fill_max", "dropped", *CAUSES, "uid", "netns",
             "cgroup")  # fmt: skip
    return Counter(tuple(row[n] for n in names if n not in lost) for row in run.rows)


ALTERNATIVES = Case(lambda s: ("--netns", s.alone.inode), full_buffers, facts)
