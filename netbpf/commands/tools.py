"""The commands of tools and aliases."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, Callable

import click

from netbpf.declare.aliases import Alias, Refused, extension_of, find_alias
from netbpf.declare.options import Option
from netbpf.declare.settings import settings_of, try_help
from netbpf.declare.tool import Tool, find_tool
from netbpf.errors import UsageError

_NO_ARGUMENT = "\0"  # in place of the argument of a flag that has none

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class _ToolCommand(click.Command):
    """The command of a tool or of an alias, whose --help prints the manual."""

    def __init__(self, alias: Alias, **attributes: Any) -> None:
        super().__init__(alias.name, **attributes)
        self.alias = alias

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, [*self.alias.args, *args])

    def get_help(self, ctx: click.Context) -> str:
        from netbpf.docs.alias_manual import alias_text
        from netbpf.docs.manual import manual_text

        named = self.alias.name == self.alias.tool_name
        return manual_text(self.alias.tool) if named else alias_text(self.alias)


def tool_command(tool: Tool) -> click.Command:
    """Return the command that runs a tool under its own name."""
    return alias_command(extension_of(tool))


def alias_command(alias: Alias) -> click.Command:
    """Return the command that runs a tool under the name and with the flags of `alias`."""
    tool = alias.tool

    def start(**arguments: Any) -> None:
        from netbpf.output.outlet import Outlet
        from netbpf.run.session import run

        settings = settings_of(tool, arguments, alias)
        if sys.stderr is sys.__stderr__:
            # A stalled reader of stderr must not block the run.
            sys.stderr = Outlet(2, sys.stderr.encoding, messages=True)
        sys.exit(run(tool, settings))

    options = [option for option in tool.options if alias.spellings(option)]
    parameters: list[click.Parameter] = [_parameter(option, alias) for option in options]
    parameters += [_unsupported(alias, option) for option in tool.unsupported_options]
    parameters += [_switch(flag.flags, flag.name) for flag in alias.switches()]
    parameters += [click.Option([*f.flags, f.name], hidden=True) for f in alias.positionals()]
    parameters += [_rejected(alias, refused) for refused in alias.refused() if alias.alone(refused)]
    for name in alias.arguments:
        parameters.append(click.Argument([name], required=False))
    return _ToolCommand(alias, params=parameters, callback=start, context_settings=CONTEXT)


def _switch(flags: Sequence[str], name: str) -> click.Option:
    return click.Option([*flags, name], is_flag=True, hidden=True)


def _parameter(option: Option, alias: Alias) -> click.Option:
    names = [*alias.spellings(option), option.name]
    if option.choices:
        kind = click.Choice(option.choices)
        return click.Option(names, type=kind, default=option.default, help=option.help)
    if not option.parse:
        return click.Option(names, is_flag=True, help=option.help)
    more: dict[str, Any] = {}
    if refused := alias.refused_without_argument(option):
        callback = _reject(alias, refused, _NO_ARGUMENT)
        more = {"is_flag": False, "flag_value": _NO_ARGUMENT, "callback": callback}
    return click.Option(
        names, metavar=option.metavar, default=option.default, help=option.help, **more
    )


def _rejected(alias: Alias, refused: Refused) -> click.Option:
    """Return an option with an optional argument that is a usage error."""
    return click.Option(
        [*alias.alone(refused), refused.name], is_flag=False, flag_value=_NO_ARGUMENT, hidden=True,
        expose_value=False, callback=_reject(alias, refused),
    )  # fmt: skip


def _reject(alias: Alias, refused: Refused, only: str = "") -> Callable[..., Any]:
    def reject(ctx: click.Context, parameter: click.Parameter, value: Any) -> Any:
        if value == only if only else value is not None:
            raise UsageError(alias.refusal(refused, bool(only)), refused.hint)
        return value

    return reject


def _unsupported(alias: Alias, option: Option) -> click.Option:
    tool, flags = alias.tool, [flag for flag in option.flags if flag not in alias.own_flags]

    def reject(ctx: click.Context, parameter: click.Parameter, value: Any) -> None:
        if value:
            message = f"{tool.name} has no {flags[-1]}: {tool.unsupported_reason}"
            raise UsageError(message, try_help(tool.name))

    more: dict[str, Any] = {"is_flag": option.parse is None, "hidden": True, "expose_value": False}
    return click.Option([*flags, option.name], callback=reject, **more)


def parsed(line: str) -> tuple[Tool, dict[str, Any]]:
    """Return the tool of a command line such as "tcplife -L 443", and its settings."""
    from shlex import split

    try:
        name, *words = split(line) or [""]
    except ValueError as error:
        raise UsageError(f"'{line}' is not a command line: {str(error).lower()}") from None
    alias = find_alias(name) or extension_of(find_tool(name))
    context = alias_command(alias).make_context(name, words)
    return alias.tool, settings_of(alias.tool, context.params, alias)
