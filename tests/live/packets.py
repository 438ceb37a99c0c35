"""Known packets: UDP datagrams of known sizes, and what each point of the stack must make of them.

Lengths are those that netsize speaks of: from the network header on, without the link header.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import socket
import struct
from collections import Counter
from collections.abc import Iterable, Iterator

from topology import Host

LINK_HEADER = 14  # Ethernet's, which veth and lo have too
IPV4_UDP, IPV6_UDP = 20 + 8, 40 + 8

_SIOCETHTOOL = 0x8946
_ETHTOOL = {"tso": 0x1E, "gso": 0x23, "gro": 0x2B}  # to read; the next number is to set


class Datagrams:
    """A UDP socket in one host, and one in another that receives what it sends."""

    def __init__(self, source: Host, target: Host, family: int = socket.AF_INET) -> None:
        self.header = IPV4_UDP if family == socket.AF_INET else IPV6_UDP
        address = target.ipv4 if family == socket.AF_INET else target.ipv6
        self._receiver = target.socket(family, socket.SOCK_DGRAM)
        self._receiver.bind((address, 0))
        self._receiver.settimeout(10)
        self._sender = source.socket(family, socket.SOCK_DGRAM)
        self._sender.connect(self._receiver.getsockname())

    def send(self, sizes: Iterable[int]) -> list[int]:
        """Send datagrams of these payload sizes; return the packets' lengths once all arrived."""
        lengths = []
        for size in sizes:
            self._sender.send(bytes(size))
            # One after the other: the receiver's buffer never overflows.
            assert len(self._receiver.recv(65536)) == size
            lengths.append(size + self.header)
        return lengths

    def segmented(self, size: int, total: int) -> None:
        """Send `total` bytes as one packet that is cut into datagrams of `size` (UDP_SEGMENT)."""
        cut = [(socket.IPPROTO_UDP, 103, struct.pack("=H", size))]
        self._sender.sendmsg([bytes(total)], cut)
        while total:
            total -= len(self._receiver.recv(65536))

    def close(self) -> None:
        """Close both sockets."""
        self._sender.close()
        self._receiver.close()


@contextlib.contextmanager
def datagrams(source: Host, target: Host, family: int = socket.AF_INET) -> Iterator[Datagrams]:
    """Yield a pair of sockets, closed with the block."""
    pair = Datagrams(source, target, family)
    try:
        yield pair
    finally:
        pair.close()


def log2_buckets(lengths: Iterable[int]) -> dict[tuple[int, int], int]:
    """Return {(low, high): count} of the lengths, both bounds inclusive, powers of two apart."""
    bits = Counter(length.bit_length() for length in lengths)
    return {(1 << (n - 1) if n else 0, (1 << n) - 1): count for n, count in sorted(bits.items())}


@contextlib.contextmanager
def offload(host: Host, name: str, on: bool) -> Iterator[None]:
    """Switch an offload of the host's device (tso, gso or gro) for the time of the block."""
    before = _ethtool(host, _ETHTOOL[name], 0)
    _ethtool(host, _ETHTOOL[name] + 1, int(on))
    try:
        yield
    finally:
        _ethtool(host, _ETHTOOL[name] + 1, before)


def _ethtool(host: Host, command: int, value: int) -> int:
    """Do what ethtool does: a command with one value, which the kernel may change."""
    words = array.array("I", [command, value])
    request = struct.pack("16sP", host.device.encode(), words.buffer_info()[0])
    with host.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, _SIOCETHTOOL, request.ljust(40, b"\0"))
    return words[1]
