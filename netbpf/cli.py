"""The command line: find commands, and print errors, which no other module does."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import NoReturn, Optional

import click

from netbpf import __version__
from netbpf.commands import sessions
from netbpf.commands.tools import CONTEXT, alias_command, tool_command
from netbpf.declare.aliases import all_aliases, find_alias, resolve
from netbpf.declare.settings import settings_of as settings_of
from netbpf.declare.settings import try_help
from netbpf.declare.tool import all_tools, find_tool, tool_names
from netbpf.declare.values import escape
from netbpf.errors import NetbpfError, UsageError, did_you_mean
from netbpf.system.streams import occupy_streams


class _Tools(click.Group):
    """A group that imports a tool only when its command is run, so that startup stays fast."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        aliases = [alias.name for alias in all_aliases()]
        return sorted([*super().list_commands(ctx), *tool_names(), *aliases])

    def get_command(self, ctx: click.Context, cmd_name: str) -> Optional[click.Command]:
        command = super().get_command(ctx, cmd_name)
        alias = None if command else find_alias(cmd_name)
        if alias or cmd_name in tool_names():
            return alias_command(alias) if alias else tool_command(find_tool(cmd_name))
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


@click.group(cls=_Tools, context_settings=CONTEXT)
@click.version_option(__version__, prog_name="netbpf")
def cli() -> None:
    """Trace networking with BPF: sockets, TCP, packets and name lookups."""


cli.add_command(sessions.record)
cli.add_command(sessions.triage)


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
    """Print the JSON Schema of a tool's JSON output, or of triage's."""
    from netbpf.output.schema import schema_of

    if tool == "triage" and not as_c:
        from netbpf.triage.schema import triage_schema

        click.echo(json.dumps(triage_schema(), indent=2))
        return
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
        _fail(UsageError(message[:1].lower() + message[1:], try_help(name)), verbose)
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
    return UsageError(f"no such option: {error.option_name}", nearest + try_help(name))


def _unexpected(error: Exception) -> NetbpfError:
    text = " ".join(str(error).split()) or type(error).__name__
    hint = "this is a bug: please report it with the output of -v"
    return NetbpfError(f"{type(error).__name__}: {text}", hint)
