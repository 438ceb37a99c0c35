"""Open and read files that strangers chose or made, without being held up or led astray.

Any user can let a process map, run or mount whatever they like below their own root directory.
What is opened here is first found without being opened (O_PATH), looked at, and then opened through
that descriptor: a FIFO or device never is, and what the path does meanwhile makes no difference. A
path through the root of a process (/proc/PID/root/...) stays in that root: links end there as they
do for the process itself (openat2(), since fddb5d430ad9, 5.6).
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
# Files of these are regular by name, and reading or opening one can do things: /proc/kmsg and
# trace_pipe wait and take away what they return, attributes of devices act. The numbers are those
# of include/uapi/linux/magic.h and of the file systems' own sources.
_OF_KERNEL = {
    0x9FA0: "proc", 0x62656572: "sysfs", 0x64626720: "debugfs", 0x74726163: "tracefs",
    0x27E0EB: "cgroup", 0x63677270: "cgroup2", 0x73636673: "securityfs", 0xCAFE4A11: "bpf",
    0x62656570: "configfs", 0xDE5E81E4: "efivarfs", 0x6165676C: "pstore", 0xF97CFF8C: "selinuxfs",
    0x43415D53: "smackfs", 0x42494E4D: "binfmt_misc", 0x6E736673: "nsfs", 0x19800202: "mqueue",
    0x7655821: "resctrl", 0x09041934: "anonymous inodes",
}  # fmt: skip
_STEPS = 512  # steps of work between two looks at the clock


class UnreadableBinary(Exception):
    """A file that cannot be read as the ELF file that it should be.

    `path` is the file as it was named (str), `why` a short reason in words (str).
    """

    def __init__(self, path: str, why: str) -> None:
        super().__init__(f"{path}: {why}")
        self.path = path
        self.why = why


class OutOfScope(UnreadableBinary):
    """A file that nothing is looked for in, by the manuals' LIMITS: nothing is lost by it."""


class GivenUp(UnreadableBinary):
    """A file whose budget of bytes or time is used up."""


class Limits(NamedTuple):
    """What reading one file may take: bytes read, and seconds of CPU time."""

    size: int
    seconds: float


WHOLE = Limits(256 << 20, 0.75)


class Budget:
    """What is left of the limits of one file; raises GivenUp when that is nothing."""

    def __init__(self, path: str, limits: Limits = WHOLE) -> None:
        self._path, self._limits = path, limits
        self._left = limits.size
        self._end = time.thread_time() + limits.seconds
        self._steps = 0

    def spend(self, size: int) -> None:
        """Take `size` bytes off, before they are read."""
        self._left -= size
        if self._left < 0:
            raise GivenUp(self._path, f"given up: more than {self._limits.size >> 20} MB to read")
        self.check()

    def step(self) -> None:
        """Count one step of a loop whose length the file decides."""
        self._steps += 1
        if self._steps % _STEPS == 0:
            self.check()

    def check(self) -> None:
        """Look at the clock."""
        if time.thread_time() > self._end:
            seconds = self._limits.seconds
            raise GivenUp(self._path, f"given up: more than {seconds:g} s of work")


def find(path: str) -> int:
    """Return a descriptor (O_PATH) of what is at `path`; opens nothing. Raises OSError."""
    flags = os.O_PATH | os.O_CLOEXEC
    through = _ROOT.fullmatch(path)
    if not through or "\0" in path:
        return os.open(path, flags)
    root = os.open(through[1], flags | os.O_DIRECTORY)
    try:
        return open_inside(root, through[2], flags)
    finally:
        os.close(root)


def look(path: str) -> os.stat_result:
    """Return what stat(2) does of the file at `path`; raises OSError, ValueError."""
    if not _ROOT.fullmatch(path):
        return os.stat(path)
    found = find(path)
    try:
        return os.fstat(found)
    finally:
        os.close(found)


def open_regular(path: str) -> BinaryIO:
    """Open a regular file for reading, never waiting for it; raises UnreadableBinary."""
    found = -1
    try:
        found = find(path)
        status = os.fstat(found)
        if not stat.S_ISREG(status.st_mode):
            raise UnreadableBinary(path, "not a regular file")
        if status.st_size > MAX_FILE:
            raise UnreadableBinary(path, "too large")
        kind = _OF_KERNEL.get(filesystem_type(found))
        if kind:
            raise UnreadableBinary(path, f"not a regular file but the kernel's ({kind})")
        # Nonblocking: a lease that its owner took on the file (F_SETLEASE) makes open() wait.
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        return os.fdopen(os.open(f"/proc/self/fd/{found}", flags), "rb")
    except (OSError, ValueError) as error:
        raise UnreadableBinary(path, reason(error)) from error
    finally:
        if found >= 0:
            os.close(found)


def open_directory(path: str) -> int:
    """Return a descriptor of the directory at `path`, for listing it; raises OSError."""
    found = find(path)
    try:
        return os.open(f"/proc/self/fd/{found}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    finally:
        os.close(found)


def reason(error: Exception) -> str:
    """Return in words why something failed."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error) or type(error).__name__


def read_text(path: str, most: int = 4096) -> str:
    """Return the beginning, up to `most` bytes, of a small file of /proc, "" if it is gone."""
    with suppress(OSError):
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        try:
            return os.read(file, most).decode("utf-8", "replace")
        finally:
            os.close(file)
    return ""
