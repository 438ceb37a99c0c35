"""Find what can be probed in one file: a libc, a static program, a Go program, or nothing.

For any file content the result is a `File`, with a reason if it cannot be probed; no exception.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

from netbpf.binaries import golang
from netbpf.binaries.elf import ElfFile
from netbpf.binaries.returns import returns
from netbpf.system.untrusted import (
    WHOLE,
    Budget,
    LimitExceeded,
    Limits,
    OutOfScope,
    UnreadableBinary,
    open_regular,
    stat_path,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from netbpf.binaries.elf import Function

FUNCTIONS = (
    "getaddrinfo",
    "gethostbyname",
    "gethostbyname_r",
    "gethostbyname2",
    "gethostbyname2_r",
    "gethostbyaddr",
    "gethostbyaddr_r",
)

_MACHINES = {"x86_64": "EM_X86_64", "aarch64": "EM_AARCH64"}
_MAX_SHOWN = 200  # characters of a path
_GO_MARKS = (b".go.buildinfo\0", b".gopclntab\0", b".note.go.buildid\0")


class Identity(NamedTuple):
    """Identifies a file, also from a later one with the same inode number."""

    device: int
    inode: int
    size: int
    mtime_ns: int


@dataclass
class Binary:
    """A file to probe: a libc ("glibc", "musl"), a static program ("static") or a Go one ("go").

    `functions` are the libc lookup functions that the file defines, `go` has those of Go's net
    package; a static Go program with cgo has both. `pids` are the processes that use the file,
    none for a libc that was only found at a well-known path.
    """

    device: int
    inode: int
    kind: str
    functions: dict[str, Function]
    go: golang.GoProgram | None = None
    paths: list[str] = field(default_factory=list)
    pids: set[int] = field(default_factory=set)

    @property
    def path(self) -> str | None:
        """Return a path that opens this file now, or None: /proc/PID/... ends with the process."""
        for path in self.paths:
            identity = identity_of(path)
            if identity and (identity.device, identity.inode) == (self.device, self.inode):
                return path
        return None


@dataclass(frozen=True)
class File:
    """The result of reading a file: what to probe, or the reason why not.

    `lost` is whether lookups may be missed for that reason, beyond the manual's LIMITS;
    `unfinished` whether reading stopped at its limits.
    """

    binary: Binary | None = None
    reason: str = ""
    lost: bool = False
    unfinished: bool = False


def identity_of(path: str) -> Identity | None:
    """Return the identity of the file that a path opens now, or None."""
    try:
        return _identity(stat_path(path))
    except (OSError, ValueError):
        return None


def _identity(status: os.stat_result) -> Identity:
    return Identity(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


def _lookups(elf: ElfFile) -> dict[str, Function]:
    functions = elf.functions(FUNCTIONS)
    return {name: replace(f, returns=returns(elf, f)) for name, f in functions.items()}


def _foreign(elf: ElfFile) -> str:
    if elf.bits != 64:
        return "32-bit"
    if not elf.little_endian:
        return "big-endian"
    native = _MACHINES.get(os.uname().machine, elf.machine)
    return "" if elf.machine == native else f"built for {elf.machine}"


def _check(elf: ElfFile, identity: Identity) -> None:
    if _identity(elf.status) != identity:
        raise UnreadableBinary(elf.path, "replaced by another file")


def _failed(error: UnreadableBinary, kind: str = "") -> File:
    text = f"{kind}: {error.why}" if kind else error.why
    given_up = isinstance(error, LimitExceeded)
    if given_up:
        text += f" ({_short(error.path)})"
    return File(reason=text, lost=not isinstance(error, OutOfScope), unfinished=given_up)


def _short(path: str) -> str:
    return path if len(path) <= _MAX_SHOWN else f"...{path[-_MAX_SHOWN:]}"


def read_libc(identity: Identity, path: str, kind: str, limits: Limits = WHOLE) -> File:
    """Read a libc; `kind` is "glibc" or "musl"."""
    try:
        with ElfFile(path, Budget(path, limits)) as elf:
            _check(elf, identity)
            foreign = _foreign(elf)
            functions = {} if foreign else _lookups(elf)
    except UnreadableBinary as error:
        return _failed(error, kind)
    if foreign or not functions:
        return File(reason=f"{kind}: {foreign or 'no symbols'}")
    return File(Binary(identity.device, identity.inode, kind, functions, paths=[path]))


def read_program(identity: Identity, path: str, is_go: bool, limits: Limits = WHOLE) -> File:
    """Read a program that has no libc mapped, or is written in Go, or both.

    `path` is /proc/PID/exe, which ends with the process, so the program's name comes first if it is
    the same file.
    """
    paths = [*_host_path(path, identity), path]
    budget = Budget(paths[0], limits)
    try:
        with ElfFile(paths[0], budget) as elf:
            _check(elf, identity)
            reason = _foreign(elf)
            static = not elf.interpreted and not reason
            functions = _lookups(elf) if static else {}
            stripped = not any(s.kind == "SHT_SYMTAB" for s in elf.sections)
    except UnreadableBinary as error:
        return _failed(error)
    go, part = _read_go(paths[0], budget) if is_go and not reason else (None, File())
    reason = reason or part.reason
    if not is_go and static and not functions:
        reason = "static, stripped" if stripped else "static, without lookup functions"
    if not functions and go is None:
        return replace(part, reason=reason)
    kind = "go" if go else "static"
    binary = Binary(identity.device, identity.inode, kind, functions, go, paths)
    return replace(part, binary=binary, reason=reason)


def _read_go(path: str, budget: Budget) -> tuple[golang.GoProgram | None, File]:
    try:
        program = golang.lookups(path, budget)
    except UnreadableBinary as error:
        return None, _failed(error)
    if not program.lookups:
        return None, File(reason="Go, without lookups")
    missing = ", ".join(program.unproven)
    return program, File(reason=f"not provable: {missing}", lost=True) if missing else File()


def _host_path(link: str, identity: Identity) -> Iterator[str]:
    """Yield the target of a /proc/PID/exe link if that path opens the same file here."""
    try:
        name = os.readlink(link)
    except OSError:
        return
    if identity_of(name) == identity:
        yield name


def looks_like_go(path: str) -> bool:
    """Return whether the file has one of the sections that only Go's linker creates.

    Reads only the section names (a few kilobytes), as this runs for every program in use. External
    linkers may drop the names of all but .go.buildinfo (Go 1.13 and later).
    """
    try:
        with open_regular(path) as file:
            header = file.read(64)
            if len(header) < 64 or header[:6] != b"\x7fELF\x02\x01":
                return False
            at, size = int.from_bytes(header[40:48], "little"), header[58]
            file.seek(at + size * int.from_bytes(header[62:64], "little") + 24)
            section = file.read(16)  # sh_offset, sh_size of the section names
            file.seek(int.from_bytes(section[:8], "little"))
            names = file.read(min(int.from_bytes(section[8:], "little"), 1 << 20))
    except (UnreadableBinary, OSError, ValueError, OverflowError):
        return False
    return any(mark in names for mark in _GO_MARKS)
