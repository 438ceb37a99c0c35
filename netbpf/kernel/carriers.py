"""How often devices of a network namespace lost or got their carrier, through rtnetlink(7).

/sys/class/net has the counts, too, but only of the namespace in which it was mounted.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import suppress

from netbpf.kernel.netlink import attributes, dump, open_netlink

# include/uapi/linux/netlink.h, rtnetlink.h and if_link.h
_ROUTE, _NEWLINK, _GETLINK = 0, 16, 18
_IFNAME, _CARRIER_CHANGES = 3, 35


class Carriers:
    """The devices of the namespace in which the calling thread creates this object."""

    def __init__(self) -> None:
        self._socket = open_netlink(_ROUTE)
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
            for body in dump(self._socket, _GETLINK, bytes(16), _NEWLINK):
                found.update(_device(body))
        return found

    def close(self) -> None:
        """Close the socket, which keeps the namespace alive."""
        self._socket.close()


def _device(body: bytes) -> Iterator[tuple[str, tuple[int, int]]]:
    (index,) = struct.unpack_from("=i", body, 4)  # struct ifinfomsg, 16 bytes
    found = dict(attributes(body[16:]))
    name = found.get(_IFNAME, b"").rstrip(b"\0").decode(errors="surrogateescape")
    if name and _CARRIER_CHANGES in found:
        yield name, (index, struct.unpack("=I", found[_CARRIER_CHANGES])[0])
