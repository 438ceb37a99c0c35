"""What every column has: a C type, a place in a line of text, a value and what is not known."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any, Callable, Optional

Converter = Callable[[Any], Any]

# C type -> (struct format, alignment in bytes); arrays of bytes are decoded as one bytes object.
_SCALARS = {
    "u64": ("Q", 8),
    "s64": ("q", 8),
    "u32": ("I", 4),
    "s32": ("i", 4),
    "u16": ("H", 2),
    "s16": ("h", 2),
    "u8": ("B", 1),
}


class Column:
    """A number, and the base of all other meanings.

    `ctype` is the C member's type ("u64", "char[16]"; "" for a value made in user space), `cstruct`
    the name of a C struct of bytes that stands for an array, `null` the raw value that means "not
    known", `wide` hides the column from text unless -w is given, `header` is the text heading (the
    upper-case name if empty), `width` its width in characters, `full` the width with -w if that is
    more. `unit` is the value's unit, `text_unit` that of the text where it is another one. With
    `option`, text has the column only if that option of the tool is given. `over` is how the column
    of an aggregation follows from events, see `netbpf.declare.aggregation`.
    """

    ctype = "u32"
    cstruct = ""
    width = 8
    full = 0
    align = "<"
    json_type: Any = "integer"
    unit = ""
    text_unit = ""

    def __init__(
        self,
        help: str,  # noqa: A002 - the word every option parser uses
        *,
        ctype: Optional[str] = None,
        width: Optional[int] = None,
        wide: bool = False,
        header: str = "",
        null: Optional[int] = None,
        text: bool = True,
        option: str = "",
        over: Any = None,
    ) -> None:
        self.help = help
        self.name = ""
        self.ctype = self.ctype if ctype is None else ctype
        if "[" in self.ctype and not self.ctype.startswith(("u8[", "char[")):
            raise ValueError(f"only arrays of bytes can be decoded, not {self.ctype}")
        self.width = self.width if width is None else width
        self.wide = wide
        self.header = header
        self.null = null
        self.in_text = text
        self.option = option
        self.over = over

    @property
    def title(self) -> str:
        """The heading in text output."""
        return self.header or self.name.upper()

    @property
    def format(self) -> str:
        """The column's code in Python's struct module."""
        if "[" in self.ctype:
            return self.ctype.partition("[")[2][:-1] + "s"
        return _SCALARS[self.ctype][0]

    @property
    def c_member(self) -> str:
        """The declaration of the C member."""
        kind, bracket, length = self.ctype.partition("[")
        return f"{self.cstruct or kind} {self.name}" + ("" if self.cstruct else bracket + length)

    @property
    def alignment(self) -> int:
        """Alignment of the C member in bytes."""
        return 1 if "[" in self.ctype else _SCALARS[self.ctype][1]

    @property
    def size(self) -> int:
        """Size of the C member in bytes."""
        return struct.calcsize("=" + self.format)

    def converter(self) -> Optional[Converter]:
        """Return the function from raw to value, or None where the raw value is the value."""
        null = self.null
        if null is None:
            return None
        return lambda raw: None if raw == null else raw

    def text(self, value: Any) -> str:
        """Return `value` as a person reads it."""
        return "-" if value is None else str(value)

    def cell(self, values: Mapping[str, Any]) -> str:
        """Return this column's text in a line of `values`, of which it may join several."""
        return self.text(values[self.name])

    def schema(self) -> dict[str, Any]:
        """Return the JSON Schema of the value."""
        return {"type": [self.json_type, "null"], "description": self.help}
