"""Forked children of a tool: they end when it ends, and close the descriptors they do not need.

`cpu_seconds` includes the CPU time that they report.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Collection
from contextlib import suppress

from netbpf.system.syscalls import end_with_parent

# The terminal sends these to the whole process group; the tool decides when a child ends.
_ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
_used: dict[object, float] = {}


def become_child(parent: int, *ignored: signal.Signals) -> None:
    """In a child of `parent`: exit when it exits, and ignore signals to the process group."""
    signal.set_wakeup_fd(-1)
    for number in (*_ENDS, *ignored):
        signal.signal(number, signal.SIG_IGN)
    end_with_parent(parent)


def close_all_but(kept: Collection[int]) -> None:
    """Close all descriptors of this process but `kept`."""
    for descriptor in {int(name) for name in os.listdir("/proc/self/fd")}.difference(kept):
        with suppress(OSError):  # the descriptor that listed the directory
            os.close(descriptor)


def note_cpu(fork: object, seconds: float) -> None:
    """Record the CPU time that a child has used so far, in seconds."""
    _used[fork] = seconds


def cpu_seconds() -> float:
    """Return the CPU time that this process and its children have used, in seconds."""
    return time.process_time() + sum(_used.values())
