"""Which threads have left a call that has not returned, by their stacks."""

from __future__ import annotations

import os
import platform
from collections.abc import Collection, Sequence
from contextlib import suppress

from netbpf.system.untrusted import read_text

Stack = tuple[int, int, int, int]  # process, thread, stack pointer, address to return to

_STACK_SPAN = 1 << 20  # STACK_SPAN in include/lookups.bpf.h


def left(stacks: Sequence[Stack]) -> Collection[Stack]:
    """Return those whose threads have left their calls."""
    return [stack for stack in stacks if has_left(*stack)]


def has_left(pid: int, thread: int, sp: int, back: int) -> bool:
    """Tell whether a thread that sleeps has left the call that it made with the stack at `sp`.

    Either it sleeps higher on the stack (further away is another one: nothing is known then), or
    its return address has been overwritten. During the call that is `back`; with a uretprobe it is
    the kernel's, the first of a page. What is not overwritten yet looks like a call.
    """
    with suppress(OSError, ValueError, IndexError):
        words = read_text(f"/proc/{pid}/task/{thread}/syscall").split()
        if len(words) < 3:
            return False  # it runs
        above = int(words[-2], 16) - sp
        return 0 < above < _STACK_SPAN or (above <= 0 and _is_overwritten(pid, sp, back))
    return False


def _is_overwritten(pid: int, sp: int, back: int) -> bool:
    if platform.machine() != "x86_64":
        return False  # elsewhere the return address is in a register first
    memory = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
    try:
        found = int.from_bytes(os.pread(memory, 8, sp), "little")
        return found != back and found & 0xFFF != 0
    finally:
        os.close(memory)
