"""The network namespaces of this machine: of processes, and mounted ones."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from glob import iglob
from pathlib import Path
from threading import Thread

from netbpf.system.lines import lines_of, unescape_path
from netbpf.system.syscalls import enter_network

NAMED = "/run/netns"  # where `ip netns` keeps them
_MOUNTED = re.compile(r"^\S+ \S+ \S+ net:\[[0-9]+\] (\S+) .* - nsfs ")


def named_namespaces(proc: str = "/proc", named: str = NAMED) -> dict[str, int]:
    """Return {path: inode} of the network namespaces that are mounted somewhere to keep them.

    `ip netns` does so in /run/netns, container engines elsewhere; files that are left behind there
    without a namespace are left out.
    """
    paths = [*iglob(f"{named}/*"), *_mounted(Path(f"{proc}/self/mountinfo"))]
    found = {}
    with suppress(OSError):
        kind = os.stat(f"{proc}/self/ns/net").st_dev  # nsfs
        for path in paths:
            with suppress(OSError):
                status = os.stat(path)
                if status.st_dev == kind:
                    found[path] = status.st_ino
    return found


def _mounted(mounts: Path) -> Iterator[str]:
    with suppress(OSError):
        for line in lines_of(mounts.read_bytes(), "surrogateescape"):
            match = _MOUNTED.match(line)
            if match:
                yield unescape_path(match[1])


def namespace_of(process: str) -> int:
    """Return the inode of the network namespace of /proc/PID, 0 if it has none any more."""
    with suppress(OSError, ValueError):
        return int(os.readlink(f"{process}/ns/net")[len("net:[") : -1])
    return 0


def network_namespaces(proc: str = "/proc", named: str = NAMED) -> dict[int, str]:
    """Return {inode: where it is} of all that can be found: /proc/PID, or the path of a mount.

    A namespace that only a socket or a descriptor keeps is not among them. Mounts come last: what a
    process is in can be read through the process.
    """
    found = {inode: path for path, inode in named_namespaces(proc, named).items()}
    for process in (f"{proc}/self", *iglob(f"{proc}/[0-9]*")):
        inode = namespace_of(process)
        if inode and not found.get(inode, "").startswith(f"{proc}/"):
            found[inode] = process
    return found


def in_namespaces(wanted: Mapping[int, str], visit: Callable[[int], None]) -> None:
    """Call `visit` with the inode of each namespace of {inode: where it is}, inside of it.

    That is in one thread, the only one that changes over; one that is gone meanwhile is left out,
    and so is one that this process must not enter: that takes CAP_SYS_ADMIN.
    """
    own = namespace_of("/proc/self")

    def run() -> None:
        if own in wanted:
            visit(own)
        for inode, where in wanted.items():
            if inode == own:
                continue
            with suppress(OSError):
                path = where if not where.startswith("/proc/") else f"{where}/ns/net"
                namespace = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    if os.fstat(namespace).st_ino != inode:
                        continue
                    enter_network(namespace)
                finally:
                    os.close(namespace)
                visit(inode)

    thread = Thread(target=run)
    thread.start()
    thread.join()


def is_namespace(inode: int, proc: str = "/proc") -> bool:
    """Return whether there is a network namespace with this inode number.

    One that only a descriptor keeps counts as well; one that only sockets keep does not show.
    """
    if inode in network_namespaces(proc):
        return True
    wanted = f"net:[{inode}]"
    for descriptor in iglob(f"{proc}/[0-9]*/fd/*"):
        with suppress(OSError):
            if os.readlink(descriptor) == wanted:
                return True
    return False
