"""Disable preemption in uprobe programs: since 6.13 they share a per-CPU stack.

Since 7d1cd70d4b16 ("bpf, x86: Support private stack in jit", 6.13) programs of this type with 64
bytes of stack or more have one stack per CPU. Uprobes run them preemptible and without the check
for recursion on a CPU, so two tasks overwrite each other's keys and values. (Seen on 7.2, where
CONFIG_PREEMPT_LAZY makes it common.) So these programs disable preemption before they use their
stack. For other kinds, which have the check, this would change nothing: tasks that waited for
preemption to be enabled run while the program still counts as active.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Callable, NamedTuple, Optional

from netbpf.bpf.object import instructions
from netbpf.errors import Unsupported

_INSTRUCTION = struct.Struct("=BBhi")  # struct bpf_insn: code, registers, off, imm
_CALL, _EXIT, _MOVE, _JUMP = 0x85, 0x95, 0xBF, 0x06  # the jump's length is in imm
_PSEUDO_CALL, _PSEUDO_KFUNC_CALL = 1, 2  # src_reg of a call: of another function, of the kernel's


class Switches(NamedTuple):
    """BTF ids of the kernel functions that disable (`off`) and enable (`on`) preemption."""

    off: int
    on: int


def find_switches(find_function: Callable[[str], int]) -> Optional[Switches]:
    """Return the ids, or None if the kernel does not have the functions.

    Added in fc7566ad0a82 ("bpf: Introduce bpf_preempt_[disable,enable] kfuncs", 6.10).
    """
    with suppress(Unsupported):  # this kernel has no BTF, only a file was given
        switches = Switches(*map(find_function, ("bpf_preempt_disable", "bpf_preempt_enable")))
        return switches if all(switches) else None
    return None


def without_preemption(code: bytes, switches: Switches) -> bytes:
    """Return the instructions of one function with preemption disabled from first to last.

    Jumps are relative, so the prepended instructions do not change them. Every exit becomes a jump
    to the common end. R6 is free at both ends: a function sets it before use.
    """
    head = _move(6, 1) + _kernel_call(switches.off) + _move(1, 6)
    tail = _move(6, 0) + _kernel_call(switches.on) + _move(0, 6) + _instruction(_EXIT)
    changed = bytearray(code)
    for offset in _exits(code):
        left = (len(code) - offset) // _INSTRUCTION.size - 1
        changed[offset : offset + _INSTRUCTION.size] = _instruction(_JUMP, imm=left)
    return head + bytes(changed) + tail


def _exits(code: bytes) -> Iterator[int]:
    for offset, operation, source in instructions(code):
        assert (operation, source) != (_CALL, _PSEUDO_CALL), "bcc makes one function of all"
        if operation == _EXIT:
            yield offset


def _move(to: int, source: int) -> bytes:
    return _instruction(_MOVE, to, source)


def _kernel_call(function: int) -> bytes:
    return _instruction(_CALL, source=_PSEUDO_KFUNC_CALL, imm=function)


def _instruction(code: int, to: int = 0, source: int = 0, imm: int = 0) -> bytes:
    registers = source << 4 | to if sys.byteorder == "little" else to << 4 | source
    return _INSTRUCTION.pack(code, registers, 0, imm)
