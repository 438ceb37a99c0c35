"""C expressions over numbers that a program is given when it is loaded, not when it is compiled.

Compiling takes ten times as long as the rest of a start. A process, a port or a namespace is
another one in each run, and must not make a program of its own.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

Range = tuple[int, int]  # first and last


def at_load(number: int) -> str:
    """Return C for a number (u64) that is put in at loading; see AT_LOAD() in netbpf.bpf.h.

    Not for sizes of maps, nor for `#if`: what they say decides what is compiled.
    """
    return f"AT_LOAD({number})"


def one_of(name: str, numbers: Iterable[int]) -> str:
    """Return C that tells whether `name` is one of the numbers."""
    return _any(f"({name}) == {at_load(number)}" for number in numbers)


def in_ranges(name: str, ranges: Iterable[Range]) -> str:
    """Return C that tells whether `name` is in one of the ranges."""
    return _any(
        f"({name}) == {at_load(low)}"
        if low == high
        else f"(({name}) >= {at_load(low)} && ({name}) <= {at_load(high)})"
        for low, high in ranges
    )


def one_of_names(low: str, high: str, names: Iterable[str]) -> str:
    """Return C that tells whether two u64 are, as they lie in memory, one of the names.

    These are those of devices: 16 bytes with the zero at the end (IFNAMSIZ).
    """
    raw = (name.encode(errors="surrogateescape") for name in names)
    pairs = [struct.unpack("=QQ", name.ljust(16, b"\0")) for name in raw]
    return _any(f"(({low}) == {at_load(a)} && ({high}) == {at_load(b)})" for a, b in pairs)


def _any(tests: Iterable[str]) -> str:
    return f"({' || '.join(tests)})"
