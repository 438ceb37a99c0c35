"""What forks of a tool have in common: they end with it, and hold nothing of it that they need not.

`cpu_seconds` counts what they report to have used.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Collection
from contextlib import suppress

from netbpf.system.syscalls import end_with_parent

# These reach the terminal's whole process group: when a fork ends, the tool decides.
_ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
_used: dict[object, float] = {}


def become_child(parent: int, *ignored: signal.Signals) -> None:
    """In a fork of process `parent`: end when that ends, and not by signals to the whole group."""
    signal.set_wakeup_fd(-1)
    for number in (*_ENDS, *ignored):
        signal.signal(number, signal.SIG_IGN)
    end_with_parent(parent)


def close_all_but(kept: Collection[int]) -> None:
    """Close all descriptors of this process but `kept`."""
    for descriptor in {int(name) for name in os.listdir("/proc/self/fd")}.difference(kept):
        with suppress(OSError):  # that of the listing itself
            os.close(descriptor)


def note_cpu(fork: object, seconds: float) -> None:
    """Take note of the CPU time that a fork has used so far, in seconds."""
    _used[fork] = seconds


def cpu_seconds() -> float:
    """Return the CPU time that this process and its forks have used."""
    return time.process_time() + sum(_used.values())
