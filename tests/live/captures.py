"""What passes a host's device, as a packet socket of the kernel captures it: TCP segments."""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections.abc import Iterator
from typing import NamedTuple

from harness import wait_until
from topology import Host

LETTERS = "FSRPAUEC"
_SOL_PACKET, _STATISTICS, _VNET_HDR, _OUTGOING = 263, 6, 15, 4
_ALL = 0x0003
_RCVBUFFORCE = 33


class Captured(NamedTuple):
    """A TCP segment at a device."""

    device: str
    dir: str
    laddr: str
    lport: int
    raddr: str
    rport: int
    seq: int
    ack: int
    flags: str
    win: int
    len: int
    segs: int


class Capture:
    """A packet socket at the device of a host."""

    def __init__(self, host: Host) -> None:
        self._device = host.device
        self._socket = host.socket(socket.AF_PACKET, socket.SOCK_RAW)
        self._socket.setsockopt(_SOL_PACKET, _VNET_HDR, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, _RCVBUFFORCE, 64 << 20)
        self._socket.bind((host.device, _ALL))
        self._socket.setblocking(False)

    def read(self) -> list[Captured]:
        """Return the segments since the last call."""
        found = []
        with contextlib.suppress(BlockingIOError):
            while True:
                frame, place = self._socket.recvfrom(1 << 18)
                size = struct.unpack_from("=H", frame, 4)[0]  # gso_size of struct virtio_net_hdr
                segment = parse(frame[10:], self._device, place[2] == _OUTGOING, size)
                found += [segment] if segment else []
        _, drops = struct.unpack("II", self._socket.getsockopt(_SOL_PACKET, _STATISTICS, 8))
        assert drops == 0, f"the capture lost {drops} packets"
        return found

    def until_quiet(self) -> list[Captured]:
        """Return the segments since the last call, and those within 50 ms after each."""
        found = self.read()
        last = time.monotonic()

        def is_quiet() -> bool:
            nonlocal last
            more = self.read()
            found.extend(more)
            last = time.monotonic() if more else last
            return time.monotonic() - last > 0.05

        wait_until(is_quiet, what="the end of the traffic")
        return found

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


@contextlib.contextmanager
def capture(host: Host) -> Iterator[Capture]:
    """Yield a capture at the host's device, closed with the block."""
    made = Capture(host)
    try:
        yield made
    finally:
        made.close()


def parse(frame: bytes, device: str, sent: bool, size: int) -> Captured | None:
    """Return the TCP segment in an Ethernet frame; `size` is that of the segments it stands for."""
    kind, packet = frame[12:14], frame[14:]
    if kind == b"\x08\x00" and packet[9] == socket.IPPROTO_TCP:
        family, length = socket.AF_INET, struct.unpack_from("!H", packet, 2)[0]
        ends, tcp = (packet[12:16], packet[16:20]), packet[(packet[0] & 15) * 4 : length]
    elif kind == b"\x86\xdd" and packet[6] == socket.IPPROTO_TCP:
        family, length = socket.AF_INET6, struct.unpack_from("!H", packet, 4)[0]
        ends, tcp = (packet[8:24], packet[24:40]), packet[40 : 40 + length]
    else:
        return None
    sport, dport, seq, ack, offset, flags, win = struct.unpack_from("!HHIIBBH", tcp)
    source, target = (socket.inet_ntop(family, end) for end in ends)
    local, remote = ((source, sport), (target, dport))[:: 1 if sent else -1]
    bytes_ = len(tcp) - (offset >> 4) * 4
    words = "".join(letter for bit, letter in enumerate(LETTERS) if flags >> bit & 1)
    segs = -(-bytes_ // size) if size else 1
    way = "tx" if sent else "rx"
    return Captured(device, way, *local, *remote, seq, ack, words, win, bytes_, segs)
