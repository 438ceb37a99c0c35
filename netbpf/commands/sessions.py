"""The commands that run several tools in one process."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from shlex import quote
from typing import Any, Callable, Optional

import click

from netbpf.commands.tools import CONTEXT, parsed
from netbpf.declare.options import LIMITS
from netbpf.declare.settings import SESSION_LIMITS


def _limits(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that limit a session of several tools."""
    for option in reversed([option for option in LIMITS if option.name in SESSION_LIMITS]):
        more: dict[str, Any] = {"is_flag": not option.parse, "help": option.help}
        if option.parse:
            more = {**more, "metavar": option.metavar, "default": SESSION_LIMITS[option.name]}
        command = click.option(*option.flags, option.name, **more)(command)
    return command


@click.command(context_settings={**CONTEXT, "show_default": True})
@click.option("--json", "as_json", is_flag=True, help="print a JSON object per finding")
@click.option("--netns", metavar="PID|NAME|INODE", help="only this network namespace")
@_limits
def triage(as_json: bool, netns: Optional[str], **limits: Any) -> None:
    """Find out what is wrong with the network of this machine.

    Runs several tools together and reports problems, the most severe first: the processes that are
    hit, the evidence, what it means, and the next command.
    """
    from netbpf.triage.run import triage as look

    limits["duration"] = limits["duration"] or "15"
    filters = ["--netns", quote(netns)] if netns else []
    sys.exit(look(parsed, limits, filters, as_json))


@click.command(context_settings=CONTEXT)
@click.argument("tools", nargs=-1, required=True, metavar="TOOL...")
@_limits
def record(tools: Sequence[str], **limits: Any) -> None:
    """Run several tools in one process, and print what they show as JSON lines.

    Each TOOL is the name of a tool or an alias, or its command line in quotes:

    netbpf record tcpretrans 'soconnect -D 5432' -d 1m > incident.jsonl
    """
    from netbpf.run.together import record as record_tools

    sys.exit(record_tools([parsed(line) for line in tools], limits))
