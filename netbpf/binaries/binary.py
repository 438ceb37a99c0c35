"""Tell what can be probed in one file: a libc, a static program, a Go program, or nothing.

Whatever a file is like, reading it gives a result with a reason, never an exception.
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
_MOST_NAMED = 200  # characters of a path that are shown
_GO_MARKS = (b".go.buildinfo\0", b".gopclntab\0", b".note.go.buildid\0")


class Identity(NamedTuple):
    """What tells one file from all others, and from a later one with the same inode number."""

    device: int
    inode: int
    size: int
    mtime_ns: int


@dataclass
class Binary:
    """A file to probe: a libc ("glibc", "musl"), a static program ("static") or a Go one ("go").

    `functions` are libc's lookups that the file defines, `go` those of Go's net package; a static
    Go program with cgo has both. `pids` are the processes that use it, none for a libc that was
    found at a well-known path only.
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
            found = identity_of(path)
            if found and (found.device, found.inode) == (self.device, self.inode):
                return path
        return None


@dataclass(frozen=True)
class File:
    """What a file turned out to be: something to probe, or a reason why not.

    `lost` is whether lookups may go unseen for that reason, which are not among the manual's
    LIMITS; `unfinished` whether the limits of reading it were reached.
    """

    binary: Binary | None = None
    reason: str = ""
    lost: bool = False
    unfinished: bool = False


def identity_of(path: str) -> Identity | None:
    """Return which file a path opens now, or None if it opens none."""
    try:
        return _identity(stat_path(path))
    except (OSError, ValueError):
        return None


def _identity(found: os.stat_result) -> Identity:
    return Identity(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


def _lookups(image: ElfFile) -> dict[str, Function]:
    found = image.functions(FUNCTIONS)
    return {name: replace(f, returns=returns(image, f)) for name, f in found.items()}


def _foreign(image: ElfFile) -> str:
    if image.bits != 64:
        return "32-bit"
    native = _MACHINES.get(os.uname().machine, image.machine)
    return "" if image.machine == native else f"built for {image.machine}"


def _check(image: ElfFile, identity: Identity) -> None:
    if _identity(image.status) != identity:
        raise UnreadableBinary(image.path, "another file by now")


def _failed(error: UnreadableBinary, kind: str = "") -> File:
    words = f"{kind}: {error.why}" if kind else error.why
    given_up = isinstance(error, LimitExceeded)
    if given_up:
        words += f" ({_short(error.path)})"
    return File(reason=words, lost=not isinstance(error, OutOfScope), unfinished=given_up)


def _short(path: str) -> str:
    return path if len(path) <= _MOST_NAMED else f"...{path[-_MOST_NAMED:]}"


def read_libc(identity: Identity, path: str, kind: str, limits: Limits = WHOLE) -> File:
    """Read a libc; `kind` is "glibc" or "musl"."""
    try:
        with ElfFile(path, Budget(path, limits)) as image:
            _check(image, identity)
            found, foreign = _lookups(image), _foreign(image)
    except UnreadableBinary as error:
        return _failed(error, kind)
    if foreign or not found:
        return File(reason=f"{kind}: {foreign or 'no symbols'}")
    return File(Binary(identity.device, identity.inode, kind, found, paths=[path]))


def read_program(identity: Identity, path: str, is_go: bool, limits: Limits = WHOLE) -> File:
    """Read a program that has no libc mapped, or is Go's, or both.

    By its name where that is the same file: `path`, /proc/PID/exe, ends with the process.
    """
    paths = [*_host_path(path, identity), path]
    budget = Budget(paths[0], limits)
    try:
        with ElfFile(paths[0], budget) as image:
            _check(image, identity)
            reason = _foreign(image)
            own = not image.interpreted and not reason
            found = _lookups(image) if own else {}
            stripped = not any(s.kind == "SHT_SYMTAB" for s in image.sections)
    except UnreadableBinary as error:
        return _failed(error)
    go, part = _read_go(paths[0], budget) if is_go and not reason else (None, File())
    reason = reason or part.reason
    if not is_go and own and not found:
        reason = "static, stripped" if stripped else "static, without lookup functions"
    if not found and go is None:
        return replace(part, reason=reason)
    kind = "go" if go else "static"
    return replace(
        part, binary=Binary(identity.device, identity.inode, kind, found, go, paths), reason=reason
    )


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
    """Yield the name of a linked program where it means the same file for us: it outlives PIDs."""
    try:
        name = os.readlink(link)
    except OSError:
        return
    if identity_of(name) == identity:
        yield name


def looks_like_go(path: str) -> bool:
    """Return whether the file has one of the sections that only Go's linker makes.

    Reads the section names only (some kilobytes): this is asked of every program that runs.
    Linkers may lose the names of all but .go.buildinfo (Go 1.13 and later).
    """
    try:
        with open_regular(path) as file:
            header = file.read(64)
            if len(header) < 64 or header[:6] != b"\x7fELF\x02\x01":
                return False
            at, size = int.from_bytes(header[40:48], "little"), header[58]
            file.seek(at + size * int.from_bytes(header[62:64], "little") + 24)
            place = file.read(16)
            file.seek(int.from_bytes(place[:8], "little"))
            names = file.read(min(int.from_bytes(place[8:], "little"), 1 << 20))
    except (UnreadableBinary, OSError, ValueError, OverflowError):
        return False
    return any(mark in names for mark in _GO_MARKS)
