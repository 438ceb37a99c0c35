"""Drop counters of the packet sockets of a network namespace, through sock_diag(7).

/proc/net/packet does not have them, and PACKET_STATISTICS is only for the socket's own process and
resets them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import suppress

from netbpf.kernel.netlink import attributes, dump, open_netlink

_SOCK_DIAG, _BY_FAMILY = 4, 20  # NETLINK_SOCK_DIAG, SOCK_DIAG_BY_FAMILY
_AF_PACKET = 17  # include/linux/socket.h
_SHOW_MEMINFO, _MEMINFO = 1 << 4, 6  # include/uapi/linux/packet_diag.h
_DROPS = 8  # SK_MEMINFO_DROPS


class PacketSockets:
    """The packet sockets of the namespace in which the calling thread creates this object."""

    def __init__(self) -> None:
        self._socket = open_netlink(_SOCK_DIAG)

    def read(self) -> dict[str, int]:
        """Return {"Packet.INODE.drops": number}, {} on a kernel without packet_diag."""
        drops: dict[str, int] = {}
        # struct packet_diag_req: family, protocol, pad, inode, show flags, cookie
        request = struct.pack("=BBHIIII", _AF_PACKET, 0, 0, 0, _SHOW_MEMINFO, 2**32 - 1, 2**32 - 1)
        with suppress(OSError, struct.error):
            for body in dump(self._socket, _BY_FAMILY, request, _BY_FAMILY):
                drops.update(_drops(body))
        return drops

    def close(self) -> None:
        """Close the socket, which keeps the namespace alive."""
        self._socket.close()


def _drops(body: bytes) -> Iterator[tuple[str, int]]:
    (inode,) = struct.unpack_from("=I", body, 4)  # struct packet_diag_msg, 16 bytes
    for kind, value in attributes(body[16:]):
        if kind == _MEMINFO and len(value) >= 4 * (_DROPS + 1):
            yield f"Packet.{inode}.drops", struct.unpack_from("=I", value, 4 * _DROPS)[0]
