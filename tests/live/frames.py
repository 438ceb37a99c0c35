"""Frames made by hand, and ways to send them: for packets that no socket would send."""

from __future__ import annotations

import mmap
import socket
import struct
from collections.abc import Sequence

from topology import Host

ELSEWHERE = b"\x02\0\0\0\0\x99"  # a link address of no device: such packets are OTHERHOST
US = b"\x02\0\0\0\0\x01"
SOURCE4, TARGET4 = bytes([10, 80, 7, 1]), bytes([10, 80, 7, 2])
SOURCE6, TARGET6 = (socket.inet_pton(socket.AF_INET6, f"fd00:80::{n}") for n in (1, 2))
_SOL_PACKET, _TX_RING, _VERSION = 263, 13, 10
_FRAME = 2048


def link(ethertype: int, body: bytes) -> bytes:
    """Return a frame for another machine."""
    return ELSEWHERE + US + struct.pack("!H", ethertype) + body


def checksum(header: bytes) -> int:
    """Return the internet checksum."""
    total = sum(struct.unpack(f"!{len(header) // 2}H", header))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ipv4(body: bytes, proto: int = 17, offset: int = 0, more: bool = False) -> bytes:
    """Return an IPv4 packet; `offset` of a fragment in bytes, `more` fragments follow."""
    fragment = offset // 8 | (0x2000 if more else 0)
    words = [0x45, 0, 20 + len(body), 7, fragment, 64, proto, 0, SOURCE4, TARGET4]
    header = struct.pack("!BBHHHBBH4s4s", *words)
    words[7] = checksum(header)
    return struct.pack("!BBHHHBBH4s4s", *words) + body


def ipv6(body: bytes, next_header: int = 17) -> bytes:
    """Return an IPv6 packet."""
    return struct.pack("!IHBB16s16s", 6 << 28, len(body), next_header, 64, SOURCE6, TARGET6) + body


def extension(next_header: int, units: int = 0) -> bytes:
    """Return an IPv6 extension header of 8 * (1 + units) bytes."""
    return bytes([next_header, units]) + b"\x01\x04" + bytes(4 + 8 * units)


def authentication(next_header: int) -> bytes:
    """Return an authentication header of 24 bytes: its length is in units of four, less two."""
    return bytes([next_header, 4]) + bytes(22)


def fragment6(next_header: int, offset: int, more: bool) -> bytes:
    """Return an IPv6 fragment header."""
    return struct.pack("!BBHI", next_header, 0, offset | more, 7)


def udp(sport: int, dport: int, size: int) -> bytes:
    """Return a UDP datagram."""
    return struct.pack("!HHHH", sport, dport, 8 + size, 0) + b"u" * size


def send(host: Host, frames: Sequence[bytes], device: str = "") -> None:
    """Send frames with a packet socket, one after the other, in linear buffers."""
    with host.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
        sender.bind((device or host.device, 0))
        for frame in frames:
            sender.send(frame)


def send_from_ring(host: Host, frames: Sequence[bytes]) -> None:
    """Send frames from a PACKET_TX_RING: all behind the link header stays in its pages."""
    size = -(-len(frames) * _FRAME // 65536) * 65536
    with host.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
        sender.setsockopt(_SOL_PACKET, _VERSION, 1)  # TPACKET_V2
        ring = struct.pack("IIII", 65536, size // 65536, _FRAME, size // _FRAME)
        sender.setsockopt(_SOL_PACKET, _TX_RING, ring)
        sender.bind((host.device, 0x0800))
        with mmap.mmap(sender.fileno(), size) as memory:
            for number, frame in enumerate(frames):
                at = number * _FRAME
                memory[at + 32 : at + 32 + len(frame)] = frame  # behind struct tpacket2_hdr
                struct.pack_into("=II", memory, at, 1, len(frame))  # TP_STATUS_SEND_REQUEST
            sender.send(b"")
