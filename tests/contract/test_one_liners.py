"""Every command that docs/one-liners.md names is accepted by the command line."""

from __future__ import annotations

import re
import shlex

import click
import pytest

from netbpf.cli import cli, settings_of
from netbpf.declare.aliases import resolve
from netbpf.run.filters import checked
from tests.contract.conventions import ROOT

TEXT = (ROOT / "docs/one-liners.md").read_text().replace("\n", " ")
COMMANDS = sorted(set(re.findall(r"`netbpf ([^`]+)`", TEXT)))


def test_there_are_commands():
    assert len(COMMANDS) > 40


@pytest.mark.parametrize("line", COMMANDS)
def test_command_is_accepted(line: str):
    name, *words = shlex.split(line)
    command = cli.get_command(click.Context(cli), name)
    assert command
    given = command.make_context(name, words).params
    checked(resolve(name), settings_of(resolve(name), given))
