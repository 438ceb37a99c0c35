"""The clock of BPF events: CLOCK_MONOTONIC of the host, also for a process in a time namespace.

bpf_ktime_get_ns() returns the host's time. In a time namespace (since 5.6) CLOCK_MONOTONIC is
shifted by an offset that is fixed before the first process enters the namespace.
"""

from __future__ import annotations

import ctypes
import os
import re
import struct
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from netbpf.system.syscalls import bpf, load_program, timer_until_set

_FIRST_NAMESPACE = 0xEFFFFFFA  # PROC_TIME_INIT_INO of include/linux/proc_ns.h
_SCHED_CLS = 3  # BPF_PROG_TYPE_SCHED_CLS: it may write to the packet of a test run
_TEST_RUN = 10  # BPF_PROG_TEST_RUN
_TRIALS = 8
_TOLERANCE = 1_000_000  # ns between the measured shift and the one in /proc


def kernel_ns() -> int:
    """Return CLOCK_MONOTONIC of the host in ns, comparable to bpf_ktime_get_ns()."""
    return time.monotonic_ns() - namespace_shift()


@lru_cache(maxsize=1)
def namespace_shift() -> int:
    """Return how far (ns) this process's CLOCK_MONOTONIC is ahead of the host's."""
    with suppress(OSError):
        if os.stat("/proc/self/ns/time").st_ino == _FIRST_NAMESPACE:
            return 0
        listed = _listed_shift(Path("/proc/self/timens_offsets").read_text())
        return select_shift(listed, _measured_shift())
    return 0  # the kernel has no time namespaces


def _listed_shift(text: str) -> int:
    # "monotonic  500000  0": seconds and nanoseconds. In 5.6 and 5.7 the name is a number.
    match = re.search(r"^(?:monotonic|1)\s+(-?[0-9]{1,19})\s+([0-9]{1,9})$", text, re.M | re.A)
    return int(match[1]) * 10**9 + int(match[2]) if match else 0


def select_shift(listed: int, measured: int | None) -> int:
    """Return the exact shift from the one listed in /proc and a measured one (None if it failed).

    /proc/self/timens_offsets is for the namespace of children. Before 6.3 a program started by
    unshare(1) is still in the host's namespace, so the measured shift decides.
    """
    if measured is None:
        return listed
    close = (shift for shift in (listed, 0) if abs(shift - measured) <= _TOLERANCE)
    return next(close, measured)


def _measured_shift() -> int | None:
    try:
        program = load_program(_SCHED_CLS, _code(), "clock")
    except OSError:
        return None
    try:
        # The shortest trial was interrupted least.
        return min(_trials(program))[1]
    except (OSError, ValueError):
        return None
    finally:
        os.close(program)


def _trials(program: int) -> Iterator[tuple[int, int]]:
    packet = ctypes.create_string_buffer(64)
    # union bpf_attr: prog_fd, retval, data_size_in, data_size_out, data_in, data_out, repeat ...
    request = struct.pack(
        "=IIIIQQII", program, 0, 64, 64, ctypes.addressof(packet), ctypes.addressof(packet), 0, 0
    )
    for _ in range(_TRIALS):
        before = time.monotonic_ns()
        bpf(_TEST_RUN, request)
        after = time.monotonic_ns()
        host = int(struct.unpack_from("=Q", packet.raw)[0])
        yield after - before, (before + after) // 2 - host


def _code() -> bytes:
    # The packet's first 8 bytes = bpf_ktime_get_ns().
    program = (
        (0xBF, 6, 1, 0, 0),  # r6 = r1, the packet
        (0x85, 0, 0, 0, 5),  # bpf_ktime_get_ns()
        (0x7B, 10, 0, -8, 0),  # *(u64 *)(r10 - 8) = r0
        (0xBF, 1, 6, 0, 0),  # r1 = r6
        (0xB7, 2, 0, 0, 0),  # at offset 0
        (0xBF, 3, 10, 0, 0),
        (0x07, 3, 0, 0, -8),  # from r10 - 8
        (0xB7, 4, 0, 0, 8),  # 8 bytes
        (0xB7, 5, 0, 0, 0),  # no flags
        (0x85, 0, 0, 0, 9),  # bpf_skb_store_bytes()
        (0xB7, 0, 0, 0, 0),
        (0x95, 0, 0, 0, 0),  # return 0
    )
    return b"".join(
        struct.pack("=BBhi", op, source << 4 | target, offset, value)
        for op, target, source, offset, value in program
    )


class StepAlarm:
    """A descriptor that becomes readable when the wall clock is set or the machine resumes."""

    def __init__(self) -> None:
        """Create the timer; `fd` is -1 if that fails."""
        self.fd = -1
        with suppress(OSError):
            self.fd = timer_until_set()

    def clear(self) -> None:
        """Consume a step, so that the descriptor waits for the next one."""
        if self.fd >= 0:
            with suppress(OSError):  # ECANCELED: the clock was set; EAGAIN: it was not
                os.read(self.fd, 8)

    def close(self) -> None:
        """Close the descriptor."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
