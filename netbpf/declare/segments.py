"""TCP segments: their direction and flags, and the filters of these."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Optional

from netbpf.declare.columns import Column, Converter, Enum
from netbpf.declare.constants import device_filter, load_constant

DIRECTIONS = {0: "tx", 1: "rx"}
LETTERS = "FSRPAUEC"  # FIN, SYN, RST, PSH, ACK, URG, ECE, CWR: bit 0 to 7 (RFC 9293, 3.1)


class Direction(Enum):
    """Whether a segment is sent (tx) or received (rx); in text an arrow, as from left to right."""

    width = 2
    priority = 61  # both ends without it say nothing

    def __init__(self, help: str, **more: Any) -> None:
        super().__init__(help, DIRECTIONS, **more)

    def text(self, value: Any) -> str:
        """Return "->" or "<-"."""
        return {"tx": "->", "rx": "<-"}.get(value) or super().text(value)


class TcpFlags(Column):
    """The flags of a TCP header: a letter each, such as "SA" for SYN and ACK."""

    ctype = "u8"
    width = 5
    priority = 62
    whole = True
    json_type = "string"

    def converter(self) -> Optional[Converter]:
        """Return the conversion from bits to letters."""
        return lambda raw: "".join(letter for bit, letter in enumerate(LETTERS) if raw >> bit & 1)


def flags(text: str) -> list[int]:
    """Parse "S,FA" into numbers whose bits must all be set in a segment: of one of them."""
    numbers = []
    for word in text.upper().split(","):
        if not re.fullmatch(f"[{LETTERS}]+", word):
            raise ValueError(f"'{word}' is not made of the letters {LETTERS}")
        numbers.append(sum(1 << LETTERS.index(letter) for letter in set(word)))
    return numbers


def constants(settings: Mapping[str, Any]) -> dict[str, object]:
    """Return the C constants of the filters --interface, --flags and --dir."""
    found: dict[str, object] = {**device_filter(settings["interface"])}
    if settings["flags"]:
        wanted = [load_constant(number) for number in dict.fromkeys(settings["flags"])]
        tests = " || ".join(f"((f) & {number}) == {number}" for number in wanted)
        found["FILTER_FLAGS(f)"] = f"({tests})"
    if settings["dir"]:
        found["ONLY_DIR"] = f"DIR_{settings['dir'].upper()}"
    return found
