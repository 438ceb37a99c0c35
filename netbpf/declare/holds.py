"""Columns about data that a socket holds back."""

from __future__ import annotations

import math
from typing import Any

from netbpf.declare.columns import Count, Text


class Setting(Text):
    """The bits of a socket's setting; in text by the names of the options that set them."""

    width = 26

    def text(self, value: Any) -> str:
        """Return "default", "TCP_NODELAY", "TCP_NODELAY+TCP_CORK" and so on."""
        options = {"ON": "default", "OFF": "TCP_NODELAY", "CORK": "TCP_CORK", "PUSH": "push"}
        return "+".join(options[word] for word in value.split("+"))


class Advice(Text):
    """What the program should do."""

    def text(self, value: Any) -> str:
        """Return a short form."""
        return "TCP_NODELAY/writev" if value else "-"


class Bound(Count):
    """Microseconds, the upper bound of a bucket."""

    def text(self, value: Any) -> str:
        """Return "<=65.6ms": three digits, rounded up so that it stays a bound."""
        if value is None:
            return "-"
        scale, unit = next((s, u) for s, u in _UNITS if value < 1000 * s or s == _UNITS[-1][0])
        digits = max(0, 3 - len(str(value // scale)))
        return f"<={math.ceil(value * 10**digits / scale) / 10**digits:g}{unit}"


_UNITS = ((1, "us"), (1000, "ms"), (1000000, "s"))
