"""The network namespaces of this machine: those of processes, and those that are mounted."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from glob import iglob
from pathlib import Path

_MOUNTED = re.compile(r"^\S+ \S+ \S+ net:\[[0-9]+\] (\S+) .* - nsfs ")


def named_namespaces(proc: str = "/proc", named: str = "/run/netns") -> dict[str, int]:
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
        for line in mounts.read_text(errors="surrogateescape").splitlines():
            match = _MOUNTED.match(line)
            if match:
                yield re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), match[1])


def namespace_of(process: str) -> int:
    """Return the inode of the network namespace of /proc/PID, 0 if it has none any more."""
    with suppress(OSError, ValueError):
        return int(os.readlink(f"{process}/ns/net")[len("net:[") : -1])
    return 0


def network_namespaces(proc: str = "/proc", named: str = "/run/netns") -> dict[int, str]:
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
