"""Rule: a tool's docstring is its manual, its examples work, its options explain themselves."""

from __future__ import annotations

import re
import shlex

import click
import pytest

from netbpf import cli
from netbpf.declare.record import text_columns
from netbpf.declare.tool import Tool
from tests.contract.conventions import every_tool, tool_of

SECTIONS = ["DESCRIPTION", "EXAMPLES", "OVERHEAD", "LIMITS"]
SUMMARY, COLUMNS, DOC = 76, 80, 100  # characters


def examples(tool: Tool) -> list[list[str]]:
    """Return the command lines of EXAMPLES, as words."""
    lines = tool.sections()["EXAMPLES"].splitlines()
    commands = [re.split(r"\s{2,}|\s\|\s", line.strip())[0] for line in lines if line.strip()]
    return [shlex.split(command) for command in commands if command.startswith("netbpf ")]


@every_tool
def test_docstring_is_a_manual(name):
    tool = tool_of(name)
    assert list(tool.sections())[:1] == SECTIONS[:1]
    assert set(SECTIONS) <= set(tool.sections()), "DESCRIPTION, EXAMPLES, OVERHEAD and LIMITS"
    assert tool.summary, "the first line is: name - summary"
    assert len(tool.summary) <= SUMMARY, f"the summary has {len(tool.summary)} characters"
    assert not tool.summary.endswith(".")
    for line in tool.doc.splitlines():
        assert len(line) <= DOC, f"the manual has a line of {len(line)} characters: {line}"


@every_tool
def test_examples_are_accepted_by_the_command_line(name):
    found = examples(tool_of(name))
    assert len(found) >= 2, "two examples at least"
    for words in found:
        command = cli.cli.get_command(click.Context(cli.cli), words[1])
        assert command, words
        given = command.make_context(words[1], words[2:]).params
        if words[1] == name:
            cli.settings_of(tool_of(name), given)


@every_tool
def test_options_explain_themselves(name):
    tool = tool_of(name)
    names = [option.name for option in tool.options]
    flags = [flag for option in tool.options for flag in option.flags]
    assert len(set(names)) == len(names), "two options of one name"
    assert len(set(flags)) == len(flags), "two options with one flag"
    for option in tool.options:
        assert len(option.help.split()) > 1, f"{option.flags}: say in some words what it does"
        first = option.help.split()[0].strip(",")
        assert not first.istitle(), f"{option.flags}: no capital but for names"
        assert not option.help.endswith("."), option.flags
        if option.parse and not option.choices:
            assert option.metavar.isupper(), f"{option.flags}: name the argument in capitals"


@every_tool
def test_filters_that_are_refused_say_why(name):
    tool = tool_of(name)
    refused = [option.name for option in tool.unsupported_options if option.name != "max_events"]
    assert not refused or tool.no_filter, f"{refused} are refused: say why with no_filter"


@every_tool
def test_text_fits_a_terminal(name):
    tool = tool_of(name)
    # --by shows the keys that the user asks for, however wide.
    records = [tool.event, *(table.row for table in tool.tables if table is not tool.by_table)]
    for record in filter(None, records):
        shown = list(text_columns(record.columns, wide=False))
        width = sum(column.width + 1 for column in shown[:-1]) + len(shown[-1].title)
        assert width <= COLUMNS, f"{record.__name__} is {width} columns wide: use wide=True"
        # A shifted heading is worse than none; the last column may be as wide as it likes.
        for column in shown[:-1]:
            assert len(column.title) <= column.width, f"{column.name}: header over its width"


def test_overhead_and_limits_are_said_in_words():
    for tool in cli.all_tools():
        for title in ("OVERHEAD", "LIMITS"):
            assert len(tool.sections().get(title, "").split()) >= 5, f"{tool.name}: {title}"


@pytest.mark.parametrize("flag", ["-p", "-d", "-n", "-o", "-v", "-t", "-T", "-w", "-4", "-6"])
def test_common_flags_mean_the_same_everywhere(flag):
    meanings = {o.name for tool in cli.all_tools() for o in tool.options if flag in o.flags}
    assert len(meanings) <= 1, f"{flag} means {meanings}"
