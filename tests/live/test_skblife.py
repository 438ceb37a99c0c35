"""skblife divides the time of packets that a program makes wait, as the program's clock shows.

For each message the test notes when it was sent, when the socket was readable, and when it was
read. The kernel's own time stamp (SO_TIMESTAMPNS) says when it arrived.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from compared import compares
from harness import Json, seconds
from topology import Host

COUNT = 23
SO_TIMESTAMPNS = 35  # include/uapi/asm-generic/socket.h
FAMILIES = {"ipv4": socket.AF_INET, "ipv6": socket.AF_INET6}
KINDS = {"udp": socket.SOCK_DGRAM, "tcp": socket.SOCK_STREAM}
STAGES = ("device", "stack", "socket", "total")


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


def by_stage(found: list[Json]) -> dict[str, Json]:
    """Return the distributions by stage, which are in the order of the way, of the same packets."""
    assert [one["key"]["stage"] for one in found] == list(STAGES)
    stages = {one["key"]["stage"]: one for one in found}
    assert len({one["count"] for one in found}) == 1
    assert stages["total"]["sum"] == sum(stages[name]["sum"] for name in STAGES[:3])
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


@compares("skblife", "dev", "proto", "netns", "stage", "buckets", "count", "sum", "percentiles",
          "average", "share", shape="histogram")  # fmt: skip
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
            "dev": right.device, "proto": proto, "netns": right.inode, "stage": name
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
