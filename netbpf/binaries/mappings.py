"""Find the libcs that a process has mapped, and the ones at well-known paths below a directory."""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice

from netbpf.binaries.binary import identity_of
from netbpf.system.untrusted import Budget, LimitExceeded, Limits, open_directory

KNOWN_PATHS = (
    "/lib/ld-musl-*.so.1",
    "/usr/lib/ld-musl-*.so.1",
    "/lib/libc.so.6",
    "/lib64/libc.so.6",
    "/usr/lib/libc.so.6",
    "/usr/lib64/libc.so.6",
    "/lib/*-linux-gnu/libc.so.6",
    "/usr/lib/*-linux-gnu/libc.so.6",
    "/lib/*-linux-gnu/libc-2.*.so",
    "/lib64/libc-2.*.so",
    "/usr/lib/*-linux-musl/libc.so",
)

MAX_LIBCS = 8  # per process
DENIED = "permission denied"

_MAPS = Limits(0, 1.0)
_MAX_ENTRIES = 4096  # of a directory

_MAPPING = re.compile(
    rb"([0-9a-f]+-[0-9a-f]+) \S+ \S+ ([0-9a-f]{1,3}:[0-9a-f]{1,5}) (\d{1,20}) +"
    rb"(/(?:.*/)?(?:libc\.so\.6|libc-2\.\d+\.so|ld-musl-[^/]*\.so\.1|libc\.musl-[^/]*\.so[^/]*"
    rb"|libc\.so))( \(deleted\))?"
)


def known_libcs(root: str = "") -> Iterator[str]:
    """Yield the paths of libcs at well-known paths below a root directory."""
    for pattern in KNOWN_PATHS:
        yield from _expand(root, pattern.lstrip("/").split("/"))


def _expand(directory: str, parts: list[str]) -> Iterator[str]:
    # glob() would follow links out of the root directory and list a million files.
    first, *rest = parts
    names = [first] if "*" not in first else _matching(directory, first)
    for name in names:
        path = f"{directory}/{name}"
        if rest:
            yield from _expand(path, rest)
        elif identity_of(path):
            yield path


def _matching(directory: str, pattern: str) -> list[str]:
    with suppress(OSError):
        descriptor = open_directory(directory)
        try:
            with os.scandir(descriptor) as entries:
                names = [entry.name for entry in islice(entries, _MAX_ENTRIES)]
        finally:
            os.close(descriptor)
        return sorted(fnmatch.filter(names, pattern))
    return []


def mapped_libcs(proc: str, pid: int) -> tuple[list[tuple[str, str]], str]:
    """Return (path to open, kind) of each libc that a process has mapped as code, and a reason.

    The reason is why the process may use further libcs, "" if the list is complete.
    """
    libcs: dict[str, str] = {}
    why = ""
    try:
        for mapping in _mappings(f"{proc}/{pid}/maps"):
            path = _open_path(proc, pid, mapping)
            if not path:
                why = "its libc cannot be opened"
            elif len(libcs) == MAX_LIBCS:
                return list(libcs.items()), f"more than {MAX_LIBCS} libcs"
            else:
                libcs[path] = kind_of(os.fsdecode(mapping[4]))
    except PermissionError:
        why = DENIED
    except LimitExceeded as error:
        why = f"{error.why} ({error.path})"
    except OSError:
        return [], ""  # the process has ended
    return list(libcs.items()), why


def _mappings(path: str) -> Iterator[re.Match[bytes]]:
    """Yield one executable mapping of each libc file."""
    budget = Budget(path, _MAPS)
    seen = set()
    with open(path, "rb") as maps:
        for line in maps:
            budget.step()
            if b" r-xp " in line and (b"/libc" in line or b"/ld-musl-" in line):
                match = _MAPPING.fullmatch(line.rstrip(b"\n"))
                if match and match.groups()[1:] not in seen:
                    seen.add(match.groups()[1:])
                    budget.check()
                    yield match


def _open_path(proc: str, pid: int, mapping: re.Match[bytes]) -> str | None:
    """Return a path that opens the mapped file: by name, else through /proc/PID/map_files.

    A path in maps is relative to this process's root, or to the other process's root if the file
    cannot be reached from this one. A file of that name with another inode number is not the mapped
    file.
    """
    name, inode = os.fsdecode(mapping[4]), int(mapping[3])
    here = there = None
    if not mapping[5]:
        here, there = identity_of(name), identity_of(f"{proc}/{pid}/root{name}")
    if there and there.inode == inode:
        return name if here == there else f"{proc}/{pid}/root{name}"
    major, _, minor = mapping[2].partition(b":")
    device = os.makedev(int(major, 16), int(minor, 16))
    # For a process in a chroot, only this process's root has the path. Compare devices, as inode
    # numbers repeat between them.
    if here and (here.device, here.inode) == (device, inode):
        return name
    mapped = f"{proc}/{pid}/map_files/{mapping[1].decode()}"
    return mapped if identity_of(mapped) else None


def processes(proc: str = "/proc") -> list[int]:
    """Return the ids of all processes: root's first, then one of each other user in turn.

    So a user with many processes does not delay the processes of others.
    """
    users: dict[int, int] = {}
    order = []
    names = os.listdir(proc) if os.path.isdir(proc) else []
    for pid in sorted(int(name) for name in names if name.isdecimal()):
        user = owner(pid, proc)
        users[user] = users.get(user, 0) + 1
        order.append((users[user] if user else 0, pid))
    return [pid for _, pid in sorted(order)]


def owner(pid: int, proc: str = "/proc") -> int:
    """Return the user of a process, 0 if it is gone."""
    with suppress(OSError):
        return os.stat(f"{proc}/{pid}").st_uid
    return 0


def has_program(pid: int) -> bool:
    """Return whether the process exists and is neither a zombie nor a kernel thread."""
    with suppress(OSError):
        return bool(os.readlink(f"/proc/{pid}/exe"))
    return False


def program_inode(pid: int) -> int:
    """Return the inode number of the program that a process runs, -1 if it is gone."""
    with suppress(OSError):
        return os.stat(f"/proc/{pid}/exe").st_ino
    return -1


def kind_of(path: str) -> str:
    """Return "glibc" or "musl" from the file name of a libc."""
    name = os.path.basename(path)
    return "musl" if "musl" in name or name == "libc.so" else "glibc"
