"""Sockets that send echo requests, and programs that have such sockets."""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from topology import Host

V4, V6 = socket.AF_INET, socket.AF_INET6
NAMES = {V4: "ipv4", V6: "ipv6"}
ICMP = {V4: socket.IPPROTO_ICMP, V6: socket.IPPROTO_ICMPV6}
ECHO, REPLY = {V4: 8, V6: 128}, {V4: 0, V6: 129}
IP_LENGTH = {V4: 20, V6: 40}
TIMESTAMP_NS = 35  # SO_TIMESTAMPNS, include/uapi/asm-generic/socket.h
PAYLOAD = 48
PROGRAM = Path(__file__).parent / "programs" / "pinger.py"


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


def echo(family: int, ident: int, seq: int, payload: int = PAYLOAD, reply: bool = False) -> bytes:
    """Return an echo request, or a reply."""
    kind = (REPLY if reply else ECHO)[family]
    return icmp(family, kind, 0, struct.pack("!HH", ident, seq) + bytes(payload))


def address(host: Host, family: int) -> str:
    return host.ipv4 if family == V4 else host.ipv6


class Pinger:
    """A socket that sends echo requests with an identifier; `kind` is raw or dgram."""

    def __init__(self, host: Host, family: int = V4, kind: str = "raw", ident: int = 4711) -> None:
        self.family, self.raw, self.ident = family, kind == "raw", ident
        number = socket.SOCK_RAW if self.raw else socket.SOCK_DGRAM
        self.sock = host.socket(family, number, ICMP[family])
        self.sock.setsockopt(socket.SOL_SOCKET, TIMESTAMP_NS, 1)
        if not self.raw:  # the kernel takes the port for the identifier
            self.sock.bind((address(host, family), 0))
            self.ident = self.sock.getsockname()[1]

    def send(self, to: str, seq: int, payload: int = PAYLOAD) -> Sent:
        message = echo(self.family, self.ident, seq, payload)
        before = time.time_ns()
        self.sock.sendto(message, (to, 0))
        return Sent(seq, before, time.time_ns())

    def receive(self, pause: float = 0, kind: int | None = None) -> Got:
        """Read the next message of a kind (replies), `pause` seconds after it is there."""
        wanted = REPLY[self.family] if kind is None else kind
        while True:
            ready, _, _ = select.select([self.sock], [], [], 10)
            assert ready, "no answer"
            readable = time.time_ns()
            time.sleep(pause)
            before = time.time_ns()
            message, ancillary, _, _ = self.sock.recvmsg(65536, 1024)
            after = time.time_ns()
            if self.raw and self.family == V4:
                message = message[(message[0] & 15) * 4 :]
            if message[0] == wanted and (kind or self.is_ours(message)):
                break
        (stamp,) = (data for _, word, data in ancillary if word == TIMESTAMP_NS)
        second, rest = struct.unpack("=qq", stamp)
        (seq,) = struct.unpack_from("!H", message, 6)
        return Got(seq, second * 10**9 + rest, readable, before, after)

    def is_ours(self, message: bytes) -> bool:
        """A raw socket gets a copy of each reply."""
        return struct.unpack_from("!H", message, 4) == (self.ident,)

    def ping(self, to: str, number: int, first: int = 1) -> None:
        """Send requests, each after the reply to the one before."""
        for seq in range(first, first + number):
            self.send(to, seq)
            assert self.receive().seq == seq

    def close(self) -> None:
        self.sock.close()


class Program:
    """A process that pings on request: see programs/pinger.py."""

    def __init__(self, process: subprocess.Popen[str], comm: str) -> None:
        self.process, self.pid, self.comm = process, process.pid, comm

    def do(self, *words: object) -> None:
        """Let it do something, and wait until it has."""
        assert self.process.stdin and self.process.stdout
        print(*words, file=self.process.stdin, flush=True)
        assert self.process.stdout.readline() == "done\n", words


@contextlib.contextmanager
def program(host: Host, comm: str, uid: int = 0, cgroup: Path | None = None) -> Iterator[Program]:
    """Run a process in a host's namespace, as a user and in a cgroup, within the block."""
    line = host.inside(sys.executable, PROGRAM, comm, uid)
    if cgroup:
        line = ["sh", "-c", 'echo $$ > "$0/cgroup.procs"; exec "$@"', str(cgroup), *line]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(line, text=True, **pipes) as process:
        try:
            started = Program(process, comm)
            started.do("start")
            yield started
        finally:
            process.kill()
