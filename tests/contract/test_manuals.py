"""Rule: what is made from declarations (manuals, man pages, README) is whole and up to date."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import click
import pytest

from netbpf.cli import cli
from netbpf.declare.tool import Tool, all_tools
from netbpf.docs.manual import man_page, manual_text
from netbpf.docs.overview import COMMANDS, overview_page
from netbpf.docs.readme import renew

SOURCE_TREE = Path(__file__).resolve().parents[2]
TOOLS = all_tools()
by_tool = pytest.mark.parametrize("tool", TOOLS, ids=[tool.name for tool in TOOLS])


@by_tool
def test_manual_names_every_option(tool: Tool):
    text = manual_text(tool)
    options = text.split("\nOPTIONS\n")[1].split("\nFIELDS\n")[0]
    for option in (*tool.options, *tool.unsupported_options):
        assert option.flags[-1] in options


@by_tool
def test_help_is_the_manual(tool: Tool):
    command = cli.get_command(click.Context(cli), tool.name)
    assert command.get_help(click.Context(command)) == manual_text(tool)


@by_tool
def test_manual_names_every_column_and_probe(tool: Tool):
    text = manual_text(tool)
    fields = text.split("\nFIELDS\n")[1].split("\nPROBES\n")[0]
    rows = [
        tool.event,
        *(table.row for table in tool.tables),
        tool.aggregation and tool.aggregation.row,
    ]
    columns = [column.name for row in filter(None, rows) for column in row.columns]
    if tool.histogram:
        columns += [f"key.{column.name}" for column in tool.histogram.key.columns]
        columns += tool.histogram.fields
    for name in (*columns, *tool.summary_fields, *tool.counters):
        assert re.search(rf"(^|\s){re.escape(name)}\b", fields), name
    probes = text.split("\nPROBES\n")[1]
    for probe in tool.all_probes:
        assert f"\n  {probe.name} " in probes


@by_tool
def test_manual_fits_80_columns(tool: Tool):
    assert [line for line in manual_text(tool).splitlines() if len(line) > 80] == []


@pytest.mark.skipif(not shutil.which("groff"), reason="needs groff: apt install groff")
@pytest.mark.parametrize("name", ["netbpf", *(tool.name for tool in TOOLS)])
def test_man_pages_are_typeset_without_a_warning(name: str):
    pages = {tool.name: tool for tool in TOOLS}
    text = man_page(pages[name]) if name in pages else overview_page()
    done = subprocess.run(
        ["groff", "-man", "-ww", "-Tutf8", "-z"], input=text, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_overview_names_every_command_of_the_group():
    assert set(COMMANDS) == set(cli.commands)


def test_readmes_tables_are_up_to_date():
    text = (SOURCE_TREE / "README.md").read_text(encoding="utf-8")
    for name in ("tools", "kernels", "options"):
        assert f"<!-- generated: {name} -->" in text
    assert renew(text) == text, "run: make readme"
