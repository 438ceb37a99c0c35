"""The standard streams of this process, which may be closed when it starts."""

from __future__ import annotations

import os
import sys

from netbpf.errors import NetbpfError


def occupy_streams() -> None:
    """Open the closed ones of descriptors 0 to 2; NetbpfError if standard output is closed."""
    # open() returns the lowest free descriptor. If that were 1 or 2, output and messages would be
    # written to an unrelated file.
    closed = [fd for fd in (0, 1, 2) if not _is_open(fd)]
    while closed and os.open(os.devnull, os.O_RDWR) < closed[-1]:
        pass
    for fd in closed:
        os.set_inheritable(fd, True)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - stays open
    if 1 in closed or sys.stdout is None:
        raise NetbpfError("standard output is closed", "redirect it to a file or a pipe")
    try:
        os.getcwd()
    except FileNotFoundError:
        os.chdir("/")  # the compiler needs a working directory


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True
