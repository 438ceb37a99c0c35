"""Recorded results of all tools on terminals of several widths and in a pipe: golden files."""

from __future__ import annotations

import json

import pytest

from netbpf.declare.tool import find_tool, tool_names
from tests import screens


@pytest.mark.parametrize("form", screens.FORMS)
@pytest.mark.parametrize("name", screens.NAMES)
def test_screen_is_as_recorded(name, form):
    recorded = (screens.DATA / f"{name}.{form}.txt").read_text()
    again = "if that is meant: python -m tests.screens, then read the files"
    assert screens.screen_of(name, form) == recorded, again


@pytest.mark.parametrize("form", [form for form, (width, _) in screens.FORMS.items() if width])
@pytest.mark.parametrize("name", screens.NAMES)
def test_no_line_is_wider_than_the_terminal(name, form):
    width = screens.FORMS[form][0]
    lines = screens.screen_of(name, form).splitlines()
    assert [line for line in lines if len(line) > width] == []


def test_recordings_are_of_tools():
    """A new tool needs none: it is three files. Those of the first eleven tools stay."""
    recorded = {screens.lines_of(name)[0]["tool"] for name in screens.NAMES}
    assert recorded <= set(tool_names())
    assert len(recorded) >= 11


@pytest.mark.parametrize("name", screens.NAMES)
def test_no_value_is_cut_in_a_pipe(name):
    assert "~" not in screens.screen_of(name, "pipe")
    assert "~" not in screens.screen_of(name, "pipe-w")


@pytest.mark.parametrize("name", screens.NAMES)
@pytest.mark.parametrize("width", [20, 33, 61, 100, 137])
def test_terminal_of_any_width_shows_every_row(name, width):
    lines = screens.lines_of(name)
    rows = [line for line in lines if line["type"] in ("event", "interval")]
    settings = screens.settings_of(name, find_tool(lines[0]["tool"]))
    text = screens.shown(rows or lines, width, settings)
    assert len(text.splitlines()) > len(rows)


def test_recordings_are_json_lines_of_one_tool():
    for name in screens.NAMES:
        lines = [json.dumps(line) for line in screens.lines_of(name)]
        assert len({json.loads(line)["tool"] for line in lines}) == 1
