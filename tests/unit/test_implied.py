"""An option sets others, or is refused beside them: none is ignored."""

from __future__ import annotations

import pytest

from netbpf.cli import settings_of
from netbpf.declare.tool import find_tool
from netbpf.errors import UsageError
from netbpf.run.filters import checked


def settings(tool, **given):
    declared = find_tool(tool)
    usual = {option.name: option.default for option in declared.options}
    return checked(declared, settings_of(declared, {**usual, **given}))


def test_switch_sets_another_option():
    assert settings("soconnect", json=True)["output"] == "json"
    assert settings("soconnect", by="comm")["summary"] is True
    assert settings("so1stbyte", summary=True)["histogram"] is None


def test_option_may_repeat_what_a_switch_sets():
    assert settings("soconnect", json=True, output="json")["output"] == "json"
    assert settings("soconnect", by="comm", summary=True)["summary"] is True


def test_default_of_an_option_gives_way():
    assert settings("so1stbyte")["histogram"] == "first_rx_us"
    assert settings("so1stbyte", events=True)["histogram"] is None


@pytest.mark.parametrize(
    "tool, given, said",
    [
        ("soconnect", {"json": True, "output": "csv"}, "--json and --output"),
        ("soconnect", {"histogram": "latency_us", "summary": True}, "--histogram and --summary"),
        ("so1stbyte", {"histogram": "answer_us", "summary": True}, "--summary and --histogram"),
        ("so1stbyte", {"histogram": "answer_us", "events": True}, "--events and --histogram"),
        ("so1stbyte", {"summary": True, "events": True}, "--events shows each event"),
        ("so1stbyte", {"by": "comm", "events": True}, "--events shows each event"),
        ("soconnect", {"top": "3"}, "--top and --sort are for rows"),
        ("tcplife", {"sort": "pid"}, "there are no rows to sort"),
        ("soconnect", {"histogram": "latency_us", "top": "3"}, "not for distributions"),
        ("so1stbyte", {"top": "3"}, "not for distributions"),
        ("tcpretrans", {"by": "comm", "flows": True}, "--by counts events"),
    ],
)
def test_options_that_exclude_each_other(tool, given, said):
    with pytest.raises(UsageError, match=said):
        settings(tool, **given)


def test_rows_can_be_chosen():
    assert settings("soconnect", by="comm", top="3")["top"] == 3
    assert settings("so1stbyte", summary=True, top="3")["top"] == 3
