"""Open and read untrusted files without blocking and without following links out of their root.

Any user can have a process map, execute or mount anything below its own root directory. A file is
first opened with O_PATH, checked, and then opened for reading through that descriptor: a FIFO or
device is never opened, and a path that changes in between makes no difference. A path through the
root of a process (/proc/PID/root/...) is resolved within that root, as for the process itself
(openat2(), since fddb5d430ad9, 5.6).
"""

from __future__ import annotations

import os
import re
import stat
import time
from contextlib import suppress
from typing import BinaryIO, NamedTuple

from netbpf.system.syscalls import filesystem_type, open_inside

MAX_FILE = 4 << 30

_ROOT = re.compile(r"(.*?/proc/[0-9]+/root)(/.+)", re.DOTALL)
# stat(2) calls their files regular, but opening or reading one can have side effects: /proc/kmsg
# and trace_pipe block and consume what they return, device attributes act. Numbers are from
# include/uapi/linux/magic.h and from the file systems' sources.
_OF_KERNEL = {
    0x9FA0: "proc", 0x62656572: "sysfs", 0x64626720: "debugfs", 0x74726163: "tracefs",
    0x27E0EB: "cgroup", 0x63677270: "cgroup2", 0x73636673: "securityfs", 0xCAFE4A11: "bpf",
    0x62656570: "configfs", 0xDE5E81E4: "efivarfs", 0x6165676C: "pstore", 0xF97CFF8C: "selinuxfs",
    0x43415D53: "smackfs", 0x42494E4D: "binfmt_misc", 0x6E736673: "nsfs", 0x19800202: "mqueue",
    0x7655821: "resctrl", 0x09041934: "anonymous inodes",
}  # fmt: skip
_STEPS = 512  # steps between two checks of the clock


class UnreadableBinary(Exception):
    """A file that cannot be read as an ELF file: `path` (str), and `why` as a short text."""

    def __init__(self, path: str, why: str) -> None:
        super().__init__(f"{path}: {why}")
        self.path = path
        self.why = why


class OutOfScope(UnreadableBinary):
    """A file that tools do not cover, by the manuals' LIMITS, so that it does not count as lost."""


class LimitExceeded(UnreadableBinary):
    """A file that needs more bytes or time than its budget has."""


class Limits(NamedTuple):
    """The limits of reading one file: bytes read, and seconds of CPU time."""

    size: int
    seconds: float


WHOLE = Limits(256 << 20, 0.75)


class Budget:
    """The remaining budget of one file; raises LimitExceeded when it is used up."""

    def __init__(self, path: str, limits: Limits = WHOLE) -> None:
        self._path, self._limits = path, limits
        self._left = limits.size
        self._end = time.thread_time() + limits.seconds
        self._steps = 0

    def spend(self, size: int) -> None:
        """Charge `size` bytes, before they are read."""
        self._left -= size
        if self._left < 0:
            raise LimitExceeded(
                self._path, f"given up: more than {self._limits.size >> 20} MB to read"
            )
        self.check()

    def step(self) -> None:
        """Count one step of a loop whose length depends on the file."""
        self._steps += 1
        if self._steps % _STEPS == 0:
            self.check()

    def check(self) -> None:
        """Check the CPU time."""
        if time.thread_time() > self._end:
            seconds = self._limits.seconds
            raise LimitExceeded(self._path, f"given up: more than {seconds:g} s of work")


def open_path(path: str) -> int:
    """Return an O_PATH descriptor of `path`, which does not open the file. Raises OSError."""
    flags = os.O_PATH | os.O_CLOEXEC
    through = _ROOT.fullmatch(path)
    if not through or "\0" in path:
        return os.open(path, flags)
    root = os.open(through[1], flags | os.O_DIRECTORY)
    try:
        return open_inside(root, through[2], flags)
    finally:
        os.close(root)


def stat_path(path: str) -> os.stat_result:
    """Return the stat(2) result of the file at `path`; raises OSError, ValueError."""
    if not _ROOT.fullmatch(path):
        return os.stat(path)
    descriptor = open_path(path)
    try:
        return os.fstat(descriptor)
    finally:
        os.close(descriptor)


def open_regular(path: str) -> BinaryIO:
    """Open a regular file for reading, without blocking; raises UnreadableBinary."""
    descriptor = -1
    try:
        descriptor = open_path(path)
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise UnreadableBinary(path, "not a regular file")
        if status.st_size > MAX_FILE:
            raise UnreadableBinary(path, "too large")
        kind = _OF_KERNEL.get(filesystem_type(descriptor))
        if kind:
            raise UnreadableBinary(path, f"a kernel file ({kind}), not a regular file")
        # O_NONBLOCK: open() blocks while another process holds a lease on the file (F_SETLEASE).
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        return os.fdopen(os.open(f"/proc/self/fd/{descriptor}", flags), "rb")
    except (OSError, ValueError) as error:
        raise UnreadableBinary(path, reason(error)) from error
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def open_directory(path: str) -> int:
    """Return a descriptor of the directory at `path`, for listing it; raises OSError."""
    at = open_path(path)
    try:
        return os.open(f"/proc/self/fd/{at}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    finally:
        os.close(at)


def reason(error: Exception) -> str:
    """Return the reason of an error as a short text."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error) or type(error).__name__


def read_text(path: str, most: int = 4096) -> str:
    """Return the first `most` bytes of a small /proc file, "" if it is gone."""
    with suppress(OSError):
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        try:
            return os.read(file, most).decode("utf-8", "replace")
        finally:
            os.close(file)
    return ""
