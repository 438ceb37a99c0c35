"""Manual of a tool, generated from its declaration: the text of `--help`, and a man page."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Optional

from netbpf import __version__
from netbpf.declare.aliases import Alias, extension_of
from netbpf.declare.columns import Column, Enum
from netbpf.declare.costs import in_manual as cost_words
from netbpf.declare.histogram import Histogram
from netbpf.declare.memory import in_manual as memory_words
from netbpf.declare.options import EVENT_LIMITS, FILTERS, LIMITS, OUTPUT, SORT, Option
from netbpf.declare.probes import Probe
from netbpf.declare.tool import Tool
from netbpf.docs.pages import Block, Heading, Paragraph, Section, Terms, as_roff, as_text, parse
from netbpf.docs.wording import (
    EXIT_STATUS,
    describe_alternative,
    describe_conditions,
    describe_flags,
    describe_option,
)

Pairs = list[tuple[str, str]]

_RFC = "[RFC 3339, UTC, microseconds]"
_END = ("time", f"end of the interval {_RFC}")
_MOST_VALUES = 8  # longer enumerations are not spelled out
_FILTER_NAMES = frozenset(option.name for option in FILTERS)
_LIMIT_NAMES = frozenset(option.name for option in (*LIMITS, *EVENT_LIMITS))
_OUTPUT_NAMES = frozenset(option.name for option in (*OUTPUT, *SORT))


def manual_text(tool: Tool) -> str:
    """Return the manual of `tool` for a terminal, 80 columns wide."""
    return as_text(tool_sections(tool))


def man_page(tool: Tool) -> str:
    """Return the man page netbpf-TOOL(8) in roff."""
    return as_roff(f"netbpf-{tool.name}", f"netbpf {__version__}", tool_sections(tool, man=True))


def tool_sections(tool: Tool, man: bool = False) -> list[Section]:
    """Return the manual: the sections of the tool's docstring, and the generated ones."""
    own = {title: parse(text, title == "EXAMPLES") for title, text in tool.sections().items()}
    line = f"netbpf {tool.name} [OPTIONS]" + (" [INTERVAL [COUNT]]" if tool.interval else "")
    name = f"netbpf-{tool.name}" if man else tool.name
    first = {
        "NAME": (Paragraph(f"{name} - {tool.summary}"),),
        "SYNOPSIS": (Paragraph(line),),
        "DESCRIPTION": own.pop("DESCRIPTION", ()),
        "OPTIONS": tuple(tool_options(tool)),
        "FIELDS": tuple(_fields(tool)),
        "PROBES": tuple(_probes(tool)),
    }
    last = {"EXIT STATUS": (Terms(EXIT_STATUS),)}
    return [Section(title, blocks) for title, blocks in {**first, **own, **last}.items()]


# --- options --------------------------------------------------------------------------------------


def own_options(tool: Tool) -> list[Option]:
    """Return the options that only this tool has, or that replace a common one."""
    shared = (*OUTPUT, *SORT, *LIMITS, *EVENT_LIMITS, *FILTERS)
    return [option for option in tool.options if option not in shared]


def tool_options(tool: Tool, alias: Optional[Alias] = None) -> Iterator[Block]:
    """Yield the description of the options that a tool has, under its own name or as `alias`."""
    extension = extension_of(tool)
    named = alias or extension
    own = [option for option in own_options(tool) if named.spellings(option)]
    shared = [o for o in tool.options if o not in own and named.spellings(o)]
    pairs: Pairs = []
    if tool.interval and not (alias and alias.argument[0]):
        usual = tool.default_interval
        rest = f"; default {usual:g}" if usual else ", not only at the end"
        pairs.append(("INTERVAL", f"show results every INTERVAL (seconds, or 1m){rest}"))
        pairs.append(("COUNT", "stop after this many intervals"))
    pairs += (describe_option(option, named) for option in own)
    if pairs:
        yield Terms(tuple(pairs))
    for title, names in (
        ("Filters", _FILTER_NAMES),
        ("Output", _OUTPUT_NAMES),
        ("Limits", _LIMIT_NAMES),
    ):
        group = [describe_option(option, named) for option in shared if option.name in names]
        if title == "Limits":
            group.append(("-h, --help", "show this manual"))
        if group:
            yield from (Heading(title), Terms(tuple(group)))
    if not alias and extension.flags:
        yield Heading(f"Flags of {extension.suite}")
        yield Terms(tuple(describe_flags(extension)))
    yield Paragraph(memory_words(tool))
    if cost_words(tool):
        yield Paragraph(cost_words(tool))
    if tool.unsupported_options:
        flags = ", ".join(option.flags[-1] for option in tool.unsupported_options)
        yield Paragraph(f"Not supported, a usage error, since {tool.unsupported_reason}: {flags}.")


# --- fields ---------------------------------------------------------------------------------------


def _fields(tool: Tool) -> Iterator[Block]:
    yield Paragraph(
        "Names of fields in JSON and CSV. Unknown values are null in JSON, empty in CSV and - in "
        f"text. 'netbpf schema {tool.name}' prints the JSON Schema."
    )
    if tool.event:
        option = tool.event_option or (tool.aggregation.event_option if tool.aggregation else "")
        option = option.replace("_", "-")
        condition = f" with --{option}" if option else ""
        unfinished = tool.interval and not tool.tables
        more = "; type interval: not ended yet" if unfinished else ""
        yield Heading(f"Events{condition} (type event{more})")
        yield Terms((("time", f"time of the event {_RFC}"), *map(_column, tool.event.columns)))
    for table in tool.tables:
        option = f" with --{table.option}" if table.option else ""
        yield Heading(f"Rows{option}, per interval or once at the end (type interval)")
        yield Terms((_END, *map(_column, table.row.columns)))
    if tool.aggregation:
        title = f"Rows with --{tool.aggregation.option} instead of events"
        yield Heading(f"{title}, per interval or once at the end (type interval)")
        yield Terms((_END, *map(_column, tool.aggregation.row.columns)))
    if tool.histogram:
        option = tool.histogram.option
        instead = f" with --{option}{' instead of events' * bool(tool.event)}" if option else ""
        yield Heading(f"Histograms{instead}, per interval or once at the end (type histogram)")
        yield Terms((_END, *_histogram_fields(tool.histogram)))
    if tool.interval_counters:
        yield Heading("Kernel counters per interval (type counters)")
        names = ", ".join(tool.interval_counters)
        yield Terms((_END, ("counters", f"growth in the interval [object of {names}]")))
    yield Heading("Summary, always the last line (type summary)")
    yield from _summary_fields(tool)


def _column(column: Column, prefix: str = "") -> tuple[str, str]:
    notes = [", ".join(filter(None, (_describe_type(column), column.unit)))]
    title = column.title.strip()  # blank for a column that is mostly empty
    text = [title] if title and title != column.name.upper() else []
    text += [f"in {column.text_unit}"] if column.text_unit else []
    text += ["with -w"] if column.wide else []
    if not column.in_text:
        notes.append("not in text")
    elif text:
        notes.append(f"text {' '.join(text)}")
    return prefix + column.name, f"{column.help} [{'; '.join(notes)}]"


def _describe_type(column: Column) -> str:
    if isinstance(column, Enum):
        values = [word for word in column.words.values() if word]
        if len(values) <= _MOST_VALUES:
            return " | ".join(values)
    types = column.json_type
    return types if isinstance(types, str) else " or ".join(types)


def _histogram_fields(histogram: Histogram) -> Iterator[tuple[str, str]]:
    for column in histogram.key.columns:
        yield _column(column, "key.")
    units = " or ".join(histogram.units)
    yield "unit", f"unit of the values: {units}"
    yield "buckets", "list of {low, high, count}; low and high are inclusive"
    yield "count", "number of values [integer]"
    yield "sum", f"sum of the values [integer, {units}]"
    yield "percentiles", "p50, p90 and p99, as the upper bound of the bucket of each"
    for name, schema in histogram.fields.items():
        yield from _describe_schema(name, schema)


def _describe_schema(name: str, schema: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if schema.get("type") == "object" and "properties" in schema:
        for inner, more in schema["properties"].items():
            yield from _describe_schema(f"{name}.{inner}", more)
        return
    types = schema.get("type", "")
    type_text = types if isinstance(types, str) else " or ".join(types)
    members = schema.get("items", {}).get("properties", {})
    type_text += f" of {{{', '.join(members)}}}" if members else ""
    parts = schema.get("description", ""), f"[{type_text}]" if type_text else ""
    yield name, " ".join(filter(None, parts))


def _summary_fields(tool: Tool) -> Iterator[Block]:
    yield Paragraph(
        "What was seen, what was lost by cause (zeros in JSON and with -v), the probes that were "
        "used, and their cost; see netbpf(8)."
    )
    pairs = [
        p for name, schema in tool.summary_fields.items() for p in _describe_schema(name, schema)
    ]
    if tool.counters:
        pairs.append(("counters", "growth of the kernel's own " + ", ".join(tool.counters)))
    if pairs:
        yield Terms(tuple(pairs))


# --- probes ---------------------------------------------------------------------------------------


def _probes(tool: Tool) -> Iterator[Block]:
    yield Paragraph(
        "Of the alternatives of each probe, the first one that the running kernel supports is "
        "used, those last that are preemptible there and so would miss events. 'netbpf doctor' "
        "shows the selection, --probe NAME=KIND forces another one."
    )
    yield Terms(tuple((probe.name, _probe(probe)) for probe in tool.all_probes))


def _probe(probe: Probe) -> str:
    # Alternatives may differ in their arguments only.
    lines = list(dict.fromkeys(f"{describe_alternative(a)} ({a.kind})" for a in probe.alternatives))
    if len(lines) > 1:
        lines = [f"{number}. {line}" for number, line in enumerate(lines, 1)]
    conditions = describe_conditions(probe)
    return "\n".join([*lines, *([conditions] if conditions else [])])
