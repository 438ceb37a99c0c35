"""solife has each socket once, with what the program that used it did, however it ends."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable, NamedTuple

import pytest
from alternatives import Case, Stage, events
from compared import compares
from harness import Json, seconds
from test_mptcp import MPTCP
from topology import Host, cgroup, cgroup_of

HERE = Path(__file__).parent
DGRAM, STREAM, RAW = socket.SOCK_DGRAM, socket.SOCK_STREAM, socket.SOCK_RAW
LINGER_0 = struct.pack("ii", 1, 0)  # close() sends a reset
NOBODY = 65534
PEERS = 8  # addresses that are told apart
COUNTS = ("tx_bytes", "rx_bytes", "tx_msgs", "rx_msgs", "errors", "peers")


def us() -> tuple[int, str]:
    return os.getpid(), Path("/proc/self/comm").read_text().strip()


class Maker:
    """A process that makes sockets and ends them as it is told, see programs/socket_lives.py."""

    def __init__(self, host: Host, address: str, number: int, name: str = "nb-maker") -> None:
        program = HERE / "programs" / "socket_lives.py"
        self.name = name
        self.process = subprocess.Popen(
            host.inside(sys.executable, program, address, number, name),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.pid = self.process.pid
        self.cgroup = cgroup_of(self.pid)
        self.ledger: list[Json] = self._told()

    def _told(self) -> Any:
        assert self.process.stdout
        return json.loads(self.process.stdout.readline())

    def _tell(self, word: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()

    def close(self) -> list[tuple[int, int]]:
        """Close the sockets; return before and after what times, in ns."""
        self._tell("close")
        return [tuple(moment) for moment in self._told()]

    def exit(self) -> None:
        """Let the process exit."""
        self._tell("exit")
        self.process.wait()

    def kill(self) -> None:
        """Kill the process, and return after its end."""
        self.process.kill()
        self.process.wait()


@pytest.fixture
def maker(one_host: Host) -> Iterator[Callable[..., Maker]]:
    makers: list[Maker] = []

    def make(*words: Any) -> Maker:
        makers.append(Maker(one_host, *words))
        return makers[-1]

    yield make
    for one in makers:
        one.process.kill()
        one.process.communicate()


@pytest.fixture
def lines(netbpf: Any, one_host: Host) -> Callable[..., Any]:
    """Run the tool in the namespace of the test."""
    return lambda *words: netbpf("solife", "--netns", one_host.inode, *words)


def by_port(found: list[Json]) -> dict[int, Json]:
    """Return events by local port; each socket has one."""
    ports = {event["lport"]: event for event in found}
    assert len(ports) == len(found)
    return ports


def only(found: list[Json]) -> Json:
    assert len(found) == 1, found
    return found[0]


# --- UDP ------------------------------------------------------------------------------------------


@compares("solife", "time", "pid", "comm", "owner", "family", "proto", "laddr", "lport", "raddr",
          "rport", "tx_bytes", "rx_bytes", "tx_msgs", "rx_msgs", "errors", "peers", "drops",
          "duration_us", "origin", "end", "uid", "netns", "cgroup")  # fmt: skip
@pytest.mark.parametrize(
    ("address", "family", "way", "end"),
    [
        ("127.0.0.1", "ipv4", "close", "close"),
        ("::1", "ipv6", "close", "close"),
        ("127.0.0.1", "ipv4", "exit", "exit"),
        ("::1", "ipv6", "kill", "exit"),
    ],
)
def test_each_udp_socket_has_a_line(lines, maker, one_host, address, family, way, end):
    with lines() as run:
        begin = time.time()
        one = maker(address, 23)
        before = time.monotonic_ns()
        moments = getattr(one, way)()
        after = time.monotonic_ns()
        run.wait_for(23 if way == "close" else 24)
        stop = time.time()
    found = by_port(run.events)
    partner = found.pop(one.ledger[0]["rport"], None)
    assert (partner is None) == (way == "close")
    assert [event["lport"] for event in run.events if event is not partner] == [
        socket_["lport"] for socket_ in one.ledger
    ] or way != "close"
    assert found.keys() == {row["lport"] for row in one.ledger}
    for index, row in enumerate(one.ledger):
        event = found[row["lport"]]
        assert begin <= seconds(event["time"]) <= stop
        assert (event["pid"], event["comm"], event["owner"]) == (one.pid, one.name, "exact")
        assert (event["uid"], event["cgroup"]) == (os.getuid(), one.cgroup)
        assert (event["family"], event["proto"], event["netns"]) == (
            family, "udp", one_host.inode,
        )  # fmt: skip
        assert (event["laddr"], event["raddr"]) == (row["laddr"], address)
        assert {name: event[name] for name in row if name not in ("made", "laddr")} == {
            name: value for name, value in row.items() if name not in ("made", "laddr")
        }
        assert (event["errors"], event["drops"]) == (0, 0)
        assert (event["origin"], event["end"]) == ("socket", end)
        made = row["made"]
        closed = moments[index] if moments else (before, after)
        low, high = closed[0] - made[1], closed[1] - made[0]
        assert low // 1000 <= event["duration_us"] <= high // 1000
    if partner:  # it has sent to each socket that received something
        receivers = sum(row["rx_msgs"] > 0 for row in one.ledger)
        assert partner["peers"] == min(receivers, PEERS + 1)
        assert partner["rx_bytes"] == sum(row["tx_bytes"] for row in one.ledger)
        assert partner["tx_msgs"] == sum(row["rx_msgs"] for row in one.ledger)


@compares("solife", "peers", "raddr", "rport")
@pytest.mark.parametrize("number", [1, 7, PEERS, PEERS + 1, 23])
def test_peers_are_counted(lines, one_host, number):
    with lines() as run:
        with one_host.socket(socket.AF_INET, DGRAM) as sock:
            for _ in range(3):
                for index in range(number):
                    sock.sendto(b"x", (f"127.0.1.{index % 5 + 1}", 1000 + index))
        event = only(run.wait_for(1))
    assert event["peers"] == min(number, PEERS + 1)
    last = number - 1
    assert (event["raddr"], event["rport"]) == (f"127.0.1.{last % 5 + 1}", 1000 + last)
    assert event["tx_msgs"] == 3 * number


def test_peers_of_both_families(lines, one_host):
    """An IPv6 socket sends to an IPv4-mapped address as IPv4."""
    filters = ("-D 7", "-D 8", "-4", "-6", "--raddr 127.0.0.1", "--raddr ::1")
    with lines() as run, contextlib.ExitStack() as stack:
        filtered = [stack.enter_context(lines(*words.split())) for words in filters]
        with one_host.socket(socket.AF_INET6, DGRAM) as sock:
            sock.sendto(b"x", ("::1", 7))
            sock.sendto(b"x", ("::ffff:127.0.0.1", 7))
        event = only(run.wait_for(1))
    assert [len(one.events) for one in filtered] == [1, 0, 1, 0, 1, 0]
    assert (event["peers"], event["family"], event["raddr"]) == (2, "ipv4", "127.0.0.1")


@compares("solife", "drops")
def test_drops_are_those_of_proc(lines, one_host):
    with lines() as run:
        with (
            one_host.socket(socket.AF_INET, DGRAM) as slow,
            one_host.socket(socket.AF_INET, DGRAM) as fast,
        ):
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
            slow.bind(("127.0.0.1", 0))
            port = slow.getsockname()[1]
            for _ in range(23):
                fast.sendto(bytes(200), ("127.0.0.1", port))
            table = one_host.run("cat", "/proc/self/net/udp").splitlines()[1:]
        found = by_port(run.wait_for(2))
    rows = [line.split() for line in table]
    dropped = {int(row[1].partition(":")[2], 16): int(row[-1]) for row in rows}
    assert 0 < dropped[port] < 23
    assert found[port]["drops"] == dropped[port]
    assert (found[port]["rx_msgs"], found[port]["rx_bytes"]) == (0, 0)


@compares("solife", "errors", "tx_msgs", "rx_msgs", "rx_bytes")
def test_what_is_no_message(lines, one_host):
    """Failed calls are errors; peeks, waits, and reads of the error queue are nothing."""
    with lines() as run:
        with (
            one_host.socket(socket.AF_INET, DGRAM) as sock,
            one_host.socket(socket.AF_INET, DGRAM) as partner,
        ):
            partner.bind(("127.0.0.1", 0))
            sock.connect(partner.getsockname())
            partner.connect(sock.getsockname())
            partner.send(b"")  # an empty datagram is one
            partner.send(bytes(41))
            assert sock.recv(100) == b""
            for _ in range(5):
                assert len(sock.recv(100, socket.MSG_PEEK)) == 41
            assert len(sock.recv(7)) == 7  # the rest is lost
            sock.setblocking(False)
            for flags in (0, 0x2000):  # MSG_ERRQUEUE
                with pytest.raises(BlockingIOError):
                    sock.recv(7, flags)
            for _ in range(3):
                with pytest.raises(OSError, match="too long"):
                    sock.send(bytes(65536))
            partner.close()
            sock.send(b"xy")
            with pytest.raises(ConnectionRefusedError):
                sock.recv(7)
            port = sock.getsockname()[1]
        found = by_port(run.wait_for(2))
    event = found[port]
    assert (event["tx_msgs"], event["tx_bytes"]) == (1, 2)
    assert (event["rx_msgs"], event["rx_bytes"], event["errors"]) == (2, 7, 4)
    assert event["peers"] == 0


# --- TCP, and others ------------------------------------------------------------------------------


class Exchange(NamedTuple):
    """What a client and a server exchanged: bytes each way, and receives of the client."""

    up: int
    down: int
    receives: int


def exchange(listener: socket.socket, client: socket.socket, index: int) -> Exchange:
    """Connect, exchange bytes of different numbers, and close both ends, some with a reset."""
    address = "::1" if client.family == socket.AF_INET6 else "127.0.0.1"
    client.connect((address, listener.getsockname()[1]))
    with client, listener.accept()[0] as server:
        client.sendall(bytes(index + 1))
        assert len(server.recv(100)) == index + 1
        for _ in range(2):
            server.sendall(bytes(100 + index))
        received: list[int] = []
        while sum(received) < 200 + 2 * index:
            received.append(len(client.recv(67)))
        if index % 3 == 0:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_0)
    return Exchange(index + 1, sum(received), len(received))


@compares("solife", "origin", "tx_bytes", "rx_bytes", "tx_msgs", "rx_msgs", "laddr")
@pytest.mark.parametrize("bound", ["127.0.0.1", "::1", "::"])
def test_tcp_sockets(lines, one_host, bound):
    kind = socket.AF_INET if bound == "127.0.0.1" else socket.AF_INET6
    target = {"::": "127.0.0.1"}.get(bound, bound)
    with lines() as run:
        with one_host.socket(kind, STREAM) as listener:
            if bound == "::":
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            listener.bind((bound, 0))
            listener.listen()
            port = listener.getsockname()[1]
            family = socket.AF_INET6 if target == "::1" else socket.AF_INET
            clients = [one_host.socket(family, STREAM) for _ in range(17)]
            for number, client in enumerate(clients):
                client.bind((target, 20_000 + number))
            done = [exchange(listener, client, index) for index, client in enumerate(clients)]
        run.wait_for(35)
    assert len(run.events) == 35
    assert {(event["end"], event["proto"]) for event in run.events} == {("close", "tcp")}
    for event in run.events:
        assert (event["pid"], event["comm"], event["peers"]) == (*us(), None)
        assert event["laddr"] == (bound if event["rport"] is None else target)
        assert event["origin"] == ("accept" if event["lport"] == port and event["rport"] else
                                   "socket")  # fmt: skip
    names = ("lport", "rport", "raddr", "tx_bytes", "rx_bytes", "tx_msgs", "rx_msgs")
    wanted = [(port, None, None, 0, 0, 0, 0)]
    for number, one in enumerate(done, 20_000):
        wanted.append((number, port, target, one.up, one.down, 1, one.receives))
        wanted.append((port, number, target, one.down, one.up, 2, 1))
    assert Counter(tuple(event[name] for name in names) for event in run.events) == Counter(wanted)


def test_time_of_an_accepted_socket(lines, one_host):
    with lines() as run:
        with one_host.socket(socket.AF_INET, STREAM) as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            with one_host.socket(socket.AF_INET, STREAM) as client:
                before = time.monotonic_ns()
                client.connect(listener.getsockname())
                server, _ = listener.accept()
                accepted = time.monotonic_ns()
                time.sleep(0.023)
                closing = time.monotonic_ns()
                server.close()
                closed = time.monotonic_ns()
        run.wait_for(3)
    event = only([event for event in run.events if event["origin"] == "accept"])
    assert (closing - accepted) // 1000 <= event["duration_us"] <= (closed - before) // 1000


def test_connections_that_no_program_accepts_have_no_line(lines, one_host):
    with lines("--open") as run:
        with one_host.socket(socket.AF_INET, STREAM) as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen(64)
            clients = [one_host.socket(socket.AF_INET, STREAM) for _ in range(23)]
            for client in clients:
                client.connect(listener.getsockname())
        for client in clients:
            client.close()
        run.wait_for(24)
    assert len(run.events) == 24
    assert {event["origin"] for event in run.events} == {"socket"}
    assert run.summary["open"] == 0  # they are forgotten


@compares("solife", "open", shape="summary")
@pytest.mark.parametrize("accepted", [0, 7])
def test_connections_are_open_when_a_program_has_accepted_them(lines, one_host, accepted):
    with contextlib.ExitStack() as stack:
        with lines("--open") as run:
            listener = stack.enter_context(one_host.socket(socket.AF_INET, STREAM))
            listener.bind(("127.0.0.1", 0))
            listener.listen(64)
            for _ in range(23):
                client = stack.enter_context(one_host.socket(socket.AF_INET, STREAM))
                client.connect(listener.getsockname())
            for _ in range(accepted):
                stack.enter_context(listener.accept()[0])
        assert run.events == []
        assert run.summary["open"] == len(run.rows) == 1 + 23 + accepted
        assert Counter(row["origin"] for row in run.rows)["accept"] == accepted


@compares("solife", "proto")
@pytest.mark.parametrize(
    ("kind", "protocol", "proto"),
    [
        (DGRAM, 0, "udp"),
        (STREAM, 0, "tcp"),
        (RAW, 1, "raw"),
        (RAW, 255, "raw"),
        (DGRAM, socket.IPPROTO_ICMP, "icmp"),
    ],
)
def test_protocols(lines, one_host, kind, protocol, proto):
    one_host.sysctl(net__ipv4__ping_group_range="0 1000")
    others = {"udp", "tcp", "raw", "icmp", "sctp"} - {proto}
    with lines("--proto", proto) as run, lines("--proto", ",".join(sorted(others))) as rest:
        one_host.socket(socket.AF_INET, kind, protocol).close()
        run.wait_for(1)
        other = (STREAM, "tcp") if proto == "udp" else (DGRAM, "udp")
        one_host.socket(socket.AF_INET, other[0]).close()
        rest.wait_for(1)
    assert only(run.events)["proto"] == proto
    assert only(rest.events)["proto"] == other[1]


# --- who ------------------------------------------------------------------------------------------


@compares("solife", "pid", "comm")
def test_the_last_process_that_closes_it(lines, one_host):
    """A parent makes a socket, a child of another name uses it and closes it last."""
    with lines() as run:
        sock = one_host.socket(socket.AF_INET, DGRAM)
        ready, wait = os.pipe()
        child = os.fork()
        if not child:
            Path("/proc/self/comm").write_text("nb-child")
            os.close(wait)
            os.read(ready, 1)
            sock.sendto(b"child", ("127.0.0.1", 9))
            sock.close()
            os._exit(0)
        os.close(ready)
        sock.close()
        assert run.events == []
        os.close(wait)
        os.waitpid(child, 0)
        event = only(run.wait_for(1))
    assert (event["pid"], event["comm"], event["end"]) == (child, "nb-child", "close")
    assert (event["tx_bytes"], event["origin"]) == (5, "socket")


def test_a_socket_that_the_kernel_closes(lines, one_host):
    """It is in a message that nobody can receive any more: a kernel thread collects it (6.10)."""
    with lines() as run:
        sock = one_host.socket(socket.AF_INET, DGRAM)
        sock.sendto(b"abc", ("127.0.0.1", 9))
        left, right = socket.socketpair()
        socket.send_fds(left, [b"x"], [sock.fileno(), left.fileno(), right.fileno()])
        sock.close()
        left.close()
        right.close()
        socket.socketpair()[0].close()  # the end of a unix socket starts the collection
        event = only(run.wait_for(1))
    assert event["end"] in (None, "close")
    assert (event["pid"], event["comm"], event["owner"]) == (*us(), "exact")
    assert (event["tx_bytes"], event["origin"]) == (3, "socket")


def test_who_exec_and_a_full_table_leave(lines, one_host):
    """exec(3) closes a socket under the new name; one without a descriptor has a line as well."""
    program = (
        "import os, resource, socket\n"
        "sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        "soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (sock.fileno() + 1, hard))\n"
        "try: socket.socket(socket.AF_INET, socket.SOCK_STREAM)\n"
        "except OSError: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))\n"
        "os.execv('/bin/sleep', ['sleep', '0'])\n"
    )
    with lines() as run:
        one_host.run(sys.executable, "-c", program)
        first, second = run.wait_for(2)
    assert (first["proto"], first["end"]) == ("tcp", "close")
    assert (second["proto"], second["comm"], second["end"]) == ("udp", "sleep", "close")
    assert first["pid"] == second["pid"]


@compares("solife", "drops")
def test_sockets_that_are_older(lines, one_host):
    with one_host.socket(socket.AF_INET, DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        sock.bind(("127.0.0.1", 0))
        for _ in range(23):
            sock.sendto(bytes(200), sock.getsockname())
        with lines() as run, lines("--min-ms", "0.000001") as timed:
            sock.sendto(bytes(200), sock.getsockname())
            table = one_host.run("cat", "/proc/self/net/udp").splitlines()[1]
            port = sock.getsockname()[1]
            sock.close()
            event = only(run.wait_for(1))
    assert [event[name] for name in (*COUNTS, "duration_us", "origin")] == [None] * 8
    assert (event["lport"], event["laddr"], event["pid"]) == (port, "127.0.0.1", os.getpid())
    assert event["drops"] == int(table.split()[-1]) > 0
    assert timed.events == []  # how long it existed is not known


# --- filters and forms ----------------------------------------------------------------------------


def test_filters(netbpf, lines, maker, one_host):
    """Two processes make 12 and 14 sockets, one of them in a cgroup, and this one makes 3.

    Half of them are connected, which gives them a local address, and one is bound.
    """
    wanted = {
        "--comm nb-sec*": 12, "--comm nb-third": 0, "-4": 3 + 12, "-6": 14,
        "--raddr 127.0.0.0/8": 12, "--raddr 10.0.0.0/8": 0, "--laddr ::1": 6 + 1, "--laddr ::2": 0,
        "--min-ms 400": 12 + 14, "--min-ms 60000": 0, "-L 1": 0, "-D 1": 0,
        f"-u {os.getuid()}": 3 + 12 + 14, f"-u {NOBODY}": 0,
    }  # fmt: skip
    with contextlib.ExitStack() as stack:
        chosen = {words: stack.enter_context(lines(*words.split())) for words in wanted}
        here = os.stat("/proc/self/ns/net").st_ino
        elsewhere = stack.enter_context(netbpf("solife", "--netns", here, "--comm", "nb-thirds"))
        group = stack.enter_context(cgroup("inner"))
        second, third = maker("127.0.0.1", 11, "nb-second"), maker("::1", 13, "nb-thirds")
        stack.callback(second.kill)
        (group / "cgroup.procs").write_text(str(second.pid))
        port, partner = second.ledger[0]["lport"], second.ledger[0]["rport"]
        # These are younger than the sockets: only those that are connected have a remote port.
        late = {
            ("-p", second.pid): 12, ("-L", port): 1, ("-D", partner): 5,
            ("--cgroup", group.parent): 12, ("--cgroup", group): 12,
        }  # fmt: skip
        late_runs = [stack.enter_context(lines(*words)) for words in late]
        marker = stack.enter_context(lines())
        for _ in range(3):
            one_host.socket(socket.AF_INET, DGRAM).close()
        time.sleep(0.4)  # what --min-ms 400 shows has existed that long
        second.exit()
        third.exit()
        marker.wait_for(3 + 12 + 14)
    assert {words: len(run.events) for words, run in chosen.items()} == wanted
    assert [len(run.events) for run in late_runs] == list(late.values())
    assert {event["pid"] for run in late_runs for event in run.events} == {second.pid}
    assert elsewhere.events == []


@compares("solife", "open", shape="summary")
@compares("solife", "end", "pid", "comm", "origin", "tx_bytes", "duration_us")
def test_open_sockets_are_listed(lines, maker, one_host):
    with lines("--open", "--comm", "nb-*") as run:
        one, other = maker("127.0.0.1", 7), maker("::1", 11, "nb-other")
        other.close()
        run.wait_for(11)
    still = run.rows
    assert {event["end"] for event in still} == {"open"} and len(still) == 8 + 1
    assert {event["end"] for event in run.events} == {"close"} and len(run.events) == 11
    assert run.summary["open"] == 9
    found = by_port([event for event in still if event["pid"] == one.pid])
    partner = found.pop(one.ledger[0]["rport"])
    assert partner["end"] == "open" and partner["comm"] == one.name
    for row in one.ledger:
        event = found[row["lport"]]
        assert (event["tx_bytes"], event["origin"]) == (row["tx_bytes"], "socket")
        assert event["duration_us"] <= (time.monotonic_ns() - row["made"][0]) // 1000


@compares("solife", "pid", "comm", "proto", "sockets", "open", "tx_bytes", "rx_bytes", "tx_msgs",
          "rx_msgs", "errors", "drops", "p50_us", "p99_us", shape="--summary")  # fmt: skip
def test_rows_add_up(lines, maker, one_host):
    with lines("--summary", "--open") as run, lines() as single:
        one, other = maker("127.0.0.1", 23), maker("::1", 17, "nb-other")
        one.exit()
        other.close()
        with one_host.socket(socket.AF_INET, DGRAM) as sock:
            for _ in range(3):
                with pytest.raises(OSError, match="too long"):
                    sock.sendto(bytes(65536), ("127.0.0.1", 9))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
            for _ in range(23):
                sock.sendto(bytes(200), sock.getsockname())
            table = one_host.run("cat", "/proc/self/net/udp").splitlines()[1]
        single.wait_for(24 + 17 + 1)
    rows = {row["comm"]: row for row in run.rows}
    assert len(rows) == len(run.rows) == 3
    for maker_, sockets, still in ((one, 24, 0), (other, 17, 1)):
        row = rows[maker_.name]
        events = [event for event in single.events if event["pid"] == maker_.pid]
        assert (row["pid"], row["proto"]) == (maker_.pid, "udp")
        assert (row["sockets"], row["open"], len(events)) == (sockets, still, sockets)
        for name in ("tx_bytes", "rx_bytes", "tx_msgs", "rx_msgs"):
            own = sum(line[name] for line in maker_.ledger)
            both = sum(line["tx" + name[2:]] + line["rx" + name[2:]] for line in maker_.ledger)
            assert row[name] == (own if still else both)
        assert (row["errors"], row["drops"]) == (0, 0)
        times = sorted(event["duration_us"] for event in events)
        # Each run takes the times itself, and may be interrupted in between.
        assert abs(row["p50_us"] - times[(len(times) - 1) // 2]) <= 50_000
        assert abs(row["p99_us"] - times[-1]) <= 50_000
    row = rows[us()[1]]
    assert (row["errors"], row["drops"]) == (3, int(table.split()[-1]))


def test_a_full_map_is_counted(lines, maker):
    with lines("--map-entries", "7") as run:
        one = maker("127.0.0.1", 23)
        one.exit()
        run.wait_for(24)
    unknown = [event for event in run.events if event["duration_us"] is None]
    assert len(run.events) == 24
    assert run.summary["lost"]["map_full"] == len(unknown) == 24 - 7


@pytest.mark.skipif(not MPTCP, reason="this kernel has no MPTCP")
def test_mptcp_sockets(lines, one_host):
    with lines() as run:
        with one_host.socket(socket.AF_INET, STREAM, socket.IPPROTO_MPTCP) as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            with one_host.socket(socket.AF_INET, STREAM, socket.IPPROTO_MPTCP) as client:
                client.connect(listener.getsockname())
                server, _ = listener.accept()
                client.sendall(bytes(41))
                assert len(server.recv(100)) == 41
                server.close()
        run.wait_for(3)
    assert [event["proto"] for event in run.events] == ["mptcp"] * 3
    assert sorted(event["origin"] or "" for event in run.events) == ["", "socket", "socket"]
    assert [event["tx_bytes"] for event in run.events if event["tx_bytes"]] == [41]


def act(stage: Stage, run: Any) -> None:
    """Make UDP and TCP sockets of both families, connected or not."""
    host = stage.left
    for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        for index in range(7):
            with host.socket(family, DGRAM) as sock:
                sock.sendto(bytes(17 + index), (address, 9))
                sock.sendto(bytes(17), (address, 10))
        with host.socket(family, STREAM) as listener:
            listener.bind((address, 0))
            listener.listen()
            with host.socket(family, STREAM) as client:
                client.connect(listener.getsockname())
                with listener.accept()[0] as server:
                    client.sendall(b"abc")
                    assert server.recv(9) == b"abc"


ALTERNATIVES = Case(lambda stage: ("--netns", stage.left.inode), act, events)
