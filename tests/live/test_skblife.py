"""skblife divides the time of packets that a program makes wait, as the program's clock shows.

For each message the test notes when it was sent, when the socket was readable, and when it was
read. The kernel's own time stamp (SO_TIMESTAMPNS) says when it arrived.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import select
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any, Callable, NamedTuple

import packets
import pytest
import raw_peer
import topology
from alternatives import Case, Stage
from compared import compares
from harness import Json, Run, netbpf_once, seconds
from topology import Host

from netbpf.declare.tool import find_tool

COUNT = 23
SO_TIMESTAMPNS, SO_RCVBUFFORCE = 35, 33  # include/uapi/asm-generic/socket.h
FAMILIES = {"ipv4": socket.AF_INET, "ipv6": socket.AF_INET6}
KINDS = {"udp": socket.SOCK_DGRAM, "tcp": socket.SOCK_STREAM}
STAGES = ("device", "stack", "socket", "total")
SENT_STAGES = ("qdisc", "driver", "total")


def now() -> int:
    return time.clock_gettime_ns(time.CLOCK_REALTIME)


class Message(NamedTuple):
    """When a message was sent, arrived, was readable, was asked for and was read, in us."""

    sent: float
    arrived: float
    readable: float
    asked: float
    read: float


class Pair:
    """A sender and a reader, which are connected."""

    def __init__(self, source: Host, target: Host, proto: str, family: str = "ipv4") -> None:
        of, kind = FAMILIES[family], KINDS[proto]
        address = target.ipv4 if family == "ipv4" else target.ipv6
        self.sender = source.socket(of, kind)
        self.sender.bind((source.ipv4 if family == "ipv4" else source.ipv6, 0))
        server = target.socket(of, kind)
        server.bind((address, 0))
        if proto == "tcp":
            server.listen()
        self.sender.connect(server.getsockname())
        self.reader = server
        if proto == "tcp":
            self.reader, _ = server.accept()
            server.close()
        self.reader.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        self.reader.settimeout(10)
        self.lport: int = self.reader.getsockname()[1]
        self.rport: int = self.sender.getsockname()[1]

    def send(self, data: bytes = bytes(100)) -> int:
        """Send a message, wait until it is readable, and return when that was, in ns."""
        self.sender.send(data)
        assert select.select([self.reader], [], [], 10)[0]
        return now()

    def late(self, wait_ms: float, data: bytes = bytes(100)) -> Message:
        """Send a message, and read it so much later."""
        sent = now()
        readable = self.send(data)
        time.sleep(wait_ms / 1000)
        asked = now()
        got, extra, _, _ = self.reader.recvmsg(65536, 256)
        read = now()
        assert got == data
        ((_, _, stamp),) = extra
        sec, ns = struct.unpack("=qq", stamp)
        return Message(*(at / 1000 for at in (sent, sec * 10**9 + ns, readable, asked, read)))

    def close(self) -> None:
        """Close both sockets."""
        self.sender.close()
        self.reader.close()


@contextlib.contextmanager
def pair(source: Host, target: Host, proto: str, family: str = "ipv4") -> Iterator[Pair]:
    """Yield a connected pair, closed with the block."""
    made = Pair(source, target, proto, family)
    try:
        yield made
    finally:
        made.close()


def by_stage(found: list[Json], names: tuple[str, ...] = STAGES) -> dict[str, Json]:
    """Return the distributions by stage, which are in the order of the way, of the same packets."""
    assert [one["key"]["stage"] for one in found] == list(names)
    stages = {one["key"]["stage"]: one for one in found}
    assert len({one["count"] for one in found}) == 1
    assert stages["total"]["sum"] == sum(stages[name]["sum"] for name in names[:-1])
    for one in found:
        assert one["count"] == sum(bucket["count"] for bucket in one["buckets"])
        assert one["average"] == round(one["sum"] / one["count"], 1)
        assert one["share"] == round(one["sum"] / stages["total"]["sum"], 4)
    return stages


def check_buckets(found: Json, low: list[float], high: list[float]) -> None:
    """Compare a distribution with the bounds of each value."""
    assert found["count"] == len(low)
    assert sum(low) - len(low) <= found["sum"] <= sum(high)
    for number in range(24):
        edge = 1 << number
        longer = sum(bucket["count"] for bucket in found["buckets"] if bucket["low"] >= edge)
        least, most = (sum(int(value) >= edge for value in bounds) for bounds in (low, high))
        assert least <= longer <= most, (edge, found["buckets"], low, high)


@compares("skblife", "dev", "proto", "netns", "way", "stage", "buckets", "count", "sum",
          "percentiles", "average", "share", shape="histogram")  # fmt: skip
@compares("skblife", "time", "pid", "comm", "family", "proto", "laddr", "lport", "raddr", "rport",
          "dev", "device_us", "stack_us", "socket_us", "total_us", "stage", "netns")  # fmt: skip
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("proto", KINDS)
def test_a_late_reader(netbpf: Any, two_hosts: tuple[Host, Host], proto: str, family: str) -> None:
    left, right = two_hosts
    with pair(left, right, proto, family) as ends:
        begin = time.time()
        words = ("--netns", right.inode, "--min-ms", 0, "-p", os.getpid())
        with netbpf("skblife", *words) as run:
            sent = [ends.late(wait) for wait in range(1, COUNT + 1)]
        end = time.time()
    stages = by_stage(run.histograms)
    for name, one in stages.items():
        assert one["key"] == {
            "dev": right.device, "proto": proto, "netns": right.inode, "way": "rx", "stage": name
        }  # fmt: skip
    waits = [m.asked - m.readable for m in sent], [m.read - m.sent for m in sent]
    check_buckets(stages["socket"], *waits)
    check_buckets(stages["total"], [m.asked - m.arrived for m in sent], waits[1])
    before = stages["total"]["sum"] - stages["socket"]["sum"]
    assert before <= sum(m.readable - m.sent for m in sent)
    p50 = stages["socket"]["percentiles"]["p50"]
    assert sorted(waits[0])[11] <= p50 < 2 * sorted(waits[1])[11]
    assert len(run.events) == COUNT
    for event, m in zip(run.events, sent):
        assert m.asked - 1 <= seconds(event["time"]) * 1e6 <= m.read + 1000
        assert begin <= seconds(event["time"]) <= end
        assert (event["pid"], event["family"], event["proto"]) == (os.getpid(), family, proto)
        assert event["comm"] == open("/proc/self/comm").read().strip()
        assert (event["laddr"], event["lport"]) == (getattr(right, family), ends.lport)
        assert (event["raddr"], event["rport"]) == (getattr(left, family), ends.rport)
        assert (event["dev"], event["netns"]) == (right.device, right.inode)
        assert m.asked - m.readable - 1 <= event["socket_us"] <= m.read - m.sent
        assert m.asked - m.arrived - 1 <= event["total_us"] <= m.read - m.sent
        assert 0 <= event["device_us"] + event["stack_us"] <= m.readable - m.sent
        parts = event["device_us"] + event["stack_us"] + event["socket_us"]
        assert parts <= event["total_us"] <= parts + 3
        assert event["stage"] == "socket"
    assert run.summary["totals"]["unknown"] == 0


# --- each stage ----------------------------------------------------------------------------------


def test_packets_that_gro_holds_back_are_at_the_device(
    netbpf: Any, two_hosts: tuple[Host, Host]
) -> None:
    """GRO waits for the next segment until a timer ends if the first has no PSH: TCP_CORK."""
    left, right = two_hosts
    held_ms, size = 30, 1448
    with contextlib.ExitStack() as stack:
        for host in two_hosts:
            stack.enter_context(packets.offload(host, "tso", False))
            stack.enter_context(packets.offload(host, "gso", False))
        stack.enter_context(packets.offload(right, "gro", True))
        for name, value in ("gro_flush_timeout", held_ms * 1_000_000), ("napi_defer_hard_irqs", 1):
            line = f"echo {value} > /sys/class/net/{right.device}/{name}"
            topology.must("ip", "netns", "exec", right.namespace, "sh", "-c", line)
        run = stack.enter_context(netbpf("skblife", "--netns", right.inode, "--min-ms", 0))
        took = []
        for _ in range(7):
            ends = stack.enter_context(pair(left, right, "tcp"))
            sent = now()
            ends.sender.send(bytes(size + 1), socket.MSG_MORE)  # one segment, no PSH
            assert len(ends.reader.recv(65536)) == size
            took.append((now() - sent) / 1000)
        run.wait_for(7)
    for event, longest in zip(run.events, took):
        assert held_ms * 990 <= event["device_us"] <= longest
        assert event["stack_us"] + event["socket_us"] <= longest - event["device_us"]
        assert event["stage"] == "device"


def test_data_that_the_socket_does_not_wake_its_reader_for_is_in_the_stack(
    netbpf: Any, two_hosts: tuple[Host, Host]
) -> None:
    left, right = two_hosts
    wait_ms = 20
    with pair(left, right, "tcp") as ends:
        ends.reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1000)
        with netbpf("skblife", "--netns", right.inode, "--min-ms", 0) as run:
            took = []
            for _ in range(7):
                sent = now()
                ends.sender.send(bytes(100))
                time.sleep(wait_ms / 1000)
                ends.send(bytes(900))
                assert len(ends.reader.recv(65536)) == 1000
                took.append((now() - sent) / 1000)
    long = [event for event in run.events if event["stack_us"] >= wait_ms * 1000]
    assert len(long) == 7
    for event, longest in zip(long, took):
        assert event["stack_us"] <= event["total_us"] <= longest
        assert event["stage"] == "stack"


# --- what counts, and how often ------------------------------------------------------------------


@pytest.mark.parametrize("proto", KINDS)
def test_a_peek_does_not_end_the_wait(
    netbpf: Any, two_hosts: tuple[Host, Host], proto: str
) -> None:
    left, right = two_hosts
    with pair(left, right, proto) as ends, netbpf("skblife", "--netns", right.inode) as run:
        waits = []
        for _ in range(COUNT):
            readable = ends.send()
            for size in (1, 100, 100):
                assert len(ends.reader.recv(size, socket.MSG_PEEK)) == size
            time.sleep(0.01)
            waits.append(now() - readable)
            ends.reader.recv(1000)
    stages = by_stage(run.histograms)
    assert stages["socket"]["count"] == COUNT
    assert sum(waits) / 1000 - COUNT <= stages["socket"]["sum"]
    assert stages["socket"]["buckets"][0]["low"] >= 8192
    assert run.summary["totals"]["unknown"] == 0


def test_datagrams_of_a_burst_are_told_apart(netbpf: Any, two_hosts: tuple[Host, Host]) -> None:
    left, right = two_hosts
    with pair(left, right, "udp") as ends, netbpf("skblife", "--netns", right.inode) as run:
        sent, low, high = [], [], []
        for number in range(COUNT):
            before = now()
            readable = ends.send(bytes(number + 1))
            sent.append((before, readable))
        for number, (before, readable) in enumerate(sent):
            time.sleep(0.01)
            asked = now()
            assert len(ends.reader.recv(1000, socket.MSG_PEEK)) == number + 1
            assert len(ends.reader.recv(1000)) == number + 1
            low.append((asked - readable) / 1000)
            high.append((now() - before) / 1000)
    check_buckets(by_stage(run.histograms)["socket"], low, high)
    assert run.summary["totals"]["unknown"] == 0


def test_a_packet_that_is_read_in_parts_counts_once(
    netbpf: Any, two_hosts: tuple[Host, Host]
) -> None:
    left, right = two_hosts
    with pair(left, right, "tcp") as ends, netbpf("skblife", "--netns", right.inode) as run:
        for _ in range(COUNT):
            ends.send(bytes(1000))
            for _ in range(10):
                assert len(ends.reader.recv(100)) == 100
    assert by_stage(run.histograms)["total"]["count"] == COUNT
    assert run.summary["totals"]["unknown"] == 0


@pytest.mark.parametrize(("proto", "number"), [("udp", 3001), ("tcp", 307)])
def test_nothing_is_missing_of_much_traffic(
    netbpf: Any, one_host: Host, proto: str, number: int
) -> None:
    """Threads send while the test reads: each datagram counts, each stream has no gaps."""
    with pair(one_host, one_host, proto) as ends:
        ends.reader.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 26)
        data = bytes(100 if proto == "udp" else 65536)
        with netbpf("skblife", "--netns", one_host.inode, "--min-ms", 0) as run:
            sender = threading.Thread(target=lambda: [ends.sender.sendall(data)
                                                      for _ in range(number)])  # fmt: skip
            sender.start()
            missing = number * len(data)
            while missing:
                missing -= len(ends.reader.recv(1 << 20))
            sender.join()
    stages = by_stage(run.histograms)
    assert run.summary["totals"]["unknown"] == 0
    if proto == "udp":
        assert stages["total"]["count"] == number
    assert stages["total"]["count"] == len(run.events)
    assert stages["total"]["sum"] == sum(event["total_us"] for event in run.events)


def test_threads_that_read_from_one_socket(netbpf: Any, one_host: Host) -> None:
    number = 3001
    with pair(one_host, one_host, "udp") as ends:
        ends.reader.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 26)
        got = []

        def read() -> None:
            with contextlib.suppress(OSError):
                while ends.reader.recv(1000) != b"end":
                    got.append(1)

        with netbpf("skblife", "--netns", one_host.inode) as run:
            readers = [threading.Thread(target=read) for _ in range(3)]
            for thread in readers:
                thread.start()
            for _ in range(number):
                ends.sender.send(bytes(100))
            for _ in readers:
                ends.sender.send(b"end")
            for thread in readers:
                thread.join()
    assert len(got) == number
    found, unknown = by_stage(run.histograms)["total"], run.summary["totals"]["unknown"]
    assert found["count"] + unknown == number + len(readers)
    assert unknown < number / 10


@contextlib.contextmanager
def bridged(left: Host, right: Host) -> Iterator[tuple[Host, Host]]:
    """Yield both hosts with further addresses, the right one's behind a bridge."""
    ip, far = (("ip", "-n", host.namespace) for host in (right, left))
    (link,) = json.loads(topology.must(*ip, "-j", "link", "show", right.device))
    topology.must(*ip, "link", "add", "nb-br", "address", link["address"], "type", "bridge")
    topology.must(*ip, "link", "set", "nb-br", "up", "addrgenmode", "none")
    topology.must(*ip, "address", "add", "10.94.0.2/24", "dev", "nb-br")
    topology.must(*ip, "link", "set", right.device, "master", "nb-br")
    address = ("10.94.0.1/24", "dev", left.device)
    topology.must(*far, "address", "add", *address)
    try:
        yield (
            Host(left.namespace, left.device, "10.94.0.1"),
            Host(right.namespace, "nb-br", "10.94.0.2"),
        )
    finally:
        topology.must(*ip, "link", "del", "nb-br")
        topology.must(*far, "address", "del", *address)


@contextlib.contextmanager
def on_top(lower: Host, upper: Host, kind: str) -> Iterator[Host]:
    """Yield `upper` with a device on top of that of `lower`."""
    words = ("link", "add", "nb-top", "link", lower.device, "type", kind)
    if subprocess.run(["ip", "-n", lower.namespace, *words], check=False).returncode:
        pytest.skip(f"this kernel has no {kind}")
    topology.must("ip", "-n", lower.namespace, "link", "set", "nb-top", "netns", upper.namespace)
    ip = ("ip", "-n", upper.namespace)
    topology.must(*ip, "link", "set", "nb-top", "up", "addrgenmode", "none")
    topology.must(*ip, "address", "add", "10.91.0.9/24", "dev", "nb-top")
    try:
        yield Host(upper.namespace, "nb-top", "10.91.0.9")
    finally:
        topology.must(*ip, "link", "del", "nb-top")


def test_a_packet_that_passes_a_bridge_has_one_way(
    netbpf: Any, two_hosts: tuple[Host, Host]
) -> None:
    _, right = two_hosts
    with bridged(*two_hosts) as hosts, pair(*hosts, "udp") as ends:
        with netbpf("skblife", "--netns", right.inode, "--min-ms", 0) as run:
            sent = [ends.late(1) for _ in range(COUNT)]
    assert by_stage(run.histograms)["total"]["count"] == COUNT
    assert {one["key"]["dev"] for one in run.histograms} == {right.device}
    assert run.summary["totals"]["unknown"] == 0
    for event, m in zip(run.events, sent):
        assert m.asked - m.arrived - 1 <= event["total_us"] <= m.read - m.sent
        assert m.asked - m.readable - 1 <= event["socket_us"]


# --- what no distribution has --------------------------------------------------------------------


@compares("skblife", "unknown", shape="summary")
@pytest.mark.parametrize("proto", KINDS)
def test_packets_that_arrived_before_the_start_are_unknown(
    netbpf: Any, two_hosts: tuple[Host, Host], proto: str
) -> None:
    left, right = two_hosts
    with pair(left, right, proto) as ends:
        for _ in range(COUNT if proto == "udp" else 1):
            ends.send()
        with netbpf("skblife", "--netns", right.inode) as run:
            for _ in range(COUNT if proto == "udp" else 1):
                ends.reader.recv(1000)
            ends.send()
            ends.reader.recv(1000)
    assert run.summary["totals"]["unknown"] == (COUNT if proto == "udp" else 1)
    assert by_stage(run.histograms)["total"]["count"] == 1


def test_copies_for_several_readers_of_a_group_are_unknown(netbpf: Any, one_host: Host) -> None:
    group, number = "224.0.0.251", 7
    one_host.run("ip", "route", "replace", "224.0.0.0/4", "dev", "lo")
    with contextlib.ExitStack() as stack:
        readers = [stack.enter_context(one_host.socket(socket.AF_INET, socket.SOCK_DGRAM))
                   for _ in range(3)]  # fmt: skip
        for reader in readers:
            reader.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            reader.bind((group, 7010))
            member = socket.inet_aton(group) + socket.inet_aton("127.0.0.1")
            reader.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, member)
        sender = stack.enter_context(one_host.socket(socket.AF_INET, socket.SOCK_DGRAM))
        run = stack.enter_context(netbpf("skblife", "--netns", one_host.inode))
        for _ in range(number):
            sender.sendto(b"data", (group, 7010))
            for reader in readers:
                assert reader.recv(100) == b"data"
    assert by_stage(run.histograms)["total"]["count"] == number
    assert run.summary["totals"]["unknown"] == number * (len(readers) - 1)


def test_fragments_are_unknown(netbpf: Any, two_hosts: tuple[Host, Host]) -> None:
    left, right = two_hosts
    with pair(left, right, "udp") as ends, netbpf("skblife", "--netns", right.inode) as run:
        for _ in range(COUNT):
            ends.send(bytes(4001))
            assert len(ends.reader.recv(65536)) == 4001
    assert run.histograms == []
    assert run.summary["totals"]["unknown"] == COUNT


@pytest.mark.skipif(not hasattr(socket, "IPPROTO_MPTCP"), reason="needs Python 3.10")
def test_mptcp_is_neither_counted_nor_unknown(netbpf: Any, one_host: Host) -> None:
    kind = (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_MPTCP)
    with contextlib.ExitStack() as stack:
        server, client = (stack.enter_context(one_host.socket(*kind)) for _ in range(2))
        server.bind(("127.0.0.1", 0))
        server.listen()
        client.connect(server.getsockname())
        reader = stack.enter_context(server.accept()[0])
        run = stack.enter_context(netbpf("skblife", "--netns", one_host.inode))
        for _ in range(COUNT):
            client.send(bytes(100))
            assert len(reader.recv(1000)) == 100
    assert run.histograms == []
    assert run.summary["totals"]["unknown"] == 0


@pytest.mark.parametrize("kind", ["macvlan", "ipvlan"])
def test_packets_through_devices_on_top_of_another(
    netbpf: Any, two_hosts: tuple[Host, Host], one_host: Host, kind: str
) -> None:
    """The packet comes in by a device of another namespace than that of the socket."""
    left, right = two_hosts
    with on_top(right, one_host, kind) as top, pair(left, top, "udp") as ends:
        with netbpf("skblife", "--netns", top.inode, "--min-ms", 0) as run:
            sent = [ends.late(1) for _ in range(COUNT)]
    assert {one["key"]["dev"] for one in run.histograms} == {right.device}
    assert by_stage(run.histograms)["total"]["count"] == COUNT
    for event, m in zip(run.events, sent):
        assert m.asked - m.arrived - 1 <= event["total_us"] <= m.read - m.sent


def test_datagrams_that_nobody_reads_do_not_count(
    netbpf: Any, two_hosts: tuple[Host, Host]
) -> None:
    """The next socket may have the address of the one that was closed with a full queue."""
    left, right = two_hosts
    with netbpf("skblife", "--netns", right.inode) as run:
        for number in range(COUNT):
            with pair(left, right, "udp") as ends:
                ends.send()
                ends.reader.recv(1000)
                for _ in range(number % 3):
                    ends.send()
    assert by_stage(run.histograms)["total"]["count"] == COUNT
    assert run.summary["totals"]["unknown"] == 0
    assert by_stage(run.histograms)["socket"]["buckets"][-1]["high"] < 1 << 20


def test_a_datagram_that_cannot_be_copied_is_lost(
    netbpf: Any, two_hosts: tuple[Host, Host]
) -> None:
    left, right = two_hosts
    receive = ctypes.CDLL(None, use_errno=True).recv
    with pair(left, right, "udp") as ends, netbpf("skblife", "--netns", right.inode) as run:
        for _ in range(COUNT):
            ends.send(b"lost")
            ends.send(b"read")
            assert receive(ends.reader.fileno(), ctypes.c_void_p(8), 100, 0) == -1
            assert ctypes.get_errno() == errno.EFAULT
            assert ends.reader.recv(100) == b"read"
    assert by_stage(run.histograms)["total"]["count"] == COUNT
    assert run.summary["totals"]["unknown"] == 0


def test_a_read_after_shutdown_is_no_packet(netbpf: Any, two_hosts: tuple[Host, Host]) -> None:
    left, right = two_hosts
    with pair(left, right, "udp") as ends, netbpf("skblife", "--netns", right.inode) as run:
        ends.send(b"")  # an empty datagram is one
        assert ends.reader.recv(100) == b""
        ends.reader.connect(ends.sender.getsockname())
        ends.reader.shutdown(socket.SHUT_RD)
        ends.reader.settimeout(None)  # else the call does not wait, and fails
        assert ends.reader.recv(100) == b""
    assert by_stage(run.histograms)["total"]["count"] == 1
    assert run.summary["totals"]["unknown"] == 0


def test_keys_without_room_are_lost_and_counted(netbpf: Any, one_host: Host) -> None:
    number = 307  # of four keys each
    with contextlib.ExitStack() as stack:
        reader = stack.enter_context(one_host.socket(socket.AF_INET, socket.SOCK_DGRAM))
        reader.bind(("127.0.0.1", 0))
        words = ("--netns", one_host.inode, "--by", "raddr", "--fail-on-loss")
        run = stack.enter_context(netbpf("skblife", *words, returncode=3))
        for source in range(number):
            with one_host.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                sender.bind((f"127.1.{source >> 8}.{source & 255}", 0))
                sender.sendto(b"data", reader.getsockname())
            assert reader.recv(100) == b"data"
    counted = sum(one["count"] for one in run.histograms)
    assert run.summary["lost"]["map_full"] == number * len(STAGES) - counted > 0


def test_packets_without_room_are_unknown(netbpf: Any, one_host: Host) -> None:
    number = 5003
    with pair(one_host, one_host, "udp") as ends:
        ends.reader.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 26)
        with netbpf("skblife", "--netns", one_host.inode, "--map-entries", 7) as run:
            for _ in range(number):
                ends.sender.send(bytes(100))
            for _ in range(number):
                ends.reader.recv(1000)
    unknown = run.summary["totals"]["unknown"]
    assert unknown > 0
    assert sum(one["count"] for one in run.histograms) == len(STAGES) * (number - unknown)


# --- filters and keys ----------------------------------------------------------------------------

READ = """
import os, socket, sys
open("/proc/self/comm", "w").write("nb-reader")
sock = socket.socket(fileno=int(sys.argv[1]))
sock.setblocking(True)
for _ in range(int(sys.argv[2])):
    assert len(sock.recv(1000)) == 100
    print(flush=True)
    sys.stdin.readline()
"""


@contextlib.contextmanager
def other_reader(ends: Pair, number: int) -> Iterator[subprocess.Popen[str]]:
    """Let another program read that many messages, which are sent."""
    words = [sys.executable, "-c", READ, str(ends.reader.fileno()), str(number)]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        words, stdin=pipe, stdout=pipe, text=True, pass_fds=[ends.reader.fileno()], bufsize=1
    ) as process:
        assert process.stdin and process.stdout
        for _ in range(number):
            ends.sender.send(bytes(100))
            assert process.stdout.readline() == "\n"
            process.stdin.write("\n")
        yield process


Words = Callable[[Host, Host, Pair], tuple[object, ...]]
FILTERS: dict[str, tuple[Words, Words]] = {
    "pid": (lambda left, right, ends: ("-p", os.getpid()), lambda *_: ("-p", 1)),
    "comm": (lambda *_: ("--comm", "py*"), lambda *_: ("--comm", "nb-no*")),
    "uid": (lambda *_: ("-u", os.getuid()), lambda *_: ("-u", 65533)),
    "netns": (lambda left, right, ends: (), lambda left, *_: ("--netns", left.inode)),
    "interface": (
        lambda left, right, ends: ("-i", f"lo,{right.device}"),
        lambda *_: ("-i", "lo"),
    ),
    "lport": (
        lambda left, right, ends: ("-L", ends.lport),
        lambda left, right, ends: ("-L", ends.rport),
    ),
    "rport": (
        lambda left, right, ends: ("-D", ends.rport),
        lambda left, right, ends: ("-D", ends.lport),
    ),
    "laddr": (
        lambda left, right, ends: ("--laddr", f"{right.ipv4}/31"),
        lambda left, right, ends: ("--laddr", left.ipv4),
    ),
    "raddr": (
        lambda left, right, ends: ("--raddr", left.ipv4),
        lambda left, right, ends: ("--raddr", right.ipv4),
    ),
    "family": (lambda *_: ("-4",), lambda *_: ("-6",)),
}


@pytest.mark.parametrize("proto", KINDS)
@pytest.mark.parametrize("name", FILTERS)
def test_filter(netbpf: Any, two_hosts: tuple[Host, Host], proto: str, name: str) -> None:
    left, right = two_hosts
    with pair(left, right, proto) as ends:
        there, not_there = (words(left, right, ends) for words in FILTERS[name])
        own = ("--netns", right.inode)
        with (
            netbpf("skblife", *own, *there) as run,
            netbpf("skblife", *(not_there if name == "netns" else (*own, *not_there))) as other,
        ):
            for _ in range(COUNT):
                ends.send()
                ends.reader.recv(1000)
    assert by_stage(run.histograms)["total"]["count"] == COUNT
    assert other.histograms == []
    assert run.summary["totals"]["unknown"] == other.summary["totals"]["unknown"] == 0


def test_all_filters_at_once(netbpf: Any, two_hosts: tuple[Host, Host]) -> None:
    left, right = two_hosts
    with pair(left, right, "udp") as ends:
        words = [word for there, _ in FILTERS.values() for word in there(left, right, ends)]
        own = topology.own_cgroup(os.getpid())
        with netbpf("skblife", "--netns", right.inode, *words, "--cgroup", own, "--min-ms", 0,
                    "--by", "comm,pid,lport,raddr/9,family") as run:  # fmt: skip
            for _ in range(COUNT):
                ends.send()
                ends.reader.recv(1000)
    assert len(run.events) == COUNT
    assert {one["count"] for one in run.histograms} == {COUNT}


@compares("skblife", "comm", "pid", "family", "lport", "raddr", shape="histogram")
def test_each_key(netbpf: Any, two_hosts: tuple[Host, Host]) -> None:
    left, right = two_hosts
    keys = ("comm", "pid", "family", "lport", "raddr/12", "proto", "dev", "netns")
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(pair(left, right, "udp"))
        second = stack.enter_context(pair(left, right, "tcp", "ipv6"))
        own = ("--netns", right.inode, "--by")
        runs = [stack.enter_context(netbpf("skblife", *own, key))
                for key in (*keys, ",".join(keys))]  # fmt: skip
        for _ in range(17):
            first.send()
            first.reader.recv(1000)
        with other_reader(second, 5) as process:
            pass
    values = [
        (open("/proc/self/comm").read().strip(), os.getpid(), "ipv4", first.lport, "10.80.0.0/12",
         "udp", right.device, right.inode),
        ("nb-reader", process.pid, "ipv6", second.lport, "fd00::/12", "tcp", right.device,
         right.inode),
    ]  # fmt: skip
    for number, run in enumerate(runs):
        wanted: dict[tuple[object, ...], int] = {}
        for value, count in zip(values, (17, 5)):
            key = value if number == len(keys) else (value[number],)
            wanted[key] = wanted.get(key, 0) + count
        for stage in STAGES:
            found = {}
            for one in run.histograms:
                *key, _, at = one["key"].values()
                if at == stage:
                    found[tuple(key)] = one["count"]
            assert found == wanted


# --- sent packets --------------------------------------------------------------------------------

PORT = 7011
SIZE, HEADERS = 1000, 28  # bytes from the network header on, of which IPv4 and UDP


def datagram(wire: raw_peer.Wire) -> bytes:
    """Read the host's next datagram to PORT from the tun device."""
    while True:
        assert select.select([wire._tun], [], [], 10)[0], "no packet"
        packet = os.read(wire._tun, 65536)
        if packet[0] == 0x45 and packet[9] == socket.IPPROTO_UDP:
            return packet


@contextlib.contextmanager
def sending(host: Host) -> Iterator[tuple[raw_peer.Wire, socket.socket]]:
    """Yield a tun device, from which only the test reads, and a socket that sends through it."""
    with raw_peer.wire(host) as wire, host.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.connect((raw_peer.ends("ipv4")[1], PORT))
        yield wire, sender


@compares("skblife", "dev", "proto", "netns", "way", "stage", "buckets", "count", "sum",
          "average", "share", shape="histogram")  # fmt: skip
def test_packets_that_the_device_takes_late_are_in_the_driver(netbpf: Any, one_host: Host) -> None:
    with sending(one_host) as (wire, sender):
        low, high = [], []
        words = ("--tx", "-i", wire.name, "-D", PORT)
        with netbpf("skblife", *words) as run:
            for wait in range(1, COUNT + 1):
                before = now()
                sender.send(bytes(100))
                after = now()
                time.sleep(wait / 1000)
                asked = now()
                assert len(datagram(wire)) == 100 + HEADERS
                low.append((asked - after) / 1000)
                high.append((now() - before) / 1000)
    stages = by_stage(run.histograms, SENT_STAGES)
    for name, one in stages.items():
        assert one["key"] == {
            "dev": wire.name, "proto": "udp", "netns": one_host.inode, "way": "tx", "stage": name
        }  # fmt: skip
        assert one["discarded"] == 0
    check_buckets(stages["driver"], low, high)
    check_buckets(stages["total"], low, high)
    assert run.summary["totals"] == {"unknown": 0, "virtual": 0}


def test_packets_that_wait_for_their_turn_are_in_the_queue(netbpf: Any, one_host: Host) -> None:
    """A tbf with a datagram per 10 ms sends the k-th of a burst k steps after the first."""
    step_ms, spare = 10, 86
    tbf = ("tbf", "rate", SIZE * 8 * 1000 // step_ms, "burst", SIZE + spare, "limit", 100_000)
    with sending(one_host) as (wire, sender):
        one_host.run("tc", "qdisc", "replace", "dev", wire.name, "root", *tbf)
        with netbpf("skblife", "--tx", "-i", wire.name, "-D", PORT) as run:
            times, low, high = [], [], []
            for _ in range(COUNT):
                before = now()
                sender.send(bytes(SIZE - HEADERS))
                times.append((before, now()))
            for number, (before, after) in enumerate(times):
                datagram(wire)
                turn = times[0][0] + (number - spare / SIZE) * step_ms * 1e6
                low.append(max(0.0, (turn - after) / 1000))
                high.append((now() - before) / 1000)
        shown = json.loads(one_host.run("tc", "-s", "-j", "qdisc", "show", "dev", wire.name))[0]
    stages = by_stage(run.histograms, SENT_STAGES)
    check_buckets(stages["qdisc"], low, high)
    check_buckets(stages["total"], low, high)
    assert stages["driver"]["sum"] < stages["qdisc"]["sum"] / 2
    assert shown["packets"] >= COUNT


@compares("skblife", "discarded", shape="histogram")
def test_packets_that_the_driver_discards(netbpf: Any, one_host: Host) -> None:
    room = 7
    with sending(one_host) as (wire, sender):
        one_host.run("ip", "link", "set", wire.name, "txqueuelen", room)
        with netbpf("skblife", "--tx", "-i", wire.name, "-D", PORT) as run:
            for _ in range(COUNT):
                sender.send(bytes(100))
            link = json.loads(one_host.run("ip", "-s", "-j", "link", "show", wire.name))[0]
            dropped = link["stats64"]["tx"]["dropped"]
            for _ in range(COUNT - dropped):
                datagram(wire)
    stages = by_stage(run.histograms, SENT_STAGES)
    assert COUNT > dropped >= COUNT - room - 1
    assert {one["discarded"] for one in stages.values()} == {dropped}
    assert stages["total"]["count"] == COUNT


@compares("skblife", "virtual", shape="summary")
def test_devices_without_hardware_are_left_out(netbpf: Any, two_hosts: tuple[Host, Host]) -> None:
    left, right = two_hosts
    with pair(left, right, "udp") as ends:
        with netbpf("skblife", "--tx", "--netns", left.inode) as run:
            for _ in range(COUNT):
                ends.send()
                ends.reader.recv(1000)
    assert run.histograms == []
    assert run.summary["totals"] == {"unknown": 0, "virtual": COUNT}


@compares("skblife", "unknown", shape="summary")
def test_packets_that_were_queued_before_the_start_are_unknown(netbpf: Any, one_host: Host) -> None:
    with sending(one_host) as (wire, sender):
        place, rest = ("dev", wire.name, "root", "tbf"), ("burst", SIZE + 86, "limit", 100_000)
        one_host.run("tc", "qdisc", "replace", *place, "rate", "8bit", *rest)
        for _ in range(COUNT):
            sender.send(bytes(SIZE - HEADERS))
        datagram(wire)  # the first one passes
        with netbpf("skblife", "--tx", "-i", wire.name, "-D", PORT) as run:
            one_host.run("tc", "qdisc", "change", *place, "rate", "1gbit", *rest)
            sender.send(bytes(100))  # and gets the others going
            for _ in range(COUNT):
                datagram(wire)
    assert run.summary["totals"]["unknown"] == COUNT - 1
    assert by_stage(run.histograms, SENT_STAGES)["total"]["count"] == 1


SENT_FILTERS = {
    "netns": ("--netns", "{netns}"), "lport": ("-L", "{lport}"), "rport": ("-D", PORT),
    "laddr": ("--laddr", "10.92.0.1"), "raddr": ("--raddr", "10.92.0.2"), "family": ("-4",),
    "interface": ("-i", "lo,{dev}"),
}  # fmt: skip
SENT_OTHERS = {
    "netns": ("--netns", "{other}"), "lport": ("-L", PORT), "rport": ("-D", "{lport}"),
    "laddr": ("--laddr", "10.92.0.2"), "raddr": ("--raddr", "10.92.0.1"), "family": ("-6",),
    "interface": ("-i", "lo"),
}  # fmt: skip


@pytest.mark.parametrize("name", SENT_FILTERS)
def test_filter_of_sent_packets(
    netbpf: Any, one_host: Host, two_hosts: tuple[Host, Host], name: str
) -> None:
    with sending(one_host) as (wire, sender):
        known = {"netns": one_host.inode, "other": two_hosts[0].inode,
                 "lport": sender.getsockname()[1], "dev": wire.name}  # fmt: skip
        there, not_there = (
            [str(word).format(**known) for word in words[name]]
            for words in (SENT_FILTERS, SENT_OTHERS)
        )
        own = ["--netns", str(one_host.inode)] if name != "netns" else []
        device = ["-i", wire.name] if name not in ("interface", "netns") else []
        with (
            netbpf("skblife", "--tx", *own, *device, *there) as run,
            netbpf("skblife", "--tx", *own, *device, *not_there) as other,
        ):
            for _ in range(COUNT):
                sender.send(bytes(100))
                datagram(wire)
    if name == "netns":  # -i would need the device there
        assert run.summary["totals"]["virtual"] >= COUNT
        assert other.summary["totals"]["virtual"] == 0
        return
    udp = [one for one in run.histograms if one["key"]["proto"] == "udp"]
    assert by_stage(udp, SENT_STAGES)["total"]["count"] == COUNT
    assert not [one for one in other.histograms if one["key"]["proto"] == "udp"]


def test_only_some_stages(netbpf: Any, two_hosts: tuple[Host, Host]) -> None:
    left, right = two_hosts
    with pair(left, right, "udp") as ends:
        with netbpf("skblife", "--netns", right.inode, "--stage", "socket,total") as run:
            ends.send()
            ends.reader.recv(1000)
    assert [one["key"]["stage"] for one in run.histograms] == ["socket", "total"]


@pytest.mark.parametrize(
    "words",
    [("--tx", "-p", 1), ("--tx", "--comm", "a"), ("--tx", "--min-ms", 1), ("--tx", "--rx"),
     ("--tx", "--by", "comm"), ("--tx", "--by", "dev,pid"), ("--stage", "disk")],
)  # fmt: skip
def test_what_sent_packets_do_not_have_is_an_error(words: tuple[object, ...]) -> None:
    done = netbpf_once("skblife", *words)
    assert done.returncode == 2
    assert "hint:" in done.stderr and done.stdout == ""


def test_sent_packets_by_each_key(netbpf: Any, one_host: Host) -> None:
    keys = ("family", "lport", "raddr/8", "proto", "dev", "netns")
    with contextlib.ExitStack() as stack:
        wire, sender = stack.enter_context(sending(one_host))
        lport = sender.getsockname()[1]
        words = ("skblife", "--tx", "-i", wire.name, "-D", PORT, "--by")
        runs = [stack.enter_context(netbpf(*words, key)) for key in (*keys, ",".join(keys))]
        for _ in range(COUNT):
            sender.send(bytes(100))
            datagram(wire)
    values = ("ipv4", lport, "10.0.0.0/8", "udp", wire.name, one_host.inode)
    for number, run in enumerate(runs):
        wanted = list(values) if number == len(keys) else [values[number]]
        assert [list(one["key"].values()) for one in run.histograms] == [
            [*wanted, "tx", stage] for stage in SENT_STAGES
        ]
        assert {one["count"] for one in run.histograms} == {COUNT}


def test_sent_packets_by_trace_events(netbpf: Any, one_host: Host) -> None:
    names = [probe.name for probe in find_tool("skblife").probes if probe.option == "tx"]
    kinds = ",".join(f"{name}=tp" for name in names)
    with sending(one_host) as (wire, sender):
        with netbpf("skblife", "--tx", "-i", wire.name, "-D", PORT, "--probe", kinds) as run:
            for _ in range(COUNT):
                sender.send(bytes(100))
                datagram(wire)
    assert by_stage(run.histograms, SENT_STAGES)["total"]["count"] == COUNT
    assert {probe["kind"] for probe in run.summary["probes"]} == {"tp"}


# --- whatever the kind of probe ------------------------------------------------------------------


def act(stage: Stage, run: Run) -> None:
    for proto in KINDS:
        for family in FAMILIES:
            with pair(stage.left, stage.right, proto, family) as ends:
                for _ in range(7):
                    ends.send()
                    ends.reader.recv(1000)


def facts(run: Run, lost: set[str]) -> Any:
    counted = Counter((one["key"]["proto"], one["key"]["stage"], one["count"])
                      for one in run.histograms)  # fmt: skip
    packets = [(event["proto"], event["family"], event["raddr"]) for event in run.events]
    return counted, packets, run.summary["totals"]


ALTERNATIVES = Case(
    lambda stage: ("--netns", stage.right.inode, "--min-ms", 0), act, facts, {"min_ms": 1e-6}
)
