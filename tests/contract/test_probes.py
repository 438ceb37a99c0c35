"""Rule: probes are declared so that they can be used, and the program has what they call."""

from __future__ import annotations

import re

from netbpf.declare.columns import Owner
from tests.contract.conventions import every_tool, program, tool_of


@every_tool
def test_program_has_what_each_probe_calls(name):
    for probe in tool_of(name).all_probes:
        for alternative in probe.alternatives:
            function = alternative.call or f"on_{probe.name}"
            found = re.search(rf"\b{function}\(", program(name))
            assert found, f"{name}.bpf.c has no {function}(), which probe {probe.name} calls"


@every_tool
def test_tool_that_shows_owners_has_probes_that_find_them(name):
    tool = tool_of(name)
    records = [tool.event, *(table.row for table in tool.tables)]
    columns = [column for record in records if record for column in record.columns]
    if any(isinstance(column, Owner) for column in columns):
        kinds = {way.kind for probe in tool.all_probes for way in probe.alternatives}
        assert "iter" in kinds, f"{name} finds no owner of a socket: declare it with owners=True"


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
    options = {option.name for option in tool.options} | ({"interval"} if tool.interval else set())
    seen: set[str] = set()
    for probe in tool.all_probes:
        for partner in filter(None, (probe.with_probe, probe.complements)):
            assert partner in seen, f"{probe.name}: beside whom?"
        assert not probe.option or probe.option in options, f"{probe.name}: no such option"
        assert set(probe.unless.split()) <= options, f"{probe.name}: no such option"
        if probe in tool.probes:
            for lost in (*probe.loses, *(c for a in probe.alternatives for c in a.loses)):
                assert lost in columns, f"{probe.name} loses '{lost}', which is no column"
        seen.add(probe.name)


@every_tool
def test_needed_probe_has_a_way_without_kprobes_or_fentry_or_says_why_not(name):
    # Kernels without them exist: a tool that needs them there is one that starts nowhere else.
    safe = {"rawtp", "tp", "cgsock", "cgaddr", "iter", "uprobe", "uretprobe"}
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
