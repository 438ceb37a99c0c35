"""Descriptions of options, probes and exit codes that manual pages and tables share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Optional

from netbpf.declare.aliases import Alias, Mapped, Positional, Refused, Sets
from netbpf.declare.options import Option
from netbpf.declare.probes import Alternative, Probe
from netbpf.errors import EXIT_FAILURE, EXIT_LOST, EXIT_PRIVILEGE, EXIT_UNSUPPORTED, EXIT_USAGE

EXIT_STATUS = (
    ("0", "finished, or stopped by Ctrl-C, SIGTERM, SIGHUP or a closed pipe"),
    (str(EXIT_FAILURE), "failure"),
    (str(EXIT_USAGE), "invalid command line"),
    (str(EXIT_LOST), "data was lost and --fail-on-loss was given"),
    (str(EXIT_UNSUPPORTED), "not supported by this kernel or machine"),
    (str(EXIT_PRIVILEGE), "missing privileges"),
)


def describe_option(option: Option, alias: Optional[Alias] = None) -> tuple[str, str]:
    """Return (flags and argument, help and default) of an option, with the flags of `alias`."""
    argument = "|".join(option.choices) or option.metavar
    flags = [flag for flag in option.flags if not alias or flag in alias.spellings(option)]
    usage = ", ".join(flags) + (f" {argument}" if argument else "")
    default = f" (default {option.default})" if option.default else ""
    return usage, option.help + default


def describe_flags(alias: Alias) -> Iterator[tuple[str, str]]:
    """Yield (flags and argument, meaning here) of the flags that only the original has."""
    options = {option.name: option for option in alias.tool.options}
    name, positional = alias.argument
    if name:
        yield name, f"same as {options[positional].flags[-1]}: {options[positional].help}"
    for flag in alias.flags:
        flags = ", ".join(flag.flags)
        if isinstance(flag, Mapped):
            option = options[flag.option]
            usage = f"{flags} {option.metavar}".rstrip()
            same = "" if option.help.startswith("same as") else f"same as {option.flags[-1]}: "
            yield usage, same + option.help
        elif isinstance(flag, Positional):
            argument = flag.argument.upper()
            yield f"{flags} {argument}", f"same as the argument {argument}"
        elif isinstance(flag, Sets):
            yield flags, f"same as {options[flag.option].flags[-1]} {flag.value}"
        elif isinstance(flag, Refused):
            bare = len(alias.alone(flag)) < len(flag.flags)
            yield flags, f"not supported{' without an argument' if bare else ''}: {flag.hint}"
        else:
            yield flags, f"show the column {flag.column}"


def describe_alternative(alternative: Alternative, quote: str = "") -> str:
    """Return kind, targets and missing columns of an alternative; `quote` encloses each target."""
    targets = [f"{quote}{name}{quote}" for name in alternative.names]
    joint = ", " if alternative.every or alternative.how.user_space else " or "
    text = f"{alternative.how.label} {joint.join(targets)}".rstrip()
    return text + describe_missing(alternative)


def describe_missing(alternative: Alternative) -> str:
    """Return the columns that an alternative cannot fill as ", without A, B", or ""."""
    return f", without {', '.join(alternative.loses)}" if alternative.loses else ""


def _as_given(option: str) -> str:
    return "INTERVAL" if option == "interval" else f"--{option.replace('_', '-')}"


def describe_conditions(probe: Probe) -> str:
    """Return when a probe is used and what is missing without it, "" if it is always required."""
    conditions = []
    if probe.option:
        conditions.append(f"only with {_as_given(probe.option)}")
    if probe.unless:
        conditions.append(f"only without {' or '.join(map(_as_given, probe.unless.split()))}")
    if probe.with_probe:
        conditions.append(f"only if '{probe.with_probe}' uses the same kind")
    if probe.complements:
        conditions.append(f"only if '{probe.complements}' uses another kind")
    if probe.optional:
        missing = f": without it, {', '.join(probe.loses)} may be unknown" if probe.loses else ""
        conditions.append("optional" + missing)
    return "; ".join(conditions)
