"""Rule: every alternative of every probe has its C entry, every entry its alternative."""

from __future__ import annotations

import re

from netbpf.declare.owners import OWNER_PROBES
from netbpf.declare.probes import Alternative, Probe
from netbpf.declare.tool import Tool
from tests.contract.house import Entry, entries, every_tool, program, tool_of


def alternatives(tool: Tool) -> dict[str, tuple[Probe, Alternative]]:
    """Return {C entry: (probe, alternative)}."""
    return {f"{p.name}_{a.kind}": (p, a) for p in tool.all_probes for a in p.alternatives}


def offered(tool: Tool) -> set[str]:
    """Return the entries that shared headers have and this tool leaves unused."""
    follows = any(probe.name == "state" for probe in tool.probes)
    spare = [p for p in OWNER_PROBES if not tool.owners or (follows and p.name == "owner_state")]
    return {f"{p.name}_{a.kind}" for p in spare for a in p.alternatives}


@every_tool
def test_every_alternative_has_its_guarded_entry(name):
    found = {entry.name: entry.guard for entry in entries(program(name))}
    for entry in alternatives(tool_of(name)):
        assert entry in found, f"C has no '#ifdef USE_{entry}' with 'int {entry}(...)' in it"
        # A user-space probe is attached by path and offset: nothing in it depends on the kernel.
        free = entry.endswith(("_uprobe", "_uretprobe")) and not found[entry]
        assert free or found[entry] == entry, f"{entry}() is not under '#ifdef USE_{entry}'"


@every_tool
def test_every_entry_has_its_alternative(name):
    tool = tool_of(name)
    known = set(alternatives(tool)) | offered(tool)
    for entry in entries(program(name)):
        assert entry.name in known, f"no probe of {name} has the alternative {entry.name}"


@every_tool
def test_an_entry_reads_only_arguments_that_its_alternatives_name(name):
    tool = tool_of(name)
    for entry in entries(program(name)):
        for probe, ways in _ways(tool, entry.name):
            asked = [set(way.args) for way in ways]
            lacking = _used(entry, probe, ways[0].kind) - set.union(*asked)
            assert not lacking, f"{entry.name} reads {lacking}: name it in args"
            for sometimes in set.union(*asked) - set.intersection(*asked):
                check = f"ARG_{probe.name}_{sometimes}"
                assert check in entry.body, f"{entry.name}: {sometimes} needs '#ifdef {check}'"


def _ways(tool: Tool, entry: str) -> list[tuple[Probe, list[Alternative]]]:
    # Alternatives of one kind share an entry: they ask for more or fewer arguments.
    found = []
    for probe in tool.all_probes:
        ways = [a for a in probe.alternatives if f"{probe.name}_{a.kind}" == entry]
        if ways:
            found.append((probe, ways))
    return found


def _used(entry: Entry, probe: Probe, kind: str) -> set[str]:
    used = set(re.findall(r"RAWTP_ARG\(\w+, ?(\w+)\)", entry.body))
    used |= set(re.findall(rf"\bARG_{probe.name}_(\w+)", entry.body))
    return used | (set(re.findall(r"\bctx->(\w+)", entry.body)) if kind == "tp" else set())


@every_tool
def test_probe_names_are_parts_of_c_names_and_unique(name):
    probes = tool_of(name).all_probes
    names = [probe.name for probe in probes]
    assert all(re.fullmatch(r"[a-z][a-z0-9_]*", word) for word in names)
    assert len(set(names)) == len(names)
    for probe in probes:
        ways = [(a.kind, a.names, a.args) for a in probe.alternatives]
        assert len(set(ways)) == len(ways), f"{probe.name} has one alternative twice"


@every_tool
def test_what_a_probe_refers_to_exists(name):
    tool = tool_of(name)
    records = [tool.event, *(table.row for table in tool.tables)]
    columns = {column.name for record in records if record for column in record.columns}
    options = {option.name for option in tool.options}
    seen: set[str] = set()
    for probe in tool.all_probes:
        for partner in filter(None, (probe.with_probe, probe.complements)):
            assert partner in seen, f"{probe.name}: beside whom?"
        assert not probe.option or probe.option in options, f"{probe.name}: no such option"
        if probe in tool.probes:
            for lost in (*probe.loses, *(c for a in probe.alternatives for c in a.loses)):
                assert lost in columns, f"{probe.name} loses '{lost}', which is no column"
        seen.add(probe.name)


@every_tool
def test_needed_probe_has_a_way_without_kprobes_or_fentry_or_says_why_not(name):
    # Kernels without them exist: a tool that needs them there is one that starts nowhere else.
    safe = {"rawtp", "tp", "iter", "uprobe", "uretprobe"}
    for probe in tool_of(name).all_probes:
        if not probe.optional and not probe.option and not probe.with_probe:
            kinds = {a.kind for a in probe.alternatives}
            assert kinds & safe, f"{probe.name} has only {kinds}: make it optional, or find a way"


@every_tool
def test_targets_are_written_as_their_kind_wants_them(name):
    for probe in tool_of(name).all_probes:
        assert probe.alternatives, f"{probe.name} has no alternative"
        for alternative in probe.alternatives:
            for target in alternative.names:
                if alternative.kind == "tp":
                    assert re.fullmatch(r"\w+:\w+", target), f"{target}: system:name"
                elif alternative.kind not in ("uprobe", "uretprobe"):
                    assert re.fullmatch(r"\w+", target), target


@every_tool
def test_owners_are_declared_where_the_program_has_them(name):
    tool = tool_of(name)
    if tool.owners:
        assert "set_owner" in program(name), 'owners=True needs #include "owners.bpf.h"'
