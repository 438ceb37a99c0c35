"""Version 2 control groups: ids, paths, and the groups of containers."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from errno import ESTALE
from functools import lru_cache
from pathlib import Path
from typing import Optional, Protocol

from netbpf.declare.probe_kinds import HOOKS
from netbpf.errors import Unsupported, UsageError
from netbpf.kernel.container_names import is_named
from netbpf.kernel.credit import Credit
from netbpf.system.lines import lines_of, unescape_path
from netbpf.system.syscalls import detached_mount, filesystem_type, open_by_inode

_FIRST_NAMESPACE = 0xEFFFFFFB  # PROC_CGROUP_INIT_INO of include/linux/proc_ns.h
_CGROUP2 = 0x63677270  # CGROUP2_SUPER_MAGIC of include/uapi/linux/magic.h
_SEARCH_SECONDS = 0.05  # at most for one search
_MAX_KNOWN = 1 << 16  # ids whose paths are kept
# The monitor of podman and CRI-O (conmon) has a group of its own with the container's id.
_CONTAINER = re.compile(r"(?:^|(?<!conmon)[-/:])([0-9a-f]{64})(?:\.scope)?(?=/|$)")


class Types(Protocol):
    """What is asked of the kernel's types."""

    def size(self, struct: str) -> Optional[int]:
        """Return the size of a struct in bytes."""

    def enumerator(self, enum: str, name: str) -> Optional[int]:
        """Return the value of an enumerator."""


@lru_cache(maxsize=1)
def cgroup_root() -> str:
    """Return the mount point of the version 2 hierarchy, "" if it is not mounted."""
    return _mounted_at(Path("/proc/self/mounts").read_bytes())


def _mounted_at(mounts: bytes) -> str:
    # "device path type options 0 0", with separators in octal.
    for line in lines_of(mounts, "surrogateescape"):
        fields = line.split(" ")
        if fields[2:3] == ["cgroup2"]:
            return unescape_path(fields[1])
    return ""


def cgroup_id(path: str) -> int:
    """Return the id of the cgroup at `path`: absolute, or relative to the hierarchy's root.

    This is the inode number of its directory, the same as bpf_get_current_cgroup_id() returns.
    Raises Unsupported or UsageError.
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


def container_cgroup(word: str) -> int:
    """Return the id of a cgroup of the container whose id begins with `word`, or named so."""
    return container_cgroups(word)[0]


def container_cgroups(word: str) -> list[int]:
    """Return the ids of all cgroups of the container whose id begins with `word`, or named so.

    An engine may create several, for example one for the container and one for exec sessions.
    Cgroups below another one of the same container are left out. Raises UsageError if no container
    or several match.
    """
    containers: dict[str, list[int]] = {}
    if re.fullmatch(r"[0-9a-f]{4,64}", word):
        containers = _containers(lambda identity: identity.startswith(word))
    if not containers:
        containers = _containers(lambda identity: is_named(identity, word))
    if len(containers) != 1:
        what = (f"more than one container matches '{word}'" if containers else
                f"no container's cgroup matches '{word}'")  # fmt: skip
        raise UsageError(
            f"--container: {what}",
            "give at least 4 digits of its id, or its name; see systemd-cgls or docker ps",
        )
    return containers.popitem()[1]


def _containers(wanted: Callable[[str], bool]) -> dict[str, list[int]]:
    """Return {container id: ids of its cgroups} of the containers whose ids are wanted."""
    containers: dict[str, list[int]] = {}
    for directory, below, _ in os.walk(cgroup_root() or "/nonexistent"):
        for name in list(below):
            identity = container_of(name)
            if identity and wanted(identity):
                below.remove(name)
                with suppress(OSError):  # removed in between
                    inode = os.stat(os.path.join(directory, name)).st_ino
                    containers.setdefault(identity, []).append(inode)
    return containers


def level_of(cgroup: int) -> int | None:
    """Return the depth of a cgroup below the hierarchy's root, None if unknown.

    It is unknown in a cgroup namespace, whose root may be anywhere in the hierarchy.
    """
    root = cgroup_root()
    with suppress(OSError):
        if os.stat("/proc/self/ns/cgroup").st_ino != _FIRST_NAMESPACE or not _whole(root):
            return None
        if os.stat(root).st_ino == cgroup:
            return 0
    return path_of(cgroup).count("/") or None


@lru_cache(maxsize=1)
def whole_hierarchy() -> str:
    """Return a path to the root of all version 2 cgroups, "" if this process cannot reach it.

    Where it is not mounted, this is a detached mount.
    """
    with suppress(OSError):
        if os.stat("/proc/self/ns/cgroup").st_ino == _FIRST_NAMESPACE:
            root = cgroup_root()
            return root if root and _whole(root) else detached_mount("cgroup2")
    return ""


def hook_arguments(types: Types, name: str) -> tuple[str, ...] | None:
    """Return the arguments of a hook of cgroups, None if the kernel with these types lacks it."""
    hook = HOOKS[name]
    known = types.enumerator("bpf_attach_type", hook.attach_type) == hook.number
    # The struct is empty without CONFIG_CGROUP_BPF.
    return hook.arguments if known and types.size("cgroup_bpf") else None


def _whole(root: str) -> bool:
    # A mount may show a part of the hierarchy only: "36 35 98:0 /mounted/part /mount/point ...".
    return _is_whole(Path("/proc/self/mountinfo").read_bytes(), root)


def _is_whole(mounts: bytes, root: str) -> bool:
    pairs = (line.split(" ")[3:5] for line in lines_of(mounts, "surrogateescape"))
    return any([unescape_path(path) for path in pair] == ["/", root] for pair in pairs)


def container_of(path: str) -> str:
    """Return the container id in a cgroup's path (docker, containerd, CRI-O, podman), or ""."""
    return (containers_of(path) or [""])[-1]


def containers_of(path: str) -> list[str]:
    """Return the ids of the containers in a cgroup's path, the outer ones first."""
    return _CONTAINER.findall(path)


def path_of(cgroup: int) -> str:
    """Return the path of the cgroup with id `cgroup` below the root, "" if unknown."""
    return find_path(cgroup) or ""


def find_path(cgroup: int) -> str | None:
    """Return the path of a cgroup below the root, "" if there is none, None if not found in time.

    A version 2 cgroup keeps its path (they cannot be renamed), and its id is not used again, so
    that both answers are kept. Without CAP_DAC_READ_SEARCH the hierarchy is searched for a short
    time, at most a tenth of all time: any user may have a part of the hierarchy and create many
    cgroups.
    """
    path = _known.get(cgroup)
    if path is None:
        path = _path_by_inode(cgroup_root(), cgroup)
        path = _search(cgroup_root(), cgroup) if path is None else path
        if path is not None:
            _remember(cgroup, path)
    return path


_known: dict[int, str] = {}
_rest: dict[str, Iterator[tuple[int, str]]] = {}  # of the last search, which ran out of time
_credit = Credit(share=0.1, most=0.25)


def forget_paths() -> None:
    """Forget all paths, and what was searched."""
    _known.clear()
    _rest.clear()
    _credit.refill()


def _remember(cgroup: int, path: str) -> None:
    if len(_known) >= _MAX_KNOWN:
        _known.clear()
    _known[cgroup] = path


def _path_by_inode(root: str, cgroup: int) -> str | None:
    """Ask the kernel for the path; None if it refuses."""
    with suppress(OSError):
        mount = os.open(root or "/nonexistent", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if filesystem_type(mount) == _CGROUP2:
                return _path_below(root, open_by_inode(mount, cgroup))
        except OSError as error:
            if error.errno == ESTALE:
                return ""
            raise
        finally:
            os.close(mount)
    return None


def _path_below(root: str, descriptor: int) -> str | None:
    try:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)
    return path[len(root) :] if f"{path}/".startswith(f"{root}/") else None


def _search(root: str, cgroup: int) -> str | None:
    """Search the hierarchy, from where the last search stopped; None if time is over."""
    with _credit.spent() as allowed:
        end = time.monotonic() + _SEARCH_SECONDS
        for rest in (_rest.pop(root, iter(())), _below(root)) if allowed else ():
            for number, path in rest:
                _remember(number, path)
                if number == cgroup:
                    _rest[root] = rest
                    return path
                if time.monotonic() > end:
                    _rest[root] = rest
                    return None
        return "" if allowed else None


def _below(root: str) -> Iterator[tuple[int, str]]:
    """Yield id and path of each cgroup, the higher levels first."""
    level = [""]
    while level:
        parents, level = level, []
        for parent in parents:
            with suppress(OSError), os.scandir(f"{root or '/nonexistent'}{parent}") as entries:
                for entry in entries:  # may be removed in between
                    if entry.is_dir(follow_symlinks=False):
                        path = f"{parent}/{entry.name}"
                        level.append(path)
                        yield entry.inode(), path
