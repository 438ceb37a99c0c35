"""Find threads that left a traced call without returning from it, by their stacks."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from contextlib import suppress

from netbpf.system.untrusted import read_text

Stack = tuple[int, int, int, int]  # process, thread, stack pointer, address to return to

_STACK_SPAN = 1 << 20  # STACK_SPAN in include/lookups.bpf.h


def left_calls(stacks: Sequence[Stack]) -> Collection[Stack]:
    """Return the stacks whose threads have left their calls."""
    return [stack for stack in stacks if has_left(*stack)]


def has_left(pid: int, thread: int, sp: int, return_address: int) -> bool:
    """Return whether a sleeping thread has left the call that it entered with the stack at `sp`.

    It has if it sleeps higher on the same stack (beyond _STACK_SPAN it is another stack, and the
    result is False), or if its return address has been overwritten. During the call the stack holds
    `return_address`, or with a uretprobe the kernel's trampoline, which starts a page. A stack that
    is not overwritten yet counts as in the call.
    """
    with suppress(OSError, ValueError, IndexError):
        fields = read_text(f"/proc/{pid}/task/{thread}/syscall").split()
        if len(fields) < 3:
            return False  # running
        above = int(fields[-2], 16) - sp
        return 0 < above < _STACK_SPAN or (above <= 0 and _is_overwritten(pid, sp, return_address))
    return False


def _is_overwritten(pid: int, sp: int, return_address: int) -> bool:
    if os.uname().machine != "x86_64":
        return False  # elsewhere the return address is first in a register
    memory = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
    try:
        stored = int.from_bytes(os.pread(memory, 8, sp), "little")
        return stored != return_address and stored & 0xFFF != 0
    finally:
        os.close(memory)
