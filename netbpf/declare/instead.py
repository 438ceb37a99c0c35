"""Names of other tools that are neither a tool nor an alias here, and what to type instead."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pkgutil import iter_modules

from netbpf.declare.tool import tool_names
from netbpf.errors import did_you_mean


def instead() -> dict[str, tuple[str, str, str]]:
    """Return {name: (suite, arguments of netbpf, what they show)}, from netbpf.aliases."""
    found: dict[str, tuple[str, str, str]] = {}
    package = import_module("netbpf.aliases")
    for module in sorted(one.name for one in iter_modules(package.__path__)):
        loaded = import_module(f"netbpf.aliases.{module}")
        for name, (words, shown) in getattr(loaded, "INSTEAD", {}).items():
            found[name] = (loaded.SUITE, words, shown)
    return dict(sorted(found.items()))


def hint_for(name: str, commands: Sequence[str]) -> str:
    """Return what to type instead of `name`; `commands` are those that there are."""
    if name in (known := instead()):
        suite, words, shown = known[name]
        return f"{name} of {suite} has no counterpart; 'netbpf {words}' shows {shown}"
    return f"{did_you_mean(name, commands)}tools: {', '.join(tool_names())}"
