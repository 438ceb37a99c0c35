"""Single BPF instructions, for programs too small to be compiled."""

from __future__ import annotations

import struct
import sys


def instruction(code: int, dst: int = 0, src: int = 0, off: int = 0, imm: int = 0) -> bytes:
    """Return one struct bpf_insn; DST and SRC are numbers of registers."""
    registers = src << 4 | dst if sys.byteorder == "little" else dst << 4 | src
    return struct.pack("=BBhi", code, registers, off, imm)
