"""BPF programs that are attached to network devices (XDP, tcx), and how often they ran."""

from __future__ import annotations

import ctypes
import os
import struct
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

from netbpf.kernel.namespaces import in_namespaces, network_namespaces
from netbpf.kernel.netlink import attributes, dump, open_netlink
from netbpf.system.links import fdinfo
from netbpf.system.syscalls import bpf

# include/uapi/linux/netlink.h, rtnetlink.h and if_link.h
_ROUTE, _NEWLINK, _GETLINK = 0, 16, 18
_IFNAME, _XDP = 3, 43
_XDP_WAYS = {5: "xdp", 6: "xdpgeneric", 7: "xdpoffload"}  # IFLA_XDP_DRV_PROG_ID ..., as in ip link
# include/uapi/linux/bpf.h; tcx exists since e420bed02507 ("bpf: Add fd-based tcx multi-prog infra
# with link support", 6.6).
_FD_BY_ID, _OBJECT_INFO, _QUERY = 13, 15, 16
_TCX_WAYS = {46: "tcx/ingress", 47: "tcx/egress"}  # BPF_TCX_INGRESS, BPF_TCX_EGRESS, as in bpftool
_MOST = 64  # programs of one attach point; the kernel's limit (BPF_MPROG_MAX)
_SECONDS = 1.0  # for all namespaces


class DeviceProgram(NamedTuple):
    """A program, where it is attached (`way`), and the descriptor that keeps it loaded."""

    netns: int
    dev: str
    way: str
    id: int
    name: str
    fd: int


class DevicePrograms:
    """The programs that are attached now, in the namespace `netns` (an inode) or in all (0).

    They stay loaded until close(). Needs CAP_SYS_ADMIN; without it, there are none.
    """

    def __init__(self, netns: int = 0) -> None:
        self.programs: list[DeviceProgram] = []
        self._last: dict[int, int] = {}
        paths = network_namespaces()
        end = time.monotonic() + _SECONDS

        def visit(inode: int) -> None:
            if time.monotonic() < end:
                self._open(inode)

        in_namespaces({inode: path for inode, path in paths.items() if netns in (0, inode)}, visit)
        self.since_last()

    def since_last(self) -> dict[DeviceProgram, int]:
        """Return how often each program ran since the last call, on all devices.

        The kernel counts while BPF statistics are enabled.
        """
        runs = {program: fdinfo(program.fd).get("run_cnt", 0) for program in self.programs}
        before, self._last = self._last, {program.fd: now for program, now in runs.items()}
        return {program: now - before.get(program.fd, now) for program, now in runs.items()}

    def close(self) -> None:
        """Let go of the programs."""
        for program in self.programs:
            os.close(program.fd)
        self.programs = []

    def _open(self, netns: int) -> None:
        with suppress(OSError):
            for index, dev, attached in list(_links()):
                attached += [(way, one) for kind, way in _TCX_WAYS.items()
                             for one in _attached(index, kind)]  # fmt: skip
                for way, number in attached:
                    with suppress(OSError):
                        fd = bpf(_FD_BY_ID, struct.pack("=III", number, 0, 0))
                        program = DeviceProgram(netns, dev, way, number, _name(fd), fd)
                        self.programs.append(program)


def _links() -> Iterator[tuple[int, str, list[tuple[str, int]]]]:
    """Yield index, name and (way, id) of XDP programs of each device in this namespace."""
    with open_netlink(_ROUTE) as netlink:
        for body in dump(netlink, _GETLINK, bytes(16), _NEWLINK):
            found = dict(attributes(body[16:]))
            name = found.get(_IFNAME, b"").rstrip(b"\0")
            ids = dict(attributes(found.get(_XDP, b"")))
            attached = [(way, int(struct.unpack("=I", ids[number])[0]))
                        for number, way in _XDP_WAYS.items() if number in ids]  # fmt: skip
            index = int(struct.unpack_from("=i", body, 4)[0])  # ifi_index of struct ifinfomsg
            yield index, name.decode(errors="surrogateescape"), attached


def _attached(index: int, kind: int) -> list[int]:
    """Return the ids of the programs at an attach point of the device `index`, in order."""
    ids = (ctypes.c_uint32 * _MOST)()
    with suppress(OSError):  # a kernel without tcx
        bpf(_QUERY, struct.pack("=IIIIQII", index, kind, 0, 0, ctypes.addressof(ids), _MOST, 0)
            + bytes(32))  # fmt: skip
    return [number for number in ids if number]


def _name(fd: int) -> str:
    info = ctypes.create_string_buffer(80)  # struct bpf_prog_info up to its name
    bpf(_OBJECT_INFO, struct.pack("=IIQ", fd, len(info), ctypes.addressof(info)))
    return info.raw[64:80].partition(b"\0")[0].decode(errors="replace")
