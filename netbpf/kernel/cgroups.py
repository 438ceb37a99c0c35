"""Control groups of version 2: ids, and the group of a container."""

from __future__ import annotations

import os
import re
import time
from contextlib import suppress
from errno import ESTALE
from functools import lru_cache
from pathlib import Path

from netbpf.errors import Unsupported, UsageError
from netbpf.system.lines import lines_of, unescape_path
from netbpf.system.syscalls import filesystem_type, open_by_inode

_FIRST_NAMESPACE = 0xEFFFFFFB  # PROC_CGROUP_INIT_INO of include/linux/proc_ns.h
_CGROUP2 = 0x63677270  # CGROUP2_SUPER_MAGIC of include/uapi/linux/magic.h
_SEARCH_SECONDS = 0.05
# podman's and CRI-O's monitor (conmon) has a group with the container's id beside the container's.
_CONTAINER = re.compile(r"(?:^|(?<!conmon)[-/:])([0-9a-f]{64})(?:\.scope)?(?=/|$)")


@lru_cache(maxsize=1)
def cgroup_root() -> str:
    """Return where the version 2 hierarchy is mounted, "" if it is not."""
    return _mounted_at(Path("/proc/self/mounts").read_bytes())


def _mounted_at(mounts: bytes) -> str:
    # "what where type options 0 0", with octal numbers for what would be taken for a separator.
    for line in lines_of(mounts, "surrogateescape"):
        words = line.split(" ")
        if words[2:3] == ["cgroup2"]:
            return unescape_path(words[1])
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
    full = path if f"{path}/".startswith(f"{root}/") else f"{root}/{path.lstrip('/')}"
    try:
        return os.stat(full).st_ino if os.path.exists(f"{full}/cgroup.procs") else _no_cgroup(path)
    except (OSError, ValueError):
        return _no_cgroup(path)


def _no_cgroup(path: str) -> int:
    raise UsageError(f"--cgroup: there is no cgroup '{path}'", f"cgroups: ls {cgroup_root()}")


def container_cgroup(prefix: str) -> int:
    """Return the id of the cgroup of the one container whose id begins with `prefix`."""
    return container_cgroups(prefix)[0]


def container_cgroups(prefix: str) -> list[int]:
    """Return the ids of all cgroups of the one container whose id begins with `prefix`.

    An engine may make several, as for the container and for what it runs in it. Those below another
    one of the container are left out: they are in it. UsageError if there is none, or if several
    containers' ids begin so.
    """
    if not re.fullmatch(r"[0-9a-f]{4,64}", prefix):
        raise UsageError(
            f"--container: '{prefix}' is not a container id", "give at least 4 of its hex digits"
        )
    found: dict[str, list[int]] = {}
    for directory, below, _ in os.walk(cgroup_root() or "/nonexistent"):
        for name in list(below):
            identity = container_of(name)
            if identity.startswith(prefix):
                below.remove(name)
                with suppress(OSError):  # gone meanwhile
                    inode = os.stat(os.path.join(directory, name)).st_ino
                    found.setdefault(identity, []).append(inode)
    if len(found) != 1:
        what = f"more than one container begins with '{prefix}'" if found else (
            f"no container's cgroup matches '{prefix}'")  # fmt: skip
        raise UsageError(
            f"--container: {what}", "give more of the id; see systemd-cgls or docker ps"
        )
    return found.popitem()[1]


def level_of(cgroup: int) -> int | None:
    """Return how many levels a cgroup is below the hierarchy's root, None if that is not known.

    Not in a cgroup namespace: what is the root there may be anywhere in the hierarchy.
    """
    root = cgroup_root()
    with suppress(OSError):
        if os.stat("/proc/self/ns/cgroup").st_ino != _FIRST_NAMESPACE or not _whole(root):
            return None
        if os.stat(root).st_ino == cgroup:
            return 0
    return path_of(cgroup).count("/") or None


def _whole(root: str) -> bool:
    # A mount may begin below the root: "36 35 98:0 /what/is/mounted /where ...".
    return _is_whole(Path("/proc/self/mountinfo").read_bytes(), root)


def _is_whole(mounts: bytes, root: str) -> bool:
    places = (line.split(" ")[3:5] for line in lines_of(mounts, "surrogateescape"))
    return any([unescape_path(word) for word in place] == ["/", root] for place in places)


def container_of(path: str) -> str:
    """Return the container id in a cgroup's path (docker, containerd, CRI-O, podman), or ""."""
    found = _CONTAINER.findall(path)
    return str(found[-1]) if found else ""


@lru_cache(maxsize=1024)
def path_of(cgroup: int) -> str:
    """Return the path of the cgroup with id `cgroup` below the root, "" if there is none.

    Without the privilege to ask the kernel, also if there are too many to search them all: any user
    may have a part of the hierarchy, and as many groups in it as they like.
    """
    root = cgroup_root()
    found = _asked(root, cgroup)
    return found if found is not None else _searched(root, cgroup)


def _asked(root: str, cgroup: int) -> str | None:
    """Ask the kernel; None if it does not answer."""
    with suppress(OSError):
        mount = os.open(root or "/nonexistent", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if filesystem_type(mount) == _CGROUP2:
                return _below(root, open_by_inode(mount, cgroup))
        except OSError as error:
            if error.errno == ESTALE:
                return ""
            raise
        finally:
            os.close(mount)
    return None


def _below(root: str, opened: int) -> str | None:
    try:
        path = os.readlink(f"/proc/self/fd/{opened}")
    finally:
        os.close(opened)
    return path[len(root) :] if f"{path}/".startswith(f"{root}/") else None


def _searched(root: str, cgroup: int) -> str:
    end = time.monotonic() + _SEARCH_SECONDS
    for directory, below, _ in os.walk(root or "/nonexistent"):
        for name in below:
            full = os.path.join(directory, name)
            try:
                if os.stat(full).st_ino == cgroup:
                    return full[len(root) :]
            except OSError:
                continue  # gone meanwhile
        if time.monotonic() > end:
            break
    return ""
