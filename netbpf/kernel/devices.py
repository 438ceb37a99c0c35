"""Find network devices by name or alternative name, in one or all network namespaces."""

from __future__ import annotations

import errno
import socket
import struct
from contextlib import suppress

from netbpf.kernel.namespaces import in_namespaces, network_namespaces

# include/uapi/linux/rtnetlink.h, if_link.h and if.h
_NEWLINK, _GETLINK = 16, 18
_IFNAME, _ALT_IFNAME, _IFNAMSIZ = 3, 53, 16
_TIMEOUT = 2.0  # seconds; the kernel answers immediately


def device_names(text: str, netns: int = 0) -> set[str]:
    """Return the names of devices named `text` in the namespace `netns`, or in any (0).

    `text` is a name or an alternative name (`ip link property add altname`, since 5.5).
    """
    names: set[str] = set()

    def visit(_: int) -> None:
        with suppress(OSError):
            names.add(socket.if_indextoname(_index(text)))

    in_namespaces(_namespaces(netns), visit)
    return names


def _index(text: str) -> int:
    """Return the index of the device with this name or alternative name; raises OSError.

    if_nametoindex(3) uses an ioctl, whose field is too short for most alternative names.
    """
    name = text.encode(errors="surrogateescape") + b"\0"
    kind = _IFNAME if len(name) <= _IFNAMSIZ else _ALT_IFNAME
    attribute = struct.pack("=HH", 4 + len(name), kind) + name
    body = struct.pack("=BxHiII", socket.AF_UNSPEC, 0, 0, 0, 0) + attribute
    body += bytes(-len(body) % 4)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as netlink:
        netlink.settimeout(_TIMEOUT)
        netlink.send(struct.pack("=IHHII", 16 + len(body), _GETLINK, 1, 0, 0) + body)
        answer = netlink.recv(1 << 16)
    if struct.unpack_from("=H", answer, 4)[0] != _NEWLINK:
        raise OSError(errno.ENODEV, f"no network device '{text}'")
    return int(struct.unpack_from("=i", answer, 16 + 4)[0])  # ifi_index of struct ifinfomsg


def all_devices(netns: int = 0) -> list[str]:
    """Return the names of all devices in the namespace `netns`, or in any (0), sorted."""
    names: set[str] = set()

    def visit(_: int) -> None:
        with suppress(OSError):
            names.update(name for _, name in socket.if_nameindex())

    in_namespaces(_namespaces(netns), visit)
    return sorted(names)


def _namespaces(netns: int) -> dict[int, str]:
    paths = network_namespaces()
    return {netns: paths[netns]} if netns in paths else paths if not netns else {}
