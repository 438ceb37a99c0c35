"""Rule: the command line accepts each command that a document shows."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from netbpf import cli
from netbpf.declare.tool import all_tools, find_tool
from tests.contract.conventions import ROOT

DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# In a block of code, at a prompt or without one, up to a pipe; or in a sentence.
IN_BLOCK = re.compile(r"^(?:[#$] )?(?:sudo )?(netbpf [^|\n]*)", re.M)
IN_SENTENCE = re.compile(r"(?<!`)`(?:sudo )?(netbpf [^`]*)`(?!`)")
NAMES = {tool.name for tool in all_tools()}


def commands(path: Path) -> Iterator[list[str]]:
    """Return the commands of a document with a tool and its options, as words."""
    text = path.read_text()
    for found in [*IN_BLOCK.findall(text), *IN_SENTENCE.findall(text)]:
        words = shlex.split(found, comments=True)
        if words[1] in NAMES and not any(word.isupper() and len(word) > 2 for word in words):
            yield words


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_commands_are_accepted(path):
    for words in commands(path):
        command = cli.cli.get_command(click.Context(cli.cli), words[1])
        try:
            given = command.make_context(words[1], words[2:]).params
        except click.exceptions.Exit:  # --help
            continue
        cli.settings_of(find_tool(words[1]), given)


def test_documents_show_commands_of_many_tools():
    found = {words[1] for path in DOCUMENTS for words in commands(path)}
    assert len(found) > len(NAMES) / 2, found
