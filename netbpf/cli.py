"""The command line: load tools, turn options into settings, print errors.

This is the only module that imports click and the only one that prints errors.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Callable, NoReturn, Optional

import click

from netbpf import __version__
from netbpf.declare.aliases import Alias, Refused, all_aliases, extension_of, find_alias, resolve
from netbpf.declare.options import Option
from netbpf.declare.tool import Tool, all_tools, find_tool, tool_names
from netbpf.declare.values import escape
from netbpf.errors import NetbpfError, UsageError, did_you_mean
from netbpf.system.streams import occupy_streams

_NO_ARGUMENT = "\0"  # in place of the argument of a flag that has none

_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class _Tools(click.Group):
    """A group that imports a tool only when its command is run, so that startup stays fast."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        aliases = [alias.name for alias in all_aliases()]
        return sorted([*super().list_commands(ctx), *tool_names(), *aliases])

    def get_command(self, ctx: click.Context, cmd_name: str) -> Optional[click.Command]:
        command = super().get_command(ctx, cmd_name)
        alias = None if command else find_alias(cmd_name)
        if alias or cmd_name in tool_names():
            return alias_command(alias) if alias else _tool_command(find_tool(cmd_name))
        if not command:
            from netbpf.declare.instead import hint_for

            hint = hint_for(cmd_name, self.list_commands(ctx))
            raise UsageError(f"no tool named '{cmd_name}'", hint)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Tools"):
            formatter.write_dl([(tool.name, tool.summary) for tool in all_tools()])
        with formatter.section("Aliases"):
            formatter.write_dl([(alias.name, alias.same_as) for alias in all_aliases()])
        rows = [(n, c.get_short_help_str(80)) for n, c in sorted(self.commands.items())]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


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


@click.group(cls=_Tools, context_settings=_CONTEXT)
@click.version_option(__version__, prog_name="netbpf")
def cli() -> None:
    """Trace networking with BPF: sockets, TCP, packets and name lookups."""


def _tool_command(tool: Tool) -> click.Command:
    return alias_command(extension_of(tool))


def alias_command(alias: Alias) -> click.Command:
    """Return the command that runs a tool under the name and with the flags of `alias`."""
    tool = alias.tool

    def start(**arguments: Any) -> None:
        from netbpf.output.outlet import Outlet
        from netbpf.run.runner import run

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
    return _ToolCommand(alias, params=parameters, callback=start, context_settings=_CONTEXT)


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
            raise UsageError(message, _try_help(tool.name))

    more: dict[str, Any] = {"is_flag": option.parse is None, "hidden": True, "expose_value": False}
    return click.Option([*flags, option.name], callback=reject, **more)


def settings_of(
    tool: Tool, arguments: Mapping[str, Any], alias: Optional[Alias] = None
) -> dict[str, Any]:
    """Return {option name: parsed value}; raise UsageError for an invalid argument."""
    from netbpf.declare.implied import imply
    from netbpf.declare.options import count, seconds
    from netbpf.declare.shown import check_columns

    given = alias.named(arguments) if alias else arguments
    settings: dict[str, Any] = {o.name: o.value(given.get(o.name)) for o in tool.options}
    imply(tool.options, settings, given)
    for name, parse in (("interval", seconds), ("count", count)):
        if given.get(name) is not None:
            try:
                settings[name] = parse(given[name])
            except ValueError as error:
                hint = _try_help(alias.name if alias else tool.name)
                raise UsageError(f"{name.upper()}: {error}", hint) from None
    if tool.default_interval:
        settings.setdefault("interval", tool.default_interval)
    if tool.interval_option and "interval" in settings:
        settings[tool.interval_option] = True
    settings = alias.complete(settings, given) if alias else settings
    check_columns(tool, settings)
    return settings


def _try_help(name: str = "") -> str:
    return f"try 'netbpf {name} --help'".replace("  ", " ")


@cli.command("list")
def list_tools() -> None:
    """List the tools with their summaries, and the aliases."""
    aliases = all_aliases()
    width = max(map(len, [*tool_names(), *(alias.name for alias in aliases)]))
    for tool in all_tools():
        click.echo(f"{tool.name:<{width}}  {tool.summary}")
    for alias in aliases:
        click.echo(f"{alias.name:<{width}}  same as: {alias.same_as}")


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="print one JSON object")
@click.option("--btf", metavar="FILE", default="", help="read kernel types from this file")
@click.option("--record", metavar="FILE", help="record this kernel for the unit tests")
def doctor(as_json: bool, btf: str, record: Optional[str]) -> None:
    """Check which tools can run on this machine.

    Prints the probes that each tool uses, missing features and privileges, and how to fix them.
    """
    from netbpf.doctor import recording, report

    if record:
        recording.record(record, btf)
        return
    result = report.examine(btf)
    click.echo(json.dumps(result, indent=2) if as_json else report.describe(result))
    sys.exit(report.exit_code(result))


@cli.command()
@click.argument("tool")
@click.option("--c", "as_c", is_flag=True, help="print the C code generated on this kernel")
def schema(tool: str, as_c: bool) -> None:
    """Print the JSON Schema of a tool's JSON output."""
    from netbpf.output.schema import schema_of

    if as_c:
        from netbpf.kernel.inspect import LiveKernel
        from netbpf.run.program import generated_text

        click.echo(generated_text(resolve(tool), LiveKernel()))
        return
    click.echo(json.dumps(schema_of(resolve(tool)), indent=2))


@cli.command()
@click.argument("tools", nargs=-1)
def demo(tools: Sequence[str]) -> None:
    """Generate loopback traffic and trace it with each tool."""
    from netbpf.demo.show import show

    sys.exit(show([resolve(name) for name in tools] or all_tools()))


def _fail(error: NetbpfError, verbose: bool) -> NoReturn:
    from netbpf.output.screen import report

    # Messages may quote untrusted input.
    with suppress(BrokenPipeError):
        report(f"netbpf: error: {escape(error.message)}")
        if error.hint:
            report(f"hint: {escape(error.hint)}")
    if verbose:
        if error.detail:
            print(error.detail, file=sys.stderr)
        sys.excepthook(*sys.exc_info())
    sys.exit(error.exit_code)


def main(arguments: Optional[Sequence[str]] = None) -> None:
    """Run the command line and exit with 0, 1, 2, 3, 69 or 77 (see netbpf.errors)."""
    args = list(sys.argv[1:] if arguments is None else arguments)
    verbose = "-v" in args or "--verbose" in args
    try:
        occupy_streams()
        if isinstance(sys.stdout, io.TextIOWrapper):  # the locale may not encode every name
            sys.stdout.reconfigure(errors="backslashreplace")
        cli.main(args, prog_name="netbpf", standalone_mode=False)
    except NetbpfError as error:
        _fail(error, verbose)
    except click.ClickException as error:
        command = getattr(getattr(error, "ctx", None), "info_name", "") or ""
        name = "" if command == "netbpf" else command
        if isinstance(error, click.NoSuchOption):
            _fail(_no_such_option(error, name), verbose)
        message = error.format_message().rstrip(".")
        _fail(UsageError(message[:1].lower() + message[1:], _try_help(name)), verbose)
    except (KeyboardInterrupt, click.Abort):  # click has begun a new line after ^C
        sys.exit(0)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)
    except Exception as error:
        _fail(_unexpected(error), verbose)


def _no_such_option(error: click.NoSuchOption, name: str) -> UsageError:
    command = error.ctx.command if error.ctx else None
    visible = [o for o in getattr(command, "params", []) if not getattr(o, "hidden", False)]
    flags = [flag for option in visible for flag in option.opts if flag.startswith("-")]
    nearest = did_you_mean(error.option_name, [*flags, "--help"])
    return UsageError(f"no such option: {error.option_name}", nearest + _try_help(name))


def _unexpected(error: Exception) -> NetbpfError:
    text = " ".join(str(error).split()) or type(error).__name__
    hint = "this is a bug: please report it with the output of -v"
    return NetbpfError(f"{type(error).__name__}: {text}", hint)
