"""Programs that nothing interrupts: else the kernel skips what happens meanwhile.

The kernel runs no BPF program on a CPU that is in the midst of the same program, and counts a
miss: so for fentry and fexit since they exist (5.5), for raw tracepoints since 05b24ff9b2cf ("bpf:
Prevent bpf program recursion for raw tracepoint probes", 6.1). An interrupt that brings packets in
the midst of a program so hides what they do from it. Where a task may be preempted there, it hides
what all others do until it is on again: with fentry and fexit always, with raw tracepoints since
a46023d5616e ("tracing: Guard __DECLARE_TRACE() use of __DO_TRACE_CALL() with SRCU-fast", 7.0).
With interrupts off, only the kernel's own instructions right before and after a program are left.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Callable, NamedTuple

from netbpf.errors import Unsupported

_INSTRUCTION = struct.Struct("=BBhi")  # struct bpf_insn: code, registers, off, imm
_CALL, _EXIT, _MOVE, _ADD = 0x85, 0x95, 0xBF, 0x07
_JUMP = 0x06  # its length is in imm; since 6.6, and so wherever there is a guard
_LOAD_64 = 0x18
_PSEUDO_CALL, _PSEUDO_KFUNC_CALL = 1, 2  # src_reg of a call: of another function, of the kernel's
_FLAGS_AT = -512  # from the frame pointer: the last place on the stack, free in most programs

# Functions of the kernel by what they switch off; whether they keep flags on the stack. Since
# c8e2ee1f3df0 ("bpf: Introduce support for bpf_local_irq_{save,restore}", 6.14) and fc7566ad0a82
# ("bpf: Introduce bpf_preempt_[disable,enable] kfuncs", 6.10).
_KNOWN = (
    ("interrupts", "bpf_local_irq_save", "bpf_local_irq_restore", True),
    ("preemption", "bpf_preempt_disable", "bpf_preempt_enable", False),
)


class Guard(NamedTuple):
    """What is switched off, the BTF ids of the functions for off and on, and if they keep flags."""

    what: str
    off: int
    on: int
    flags: bool


def find_guards(find_function: Callable[[str], int]) -> list[Guard]:
    """Return the guards that the kernel has, best first."""
    found = []
    with suppress(Unsupported):  # no BTF in this kernel, only in a file
        for what, off, on, flags in _KNOWN:
            guard = Guard(what, find_function(off), find_function(on), flags)
            found += [guard] if guard.off and guard.on else []
    return found


def guarded(code: bytes, guard: Guard) -> bytes:
    """Return the instructions of one function with the guard around them.

    What is put before them moves all of them alike, and jumps tell distances: so they stay right.
    Every exit becomes a jump to the one end. R6 is free at both: a function sets it before use.
    """
    changed = bytearray(code)
    for offset in _exits(code):
        left = (len(code) - offset) // _INSTRUCTION.size - 1
        changed[offset : offset + _INSTRUCTION.size] = _instruction(_JUMP, imm=left)
    head = _around(1, guard.off, guard.flags)
    tail = _around(0, guard.on, guard.flags) + _instruction(_EXIT)
    return head + bytes(changed) + tail


def _around(kept: int, function: int, flags: bool) -> bytes:
    """Call a function of the kernel, after which the register `kept` is what it was."""
    place = _instruction(_MOVE, 1, 10) + _instruction(_ADD, 1, imm=_FLAGS_AT)
    call = _instruction(_CALL, source=_PSEUDO_KFUNC_CALL, imm=function)
    return _instruction(_MOVE, 6, kept) + place * flags + call + _instruction(_MOVE, kept, 6)


def _exits(code: bytes) -> Iterator[int]:
    offset = 0
    while offset < len(code):
        operation, registers, _, _ = _INSTRUCTION.unpack_from(code, offset)
        source = registers >> 4 if sys.byteorder == "little" else registers & 15
        assert (operation, source) != (_CALL, _PSEUDO_CALL), "bcc makes one function of all"
        if operation == _EXIT:
            yield offset
        offset += _INSTRUCTION.size * (2 if operation == _LOAD_64 else 1)


def _instruction(code: int, to: int = 0, source: int = 0, imm: int = 0) -> bytes:
    registers = source << 4 | to if sys.byteorder == "little" else to << 4 | source
    return _INSTRUCTION.pack(code, registers, 0, imm)
