"""Turn the arguments of a command line into settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Optional

from netbpf.declare.aliases import Alias
from netbpf.declare.implied import imply
from netbpf.declare.options import count, seconds
from netbpf.declare.shown import check_columns
from netbpf.declare.tool import Tool
from netbpf.errors import UsageError

# The options that limit a session of several tools, with their defaults.
SESSION_LIMITS = {
    "duration": None, "buffer": "8m", "fail_on_loss": False, "max_overhead": None,
    "ready_file": None, "btf": None, "verbose": False,
}  # fmt: skip


def settings_of(
    tool: Tool, arguments: Mapping[str, Any], alias: Optional[Alias] = None
) -> dict[str, Any]:
    """Return {option name: parsed value}; raise UsageError for an invalid argument."""
    given = alias.named(arguments) if alias else arguments
    settings: dict[str, Any] = {o.name: o.value(given.get(o.name)) for o in tool.options}
    imply(tool.options, settings, given)
    for name, parse in (("interval", seconds), ("count", count)):
        if given.get(name) is not None:
            try:
                settings[name] = parse(given[name])
            except ValueError as error:
                hint = (alias.no_interval if alias else "") or try_help((alias or tool).name)
                raise UsageError(f"{name.upper()}: {error}", hint) from None
    if tool.default_interval:
        settings.setdefault("interval", tool.default_interval)
    if tool.interval_option and "interval" in settings:
        settings[tool.interval_option] = True
    settings = alias.complete(settings, given) if alias else settings
    check_columns(tool, settings)
    return settings


def try_help(name: str = "") -> str:
    """Return the hint that names --help of a command, or of netbpf itself."""
    return f"try 'netbpf {name} --help'".replace("  ", " ")
