"""Find and enter the network namespaces of this machine, through processes and mounts."""

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
    """Return {path: inode} of the network namespaces that have a mount.

    `ip netns` mounts them in /run/netns, container engines elsewhere. Stale files without a
    namespace are left out.
    """
    paths = [*iglob(f"{named}/*"), *_mounted(Path(f"{proc}/self/mountinfo"))]
    namespaces = {}
    with suppress(OSError):
        kind = os.stat(f"{proc}/self/ns/net").st_dev  # nsfs
        for path in paths:
            with suppress(OSError):
                status = os.stat(path)
                if status.st_dev == kind:
                    namespaces[path] = status.st_ino
    return namespaces


def _mounted(mounts: Path) -> Iterator[str]:
    with suppress(OSError):
        for line in lines_of(mounts.read_bytes(), "surrogateescape"):
            match = _MOUNTED.match(line)
            if match:
                yield unescape_path(match[1])


def namespace_of(process: str) -> int:
    """Return the inode of the network namespace of /proc/PID, 0 if the process has ended."""
    with suppress(OSError, ValueError):
        return int(os.readlink(f"{process}/ns/net")[len("net:[") : -1])
    return 0


def network_namespaces(proc: str = "/proc", named: str = NAMED) -> dict[int, str]:
    """Return {inode: path} of all network namespaces; the path is /proc/PID or a mount.

    Namespaces that only a socket or a descriptor keeps alive are not included. /proc/PID is
    preferred, as it can be read without entering the namespace.
    """
    paths = {inode: path for path, inode in named_namespaces(proc, named).items()}
    for process in (f"{proc}/self", *iglob(f"{proc}/[0-9]*")):
        inode = namespace_of(process)
        if inode and not paths.get(inode, "").startswith(f"{proc}/"):
            paths[inode] = process
    return paths


def in_namespaces(wanted: Mapping[int, str], visit: Callable[[int], None]) -> None:
    """Call `visit` with the inode of each namespace of {inode: path}, inside of the namespace.

    A new thread enters them; the calling thread stays. Namespaces that no longer exist or that this
    process may not enter (it takes CAP_SYS_ADMIN) are left out.
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

    This includes namespaces that only a descriptor keeps alive, but not those that only sockets do.
    """
    if inode in network_namespaces(proc):
        return True
    wanted = f"net:[{inode}]"
    for descriptor in iglob(f"{proc}/[0-9]*/fd/*"):
        with suppress(OSError):
            if os.readlink(descriptor) == wanted:
                return True
    return False
