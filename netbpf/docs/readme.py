"""The generated parts of the README: tables of tools, kernel needs, privileges and options."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from netbpf.declare.needs import TRACEFS, Need, needs_of
from netbpf.declare.options import EVENT_LIMITS, FILTERS, LIMITS, OUTPUT
from netbpf.declare.probes import Probe
from netbpf.declare.tool import Tool, all_tools
from netbpf.docs.tested import choices_rows, recordings, results, results_rows
from netbpf.docs.wording import alternative_words, lost_words, option_words, probe_conditions
from netbpf.errors import NetbpfError

_BLOCK = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def renew(text: str) -> str:
    """Return the README `text` with all generated parts made anew.

    A part stands between `<!-- generated: NAME -->` and `<!-- end -->`; a NAME must be known.
    """
    tables = {
        "tools": tools_table,
        "kernels": kernels_table,
        "choices": choices_table,
        "tested": tested_table,
        "options": options_table,
        "privileges": privileges_table,
    }

    def fill(match: re.Match[str]) -> str:
        if match[2] not in tables:
            raise NetbpfError(f"the README asks for an unknown table '{match[2]}'")
        return match[1] + tables[match[2]](all_tools()) + match[3]

    return _BLOCK.sub(fill, text)


def tools_table(tools: Sequence[Tool]) -> str:
    """Return a row for each tool."""
    rows = ((f"`{tool.name}`", tool.summary, _shape(tool)) for tool in tools)
    return _table(("tool", "shows", "result"), rows)


def _shape(tool: Tool) -> str:
    parts = [("a line per event", tool.event_option)] if tool.event else []
    parts += [("a table" if t.option else "a table per interval", t.option) for t in tool.tables]
    parts += [("a table made of events", tool.aggregation.option)] if tool.aggregation else []
    if tool.histogram:
        parts.append((f"histograms in {tool.histogram.unit}", tool.histogram.option))
    return ", ".join(f"{words} (`--{option}`)" if option else words for words, option in parts)


def kernels_table(tools: Sequence[Tool]) -> str:
    """Return the probes of each tool with their alternatives, best first.

    Probes of a tool that have the same kinds of alternatives share a row, without their targets.
    """
    rows = (row for tool in tools for row in _probe_rows(tool))
    return _table(("tool", "probes", "alternatives, best first", "needed"), rows)


def _probe_rows(tool: Tool) -> Iterator[Sequence[str]]:
    alike: dict[tuple[object, ...], list[Probe]] = {}
    for probe in tool.all_probes:
        kinds = tuple((a.words, a.loses) for a in probe.alternatives)
        partners = (bool(probe.with_probe), bool(probe.complements))
        key = (kinds, probe.optional, probe.loses, probe.option, partners)
        alike.setdefault(key, []).append(probe)
    for probes in alike.values():
        names = ", ".join(f"`{probe.name}`" for probe in probes)
        yield f"`{tool.name}`", names, _ways(probes), _needed(probes)


def _ways(probes: Sequence[Probe]) -> str:
    one, *others = probes
    if not others:
        words = [alternative_words(a, mark="`") for a in one.alternatives]
    else:
        words = [a.words + lost_words(a) for a in one.alternatives]
    return "<br>".join(dict.fromkeys(words))  # some differ in their arguments only


def _needed(probes: Sequence[Probe]) -> str:
    one, *others = probes
    if one.with_probe and others:
        return "beside a probe of the same kind"
    if one.complements and others:
        return "beside a probe of another kind"
    return probe_conditions(one) or "always"


def choices_table(tools: Sequence[Tool]) -> str:
    """Return the kinds of probes that each recorded kernel would serve the tools with."""
    head, *rows = choices_rows(tools, recordings())
    return _table(head, rows)


def tested_table(tools: Sequence[Tool]) -> str:
    """Return what came of the live tests in virtual machines."""
    head, *rows = results_rows(tools, results())
    return _table(head, rows)


def options_table(tools: Sequence[Tool]) -> str:
    """Return a row for each common option, with the tools that refuse it."""
    rows = []
    for option in (*OUTPUT, *LIMITS, *EVENT_LIMITS, *FILTERS):
        spelling, meaning = option_words(option)
        refusing = [f"`{tool.name}`" for tool in tools if option in tool.unsupported_options]
        rows.append((f"`{spelling}`", meaning, ", ".join(refusing)))
    return _table(("option", "meaning", "not in"), rows)


def privileges_table(tools: Sequence[Tool]) -> str:
    """Return a row for each capability and purpose, with the tools that need it."""
    found: dict[Need, list[str]] = {}
    for tool in tools:
        asked = {way.how.offers for probe in tool.all_probes for way in probe.alternatives}
        for need in [*needs_of(tool, {}), *([TRACEFS] if "tracepoint" in asked else [])]:
            found.setdefault(need, []).append(f"`{tool.name}`")
    rows = []
    for need, names in found.items():
        without = need.without or ("the probe is missing" if need == TRACEFS else "it cannot run")
        who = "all" if len(names) == len(tools) else ", ".join(names)
        rows.append((f"`{need.name}`", need.to, who, without, _kept(need)))
    return _table(("capability", "to", "tools", "without it", "while it runs"), rows)


def _kept(need: Need) -> str:
    if need.helper:
        return "kept by a helper process"
    return "kept" if need.running else "given up"


def _table(head: Sequence[str], rows: Iterator[Sequence[str]] | Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    cells = [" | ".join(cell.replace("|", "\\|") for cell in line) for line in lines]
    return "".join(f"| {line} |\n" for line in cells)
