"""What options say of other options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from netbpf.declare.options import Option
from netbpf.errors import UsageError


def imply(options: Sequence[Option], settings: dict[str, Any], given: Mapping[str, Any]) -> None:
    """Change the settings that options which were given set; UsageError if one was given, too."""
    known = {one.name: one for one in options if given.get(one.name) not in (None, one.default)}
    for option in known.values():
        for name, value in option.sets.items():
            if name in known and settings[name] != value:
                both = f"{option.flags[-1]} and {known[name].flags[-1]}"
                raise UsageError(f"{both} exclude each other", "give one of them")
        settings.update(option.sets)
