"""A tool is a declaration: this is what it is made of."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from pkgutil import iter_modules
from typing import Any, Callable, Optional, Union

from netbpf.declare.aggregation import Aggregation
from netbpf.declare.columns import Pid
from netbpf.declare.costs import Cost
from netbpf.declare.docs import written
from netbpf.declare.histogram import Histogram
from netbpf.declare.memory import Memory
from netbpf.declare.options import EVENT_LIMITS, FILTERS, LIMITS, OUTPUT, PROCESS, SORT, Option
from netbpf.declare.owners import OWNER_OPTIONS, owner_probes
from netbpf.declare.probes import Probe
from netbpf.declare.record import Event, Record
from netbpf.declare.table import Table
from netbpf.errors import UsageError, did_you_mean

Settings = Mapping[str, Any]  # by option name, as parsed from the command line
Values = dict[str, Any]  # of one event, by column
Notes = Sequence[str]


class Tool:
    """One tool: its manual, its probes, its results, and its options.

    `doc` is the module's docstring: `name - summary`, then sections whose titles are in capitals.

    Results. `event` declares the events. They are shown only if the option `event_option` is given,
    and not if `events_unless` is. `aggregation` makes rows of them, `histogram` a distribution;
    `table` is one or several tables of BPF maps. With `show_time`, text shows the time of day even
    without -T; with "seconds" without a fraction. `pending` is (BPF map, column): the map's values
    begin with an event that has begun, its time being the start, and the column shows its age; what
    has not ended is shown at each interval and at the end. `uprobes` names the module of
    `netbpf.run` whose class `UprobeManager` finds the targets of user-space probes.

    Beside the results. `totals` is a record of sums (u64) that C counts by TOTAL_<COLUMN>, for the
    summary. `counters` are the kernel's own counters of the same thing ("Tcp.RetransSegs"),
    `interval_counters` those to show with each interval. `memory` bounds the maps, `cost` was
    measured. `summary_fields` maps fields that the
    tool's functions add to the summary to their JSON Schema.

    Input. `options` are the tool's own and the shared filters that it honours; `no_filter` says why
    the others make no sense. `constants` maps settings to further C constants (see
    `Option.define`). `owners` adds the probes that find a socket's owner. `refresh_owners` names a
    column of events that is "yes" if there is a socket: if its owner is unknown, the snapshot of
    owners is taken again.

    Functions, each optional:
    - `enrich(values, settings)` returns an event's values completed, or None to leave it out;
    - `identity(values)` returns what two open events of one object have in common;
    - `notes(summary, settings)` returns remarks on a run;
    - `histogram_notes(histograms)` returns remarks on the histograms of an interval;
    - `kernel_constants(settings, names)` returns C constants that only the running kernel knows;
      `names` is a `netbpf.run.names.Names`;
    - `count_unseen(totals, counters, missing)` returns how many events the kernel counted that no
      program could see; `missing` are columns that the probes in use cannot fill;
    - `pending_state(ns, maps)` returns (fields, notes) about entries of `maps` that are left at the
      end, each a list of raw values;
    - `compare_devices(histograms, devices, settings)` returns (fields, notes): `devices` are
      {(netns, name): (packets received, packets sent)} by the devices' own count.
    """

    def __init__(
        self,
        doc: Optional[str],
        *,
        probes: Sequence[Probe],
        event: Optional[type[Event]] = None,
        event_option: str = "",
        events_unless: str = "",
        histogram: Optional[Histogram] = None,
        table: Union[Table, Sequence[Table], None] = None,
        aggregation: Optional[Aggregation] = None,
        totals: Optional[type[Record]] = None,
        pending: Optional[tuple[str, str]] = None,
        uprobes: str = "",
        memory: Optional[Memory] = None,
        cost: Optional[Cost] = None,
        maps: Sequence[str] = (),
        options: Sequence[Option] = (),
        no_filter: str = "",
        interval: bool = False,
        owners: bool = False,
        refresh_owners: str = "",
        show_time: Union[bool, str] = False,
        counters: Sequence[str] = (),
        interval_counters: Sequence[str] = (),
        summary_fields: Optional[Mapping[str, Any]] = None,
        constants: Optional[Callable[[Settings], Mapping[str, object]]] = None,
        kernel_constants: Optional[Callable[[Settings, Any], Mapping[str, object]]] = None,
        enrich: Optional[Callable[[Values, Settings], Optional[Values]]] = None,
        identity: Optional[Callable[[Values], object]] = None,
        notes: Optional[Callable[[Values, Settings], Notes]] = None,
        histogram_notes: Optional[Callable[[Sequence[Values]], Iterable[str]]] = None,
        count_unseen: Optional[Callable[[Mapping[str, int], Mapping[str, int], Any], int]] = None,
        pending_state: Optional[Callable[[int, Mapping[str, Any]], tuple[Values, Notes]]] = None,
        compare_devices: Optional[Callable[[Any, Any, Settings], tuple[Values, Notes]]] = None,
    ) -> None:
        self.doc = written(doc, str(sys._getframe(1).f_globals.get("__file__", "")))
        self.name, _, self.summary = self.doc.partition("\n")[0].partition(" - ")
        self.probes = tuple(probes)
        self.event = event
        self.event_option = event_option
        self.events_unless = events_unless
        self.histogram = histogram
        self.tables = (table,) if isinstance(table, Table) else tuple(table or ())
        self.aggregation = aggregation
        self.totals = totals
        self.pending = pending
        self.uprobes = uprobes
        self.memory = memory
        self.cost = cost
        self.maps = tuple(maps)
        self.own_options = (*options, *(OWNER_OPTIONS if owners else ()))
        self.no_filter = no_filter
        self.interval = interval or bool(histogram or table)
        self.owners = owners
        self.refresh_owners = refresh_owners
        self.show_time = show_time
        self.counters = tuple(counters)
        self.interval_counters = tuple(interval_counters)
        self.summary_fields = dict(summary_fields or {})
        self.constants = constants
        self.kernel_constants = kernel_constants
        self.enrich = enrich
        self.identity = identity
        self.notes = notes
        self.histogram_notes = histogram_notes
        self.count_unseen = count_unseen
        self.pending_state = pending_state
        self.compare_devices = compare_devices

    @property
    def all_probes(self) -> tuple[Probe, ...]:
        """The tool's own probes and the shared ones, those of options that are off included."""
        return (*self.probes, *(owner_probes(self.probes) if self.owners else ()))

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
        output = (*OUTPUT, *(SORT if self.tables or self.aggregation else ()))
        shared = (*output, *LIMITS, *(EVENT_LIMITS if self.event else ()))
        return (*(option for option in shared if option.name not in own), *self.own_options)

    @property
    def unsupported_options(self) -> tuple[Option, ...]:
        """Common options that make no sense for this tool: a usage error, never ignored."""
        honoured = {option.name for option in self.options}
        everything = (*EVENT_LIMITS, *FILTERS)
        return tuple(option for option in everything if option.name not in honoured)

    def has_events(self, settings: Mapping[str, Any]) -> bool:
        """Return whether the tool emits events with these settings."""
        on = not self.event_option or settings.get(self.event_option)
        off = self.events_unless and settings.get(self.events_unless)
        return self.event is not None and bool(on and not off)

    def shows_owners(self, settings: Mapping[str, Any]) -> bool:
        """Return whether filters or columns in use depend on who owns a socket."""
        records: list[type[Record]] = [table.row for table in self.tables_of(settings)]
        if self.event and self.has_events(settings):
            records.append(self.event)
        columns = [column for record in records for column in record.columns]
        return any(isinstance(column, Pid) for column in columns) or any(
            settings.get(option.name) for option in PROCESS
        )

    def histogram_of(self, settings: Mapping[str, Any]) -> Optional[Histogram]:
        """Return the histogram that the tool makes with these settings."""
        declared = self.histogram
        if not declared or (declared.option and not settings.get(declared.option)):
            return None
        return declared

    def tables_of(self, settings: Mapping[str, Any]) -> list[Table]:
        """Return the tables that the tool makes with these settings."""
        return [table for table in self.tables if not table.option or settings.get(table.option)]

    def sections(self) -> dict[str, str]:
        """Return {section title: text} of the manual."""
        return sections_of(self.doc)

    @property
    def unsupported_reason(self) -> str:
        """Why the tool does not support some common options, as the end of a sentence."""
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
        nearest = did_you_mean(name, tool_names())
        raise UsageError(f"no tool named '{name}'", f"{nearest}tools: {', '.join(tool_names())}")
    tool = import_module(f"netbpf.tools.{name}").TOOL
    assert isinstance(tool, Tool)
    return tool


def all_tools() -> list[Tool]:
    """Return every tool, by name."""
    return [find_tool(name) for name in tool_names()]
