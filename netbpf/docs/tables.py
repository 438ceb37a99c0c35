"""Generated tables of README.md and docs/: tools, options, probes, kernels, privileges."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from netbpf.declare.aliases import all_aliases
from netbpf.declare.finding import Rule, all_rules
from netbpf.declare.instead import instead
from netbpf.declare.needs import TRACEFS, Need, needs_of
from netbpf.declare.options import EVENT_LIMITS, FILTERS, LIMITS, OUTPUT, SORT
from netbpf.declare.probes import Probe
from netbpf.declare.tool import Tool, all_tools
from netbpf.docs.alias_manual import alias_columns
from netbpf.docs.kernels import recordings, result_rows, results, selection_rows
from netbpf.docs.wording import (
    describe_alternative,
    describe_conditions,
    describe_missing,
    describe_option,
)
from netbpf.errors import NetbpfError

BLOCK = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def renew(text: str) -> str:
    """Return Markdown `text` with all generated tables renewed.

    A table is between `<!-- generated: NAME -->` and `<!-- end -->`. Raises NetbpfError for a NAME
    that is not in TABLES.
    """

    def fill(match: re.Match[str]) -> str:
        if match[2] not in TABLES:
            raise NetbpfError(f"there is no generated table '{match[2]}'")
        return match[1] + TABLES[match[2]](all_tools()) + match[3]

    return BLOCK.sub(fill, text)


def tools_table(tools: Sequence[Tool]) -> str:
    """Return a row for each tool."""
    rows = ((f"`{tool.name}`", tool.summary, _output(tool)) for tool in tools)
    return _table(("tool", "shows", "output"), rows)


def findings_table(_: Sequence[Tool]) -> str:
    """Return a row for each rule of triage."""

    def in_words(rule: Rule) -> str:
        return re.sub(r"\{(\w+)\}", lambda match: match[1].upper(), rule.sentence)

    rows = ((f"`{rule.ident}`", in_words(rule), rule.source) for rule in all_rules())
    return _table(("finding", "sentence", "threshold, and its source"), rows)


def _output(tool: Tool) -> str:
    rows = tool.aggregation
    option = tool.event_option or (rows.event_option if rows else "")
    parts = [("a line per event", option.replace("_", "-"))] if tool.event else []
    parts += [("a table" if t.option else "a table per interval", t.option) for t in tool.tables]
    if rows:
        parts.append(("a table of aggregated events", rows.option))
    if rows and rows.measure:
        parts.insert(0, ("histograms in us", ""))
    if tool.histogram:
        parts.append((f"histograms in {tool.histogram.unit}", tool.histogram.option))
    return ", ".join(f"{text} (`--{option}`)" if option else text for text, option in parts)


def aliases_table(tools: Sequence[Tool]) -> str:
    """Return a row for each alias."""
    rows = []
    for alias in all_aliases():
        columns = [column.title for column in alias_columns(alias)]
        shown = " ".join(["TIME"] * bool(alias.time) + columns) or "a histogram"
        rows.append((f"`{alias.name}`", alias.suite, f"`{alias.same_as.partition(' ')[2]}`", shown))
    return _table(("name", "of", "same as", "text columns"), rows)


def instead_table(tools: Sequence[Tool]) -> str:
    """Return a row for each name that has no counterpart."""
    rows = [
        (f"`{name}`", suite, f"`netbpf {words}`", shown)
        for name, (suite, words, shown) in instead().items()
    ]
    return _table(("name", "of", "nearest", "shows"), rows)


def options_table(tools: Sequence[Tool]) -> str:
    """Return a row for each common option, with the tools that reject it."""
    rows = []
    for option in (*OUTPUT, *SORT, *LIMITS, *EVENT_LIMITS, *FILTERS):
        usage, meaning = describe_option(option)
        rejecting = [
            f"`{tool.name}`" for tool in tools if option.name not in {o.name for o in tool.options}
        ]
        rows.append((f"`{usage}`", meaning, ", ".join(rejecting)))
    return _table(("option", "meaning", "not in"), rows)


def probes_table(tools: Sequence[Tool]) -> str:
    """Return the probes of each tool with their alternatives, best first.

    Probes of a tool that have the same kinds of alternatives share a row, without their targets.
    """
    rows = (row for tool in tools for row in _probe_rows(tool))
    return _table(("tool", "probes", "alternatives, best first", "used"), rows)


def _probe_rows(tool: Tool) -> Iterator[Sequence[str]]:
    groups: dict[tuple[object, ...], list[Probe]] = {}
    for probe in tool.all_probes:
        kinds = tuple((a.how.label, a.loses) for a in probe.alternatives)
        partners = (bool(probe.with_probe), bool(probe.complements))
        key = (kinds, probe.optional, probe.loses, probe.option, probe.unless, partners)
        groups.setdefault(key, []).append(probe)
    for probes in groups.values():
        names = ", ".join(f"`{probe.name}`" for probe in probes)
        yield f"`{tool.name}`", names, _alternatives(probes), _conditions(probes)


def _alternatives(probes: Sequence[Probe]) -> str:
    one, *others = probes
    if not others:
        lines = [describe_alternative(a, quote="`") for a in one.alternatives]
    else:
        lines = [a.how.label + describe_missing(a) for a in one.alternatives]
    return "<br>".join(dict.fromkeys(lines))  # alternatives may differ in their arguments only


def _conditions(probes: Sequence[Probe]) -> str:
    one, *others = probes
    if one.with_probe and others:
        return "only with a probe of the same kind"
    if one.complements and others:
        return "only with a probe of another kind"
    return describe_conditions(one) or "always"


def selected_table(tools: Sequence[Tool]) -> str:
    """Return the kinds of probes that are selected on each recorded kernel."""
    head, *rows = selection_rows(tools, recordings())
    return _table(head, rows)


def tested_table(tools: Sequence[Tool]) -> str:
    """Return the results of the live tests in virtual machines."""
    head, *rows = result_rows(tools, results())
    return _table(head, rows)


def privileges_table(tools: Sequence[Tool]) -> str:
    """Return a row for each capability and purpose, with the tools that need it."""
    users: dict[Need, list[str]] = {}
    for tool in tools:
        offers = {a.how.offers for probe in tool.all_probes for a in probe.alternatives}
        for need in [*needs_of(tool, {}), *([TRACEFS] if "tracepoint" in offers else [])]:
            users.setdefault(need, []).append(f"`{tool.name}`")
    rows = []
    for need, names in users.items():
        without = need.without or ("the probe is missing" if need == TRACEFS else "it cannot run")
        users_text = "all" if len(names) == len(tools) else ", ".join(names)
        rows.append((f"`{need.name}`", need.to, users_text, without, _while_running(need)))
    return _table(("capability", "to", "tools", "without it", "while running"), rows)


def _while_running(need: Need) -> str:
    if need.helper:
        return "kept by a helper process"
    return "kept" if need.running else "dropped"


def _table(head: Sequence[str], rows: Iterator[Sequence[str]] | Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    cells = [" | ".join(cell.replace("|", "\\|") for cell in line) for line in lines]
    return "".join(f"| {line} |\n" for line in cells)


TABLES = {
    "tools": tools_table,
    "aliases": aliases_table,
    "instead": instead_table,
    "options": options_table,
    "probes": probes_table,
    "selected": selected_table,
    "tested": tested_table,
    "privileges": privileges_table,
    "findings": findings_table,
}
