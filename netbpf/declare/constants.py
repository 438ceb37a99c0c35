"""C expressions with constants that are set when a program is loaded, not when it is compiled.

Compiling takes ten times as long as the rest of a start. Processes, ports and namespaces differ in
each run, and must not require another compiled program.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterable, Mapping
from typing import Any, Optional

Range = tuple[int, int]  # first and last

_CLOCK_MONOTONIC_COARSE = 6  # its resolution is the kernel's tick


def load_constant(number: int) -> str:
    """Return C for a u64 that is patched in when the program is loaded (netbpf.bpf.h).

    Not for map sizes or `#if`, which the compiler must see.
    """
    return f"LOAD_CONSTANT({number})"


def one_of(name: str, numbers: Iterable[int]) -> str:
    """Return a C test for whether `name` is one of the numbers."""
    return _any(f"({name}) == {load_constant(number)}" for number in numbers)


def in_ranges(name: str, ranges: Iterable[Range]) -> str:
    """Return a C test for whether `name` is in one of the ranges."""
    return _any(
        f"({name}) == {load_constant(low)}"
        if low == high
        else f"(({name}) >= {load_constant(low)} && ({name}) <= {load_constant(high)})"
        for low, high in ranges
    )


def one_of_names(low: str, high: str, names: Iterable[str]) -> str:
    """Return a C test for whether two u64 hold, in memory order, one of the names of devices.

    A name has 16 bytes (IFNAMSIZ), including the terminating zero.
    """
    raw = (name.encode(errors="surrogateescape") for name in names)
    pairs = [struct.unpack("=QQ", name.ljust(16, b"\0")) for name in raw]
    return _any(
        f"(({low}) == {load_constant(a)} && ({high}) == {load_constant(b)})" for a, b in pairs
    )


def device_filter(names: Optional[Iterable[str]]) -> dict[str, str]:
    """Return the C constant of a filter of devices, which is not defined without `names`."""
    return {"FILTER_DEV(a, b)": one_of_names("a", "b", names)} if names else {}


def _any(tests: Iterable[str]) -> str:
    return f"({' || '.join(tests)})"


def tick(settings: Mapping[str, Any]) -> dict[str, object]:
    """Return the length of the kernel's tick, a jiffy, in us: many times are in ticks."""
    return {"TICK_US": round(time.clock_getres(_CLOCK_MONOTONIC_COARSE) * 1e6)}
