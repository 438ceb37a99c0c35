"""Base class of columns: C type, text layout, decoding, null value."""

from __future__ import annotations

import struct
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any, Callable, Optional, Union

from netbpf.declare.batch import Memo

Converter = Callable[[Any], Any]

# C type -> (struct format, alignment in bytes); byte arrays are decoded as bytes objects.
_SCALARS = {
    "u64": ("Q", 8),
    "s64": ("q", 8),
    "u32": ("I", 4),
    "s32": ("i", 4),
    "u16": ("H", 2),
    "s16": ("h", 2),
    "u8": ("B", 1),
}

_PREFERRED = 72  # priority of the column that rows are sorted by


class Column:
    """A number, and the base class of all other columns.

    `ctype` is the type of the C member ("u64", "char[16]"; "" for a value computed in user space),
    `cstruct` the name of a C struct that replaces a byte array, `null` the raw value that means
    "unknown". `wide` columns are in text only with -w, those with `option` only if that option is
    given, those with `text=False` never. `header` is the heading (default: the name in upper case),
    `width` the usual width in characters, `full` the width where the line has room, if larger.
    `unit` is the unit of the value, `text_unit` that of the text if different. `over` is how a
    column of an aggregation is computed from events, see `netbpf.declare.aggregation`.

    If a line does not fit the terminal, the columns of the lowest `priority` are left out, `wide`
    ones before the others; if it has room, wide columns of the highest priority are added. Numbers
    and columns that are `whole` are never cut, all others are cut before a column is left out.
    `below` text is lines under the row. `alert` lists values that text shows in red on a terminal;
    True is any value except 0 and None.
    """

    ctype = "u32"
    cstruct = ""
    width = 8
    full = 0
    priority = 50
    whole = False
    below = False
    alert: Union[bool, Container[Any]] = False
    json_type: Any = "integer"
    unit = ""
    text_unit = ""

    def __init__(
        self,
        help: str,
        *,
        ctype: Optional[str] = None,
        width: Optional[int] = None,
        wide: bool = False,
        header: str = "",
        null: Optional[int] = None,
        text: bool = True,
        option: str = "",
        over: Any = None,
        priority: Optional[int] = None,
        alert: Union[bool, Container[Any], None] = None,
    ) -> None:
        self.help = help
        self.name = ""
        self.ctype = self.ctype if ctype is None else ctype
        if "[" in self.ctype and not self.ctype.startswith(("u8[", "char[")):
            raise ValueError(f"only byte arrays are supported, not {self.ctype}")
        self.width = self.width if width is None else width
        self.wide = wide
        self.header = header
        self.null = null
        self.in_text = text
        self.option = option
        self.over = over
        self.priority = self.priority if priority is None else priority
        self.alert = self.alert if alert is None else alert

    @property
    def is_number(self) -> bool:
        """Whether values are numbers, which text aligns to the right."""
        return self.json_type in ("integer", "number")

    @property
    def is_cut(self) -> bool:
        """Whether text that is too long for a terminal is cut."""
        return not (self.is_number or self.whole or self.below)

    @property
    def title(self) -> str:
        """The heading of the column in text."""
        return self.header or self.name.upper()

    @property
    def format(self) -> str:
        """The format of the C member for the struct module."""
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
        """Return the function from raw to decoded value, or None if they are the same."""
        null = self.null
        if null is None:
            return None
        return lambda raw: None if raw == null else raw

    def batch_converter(self) -> Optional[Callable[[Sequence[Any]], Sequence[Any]]]:
        """Return the function from raw to decoded values of many records, or None."""
        convert = self.converter()
        return Memo(convert).all if convert else None

    def text(self, value: Any) -> str:
        """Format `value` for text output."""
        return "-" if value is None else str(value)

    def cell(self, values: Mapping[str, Any]) -> str:
        """Format this column of a row; a column may combine several of the row's `values`."""
        return self.text(values[self.name])

    def is_alert(self, value: Any) -> bool:
        """Return whether `value` deserves attention."""
        if isinstance(self.alert, bool):
            return self.alert and bool(value)
        return value in self.alert

    def schema(self) -> dict[str, Any]:
        """Return the JSON Schema of the value."""
        return {"type": [self.json_type, "null"], "description": self.help}


def prefer(columns: Iterable[Column], order: str) -> None:
    """Let the column that rows are sorted by be among the last to be left out of a line."""
    for column in columns:
        if column.name == order:
            column.priority = max(column.priority, _PREFERRED)
