"""Find every libc and Go program in use, in all mount namespaces, whose name lookups can be probed.

A uprobe belongs to a file, not to a process, so processes are grouped by the file that they map.
Files are identified by stat(2) of the opened file, as /proc/PID/maps has another device on btrfs
and overlayfs. Containers made from one image may have one file under several identities, as
overlayfs passes uprobes on to the lower file. Then each lookup hits one probe per container, and
the BPF program must treat entries with the same stack pointer as one.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from netbpf.binaries.binary import File, identity_of, looks_like_go, read_libc, read_program
from netbpf.binaries.mappings import DENIED, kind_of, known_libcs, mapped_libcs, processes
from netbpf.declare.values import escape
from netbpf.system.privileges import held_capabilities
from netbpf.system.untrusted import WHOLE, Limits, read_text

if TYPE_CHECKING:
    from netbpf.binaries.binary import Binary, Identity

MAX_PATHS = 8
MAX_NAMES = 12
MAX_FILES = 256  # probed at once: the kernel takes 0.1 s and more to detach one probe
_MAX_REMEMBERED = 4096  # files that cannot be probed, kept with the reason
# The first read of a file is short, so that all files are read soon: `finish_one` does the rest.
FIRST = Limits(32 << 20, 0.15)


@dataclass(frozen=True)
class Uncovered:
    """A process whose lookups (or those of its Go part) cannot be traced, and why.

    `lost` is whether lookups may be missed that are not excluded by the manual's LIMITS.
    """

    pid: int
    name: str
    reason: str
    lost: bool = False


class Coverage:
    """The files to probe and the processes that they cover, updated by `rescan` and `forget`.

    `proc` is where procfs is mounted. No process or file raises an exception here; a process that
    ends in between is left out.
    """

    def __init__(self, proc: str = "/proc", first: Limits = WHOLE) -> None:
        """Start empty; the first read of a file stops at `first` and leaves it unfinished."""
        self.proc = proc
        self.uncovered: dict[int, Uncovered] = {}
        self.unfinished: dict[Identity, set[int]] = {}
        self._first = first
        self._libcs: dict[Identity, File] = {}
        self._programs: dict[Identity, File] = {}
        self._go: dict[Identity, bool] = {}
        self._of_pid: dict[int, list[Binary]] = {}
        self._new: list[Binary] = []
        self._finishing: set[Identity] = set()

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
        """Return the number of processes all of whose lookups can be traced."""
        return len(self._of_pid.keys() - self.uncovered.keys())

    def rescan(self, pid: int) -> list[Binary]:
        """Read one process again, for example after exec; return the files that are new.

        This takes about 0.1 ms if all its files are known. Directly after exec libc is not mapped
        yet: then the libcs at well-known paths below the process's root are returned.
        """
        self._new = []
        self.forget(pid)
        program = identity_of(f"{self.proc}/{pid}/exe")
        if program is None:  # gone, a zombie or a kernel thread
            self._note_unreadable(pid)
            return []
        mapped, why = mapped_libcs(self.proc, pid)
        files = [File(reason=why, lost=True)] if why else []
        files.append(self._use_program(pid, program, bool(mapped)))
        files += [self._use_libc(pid, path, kind) for path, kind in mapped]
        bad = [file for file in files if file.reason]
        if not mapped and not bad and pid not in self._of_pid:
            self.add_known(f"{self.proc}/{pid}/root")
            bad = [File(reason="no libc mapped")]
        if bad:
            worst = next((file for file in bad if file.lost), bad[-1])
            self.skip(pid, worst.reason, worst.lost)
        return self._new

    def skip(self, pid: int, reason: str, lost: bool = True) -> None:
        """Record that the lookups of a process cannot be traced."""
        self.uncovered[pid] = Uncovered(pid, self._name(pid), escape(reason), lost)

    def finish_one(self) -> list[Binary]:
        """Read one of the files in `unfinished` with full limits; return the files that are new."""
        identity, pids = self.unfinished.popitem()
        self._finishing.add(identity)
        for files in (self._libcs, self._programs):
            files.pop(identity, None)
        new = [binary for pid in sorted(pids) for binary in self.rescan(pid)]
        self._finishing.discard(identity)
        return new

    def forget(self, pid: int) -> None:
        """Drop a process that has ended or is read again."""
        self.uncovered.pop(pid, None)
        for binary in self._of_pid.pop(pid, ()):
            binary.pids.discard(pid)

    def mark_failed(self, binary: Binary, reason: str) -> None:
        """Record that a probe on the file failed: no process that uses it is covered."""
        for files in (self._libcs, self._programs):
            for identity, file in files.items():
                if file.binary is binary:
                    files[identity] = File(binary, reason, lost=True)
        for pid in binary.pids:
            self.skip(pid, reason)

    def prune(self) -> list[Binary]:
        """Drop and return the files that no process uses and no path opens.

        Also drop the files that cannot be probed if there are many; they are read again if used.
        """
        gone = []
        for remembered in (self._libcs, self._programs, self._go):
            if len(remembered) > _MAX_REMEMBERED:
                self._forget_reasons(remembered)
        for files in (self._libcs, self._programs):
            for identity, file in list(files.items()):
                if file.binary and not file.binary.pids and not file.binary.path:
                    gone.append(file.binary)
                    del files[identity]
        return gone

    @staticmethod
    def _forget_reasons(remembered: dict[Identity, Any]) -> None:
        for identity, file in list(remembered.items()):
            if not (isinstance(file, File) and file.binary):
                del remembered[identity]

    def add_known(self, root: str = "") -> list[Binary]:
        """Add the libcs at well-known paths below a root directory, mapped or not.

        Returns the files that are new.
        """
        before = len(self._new)
        for path in known_libcs(root):
            identity = identity_of(path)
            if identity:
                plain = path[len(root) :]
                name = plain if identity_of(plain) == identity else path
                self._libc(identity, name, kind_of(path))
        return self._new[before:]

    def summary(self) -> str:
        """Return a text: the number of libcs, of processes covered and not coverable, and why."""
        gaps = {(not gap.lost, f"{gap.name} ({gap.reason})") for gap in self.uncovered.values()}
        names = [text for _, text in sorted(gaps)]
        others = len(self.binaries) - len(self.libcs)
        parts = [_count(len(self.libcs), "libc", "libcs")]
        if others:
            parts.append(_count(others, "static or Go program", "static or Go programs"))
        parts.append(_count(self.covered, "process", "processes") + " covered")
        parts.append(f"{len(self.uncovered)} not coverable")
        if len(names) > MAX_NAMES:
            names[MAX_NAMES:] = [f"and {len(names) - MAX_NAMES} more"]
        return ", ".join(parts) + (": " + ", ".join(names) if names else "")

    def _use(self, pid: int, file: File, path: str, identity: Identity) -> File:
        binary = file.binary
        if binary is not None:
            binary.pids.add(pid)
            self._of_pid.setdefault(pid, []).append(binary)
            if path not in binary.paths and len(binary.paths) < MAX_PATHS:
                # A path outside of /proc/PID stays valid when the process ends: it goes first.
                binary.paths.insert(len(binary.paths) if path.startswith(self.proc) else 0, path)
        if file.unfinished:
            self.unfinished.setdefault(identity, set()).add(pid)
        return file

    def _limits(self, identity: Identity) -> Limits:
        return WHOLE if identity in self._finishing else self._first

    def _keep(self, files: dict[Identity, File], identity: Identity, file: File) -> File:
        if file.binary and len(self.binaries) >= MAX_FILES:
            return File(reason=f"more than {MAX_FILES} files to probe", lost=True)
        if self._limits(identity) == WHOLE:
            file = replace(file, unfinished=False)  # there is no further attempt
        files[identity] = file
        if file.binary:
            self._new.append(file.binary)
        return file

    def _use_libc(self, pid: int, path: str, kind: str) -> File:
        identity = identity_of(path)
        if not identity:
            return File()
        return self._use(pid, self._libc(identity, path, kind), path, identity)

    def _use_program(self, pid: int, identity: Identity, has_libc: bool) -> File:
        path = f"{self.proc}/{pid}/exe"
        if identity not in self._go:
            is_go = looks_like_go(path)
            if identity_of(path) != identity:
                return File()  # the process ended in between, so the file is still unknown
            self._go[identity] = is_go
        if has_libc and not self._go[identity]:
            return File()
        file = self._programs.get(identity)
        if file is None:
            file = read_program(identity, path, self._go[identity], self._limits(identity))
            if not file.binary and identity_of(path) != identity:
                return File()
            file = self._keep(self._programs, identity, file)
        return self._use(pid, file, path, identity)

    def _libc(self, identity: Identity, path: str, kind: str) -> File:
        file = self._libcs.get(identity)
        if file is None:
            file = read_libc(identity, path, kind, self._limits(identity))
            if not file.binary and identity_of(path) != identity:
                return file  # the process ended in between
            file = self._keep(self._libcs, identity, file)
        return file

    def _note_unreadable(self, pid: int) -> None:
        try:
            os.stat(f"{self.proc}/{pid}/exe")
        except PermissionError:
            # If the privilege is there, a policy of the machine refuses, as LIMITS says.
            self.skip(pid, DENIED, "CAP_SYS_PTRACE" not in held_capabilities())
        except OSError:
            pass

    def _name(self, pid: int) -> str:
        return read_text(f"{self.proc}/{pid}/comm", 64).strip() or str(pid)


def scan(proc: str = "/proc", known: bool = True) -> Coverage:
    """Return the coverage of all processes; with `known` also libcs at well-known paths."""
    coverage = Coverage(proc)
    for pid in processes(proc):
        coverage.rescan(pid)
    if known:
        coverage.add_known()
    return coverage


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"
