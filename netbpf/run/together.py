"""Several tools in one session, started by one command."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any, Optional, TextIO

from netbpf.declare.options import LIMITS, by_name
from netbpf.declare.settings import SESSION_LIMITS
from netbpf.declare.tool import Tool
from netbpf.errors import UsageError
from netbpf.run.member import Member
from netbpf.run.session import Session

Plan = tuple[Tool, Mapping[str, Any]]
_OF_SESSION = ("duration", "count", "max_events", "ready_file", "btf")


def limited(plans: Sequence[Plan], limits: Mapping[str, Any]) -> list[Plan]:
    """Return the plans with the `limits` of their session, as given on the command line.

    UsageError for a tool that is named twice, or that has a limit of its own which would end, or
    change, the whole session.
    """
    names = [tool.name for tool, _ in plans]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"{name} is given twice", "a session has each tool once")
    options = by_name(LIMITS)
    given = {name: options[name].value(limits.get(name)) for name in SESSION_LIMITS}
    for tool, settings in plans:
        for name in _OF_SESSION:
            if settings.get(name):
                raise UsageError(
                    f"{tool.name}: {_spelling(tool, name)} is for the whole session",
                    "give -d, --ready-file and --btf outside the quotes",
                )
    return [(tool, {**settings, **given}) for tool, settings in plans]


def _spelling(tool: Tool, name: str) -> str:
    option = by_name(tool.options).get(name)
    return option.flags[-1] if option else name.upper()


def record(plans: Sequence[Plan], limits: Mapping[str, Any], out: Optional[TextIO] = None) -> int:
    """Run the tools together, write what they show as JSON lines; return the exit status."""
    members = [
        Member(tool, {**settings, "output": "json"}) for tool, settings in limited(plans, limits)
    ]
    return Session(members, out or sys.stdout, confined=True).execute()
