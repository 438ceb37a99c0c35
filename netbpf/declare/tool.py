"""A tool is a declaration: this is what it is made of."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from pkgutil import iter_modules
from typing import Any, Callable, Optional, Union

from netbpf.declare.aggregation import Aggregation
from netbpf.declare.columns import Pid
from netbpf.declare.docs import written
from netbpf.declare.histogram import Histogram
from netbpf.declare.options import EVENT_LIMITS, FILTERS, LIMITS, OUTPUT, PROCESS, Option
from netbpf.declare.owners import OWNER_OPTIONS, OWNER_PROBES
from netbpf.declare.probes import Probe
from netbpf.declare.record import Event, Record
from netbpf.declare.table import Table
from netbpf.errors import UsageError

Hook = Callable[..., Any]


class Tool:
    """One tool: its manual, its probes, what it yields, and its options.

    `doc` is the module's docstring: `name - summary`, then sections in capitals. `event`,
    `histogram` and `table` (one or several) say what the tool yields; with `event_option`, events
    only if that option is given. `interval_counters` are kernel counters to show with each
    interval. `options` are the tool's own and the shared filters that it honours; `no_filter` says
    why the others make no sense. `counters` are the kernel's own counters ("Tcp.RetransSegs") that
    speak of the same thing. `owners` adds the shared probes that know who owns a socket.
    `summary_fields` maps fields that the tool adds to the summary to their JSON Schema. `maps` are
    BPF maps that a hook reads. `constants` maps settings to C constants, `hooks` are the few named
    places where a tool needs code: see `netbpf.run.runner`. With `show_time`, text shows the wall
    clock even without -T; with `show_time="seconds"` without a fraction then. `totals` is a record
    of sums (u64) in the per-CPU array `totals`, for the summary. `refresh_owners` is a column of
    the events that is "yes" if there is a socket: if its owner is unknown, the snapshot of owners
    is taken again. With `events_unless`, there are no events if that option is given.

    `pending` names a BPF map whose values begin with an event that has begun and not ended, its
    time being the start, and the column for the age: these are shown at each interval and at the
    end. `watch` names the module of `netbpf.run` whose class `Watch`, a shape that writes nothing,
    finds the targets of the tool's user-space probes while it runs.

    `aggregation` makes rows per interval of the events, if its option is given.
    """

    def __init__(
        self,
        doc: Optional[str],
        *,
        probes: Sequence[Probe],
        event: Optional[type[Event]] = None,
        histogram: Optional[Histogram] = None,
        options: Sequence[Option] = (),
        no_filter: str = "",
        counters: Sequence[str] = (),
        owners: bool = False,
        interval: bool = False,
        constants: Optional[Callable[[Mapping[str, Any]], Mapping[str, object]]] = None,
        hooks: Optional[Mapping[str, Hook]] = None,
        maps: Sequence[str] = (),
        summary_fields: Optional[Mapping[str, Any]] = None,
        table: Union[Table, Sequence[Table], None] = None,
        event_option: str = "",
        interval_counters: Sequence[str] = (),
        show_time: Union[bool, str] = False,
        pending: Optional[tuple[str, str]] = None,
        watch: str = "",
        totals: Optional[type[Record]] = None,
        refresh_owners: str = "",
        events_unless: str = "",
        aggregation: Optional[Aggregation] = None,
    ) -> None:
        self.doc = written(doc, str(sys._getframe(1).f_globals.get("__file__", "")))
        head = self.doc.partition("\n")[0]
        self.name, _, self.summary = head.partition(" - ")
        self.probes = tuple(probes)
        self.event = event
        self.histogram = histogram
        self.own_options = (*options, *(OWNER_OPTIONS if owners else ()))
        self.no_filter = no_filter
        self.counters = tuple(counters)
        self.owners = owners
        self.interval = interval or bool(histogram or table)
        self.constants = constants
        self.hooks = dict(hooks or {})
        self.maps = tuple(maps)
        self.summary_fields = dict(summary_fields or {})
        self.tables = (table,) if isinstance(table, Table) else tuple(table or ())
        self.table = self.tables[0] if self.tables else None
        self.event_option = event_option
        self.interval_counters = tuple(interval_counters)
        self.show_time = show_time
        self.totals = totals
        self.refresh_owners = refresh_owners
        self.events_unless = events_unless
        self.pending = pending
        self.watch = watch
        self.aggregation = aggregation

    @property
    def all_probes(self) -> tuple[Probe, ...]:
        """The tool's own probes and the shared ones, those of options that are off included."""
        if not self.owners:
            return self.probes
        follows = any(probe.name == "state" for probe in self.probes)
        return (
            *self.probes,
            *(p for p in OWNER_PROBES if not (follows and p.name == "owner_state")),
        )

    @property
    def records(self) -> list[type[Record]]:
        """The records that C fills: of events, and of the keys and values of maps."""
        found: list[Optional[type[Record]]] = [self.event]
        if self.histogram and self.histogram.map:
            found += [self.histogram.key, self.histogram.extra]
        found += [record for table in self.tables for record in (table.key, table.sums)]
        return [record for record in found if record]

    @property
    def options(self) -> tuple[Option, ...]:
        """All options that the tool honours; its own stand in for shared ones of that name."""
        own = {option.name for option in self.own_options}
        shared = (*OUTPUT, *LIMITS, *(EVENT_LIMITS if self.event else ()))
        return (*(option for option in shared if option.name not in own), *self.own_options)

    @property
    def refused(self) -> tuple[Option, ...]:
        """Common options that make no sense for this tool: a usage error, never ignored."""
        honoured = {option.name for option in self.options}
        everything = (*EVENT_LIMITS, *FILTERS)
        return tuple(option for option in everything if option.name not in honoured)

    def has_events(self, settings: Mapping[str, Any]) -> bool:
        """Tell whether the tool emits events with these settings."""
        asked = not self.event_option or settings.get(self.event_option)
        refused = self.events_unless and settings.get(self.events_unless)
        return self.event is not None and bool(asked and not refused)

    def shows_owners(self, settings: Mapping[str, Any]) -> bool:
        """Return whether filters or columns in use depend on who owns a socket."""
        records: list[type[Record]] = [table.row for table in self.tables_of(settings)]
        if self.event and self.has_events(settings):
            records.append(self.event)
        columns = [column for record in records for column in record.columns]
        return any(isinstance(column, Pid) for column in columns) or any(
            settings.get(option.name) for option in PROCESS
        )

    def tables_of(self, settings: Mapping[str, Any]) -> list[Table]:
        """Return the tables that the tool makes with these settings."""
        return [table for table in self.tables if not table.option or settings.get(table.option)]

    def sections(self) -> dict[str, str]:
        """Return {section title: text} of the manual."""
        return sections_of(self.doc)

    @property
    def refusal(self) -> str:
        """Why the tool refuses some common options, as the end of a sentence."""
        return self.no_filter or "it has nothing that this could apply to"


def sections_of(doc: str) -> dict[str, str]:
    """Return {section title: text} of a docstring whose sections have titles in capitals."""
    parts = re.split(r"^([A-Z][A-Z ]+)\n", doc, flags=re.MULTILINE)
    return {parts[i]: parts[i + 1].rstrip("\n") for i in range(1, len(parts) - 1, 2)}


def tool_names() -> list[str]:
    """Return the names of all tools: the modules of netbpf.tools."""
    package = import_module("netbpf.tools")
    return sorted(module.name for module in iter_modules(package.__path__))


def find_tool(name: str) -> Tool:
    """Return the tool `name`; an unknown name is a UsageError that lists what there is."""
    if name not in tool_names():
        raise UsageError(f"no tool named '{name}'", f"tools: {', '.join(tool_names())}")
    tool = import_module(f"netbpf.tools.{name}").TOOL
    assert isinstance(tool, Tool)
    return tool


def all_tools() -> list[Tool]:
    """Return every tool, by name."""
    return [find_tool(name) for name in tool_names()]
