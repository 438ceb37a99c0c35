"""The declaration of a tool."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from pkgutil import iter_modules
from typing import Any, Callable, Optional, Union

from netbpf.declare.aggregation import Aggregation
from netbpf.declare.cgroup_names import NAMES, OfCgroup
from netbpf.declare.columns import Cgroup, Comm, Container, Owner, Pid, Uid
from netbpf.declare.costs import Cost
from netbpf.declare.docs import written
from netbpf.declare.histogram import Histogram
from netbpf.declare.keyed import Keyed, KeyedTable
from netbpf.declare.memory import Memory
from netbpf.declare.open_rows import OpenRows
from netbpf.declare.options import EVENT_LIMITS, FILTERS, LIMITS, OUTPUT, PROCESS, SORT, Option
from netbpf.declare.owners import OWNER_OPTIONS, owner_probes
from netbpf.declare.probes import Probe
from netbpf.declare.record import Event, Record
from netbpf.declare.stacks import user_stacks
from netbpf.declare.table import Table
from netbpf.errors import UsageError, did_you_mean

Settings = Mapping[str, Any]  # by option name, as parsed from the command line
Values = dict[str, Any]  # of one event, by column
Notes = Sequence[str]
_OF_OWNERS = (Pid, Comm, Uid, Cgroup, Container, OfCgroup, Owner)


class Tool:
    """One tool: its manual, its probes, its results, and its options.

    `doc` is the module's docstring: `name - summary`, then sections whose titles are in capitals.

    Results. `event` declares the events. They are shown only if the option `event_option` is given,
    and not if `events_unless` is. `aggregation` computes rows from them, `histogram` a
    distribution; `table` is one or several tables of BPF maps. With `show_time`, text shows the
    time of day even without -T; "seconds" omits the fraction. `pending` is (BPF map, column): each
    value of the map begins with an event that has not ended, whose time is the start, and the
    column shows its age; these are shown at each interval and at the end. `uprobes` names the
    module of `netbpf.run` whose class `UprobeManager` finds the targets of user-space probes.

    Summary. `totals` is a record of sums (u64) that C counts by TOTAL_<COLUMN>. `counters` are the
    kernel's own counters of the same events ("Tcp.RetransSegs"), `interval_counters` those shown
    with each interval. `summary_fields` maps fields that the functions below add to their JSON
    Schema. `memory` is a bound for the maps, `cost` the measured overhead.

    Input. `default_interval` is the INTERVAL in seconds if none is given; 0 is one result at the
    end. `interval_option` names an option that an INTERVAL implies. `options` are the tool's own
    and the shared filters that it supports; `no_filter` is the reason why it does not support the
    others. `constants` maps settings to further C constants (see `Option.define`). `owners` adds
    the probes that find a socket's owner. `refresh_owners` names a column of events that is "yes"
    if there is a socket: if its owner is unknown, the snapshot of owners is repeated.

    Functions, each optional:
    - `enrich(values, settings)` returns the completed values of an event, or None to omit it;
      without `enriches(settings)`, which saves time, events stay as they are;
    - `identity(values)` returns the key that two open events of one object share, without it each
      is another object;
    - `notes(summary, settings)` returns notes on a run;
    - `histogram_notes(histograms)` returns notes on the histograms of an interval;
    - `kernel_constants(settings, names)` returns C constants that depend on the running kernel;
      `names` is a `netbpf.run.names.Names`;
    - `count_unseen(totals, counters, missing)` returns the number of events that the kernel counted
      and no program could see; `missing` are columns that the probes in use cannot fill;
    - `pending_state(ns, maps)` returns (fields, notes) about the entries left in `maps` at the end,
      each a list of raw values;
    - `compare_devices(histograms, devices, settings)` returns (fields, notes); `devices` has the
      devices' own counts, {(netns, name): (packets received, packets sent)}.
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
        default_interval: float = 0,
        interval_option: str = "",
        owners: bool = False,
        refresh_owners: str = "",
        show_time: Union[bool, str] = False,
        counters: Sequence[str] = (),
        interval_counters: Sequence[str] = (),
        summary_fields: Optional[Mapping[str, Any]] = None,
        constants: Optional[Callable[[Settings], Mapping[str, object]]] = None,
        kernel_constants: Optional[Callable[[Settings, Any], Mapping[str, object]]] = None,
        enrich: Optional[Callable[[Values, Settings], Optional[Values]]] = None,
        enriches: Optional[Callable[[Settings], object]] = None,
        identity: Optional[Callable[[Values], object]] = None,
        open_rows: Optional[OpenRows] = None,
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
        if aggregation and event:
            aggregation.bind(event.columns)
        self.totals = totals
        self.pending = pending
        self.uprobes = uprobes
        self.memory = memory
        self.cost = cost
        self.maps = tuple(maps)
        self.own_options = (*options, *(OWNER_OPTIONS if owners else ()))
        self.no_filter = no_filter
        self.interval = interval or bool(histogram or table)
        self.default_interval = default_interval
        self.interval_option = interval_option
        self.owners = owners
        self.refresh_owners = refresh_owners
        self.show_time = show_time
        self.counters = tuple(counters)
        self.interval_counters = tuple(interval_counters)
        self.summary_fields = dict(summary_fields or {})
        self.constants = constants
        self.kernel_constants = kernel_constants
        self.enrich = enrich
        self.enriches = enriches
        self.identity = identity
        self.open_rows = open_rows
        self.notes = notes
        self.histogram_notes = histogram_notes
        self.count_unseen = count_unseen
        self.pending_state = pending_state
        self.compare_devices = compare_devices

    @property
    def all_probes(self) -> tuple[Probe, ...]:
        """The tool's own and shared probes, including those of options that are not given."""
        return (*self.probes, *(owner_probes(self.probes) if self.owners else ()))

    @property
    def all_counters(self) -> tuple[str, ...]:
        """The kernel's counters that a run reads, for the summary, intervals and rows."""
        of_rows = (name for table in self.tables for name in table.counters)
        return (*self.counters, *self.interval_counters, *of_rows)

    @property
    def namespace_counters(self) -> tuple[str, ...]:
        """Those of them that each network namespace has; the others are of the whole machine."""
        return tuple(name for name in self.all_counters if not name.startswith("Softnet."))

    @property
    def records(self) -> list[type[Record]]:
        """The records that C fills: events, and keys and values of maps."""
        records: list[Optional[type[Record]]] = [self.event]
        if self.histogram and self.histogram.map:
            records += [self.histogram.key, self.histogram.extra]
        records += [record for table in self.tables for record in (table.key, table.sums)]
        return [record for record in records if record]

    @property
    def options(self) -> tuple[Option, ...]:
        """All supported options; the tool's own replace shared ones of the same name."""
        own = {option.name for option in self.own_options}
        rows = self.aggregation.options() if self.aggregation else ()
        if self.by_table:
            rows = self.by_table.options()
        elif self.keyed:
            rows = (self.keyed.option(),)
        if self.tables and not self.by_table and not self.aggregation:
            rows = (*rows, *SORT)
        shared = (*OUTPUT, *LIMITS, *(EVENT_LIMITS if self.event else ()), *rows)
        return (*(option for option in shared if option.name not in own), *self.own_options)

    @property
    def unsupported_options(self) -> tuple[Option, ...]:
        """Common options that this tool does not support: a usage error, never ignored."""
        supported = {option.name for option in self.options}
        common = (*EVENT_LIMITS, *FILTERS)
        return tuple(option for option in common if option.name not in supported)

    def has_events(self, settings: Mapping[str, Any]) -> bool:
        """Return whether the tool emits events with these settings."""
        on = not self.event_option or settings.get(self.event_option)
        off = self.events_unless and settings.get(self.events_unless)
        return self.event is not None and bool(on and not off)

    def shows_owners(self, settings: Mapping[str, Any]) -> bool:
        """Return whether filters or columns in use depend on the owners of sockets."""
        shown = [table.columns(settings) for table in self.tables_of(settings)]
        if self.event and self.has_events(settings):
            shown.append(self.event.columns)
        histogram = self.histogram_of(settings)
        if histogram and histogram.map:
            shown.append(histogram.columns(settings.get("by") or ()))
        columns = [column for columns in shown for column in columns]
        return any(isinstance(column, _OF_OWNERS) for column in columns) or any(
            settings.get(option.name) for option in PROCESS
        )

    def histogram_of(self, settings: Mapping[str, Any]) -> Optional[Histogram]:
        """Return the histogram that the tool computes with these settings, or None."""
        declared = self.histogram
        if not declared or (declared.option and not settings.get(declared.option)):
            return None
        if self.by_table and settings.get("by"):
            return None
        return declared.with_settings(settings)

    def tables_of(self, settings: Mapping[str, Any]) -> list[Table]:
        """Return the tables that the tool shows with these settings."""
        by = self.by_table
        if by and settings.get("by"):
            return [by]
        return [table for table in self.tables if not table.option or settings.get(table.option)]

    @property
    def by_table(self) -> Optional[KeyedTable]:
        """The table that --by shows instead of all others."""
        found = [table for table in self.tables if isinstance(table, KeyedTable)]
        return found[0] if found else None

    @property
    def keyed(self) -> Optional[Keyed]:
        """The keys of --by that the program fills."""
        if self.by_table:
            return self.by_table.keyed
        return self.histogram.keyed if self.histogram else None

    def own_constants(self, settings: Mapping[str, Any]) -> dict[str, object]:
        """Return the C constants of the tool's own options."""
        found: dict[str, object] = {}
        if user_stacks(self.records, settings):
            found["WITH_USER_STACKS"] = 1
        if self.keyed:
            by = settings.get("by") or ()
            found.update(self.keyed.constants(by))
            found.update({"BY_CGROUP": 1} if any(key.name in NAMES for key in by) else {})
        if self.constants:
            found.update(self.constants(settings))
        for option in self.own_options:
            found.update(option.constant(settings.get(option.name)))
        return found

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
    """Return the tool `name`; UsageError, with the list of tools, if there is none."""
    if name not in tool_names():
        nearest = did_you_mean(name, tool_names())
        raise UsageError(f"no tool named '{name}'", f"{nearest}tools: {', '.join(tool_names())}")
    tool = import_module(f"netbpf.tools.{name}").TOOL
    assert isinstance(tool, Tool)
    return tool


def all_tools() -> list[Tool]:
    """Return every tool, by name."""
    return [find_tool(name) for name in tool_names()]
