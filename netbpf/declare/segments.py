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


def flags(text: str) -> list[str]:
    """Parse "S,FA" into sets of flags: a segment passes that has all flags of one of them."""
    words = text.upper().split(",")
    for word in words:
        if not re.fullmatch(f"[{LETTERS}]+", word):
            raise ValueError(f"'{word}' is not made of the letters {LETTERS}")
    return words


def bits(letters: str) -> int:
    """Return the flags as they are in the header."""
    return sum(1 << LETTERS.index(letter) for letter in set(letters))


def constants(settings: Mapping[str, Any]) -> dict[str, object]:
    """Return the C constants of the filters --interface, --flags and --dir."""
    found: dict[str, object] = {**device_filter(settings["interface"])}
    if settings["flags"]:
        wanted = [load_constant(bits(letters)) for letters in settings["flags"]]
        tests = " || ".join(f"((f) & {number}) == {number}" for number in wanted)
        found["FILTER_FLAGS(f)"] = f"({tests})"
    if settings["dir"]:
        numbers = {word: number for number, word in DIRECTIONS.items()}
        found["ONLY_DIR"] = load_constant(numbers[settings["dir"]])
    return found
