"""Tool: options, probes and manual of a declaration; the list of tools."""

from __future__ import annotations

import pytest

from netbpf.declare.columns import Pid
from netbpf.declare.options import FILTERS, NETNS, PROCESS, SOCKET, Option, count
from netbpf.declare.owners import OWNER_PROBES
from netbpf.declare.probes import Probe, RawTracepoint, Role
from netbpf.declare.record import Event
from netbpf.declare.tool import Tool, all_tools, find_tool, tool_names
from netbpf.errors import UsageError

DOC = """demo - a demonstration: of what

DESCRIPTION
  It shows.

  A second paragraph, with CAPITALS.

EXAMPLES
  netbpf demo   all of it

LIMITS
  None.
"""


class Line(Event):
    """An event."""

    pid = Pid("process")


def names(options) -> set[str]:
    return {option.name for option in options}


def test_name_and_summary_are_the_first_line():
    tool = Tool(DOC, probes=())
    assert (tool.name, tool.summary) == ("demo", "a demonstration: of what")


def test_sections_are_titles_in_capitals():
    assert Tool(DOC, probes=()).sections() == {
        "DESCRIPTION": "  It shows.\n\n  A second paragraph, with CAPITALS.",
        "EXAMPLES": "  netbpf demo   all of it",
        "LIMITS": "  None.",
    }


def test_other_filters_are_unsupported():
    tool = Tool(DOC, probes=(), event=Line, options=(*PROCESS, *NETNS))
    assert names(tool.unsupported_options) == names(SOCKET)
    assert not names(tool.unsupported_options) & names(tool.options)


def test_every_common_filter_is_either_supported_or_not():
    for options in ((), PROCESS, SOCKET, FILTERS):
        tool = Tool(DOC, probes=(), options=options)
        assert names(FILTERS) <= names(tool.options) | names(tool.unsupported_options)


def test_number_of_events_is_for_tools_with_events():
    assert "max_events" in names(Tool(DOC, probes=(), event=Line).options)
    assert "max_events" in names(Tool(DOC, probes=()).unsupported_options)


def test_own_option_replaces_a_shared_one():
    own = Option("--map-entries", help="own", metavar="N", parse=count, default="7")
    found = [o for o in Tool(DOC, probes=(), options=(own,)).options if o.name == "map_entries"]
    assert found == [own]


def test_owners_adds_owner_probes_and_states_are_not_traced_twice():
    other = Probe("other", RawTracepoint("t"))
    state = Probe("state", RawTracepoint("t"), role=Role.STATE)
    assert Tool(DOC, probes=(other,)).all_probes == (other,)
    assert Tool(DOC, probes=(other,), owners=True).all_probes == (other, *OWNER_PROBES)
    follows = Tool(DOC, probes=(state,), owners=True).all_probes
    assert [p.name for p in follows] == [
        "state", *(p.name for p in OWNER_PROBES if p.name != "owner_state")
    ]  # fmt: skip


def test_events_may_depend_on_an_option():
    always = Tool(DOC, probes=(), event=Line)
    asked = Tool(DOC, probes=(), event=Line, event_option="events")
    assert always.has_events({})
    assert not asked.has_events({"events": False})
    assert asked.has_events({"events": True})
    assert not Tool(DOC, probes=()).has_events({})


def test_tools_are_found_by_listing_the_package():
    assert tool_names() == sorted(tool_names())
    assert "tcplife" in tool_names()
    assert [tool.name for tool in all_tools()] == tool_names()


def test_unknown_tool_is_a_usage_error_that_lists_all_tools():
    with pytest.raises(UsageError) as caught:
        find_tool("../evil")
    assert "no tool named '../evil'" in caught.value.message
    assert "tcplife" in caught.value.hint
