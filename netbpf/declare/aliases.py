"""Aliases: names of other tools, which run a tool of netbpf with settings and columns of theirs."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from copy import copy
from functools import cached_property
from importlib import import_module
from pkgutil import iter_modules
from typing import Any, Optional, Union

from netbpf.declare.column import Column
from netbpf.declare.options import Option
from netbpf.declare.tool import Tool, find_tool


class Shown:
    """The text column `name` under the heading `header`, formatted as a column of class `like`."""

    def __init__(
        self, name: str, header: str = "", width: int = 0, like: Optional[type[Column]] = None
    ) -> None:
        self.name = name
        self.header = header
        self.width = width
        self.like = like

    def column(self, original: Column) -> Column:
        """Return the column for text output."""
        column = self.like(original.help) if self.like else copy(original)
        column.name = original.name
        column.header = self.header or (column.header if not self.like else "")
        column.width = self.width or column.width
        column.width = max(column.width, len(column.title))
        return column


def _all_shown(columns: Sequence[Union[str, Shown]]) -> tuple[Shown, ...]:
    return tuple(Shown(column) if isinstance(column, str) else column for column in columns)


class Mapped:
    """Flags of the original that are other spellings of the tool's option `option`."""

    def __init__(self, *flags: str, option: str) -> None:
        self.flags = flags
        self.option = option


class Positional:
    """Flags of the original that have the value of the tool's positional argument `argument`."""

    def __init__(self, *flags: str, argument: str) -> None:
        self.flags = flags
        self.argument = argument
        self.name = f"positional_{argument}"


class Shows:
    """Flags of the original, switches that add the text column `column`."""

    def __init__(self, *flags: str, column: str) -> None:
        self.flags = flags
        self.column = column
        self.name = "shows_" + column


class Sets:
    """Flags of the original, switches that set the tool's `option` to `value`.

    Text output has then `columns`, unless the option is given with another value.
    """

    def __init__(
        self, *flags: str, option: str, value: str, columns: Sequence[Union[str, Shown]] = ()
    ) -> None:
        self.flags = flags
        self.option = option
        self.value = value
        self.columns = _all_shown(columns)
        self.name = f"sets_{option}_{max(flags, key=len).lstrip('-')}"


class Refused:
    """Flags of the original that netbpf does not have, or that mean something else here.

    `what` says what they do in the original, `hint` what to use instead. If the tool has an option
    with one of these flags, only the flag without an argument is the original's and is refused;
    with `always`, the flag is refused in any case.
    """

    def __init__(self, *flags: str, what: str, hint: str, always: bool = False) -> None:
        self.flags = flags
        self.what = what
        self.hint = hint
        self.always = always
        self.name = "refused_" + max(flags, key=len).lstrip("-").replace("-", "_").lower()


POSITIONAL = "positional"  # name of the original's argument on the command line
Flag = Union[Mapped, Positional, Shows, Sets, Refused]


class Alias:
    """Another name for a tool.

    `args` is the beginning of the tool's command line ("--proto udp"). `columns` are the columns of
    text output, in this order: names, or `Shown` for another heading; without them the tool's own.
    `time` shows the time of day as the original does: "seconds" is without a fraction. `flags` are
    those flags of the original that the tool does not have with the same meaning, `argument` is
    (name, option): a positional argument of the original, in place of INTERVAL and COUNT.
    `no_interval` is the hint if INTERVAL is something else that the original takes there. `notes`
    are paragraphs for the manual: where the results differ from the original's.

    An alias of the same name as its tool only adds the original's flags to it.
    """

    def __init__(
        self,
        name: str,
        tool: str,
        summary: str = "",
        args: str = "",
        *,
        columns: Sequence[Union[str, Shown]] = (),
        time: str = "",
        flags: Sequence[Flag] = (),
        argument: tuple[str, str] = ("", ""),
        no_interval: str = "",
        notes: Sequence[str] = (),
    ) -> None:
        self.name = name
        self.tool_name = tool
        self.summary = summary
        self.args = tuple(shlex.split(args))
        self.columns = _all_shown(columns)
        self.time = time
        self.flags = tuple(flags)
        self.argument = argument
        self.no_interval = no_interval
        self.notes = tuple(notes)
        self.suite = ""

    @cached_property
    def tool(self) -> Tool:
        """The tool that the alias runs."""
        return find_tool(self.tool_name)

    @property
    def same_as(self) -> str:
        """The command that the alias stands for."""
        name, option = self.argument
        more = (f"[--{option.replace('_', '-')} {name}]",) if option else ()
        return " ".join(("netbpf", self.tool_name, *map(shlex.quote, self.args), *more))

    def spellings(self, option: Option) -> tuple[str, ...]:
        """Return the flags of one of the tool's options here, with those of the original."""
        taken = [flag for refused in self.refused() if refused.always for flag in refused.flags]
        taken += [flag for one in self.positionals() for flag in one.flags]
        more = [f for m in self.flags if isinstance(m, Mapped) and m.option == option.name
                for f in m.flags]  # fmt: skip
        return (*(flag for flag in option.flags if flag not in taken), *more)

    @property
    def own_flags(self) -> set[str]:
        """The flags of the original that are not refused."""
        return {f for flag in self.flags if not isinstance(flag, Refused) for f in flag.flags}

    def refused(self) -> list[Refused]:
        """Return the flags that are usage errors."""
        return [flag for flag in self.flags if isinstance(flag, Refused)]

    def positionals(self) -> list[Positional]:
        """Return the flags that have the value of a positional argument."""
        return [flag for flag in self.flags if isinstance(flag, Positional)]

    def shows(self) -> list[Shows]:
        """Return the switches that add a text column."""
        return [flag for flag in self.flags if isinstance(flag, Shows)]

    def switches(self) -> list[Union[Shows, Sets]]:
        """Return the flags that only the original has and that take no argument."""
        return [*self.shows(), *self.sets()]

    def sets(self) -> list[Sets]:
        """Return the switches that set an option."""
        return [flag for flag in self.flags if isinstance(flag, Sets)]

    def alone(self, refused: Refused) -> tuple[str, ...]:
        """Return those of the refused flags that are a usage error with an argument as well."""
        options = {flag for option in self.tool.options for flag in self.spellings(option)}
        return tuple(flag for flag in refused.flags if flag not in options)

    def refusal(self, refused: Refused, without_argument: bool) -> str:
        """Return the message about a flag that was given."""
        alone = self.alone(refused)
        if without_argument:
            flag = next(flag for flag in refused.flags if flag not in alone)
            return f"{self.name}: {flag} needs an argument; in {self.suite} it {refused.what}"
        return f"{self.name} has no {', '.join(alone)}, which in {self.suite} {refused.what}"

    @property
    def arguments(self) -> tuple[str, ...]:
        """The names of the positional arguments."""
        if self.argument[0]:
            return (POSITIONAL,)
        return ("interval", "count") if self.tool.interval else ()

    def named(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Return `arguments` with those of the original under the names of the tool's options."""
        given = dict(arguments)
        if (value := given.pop(POSITIONAL, None)) is not None:
            given[self.argument[1]] = value
        for one in self.positionals():
            if (value := given.pop(one.name, None)) is not None:
                given[one.argument] = value
        for flag in self.sets():
            if given.get(flag.name) and given.get(flag.option) is None:
                given[flag.option] = flag.value
        return given

    def refused_without_argument(self, option: Option) -> Optional[Refused]:
        """Return what the option's flag means in the original, where it takes no argument."""
        for refused in self.refused():
            if not refused.always and set(refused.flags) & set(self.spellings(option)):
                return refused
        return None

    def complete(self, settings: dict[str, Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Return `settings` with those of the alias: its text columns and its time."""
        added = [Shown(flag.column) for flag in self.shows() if arguments.get(flag.name)]
        for flag in self.sets():
            if arguments.get(flag.name) and arguments.get(flag.option) == flag.value:
                settings["shown"] = flag.columns
                return settings
        if self.columns and ("--by" in self.args or not settings.get("by")):
            own = [shown for shown in added if shown.name not in {c.name for c in self.columns}]
            settings["shown"] = (*own, *self.columns)
        if self.time and not settings.get("time") and not settings.get("timestamp"):
            settings["time"] = self.time
        return settings


def chosen_columns(
    columns: Sequence[Column], shown: Sequence[Shown], usual: Sequence[Column], wide: bool
) -> list[Column]:
    """Return the text columns of a record whose columns are `columns`.

    They are those of `shown`, if the record has them all, and with `wide` the other ones of `usual`
    behind them; else `usual`.
    """
    named = {column.name: column for column in columns}
    if not shown or not all(one.name in named for one in shown):
        return list(usual)
    chosen = [one.column(named[one.name]) for one in shown]
    names = {column.name for column in chosen}
    return [*chosen, *(c for c in usual if wide and c.name not in names)]


def all_aliases() -> list[Alias]:
    """Return every alias, by name: the ALIASES of the modules of netbpf.aliases."""
    return sorted(_declared(extending=False), key=lambda alias: alias.name)


def find_alias(name: str) -> Optional[Alias]:
    """Return the alias `name`, or None."""
    return next((alias for alias in _declared(extending=False) if alias.name == name), None)


def extension_of(tool: Tool) -> Alias:
    """Return the declaration that adds the flags of the original of the same name to a tool."""
    declared = (alias for alias in _declared(extending=True) if alias.name == tool.name)
    alias = next(declared, None) or Alias(tool.name, tool.name)
    alias.tool = tool
    return alias


def resolve(name: str) -> Tool:
    """Return the tool of this name, or the one that the alias of this name runs."""
    alias = find_alias(name)
    return alias.tool if alias else find_tool(name)


def _declared(extending: bool) -> list[Alias]:
    found: list[Alias] = []
    package = import_module("netbpf.aliases")
    for module in sorted(one.name for one in iter_modules(package.__path__)):
        loaded = import_module(f"netbpf.aliases.{module}")
        for alias in loaded.ALIASES:
            alias.suite = loaded.SUITE
            if (alias.name == alias.tool_name) == extending:
                found.append(alias)
    return found
