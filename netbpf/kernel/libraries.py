"""Find every libc and Go program in use, in all mount namespaces, whose name lookups can be probed.

A uprobe belongs to a file, not to a process, so processes are grouped by the file that they map.
A file's identity is what stat says of the opened file: the device in /proc/PID/maps is another
one on btrfs and overlayfs. Containers made from one image may show one file under several
identities, as overlayfs hands uprobes on to the file below; then each lookup hits one probe per
container, and the program must take entries at the same stack pointer for the same entry.
"""

from __future__ import annotations

import glob
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from netbpf.kernel.binaries import File, identity_of, looks_like_go, read_libc, read_program

if TYPE_CHECKING:
    from collections.abc import Iterable

    from netbpf.kernel.binaries import Binary, Identity

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

MAX_MAPS = 32 << 20
MAX_PATHS = 8
MAX_NAMES = 12

_MAPPING = re.compile(
    rb"([0-9a-f]+-[0-9a-f]+) \S+ \S+ ([0-9a-f]{1,5}:[0-9a-f]{1,5}) (\d+) +"
    rb"(/(?:.*/)?(?:libc\.so\.6|libc-2\.\d+\.so|ld-musl-[^/]*\.so\.1|libc\.musl-[^/]*\.so[^/]*"
    rb"|libc\.so))( \(deleted\))?"
)


@dataclass(frozen=True)
class Uncovered:
    """A process whose lookups (or those of its Go part) cannot be seen, and why."""

    pid: int
    name: str
    reason: str


class Coverage:
    """Which files to probe and whom that covers; kept up to date with `rescan` and `forget`.

    `proc` is where procfs is mounted. Nothing here raises because of what a process or file is
    like; a process that ends meanwhile is left out.
    """

    def __init__(self, proc: str = "/proc") -> None:
        self.proc = proc
        self.uncovered: dict[int, Uncovered] = {}
        self._libcs: dict[Identity, File] = {}
        self._programs: dict[Identity, File] = {}
        self._go: dict[Identity, bool] = {}
        self._of_pid: dict[int, list[Binary]] = {}

    @property
    def binaries(self) -> list[Binary]:
        """Return all files to probe, libcs first."""
        files = (*self._libcs.values(), *self._programs.values())
        return [file.binary for file in files if file.binary]

    @property
    def libcs(self) -> list[Binary]:
        """Return the distinct libcs."""
        return [binary for binary in self.binaries if binary.kind in ("glibc", "musl")]

    @property
    def covered(self) -> int:
        """Return the number of processes all of whose lookups can be seen."""
        return len(self._of_pid.keys() - self.uncovered.keys())

    def rescan(self, pid: int) -> list[Binary]:
        """Look at one process again, as after exec; return the files not known before.

        Cheap when all its files are known (about 0.1 ms). Right after exec libc isn't mapped yet:
        then the libcs at well-known paths below the process's root are returned.
        """
        known = {id(binary) for binary in self.binaries}
        self.forget(pid)
        program = identity_of(f"{self.proc}/{pid}/exe")
        if program is None:  # gone, a zombie or a kernel thread
            self._note_unreadable(pid)
            return []
        mapped = self._mapped_libcs(pid)
        reason = self._use_program(pid, program, bool(mapped))
        for path, kind in mapped:
            reason = self._use_libc(pid, path, kind) or reason
        if not mapped and not reason and pid not in self._of_pid:
            self.add_known(f"{self.proc}/{pid}/root")
            reason = "no libc mapped"
        if reason:
            self.uncovered[pid] = Uncovered(pid, self._name(pid), reason)
        return [binary for binary in self.binaries if id(binary) not in known]

    def forget(self, pid: int) -> None:
        """Take a process that has ended, or is being looked at again, out of the account."""
        self.uncovered.pop(pid, None)
        for binary in self._of_pid.pop(pid, ()):
            binary.pids.discard(pid)

    def refuse(self, binary: Binary, reason: str) -> None:
        """Note that a file could not be probed everywhere: nobody who uses it is covered."""
        for files in (self._libcs, self._programs):
            for identity, file in files.items():
                if file.binary is binary:
                    files[identity] = File(binary, reason)
        for pid in binary.pids:
            self.uncovered[pid] = Uncovered(pid, self._name(pid), reason)

    def prune(self) -> list[Binary]:
        """Drop the files that no process uses and no path opens any more; return them."""
        gone = []
        for files in (self._libcs, self._programs):
            for identity, file in list(files.items()):
                if file.binary and not file.binary.pids and not file.binary.path:
                    gone.append(file.binary)
                    del files[identity]
        return gone

    def add_known(self, root: str = "") -> None:
        """Add the libcs at well-known paths below a root directory, mapped or not."""
        for pattern in KNOWN_PATHS:
            for path in glob.glob(glob.escape(root) + pattern):
                identity = identity_of(path)
                if identity:
                    ours = path[len(root) :]
                    name = ours if identity_of(ours) == identity else path
                    self._libc(identity, name, _kind(path))

    def summary(self) -> str:
        """Return the account in words: how many libcs, processes covered, not coverable and why."""
        names = sorted({f"{gap.name} ({gap.reason})" for gap in self.uncovered.values()})
        others = len(self.binaries) - len(self.libcs)
        parts = [_count(len(self.libcs), "libc", "libcs")]
        if others:
            parts.append(_count(others, "static or Go program", "static or Go programs"))
        parts.append(_count(self.covered, "process", "processes") + " covered")
        parts.append(f"{len(self.uncovered)} not coverable")
        if len(names) > MAX_NAMES:
            names[MAX_NAMES:] = [f"and {len(names) - MAX_NAMES} more"]
        return ", ".join(parts) + (": " + ", ".join(names) if names else "")

    def _use(self, pid: int, file: File, path: str) -> str:
        binary = file.binary
        if binary is not None:
            binary.pids.add(pid)
            self._of_pid.setdefault(pid, []).append(binary)
            if path not in binary.paths and len(binary.paths) < MAX_PATHS:
                # A name of our own stays valid when the process ends: it goes first.
                binary.paths.insert(len(binary.paths) if path.startswith(self.proc) else 0, path)
        return file.reason

    def _use_libc(self, pid: int, path: str, kind: str) -> str:
        identity = identity_of(path)
        return self._use(pid, self._libc(identity, path, kind), path) if identity else ""

    def _use_program(self, pid: int, identity: Identity, has_libc: bool) -> str:
        path = f"{self.proc}/{pid}/exe"
        if identity not in self._go:
            is_go = looks_like_go(path)
            if identity_of(path) != identity:
                return ""  # the process ended meanwhile: that says nothing about its file
            self._go[identity] = is_go
        if has_libc and not self._go[identity]:
            return ""
        if identity not in self._programs:
            file = read_program(identity, path, self._go[identity])
            if not file.binary and identity_of(path) != identity:
                return ""
            self._programs[identity] = file
        return self._use(pid, self._programs[identity], path)

    def _libc(self, identity: Identity, path: str, kind: str) -> File:
        if identity not in self._libcs:
            file = read_libc(identity, path, kind)
            if not file.binary and identity_of(path) != identity:
                return file  # the process ended meanwhile
            self._libcs[identity] = file
        return self._libcs[identity]

    def _mapped_libcs(self, pid: int) -> list[tuple[str, str]]:
        """Return (path to open, kind) of each libc that the process has mapped as code."""
        try:
            with open(f"{self.proc}/{pid}/maps", "rb") as maps:
                lines = maps.read(MAX_MAPS).split(b"\n")
        except OSError:
            return []
        found = {}
        for line in lines:
            if b" r-xp " in line and (b"/libc" in line or b"/ld-musl-" in line):
                match = _MAPPING.fullmatch(line)
                path = self._open_path(pid, match) if match else None
                if match and path:
                    found[path] = _kind(os.fsdecode(match[4]))
        return list(found.items())

    def _open_path(self, pid: int, mapping: re.Match[bytes]) -> str | None:
        """Return a path that opens the mapped file: by name, else through the mapping itself.

        A path in maps is as seen from our own root, and from the process's where ours has no way
        to it. A file of that name with another inode number is not the mapped one.
        """
        name, inode = os.fsdecode(mapping[4]), int(mapping[3])
        ours = theirs = None
        if not mapping[5]:
            ours, theirs = identity_of(name), identity_of(f"{self.proc}/{pid}/root{name}")
        if theirs and theirs.inode == inode:
            return name if ours == theirs else f"{self.proc}/{pid}/root{name}"
        major, _, minor = mapping[2].partition(b":")
        device = os.makedev(int(major, 16), int(minor, 16))
        # In a chroot only our own name leads there, and inode numbers repeat between devices.
        if ours and (ours.device, ours.inode) == (device, inode):
            return name
        mapped = f"{self.proc}/{pid}/map_files/{mapping[1].decode()}"
        return mapped if identity_of(mapped) else None

    def _note_unreadable(self, pid: int) -> None:
        try:
            os.stat(f"{self.proc}/{pid}/exe")
        except PermissionError:
            self.uncovered[pid] = Uncovered(pid, self._name(pid), "permission denied")
        except OSError:
            pass

    def _name(self, pid: int) -> str:
        try:
            with open(f"{self.proc}/{pid}/comm", "rb") as comm:
                return comm.read(64).decode("utf-8", "replace").strip()
        except OSError:
            return str(pid)


def scan(proc: str = "/proc", known: bool = True) -> Coverage:
    """Return what all processes use; with `known` also libcs at this system's well-known paths."""
    coverage = Coverage(proc)
    for pid in _pids(proc):
        coverage.rescan(pid)
    if known:
        coverage.add_known()
    return coverage


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def _pids(proc: str) -> Iterable[int]:
    try:
        return sorted(int(name) for name in os.listdir(proc) if name.isdecimal())
    except OSError:
        return ()


def _kind(path: str) -> str:
    name = os.path.basename(path)
    return "musl" if "musl" in name or name == "libc.so" else "glibc"
