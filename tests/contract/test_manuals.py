"""Rule: generated manuals, man pages and tables are complete and up to date."""

from __future__ import annotations

import contextlib
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import click
import pytest

from netbpf.cli import cli, settings_of
from netbpf.declare.tool import Tool, all_tools, find_tool, tool_names
from netbpf.docs.manual import man_page, manual_text
from netbpf.docs.overview import COMMANDS, overview_page
from netbpf.docs.tables import BLOCK, TABLES, renew
from tests import guide

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


DOCUMENTS = [SOURCE_TREE / "README.md", *sorted((SOURCE_TREE / "docs").glob("*.md"))]
by_document = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)


@by_document
def test_tables_are_up_to_date(path: Path):
    text = path.read_text(encoding="utf-8")
    assert renew(text) == text, "run: make readme"


def test_every_table_is_in_one_document():
    texts = {path.name: path.read_text(encoding="utf-8") for path in DOCUMENTS}
    tables = {name: [match[2] for match in BLOCK.finditer(text)] for name, text in texts.items()}
    assert sorted(sum(tables.values(), [])) == sorted(TABLES)
    assert tables["README.md"] == ["tools"]


def test_make_renews_every_document():
    recipe = re.search(r"^readme:.*\n\t(.*)$", (SOURCE_TREE / "Makefile").read_text(), re.M)
    assert recipe and recipe[1].endswith("-m netbpf.docs --tables README.md docs/*.md")


def pages_of_project() -> list[Path]:
    """Return the Markdown files that link to one another."""
    top = [SOURCE_TREE / name for name in ("CONTRIBUTING.md", "vagrant/README.md")]
    return [*DOCUMENTS, *top]


@pytest.mark.parametrize("path", pages_of_project(), ids=lambda path: path.name)
def test_links_between_documents_resolve(path: Path):
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", path.read_text()):
        other = (path.parent / target).resolve() if target else path
        assert other.exists(), f"{path.name} links to {target}"
        headings = re.findall(r"^#+ (.*)$", other.read_text(), re.M) if anchor else []
        anchors = [re.sub(r"[^\w -]", "", text).lower().replace(" ", "-") for text in headings]
        assert not anchor or anchor in anchors, f"{path.name} links to {target}#{anchor}"


def command_lines(path: Path) -> list[list[str]]:
    """Return the netbpf commands in the code blocks and code spans of a document, as words."""
    text = path.read_text(encoding="utf-8")
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.M | re.S)
    lines = [line for block in blocks for line in re.sub(r"\\\n\s*", "", block).splitlines()]
    lines += re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))
    starts = re.compile(r"(?:\$ )?(?:sudo )?(?:\S*/python3 -m |\S*/bin/)?netbpf (?=[a-z])")
    commands = [line[match.end() :] for line in lines if (match := starts.match(line))]
    commands = [re.split(r" [|>] | \|$|\s{2,}|\s#", command)[0] for command in commands]
    return [shlex.split(command) for command in commands]


@by_document
def test_command_lines_of_documents_are_accepted(path: Path):
    for name, *words in command_lines(path):
        if (path, name) == (guide.GUIDE, guide.NAME):
            continue  # tests/packaging/test_guide.py runs it where that tool exists
        command = cli.get_command(click.Context(cli), name)
        assert command, name
        with contextlib.suppress(click.exceptions.Exit):  # --help
            context = command.make_context(name, words)
            if name in tool_names():
                settings_of(find_tool(name), context.params)


def test_documents_have_command_lines_to_check():
    assert len(command_lines(DOCUMENTS[0])) >= 6
    found = {words[0] for path in DOCUMENTS for words in command_lines(path)}
    assert len(found & set(tool_names())) > len(tool_names()) / 2
