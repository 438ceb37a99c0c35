"""How often devices of a network namespace lost or got their carrier, through rtnetlink(7).

/sys/class/net has the counts, too, but only of the namespace in which it was mounted.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import suppress

# include/uapi/linux/rtnetlink.h and if_link.h
_NEWLINK, _GETLINK, _DUMP = 16, 18, 0x301
_IFNAME, _CARRIER_CHANGES = 3, 35
_TIMEOUT = 1.0  # seconds; the kernel answers within the call


class Carriers:
    """The devices of the namespace in which the calling thread creates this object."""

    def __init__(self) -> None:
        import socket  # takes 4 ms

        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        self._socket.settimeout(_TIMEOUT)
        self._first = self._changes()

    def read(self) -> dict[str, int]:
        """Return {device: changes since the start}, without devices that were added since.

        A renamed device counts as added. {} if the kernel does not answer.
        """
        return {dev: count - self._first[dev][1] for dev, (index, count) in self._changes().items()
                if dev in self._first and self._first[dev][0] == index}  # fmt: skip

    def _changes(self) -> dict[str, tuple[int, int]]:
        """Return {device: (index, changes)}."""
        found: dict[str, tuple[int, int]] = {}
        with suppress(OSError, struct.error):
            self._socket.send(struct.pack("=IHHII16x", 32, _GETLINK, _DUMP, 1, 0))
            done = False
            while not done:
                for kind, body in _messages(self._socket.recv(1 << 16)):
                    done = done or kind != _NEWLINK  # NLMSG_DONE, or an error
                    if kind == _NEWLINK:
                        found.update(_device(body))
        return found

    def close(self) -> None:
        """Close the socket, which keeps the namespace alive."""
        self._socket.close()


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= 16:
        length, kind = struct.unpack_from("=IH", data)
        yield kind, data[16:length]
        data = data[max(16, -(-length // 4) * 4) :]


def _device(body: bytes) -> Iterator[tuple[str, tuple[int, int]]]:
    (index,) = struct.unpack_from("=i", body, 4)  # struct ifinfomsg, 16 bytes
    attributes, found = body[16:], {}
    while len(attributes) >= 4:
        length, kind = struct.unpack_from("=HH", attributes)
        found[kind] = attributes[4:length]
        attributes = attributes[max(4, -(-length // 4) * 4) :]
    name = found.get(_IFNAME, b"").rstrip(b"\0").decode(errors="surrogateescape")
    if name and _CARRIER_CHANGES in found:
        yield name, (index, struct.unpack("=I", found[_CARRIER_CHANGES])[0])
