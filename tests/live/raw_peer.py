"""A TCP peer that a test plays itself, packet by packet, behind a tun device of a host.

The host's kernel is one end of each session. No kernel is at the other end, so nothing is sent that
a test did not ask for, and all that the host sends is seen: which FIN or RST came first, and how
often a segment was sent, is what passed here.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Iterator
from typing import NamedTuple

import topology
from frames import checksum
from harness import TIMEOUT
from topology import Host

FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16
_FAMILIES = {"ipv4": socket.AF_INET, "ipv6": socket.AF_INET6}
_TUNSETIFF, _TUN, _NO_PI, _NEWNET = 0x400454CA, 0x0001, 0x1000, 0x40000000


def ends(family: str, number: int = 0) -> tuple[str, str]:
    """Return the addresses of the host and of the peer on its wire of that number."""
    if family == "ipv4":
        return f"10.92.{number}.1", f"10.92.{number}.2"
    return f"fd00:92:{number}::1", f"fd00:92:{number}::2"


class Segment(NamedTuple):
    """A TCP segment that passed; `ours` if the peer sent it."""

    ours: bool
    sport: int
    dport: int
    seq: int
    ack: int
    flags: int
    data: bytes
    at: float  # monotonic, in seconds: before it was sent, or after it was read

    @property
    def length(self) -> int:
        """How many sequence numbers it takes."""
        return len(self.data) + bool(self.flags & SYN) + bool(self.flags & FIN)


class Wire:
    """The peer's side of a tun device of the host."""

    def __init__(self, host: Host, number: int = 0) -> None:
        self.host, self.number = host, number
        self.name = f"nt{os.getpid():x}x{number}"
        self._tun = -1
        thread = threading.Thread(target=self._open)
        thread.start()
        thread.join()
        assert self._tun >= 0, "no tun device"
        ip = ["ip", "-n", host.namespace]
        topology.must(*ip, "link", "set", self.name, "addrgenmode", "none")
        for family, prefix, *rest in (("ipv4", 24), ("ipv6", 64, "nodad")):
            address = f"{ends(family, number)[0]}/{prefix}"
            topology.must(*ip, "address", "add", address, "dev", self.name, *rest)
        topology.must(*ip, "link", "set", self.name, "up")

    def _open(self) -> None:
        with open(f"/run/netns/{self.host.namespace}") as handle:
            if ctypes.CDLL(None).setns(handle.fileno(), _NEWNET):
                return
        tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(tun, _TUNSETIFF, struct.pack("16sH22x", self.name.encode(), _TUN | _NO_PI))
        self._tun = tun

    def receive(self, until: float) -> tuple[str, bytes] | None:
        """Return the next TCP segment's family and octets; None after the monotonic time."""
        while (left := until - time.monotonic()) > 0 and select.select([self._tun], [], [], left)[
            0
        ]:
            packet = os.read(self._tun, 65536)
            if packet[0] >> 4 == 4 and packet[9] == socket.IPPROTO_TCP:
                return "ipv4", packet[(packet[0] & 15) * 4 :]
            if packet[0] >> 4 == 6 and packet[6] == socket.IPPROTO_TCP:
                return "ipv6", packet[40:]
        return None

    def send(self, family: str, protocol: int, payload: bytes, where: int) -> None:
        """Send a packet to the host; the payload's checksum is to stand at `where`."""
        to, by = (socket.inet_pton(_FAMILIES[family], end) for end in ends(family, self.number))
        pseudo = by + to + struct.pack("!IHH", len(payload), 0, protocol)
        if protocol == socket.IPPROTO_ICMP:
            pseudo = b""
        padded = pseudo + payload + b"\0" * (len(payload) % 2)
        payload = payload[:where] + struct.pack("!H", checksum(padded)) + payload[where + 2 :]
        if family == "ipv4":
            words = [69, 0, 20 + len(payload), 1, 0, 64, protocol, 0, by, to]
            words[7] = checksum(struct.pack("!BBHHHBBH4s4s", *words))
            head = struct.pack("!BBHHHBBH4s4s", *words)
        else:
            head = struct.pack("!IHBB16s16s", 6 << 28, len(payload), protocol, 64, by, to)
        os.write(self._tun, head + payload)

    def close(self) -> None:
        """Take the device away."""
        if self._tun >= 0:
            os.close(self._tun)
        self._tun = -1


@contextlib.contextmanager
def wire(host: Host) -> Iterator[Wire]:
    """Yield a wire to the host, taken away with the block."""
    made = Wire(host)
    try:
        yield made
    finally:
        made.close()


class Peer:
    """One session's peer: what it sends continues what it sent, and acknowledges what it saw."""

    def __init__(self, wire: Wire, family: str, port: int) -> None:
        self.wire, self.family, self.port = wire, family, port
        self.host_port = 0
        self.seq = self.start = 0x10000000
        self.ack = 0
        self.passed: list[Segment] = []
        self.last: Segment

    def send(
        self, flags: int, data: bytes = b"", ahead: int = 0, ack: int | None = None,
        window: int = 65535, options: bytes = b"", stray: bool = False,
    ) -> None:  # fmt: skip
        """Send a segment, `ahead` of its turn; a stray one leaves no trace in what was sent."""
        number = self.ack if ack is None else ack
        seq = (self.seq + ahead) & 0xFFFFFFFF
        length = 20 + len(options)
        words = (self.port, self.host_port, seq, number & 0xFFFFFFFF if flags & ACK else 0)
        head = struct.pack("!HHIIBBHHH", *words, length << 2, flags, window, 0, 0)
        at = time.monotonic()
        self.wire.send(self.family, socket.IPPROTO_TCP, head + options + data, 16)
        ends = (True, self.port, self.host_port)
        segment = Segment(*ends, seq, number & 0xFFFFFFFF, flags, data, at)
        self.last = segment
        if not stray:
            self.took(segment)

    def took(self, segment: Segment) -> None:
        """Record a segment as one that the host took, and continue behind it."""
        self.passed.append(segment)
        self.seq = segment.seq + segment.length

    def see(self, flags: int, size: int = 0, timeout: float = TIMEOUT) -> Segment:
        """Wait for a segment of the host with these flags (PSH apart) and at least so much data."""
        until = time.monotonic() + timeout
        while segment := self.next(until):
            if segment.flags & ~PSH == flags and len(segment.data) >= size:
                return segment
        raise AssertionError(f"no segment with flags {flags}: {self.passed}")

    def next(self, until: float) -> Segment | None:
        """Return the host's next segment of this session; None after the monotonic time."""
        while found := self.wire.receive(until):
            family, octets = found
            sport, dport, seq, ack, offset, flags = struct.unpack("!HHIIBB", octets[:14])
            if (family, dport) != (self.family, self.port):
                continue
            if self.host_port not in (0, sport):
                continue
            self.host_port = sport
            data = octets[(offset >> 4) * 4 :]
            segment = Segment(False, sport, dport, seq, ack, flags, data, time.monotonic())
            self.passed.append(segment)
            end = (seq + segment.length) & 0xFFFFFFFF
            if flags & SYN or (not flags & RST and (end - self.ack) & 0xFFFFFFFF < 1 << 31):
                self.ack = end
            return segment
        return None

    def drain(self, seconds: float = 0.03) -> None:
        """Take what the host sends in the next seconds."""
        until = time.monotonic() + seconds
        while self.next(until):
            pass

    def icmp(self, kind: int, code: int) -> None:
        """Send an ICMP error that quotes the host's last segment."""
        last = [s for s in self.passed if not s.ours][-1]
        quoted = struct.pack("!HHI", last.sport, last.dport, last.seq) + bytes(12)
        both = ends(self.family, self.wire.number)
        by, to = (socket.inet_pton(_FAMILIES[self.family], end) for end in both)
        if self.family == "ipv4":
            words = [69, 0, 40, 1, 0, 64, socket.IPPROTO_TCP, 0, by, to]
            inner, protocol = struct.pack("!BBHHHBBH4s4s", *words), socket.IPPROTO_ICMP
        else:
            words = [6 << 28, 20, socket.IPPROTO_TCP, 64, by, to]
            inner, protocol = struct.pack("!IHBB16s16s", *words), socket.IPPROTO_ICMPV6
        payload = struct.pack("!BBHI", kind, code, 0, 0) + inner + quoted
        self.wire.send(self.family, protocol, payload, 2)

    # --- what has passed ----------------------------------------------------------------------

    def ended_by(self) -> str:
        """Return which RST came first, or else which FIN, as tcplife's `close` names it."""
        for kind, name in ((RST, "rst"), (FIN, "fin")):
            for segment in self.passed:
                if segment.flags & kind:
                    return f"{name}-{'remote' if segment.ours else 'local'}"
        return "silent"

    def sent_again(self) -> int:
        """Return how many segments the host sent whose SYN, data or FIN it had sent before."""
        seen: set[tuple[str, int]] = set()
        again = 0
        for segment in self.passed:
            if segment.ours or segment.flags & RST:
                continue
            begin = segment.seq + bool(segment.flags & SYN)
            parts = {(f"syn {segment.flags & ACK}", segment.seq)} if segment.flags & SYN else set()
            parts |= {("data", begin)} if segment.data else set()
            parts |= {("fin", begin + len(segment.data))} if segment.flags & FIN else set()
            again += bool(parts & seen)
            seen |= parts
        return again

    def acknowledged(self) -> int:
        """Return how many sequence numbers of the host this peer acknowledged."""
        first = next(s.seq for s in self.passed if not s.ours and s.flags & SYN)
        acks = [s.ack - first & 0xFFFFFFFF for s in self.passed if s.ours and s.flags & ACK]
        return max(acks, default=0)
