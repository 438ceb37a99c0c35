"""Load-time constants: LOAD_CONSTANT() in the C text, patched into compiled programs.

The compiler sees only the index of a constant. The instruction that it makes loads 64 bits: the
upper half marks a load-time constant, the lower half is its index.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence

from netbpf.bpf.object import constant_loads

# "nbpf", as in LOAD_CONSTANT(). No program has another constant with this upper half.
_MARK = 0x6E627066
_MAX_CONSTANTS = 256  # the index has two hexadecimal digits
_HALVES = struct.Struct("=I4xI")  # imm of an instruction and of the next one
_NUMBER = re.compile(r"\bLOAD_CONSTANT\((\d+)\)")


def take_constants(text: str) -> tuple[str, list[int]]:
    """Return C text with an index in each LOAD_CONSTANT(), and the constants by index.

    Equal constants have separate indexes, as otherwise the compiled code would depend on which are
    equal. Constants past the 256th are compiled in.
    """
    constants: list[int] = []

    def index_of(match: re.Match[str]) -> str:
        if len(constants) == _MAX_CONSTANTS:
            return f"{match[1]}ULL"
        constants.append(int(match[1]))
        return f"LOAD_CONSTANT({len(constants) - 1:02x})"

    return _NUMBER.sub(index_of, text), constants


def with_constants(code: bytes, constants: Sequence[int]) -> bytes:
    """Return the instructions with the constants patched in; IndexError if one is missing."""
    changed = bytearray(code)
    for offset in constant_loads(code):
        index, mark = _HALVES.unpack_from(code, offset)
        if mark == _MARK:
            number = constants[index]
            _HALVES.pack_into(changed, offset, number & 0xFFFFFFFF, number >> 32)
    return bytes(changed)
