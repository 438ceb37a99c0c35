"""The filter of process names: a glob as a bit-parallel automaton, which a BPF program steps.

What a pattern decides is in numbers that are set when the program is loaded and in a map, so that
another pattern needs no other program.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from typing import NamedTuple

from netbpf.declare.constants import load_constant
from netbpf.declare.options import COMM_TOKEN

MAP = "comm_tokens"  # see filter.bpf.h
_CHARACTERS = range(256)


class CommAutomaton(NamedTuple):
    """Bit k of `tokens[c]`: the k-th token matches the character c.

    Bit k of `stars`: a star precedes the k-th token. `length` is the number of tokens.
    """

    tokens: tuple[int, ...]
    stars: int
    length: int

    @classmethod
    def of(cls, glob: str) -> CommAutomaton:
        """Return the automaton of a glob of `fnmatch`: *, ?, [abc], [a-z], [!abc]."""
        tests: list[Callable[[int], bool]] = []
        stars = 0
        for part in COMM_TOKEN.findall(glob):
            if part == "*":
                stars |= 1 << len(tests)
            else:
                tests.append(_test(part))
        tokens = tuple(sum(test(c) << k for k, test in enumerate(tests)) for c in _CHARACTERS)
        return cls(tokens, stars, len(tests))

    def defines(self) -> list[str]:
        """Return the C lines of the filter."""
        return [
            f"#define FILTER_COMM_STARS {load_constant(self.stars)}",
            f"#define FILTER_COMM_LENGTH {load_constant(self.length)}",
        ]

    def table(self) -> bytes:
        """Return the value of the map's only entry."""
        return struct.pack("=256I", *self.tokens)


def _test(part: str) -> Callable[[int], bool]:
    if part == "?":
        return lambda c: True
    if len(part) == 1:
        return lambda c: c == ord(part)
    negated = part[1] == "!"
    inside = part[2:-1] if negated else part[1:-1]
    pairs = re.findall(r"(.)(?:-(.))?", inside, re.DOTALL)
    ranges = [(ord(first), ord(last or first)) for first, last in pairs]
    return lambda c: any(low <= c <= high for low, high in ranges) is not negated
