"""Columns of name lookups: names that may be truncated, and results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Optional

from netbpf.declare.column import Converter
from netbpf.declare.columns import Enum, Text
from netbpf.declare.values import LOOKUP_RESULTS, address, clean


class LookupResult(Enum):
    """The result of a name lookup: OK or EAI_*, described in text; `none` is the text of None."""

    ctype = "s32"
    width = 14
    full = 24
    priority = 80
    whole = False
    prefix = ""

    def __init__(self, help: str, *, none: str = "still waiting", **options: Any) -> None:
        names = {number: name for number, (name, _) in LOOKUP_RESULTS.items()}
        super().__init__(help, {**names, 1: None}, **options)
        self.none = none

    def is_alert(self, value: Any) -> bool:
        """Return whether the lookup failed."""
        return value not in (None, "OK")

    def text(self, value: Any) -> str:
        """Describe the result; success is empty."""
        descriptions = dict(LOOKUP_RESULTS.values())
        return self.none if value is None else descriptions.get(value, str(value))


def is_cut(values: Mapping[str, Any], name: str = "host") -> bool:
    """Return whether the value of the column `name` is truncated."""
    return name in (values.get("truncated") or "").split(",")


class Cut(Text):
    """A string that may be truncated: the column `truncated` lists those that are."""

    def cell(self, values: Mapping[str, Any]) -> str:
        """Format the string; "..." marks a truncated one."""
        return self.text(values[self.name]) + "..." * is_cut(values, self.name)


class HostName(Cut):
    """A host name, or an address: 16 bytes, marked by a 1 in the last byte of the C member."""

    ctype = "char[256]"
    width = 28
    full = 48
    priority = 75

    def converter(self) -> Optional[Converter]:
        """Return the conversion from bytes to str."""
        return lambda raw: address(raw[:16]) if raw[-1] == 1 else clean(raw) or None
