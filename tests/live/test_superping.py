"""superping has each echo request once, with the times that the sockets themselves tell."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Callable, NamedTuple

import pytest
from alternatives import Case, Stage, events
from compared import compares
from harness import Json, Run, seconds, stopped, wait_until
from topology import Host, cgroup_of

V4, V6 = socket.AF_INET, socket.AF_INET6
NAMES = {V4: "ipv4", V6: "ipv6"}
ICMP = {V4: socket.IPPROTO_ICMP, V6: socket.IPPROTO_ICMPV6}
ECHO, REPLY = {V4: 8, V6: 128}, {V4: 0, V6: 129}
IP_LENGTH = {V4: 20, V6: 40}
TIMESTAMP_NS = 35  # SO_TIMESTAMPNS, include/uapi/asm-generic/socket.h
PAYLOAD = 48
ERRORS = {  # type and code of the messages that end a request
    V4: {"unreachable": (3, 1), "too-big": (3, 4), "time-exceeded": (11, 0), "bad-header": (12, 0)},
    V6: {"unreachable": (1, 3), "too-big": (2, 0), "time-exceeded": (3, 0), "bad-header": (4, 1)},
}
# Redirect, timestamp reply; neighbour advertisement, which is all ones here.
OTHERS = {V4: ((5, 1), (14, 0)), V6: ((136, 0), (201, 0))}


class Sent(NamedTuple):
    """A request: its number, and between which times (ns) it was sent."""

    seq: int
    before: int
    after: int


class Got(NamedTuple):
    """An answer: when it was received, seen to be there, and read."""

    seq: int
    received: int
    readable: int
    before: int
    after: int


def checksum(message: bytes) -> bytes:
    padded = message + b"\0" * (len(message) % 2)
    total = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return struct.pack("!H", ~total & 0xFFFF)


def icmp(family: int, kind: int, code: int, rest: bytes) -> bytes:
    """Return a message; the kernel adds the checksum of ICMPv6."""
    message = bytes((kind, code, 0, 0)) + rest
    return message if family == V6 else message[:2] + checksum(message) + message[4:]


def address(host: Host, family: int) -> str:
    return host.ipv4 if family == V4 else host.ipv6


class Pinger:
    """A socket that sends echo requests; `kind` is raw or dgram."""

    def __init__(self, host: Host, family: int = V4, kind: str = "raw", ident: int = 4711) -> None:
        self.host, self.family, self.raw = host, family, kind == "raw"
        number = socket.SOCK_RAW if self.raw else socket.SOCK_DGRAM
        self.sock = host.socket(family, number, ICMP[family])
        self.sock.setsockopt(socket.SOL_SOCKET, TIMESTAMP_NS, 1)
        self.sock.settimeout(10)
        self.ident = ident
        if not self.raw:  # the kernel takes the port for the identifier
            self.sock.bind((address(host, family), 0))
            self.ident = self.sock.getsockname()[1]

    def request(self, seq: int, payload: int = PAYLOAD) -> bytes:
        rest = struct.pack("!HH", self.ident, seq) + bytes(payload)
        return icmp(self.family, ECHO[self.family], 0, rest)

    def send(self, to: str, seq: int, payload: int = PAYLOAD) -> Sent:
        message = self.request(seq, payload)
        before = time.time_ns()
        self.sock.sendto(message, (to, 0))
        return Sent(seq, before, time.time_ns())

    def receive(self, pause: float = 0) -> Got:
        """Read the next reply, `pause` seconds after it is there; skip other messages."""
        while True:
            ready, _, _ = select.select([self.sock], [], [], 10)
            assert ready, "no reply"
            readable = time.time_ns()
            if pause:
                time.sleep(pause)
            before = time.time_ns()
            message, ancillary, _, _ = self.sock.recvmsg(65536, 1024)
            after = time.time_ns()
            if self.raw and self.family == V4:
                message = message[(message[0] & 15) * 4 :]
            if message[0] == REPLY[self.family]:
                break
        (stamp,) = (data for _, kind, data in ancillary if kind == TIMESTAMP_NS)
        second, rest = struct.unpack("=qq", stamp)
        (seq,) = struct.unpack_from("!H", message, 6)
        return Got(seq, second * 10**9 + rest, readable, before, after)

    def ping(self, to: str, number: int, first: int = 1) -> None:
        """Send requests, each after the reply to the one before."""
        for seq in range(first, first + number):
            self.send(to, seq)
            assert self.receive().seq == seq

    def close(self) -> None:
        self.sock.close()


@pytest.fixture
def pinger() -> Iterator[Callable[..., Pinger]]:
    made: list[Pinger] = []

    def new(host: Host, *words: Any, **more: Any) -> Pinger:
        host.sysctl(net__ipv4__ping_group_range="0 2147483647")
        made.append(Pinger(host, *words, **more))
        return made[-1]

    yield new
    for one in made:
        one.close()


@contextlib.contextmanager
def silent(host: Host) -> Iterator[None]:
    """Let a host not reply within the block."""
    host.sysctl(net__ipv4__icmp_echo_ignore_all=1, net__ipv6__icmp__echo_ignore_all=1)
    try:
        yield
    finally:
        host.sysctl(net__ipv4__icmp_echo_ignore_all=0, net__ipv6__icmp__echo_ignore_all=0)


@contextlib.contextmanager
def spaced(host: Host, length: int) -> Iterator[None]:
    """Let packets of this length leave a host one after the other, 10 ms apart; with a TTL of 61."""
    qdisc = ("dev", host.device, "root")
    rate = f"{(length + 14) * 8 * 100}bit"
    limits = ("rate", rate, "burst", length + 20, "limit", 100000)
    hops = f"net__ipv6__conf__{host.device}__hop_limit"
    host.run("tc", "qdisc", "add", *qdisc, "tbf", *limits)
    host.sysctl(net__ipv4__ip_default_ttl=61, **{hops: 61})
    try:
        yield
    finally:
        host.sysctl(net__ipv4__ip_default_ttl=64, **{hops: 64})
        host.run("tc", "qdisc", "delete", *qdisc)


def us() -> tuple[int, str]:
    return os.getpid(), Path("/proc/self/comm").read_text().strip()


def within(value: int | None, low: int, high: int) -> bool:
    """Whether a time in us is in a range in ns."""
    return value is not None and max(0, low) // 1000 <= value <= high // 1000 + 1


KINDS = [(V4, "raw"), (V4, "dgram"), (V6, "raw"), (V6, "dgram")]


# --- replies --------------------------------------------------------------------------------------


@compares(
    "superping", "time", "pid", "comm", "owner", "family", "laddr", "raddr", "ident", "seq", "len",
    "ttl", "rtt_us", "wait_us", "result", "from", "dev", "uid", "netns", "cgroup",
)  # fmt: skip
@pytest.mark.parametrize("family, kind", KINDS)
def test_each_request_has_a_line_with_the_times_of_its_socket(
    netbpf: Any, two_hosts: tuple[Host, Host], pinger: Any, family: int, kind: str
) -> None:
    left, right = two_hosts
    target = address(right, family)
    length = IP_LENGTH[family] + 8 + PAYLOAD
    one = pinger(left, family, kind)
    with spaced(right, length), netbpf("superping", "--netns", left.inode) as run:
        sent = {seq: one.send(target, seq) for seq in range(1, 24)}
        got = {}
        for number in range(23):
            answer = one.receive(0.017 if number == 22 else 0)
            got[answer.seq] = answer
        run.wait_for(23)
        after = time.time()
    assert sorted(event["seq"] for event in run.events) == sorted(got) == list(range(1, 24))
    pid, comm = us()
    for event in run.events:
        request, answer = sent[event["seq"]], got[event["seq"]]
        assert answer.before / 1e9 - 1e-6 <= seconds(event["time"]) <= after
        assert (event["pid"], event["comm"], event["owner"]) == (pid, comm, "exact")
        assert (event["uid"], event["cgroup"]) == (os.getuid(), cgroup_of(pid))
        assert (event["family"], event["laddr"]) == (NAMES[family], address(left, family))
        assert (event["raddr"], event["from"]) == (target, target)
        assert (event["ident"], event["len"], event["ttl"]) == (one.ident, length, 61)
        assert (event["result"], event["age_us"]) == ("reply", None)
        assert (event["dev"], event["netns"]) == (left.device, left.inode)
        assert within(event["rtt_us"], answer.received - request.after,
                      answer.readable - request.before), event  # fmt: skip
        assert within(event["wait_us"], answer.before - answer.readable,
                      answer.after - answer.received), event  # fmt: skip
    assert max(event["rtt_us"] for event in run.events) >= 200_000
    assert max(event["wait_us"] for event in run.events) >= 17_000
    counters = run.summary["counters"]
    group = ("Icmp.OutEchos", "Icmp.InEchoReps", "Icmp6.OutEchos", "Icmp6.InEchoReplies")
    counted = [counters[name] for name in group]
    assert counted == ([23, 23, 0, 0] if family == V4 else [0, 0, 23, 23])
    assert not any(run.summary["lost"].values())


def both(stage: Stage, run: Run) -> None:
    for family in (V4, V6):
        one = Pinger(stage.left, family)
        one.ping(address(stage.right, family), 7)
        one.close()


ALTERNATIVES = Case(lambda stage: ("--netns", stage.left.inode), both, events)
