"""Network devices by name, alternative names included, in one or all network namespaces."""

from __future__ import annotations

import errno
import socket
import struct
from contextlib import suppress

from netbpf.kernel.namespaces import in_namespaces, network_namespaces

# include/uapi/linux/rtnetlink.h, if_link.h and if.h
_NEWLINK, _GETLINK = 16, 18
_IFNAME, _ALT_IFNAME, _IFNAMSIZ = 3, 53, 16
_PATIENCE = 2.0  # seconds; the kernel answers at once


def device_names(word: str, netns: int = 0) -> set[str]:
    """Return the names of the devices that `word` names in the namespace `netns`, 0: in any.

    An alternative name (`ip link property add altname`, since 5.5) names a device as well.
    """
    found: set[str] = set()

    def look(_: int) -> None:
        with suppress(OSError):
            found.add(socket.if_indextoname(_index(word)))

    in_namespaces(_wanted(netns), look)
    return found


def _index(word: str) -> int:
    """Ask for a link by either kind of name; OSError if there is none.

    if_nametoindex(3) goes by an ioctl, which has no room for most alternative names.
    """
    name = word.encode(errors="surrogateescape") + b"\0"
    kind = _IFNAME if len(name) <= _IFNAMSIZ else _ALT_IFNAME
    attribute = struct.pack("=HH", 4 + len(name), kind) + name
    body = struct.pack("=BxHiII", socket.AF_UNSPEC, 0, 0, 0, 0) + attribute
    body += bytes(-len(body) % 4)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as netlink:
        netlink.settimeout(_PATIENCE)
        netlink.send(struct.pack("=IHHII", 16 + len(body), _GETLINK, 1, 0, 0) + body)
        answer = netlink.recv(1 << 16)
    if struct.unpack_from("=H", answer, 4)[0] != _NEWLINK:
        raise OSError(errno.ENODEV, f"no network device '{word}'")
    return int(struct.unpack_from("=i", answer, 16 + 4)[0])  # ifi_index of struct ifinfomsg


def all_devices(netns: int = 0) -> list[str]:
    """Return the names of all devices, sorted."""
    found: set[str] = set()

    def look(_: int) -> None:
        with suppress(OSError):
            found.update(name for _, name in socket.if_nameindex())

    in_namespaces(_wanted(netns), look)
    return sorted(found)


def _wanted(netns: int) -> dict[int, str]:
    there = network_namespaces()
    return {netns: there[netns]} if netns in there else there if not netns else {}
