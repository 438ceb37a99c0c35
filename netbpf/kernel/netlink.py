"""Ask the kernel through netlink(7) for a list, and take its answers apart."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import socket

_DUMP = 0x301  # NLM_F_REQUEST | NLM_F_DUMP
_TYPE = 0x3FFF  # of an attribute, without NLA_F_NESTED and NLA_F_NET_BYTEORDER
_TIMEOUT = 1.0  # seconds; the kernel answers within the call


def open_netlink(protocol: int) -> socket.socket:
    """Return a socket of this protocol, in the network namespace of the calling thread."""
    import socket  # takes 4 ms, and few runs need it

    netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol)
    netlink.settimeout(_TIMEOUT)
    return netlink


def dump(netlink: socket.socket, question: int, body: bytes, answer: int) -> Iterator[bytes]:
    """Send a message of the type `question`; yield the bodies of those of the type `answer`.

    A message of another type ends the list: NLMSG_DONE, or an error. Raises OSError.
    """
    netlink.send(struct.pack("=IHHII", 16 + len(body), question, _DUMP, 1, 0) + body)
    while True:
        for kind, found in messages(netlink.recv(1 << 16)):
            if kind != answer:
                return
            yield found


def messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield type and body of each message."""
    while len(data) >= 16:
        length, kind = struct.unpack_from("=IH", data)
        yield kind, data[16:length]
        data = data[max(16, -(-length // 4) * 4) :]


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield type and value of each attribute."""
    while len(data) >= 4:
        length, kind = struct.unpack_from("=HH", data)
        yield kind & _TYPE, data[4:length]
        data = data[max(4, -(-length // 4) * 4) :]
