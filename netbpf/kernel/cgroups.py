"""Control groups of version 2: ids, and the group of a container."""

from __future__ import annotations

import os
import re
from functools import lru_cache
from pathlib import Path

from netbpf.errors import Unsupported, UsageError

# podman's and CRI-O's monitor (conmon) has a group with the container's id beside the container's.
_CONTAINER = re.compile(r"(?:^|(?<!conmon)[-/:])([0-9a-f]{64})(?:\.scope)?(?=/|$)")


@lru_cache(maxsize=1)
def cgroup_root() -> str:
    """Return where the version 2 hierarchy is mounted, "" if it is not."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, where, fstype = line.split(" ")[:3]
        if fstype == "cgroup2":
            return where
    return ""


def cgroup_id(path: str) -> int:
    """Return the id of the cgroup at `path`: absolute, or below the hierarchy's root.

    It is the inode number of its directory, which bpf_get_current_cgroup_id() returns too.
    """
    root = cgroup_root()
    if not root:
        raise Unsupported(
            "no cgroup version 2 hierarchy is mounted", "mount -t cgroup2 none /sys/fs/cgroup"
        )
    full = path if path.startswith(root) else f"{root}/{path.lstrip('/')}"
    try:
        return os.stat(full).st_ino if os.path.exists(f"{full}/cgroup.procs") else _no_cgroup(path)
    except (OSError, ValueError):
        return _no_cgroup(path)


def _no_cgroup(path: str) -> int:
    raise UsageError(f"--cgroup: there is no cgroup '{path}'", f"cgroups: ls {cgroup_root()}")


def container_cgroup(prefix: str) -> int:
    """Return the id of the cgroup of the one container whose id begins with `prefix`."""
    if not re.fullmatch(r"[0-9a-f]{4,64}", prefix):
        raise UsageError(
            f"--container: '{prefix}' is not a container id", "give at least 4 of its hex digits"
        )
    found: dict[str, str] = {}
    for directory, below, _ in os.walk(cgroup_root() or "/nonexistent"):
        for name in below:
            identity = container_of(name)
            if identity.startswith(prefix):
                found.setdefault(identity, os.path.join(directory, name))
    if len(found) != 1:
        what = f"more than one container begins with '{prefix}'" if found else (
            f"no container's cgroup matches '{prefix}'")  # fmt: skip
        raise UsageError(
            f"--container: {what}", "give more of the id; see systemd-cgls or docker ps"
        )
    return os.stat(found.popitem()[1]).st_ino


def container_of(path: str) -> str:
    """Return the container id in a cgroup's path (docker, containerd, CRI-O, podman), or ""."""
    found = _CONTAINER.findall(path)
    return str(found[-1]) if found else ""


@lru_cache(maxsize=1024)
def path_of(cgroup: int) -> str:
    """Return the path of the cgroup with id `cgroup` below the root, "" if there is none."""
    root = cgroup_root()
    for directory, below, _ in os.walk(root or "/nonexistent"):
        for name in below:
            full = os.path.join(directory, name)
            try:
                if os.stat(full).st_ino == cgroup:
                    return full[len(root) :]
            except OSError:
                continue  # gone meanwhile
    return ""
