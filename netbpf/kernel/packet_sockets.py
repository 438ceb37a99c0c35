"""Drop counters of the packet sockets of a network namespace, through sock_diag(7).

/proc/net/packet does not have them, and PACKET_STATISTICS is only for the socket's own process and
resets them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import suppress

_SOCK_DIAG, _BY_FAMILY = 4, 20  # NETLINK_SOCK_DIAG, SOCK_DIAG_BY_FAMILY
_AF_PACKET = 17  # include/linux/socket.h
_DUMP = 0x301  # NLM_F_REQUEST | NLM_F_DUMP
_SHOW_MEMINFO, _MEMINFO = 1 << 4, 6  # include/uapi/linux/packet_diag.h
_DROPS = 8  # SK_MEMINFO_DROPS
_TIMEOUT = 1.0  # seconds; the kernel answers within the call


class PacketSockets:
    """The packet sockets of the namespace in which the calling thread creates this object."""

    def __init__(self) -> None:
        import socket  # takes 4 ms, and few runs have packet sockets

        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _SOCK_DIAG)
        self._socket.settimeout(_TIMEOUT)

    def read(self) -> dict[str, int]:
        """Return {"Packet.INODE.drops": number}, {} on a kernel without packet_diag."""
        drops: dict[str, int] = {}
        # struct packet_diag_req: family, protocol, pad, inode, show flags, cookie
        request = struct.pack("=BBHIIII", _AF_PACKET, 0, 0, 0, _SHOW_MEMINFO, 2**32 - 1, 2**32 - 1)
        header = struct.pack("=IHHII", 16 + len(request), _BY_FAMILY, _DUMP, 1, 0)
        with suppress(OSError, struct.error):
            self._socket.send(header + request)
            done = False
            while not done:
                for kind, body in _messages(self._socket.recv(1 << 16)):
                    done = done or kind != _BY_FAMILY  # NLMSG_DONE, or an error
                    if kind == _BY_FAMILY:
                        drops.update(_drops(body))
        return drops

    def close(self) -> None:
        """Close the socket, which keeps the namespace alive."""
        self._socket.close()


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= 16:
        length, kind = struct.unpack_from("=IH", data)
        yield kind, data[16:length]
        data = data[max(16, -(-length // 4) * 4) :]


def _drops(body: bytes) -> Iterator[tuple[str, int]]:
    (inode,) = struct.unpack_from("=I", body, 4)  # struct packet_diag_msg, 16 bytes
    attributes = body[16:]
    while len(attributes) >= 4:
        length, kind = struct.unpack_from("=HH", attributes)
        if kind == _MEMINFO and length >= 4 + 4 * (_DROPS + 1):
            yield f"Packet.{inode}.drops", struct.unpack_from("=I", attributes, 4 + 4 * _DROPS)[0]
        attributes = attributes[max(4, -(-length // 4) * 4) :]
