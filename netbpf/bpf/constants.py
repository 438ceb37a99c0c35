"""Numbers that are put into compiled programs: AT_LOAD() in the C text, by their places.

What is compiled knows only the place of a number: an instruction loads 64 bits, the upper half of
which says that it is one, and the lower half which.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence

from netbpf.bpf.object import constant_loads

# As in AT_LOAD(): "nbpf". No program has another constant that begins so.
_MARK = 0x6E627066
_PLACES = 256  # two hexadecimal digits
_HALVES = struct.Struct("=I4xI")  # imm of an instruction, and of the one that follows it
_NUMBER = re.compile(r"\bAT_LOAD\((\d+)\)")


def take_numbers(text: str) -> tuple[str, list[int]]:
    """Return C text with places instead of the numbers in AT_LOAD(), and the numbers by place.

    Equal numbers have places of their own, or what is compiled would depend on which are equal.
    Where there are too many, the rest are constants for the compiler.
    """
    numbers: list[int] = []

    def place(found: re.Match[str]) -> str:
        if len(numbers) == _PLACES:
            return f"{found[1]}ULL"
        numbers.append(int(found[1]))
        return f"AT_LOAD({len(numbers) - 1:02x})"

    return _NUMBER.sub(place, text), numbers


def with_numbers(code: bytes, numbers: Sequence[int]) -> bytes:
    """Return instructions with the numbers in their places; IndexError if one is not given."""
    changed = bytearray(code)
    for offset in constant_loads(code):
        place, mark = _HALVES.unpack_from(code, offset)
        if mark == _MARK:
            number = numbers[place]
            _HALVES.pack_into(changed, offset, number & 0xFFFFFFFF, number >> 32)
    return bytes(changed)
