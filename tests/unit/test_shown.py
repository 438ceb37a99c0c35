"""--columns and --sort: which columns there are in a run, and the order of rows."""

from __future__ import annotations

import pytest

from netbpf.cli import settings_of
from netbpf.declare.table import sorted_rows
from netbpf.declare.tool import all_tools, find_tool
from netbpf.errors import UsageError


def settings(tool: str, **given):
    declared = find_tool(tool)
    defaults = {option.name: option.default for option in declared.options}
    return settings_of(declared, {**defaults, **given})


@pytest.mark.parametrize(
    ("tool", "given"),
    [
        ("tcplife", {"columns": "raddr,cgroup,PID"}),
        ("soconnect", {"columns": "raddr,p99_us", "summary": True}),
        ("soconnect", {"sort": "failures", "summary": True}),
        ("sockstat", {"columns": "op,comm", "top": "3"}),
        ("tcpsynbl", {"sort": "dropped"}),
        ("tcpsynbl", {"columns": "limit,low", "output": "csv"}),
        ("netsize", {"columns": "dev,count", "output": "csv"}),
        ("gethostlatency", {"columns": "host,low", "histogram": True, "output": "csv"}),
    ],
)
def test_columns_of_the_run_are_accepted(tool, given):
    assert settings(tool, **given)


@pytest.mark.parametrize(
    ("tool", "given", "words", "hint"),
    [
        ("tcplife", {"columns": "pid,radr"}, "--columns: there is no column 'radr'", "raddr?"),
        ("tcplife", {"columns": "p99_us"}, "no column 'p99_us'", "columns: pid, comm"),
        ("soconnect", {"columns": "p99_us"}, "no column 'p99_us'", "latency_us"),
        ("soconnect", {"columns": "result", "summary": True}, "no column 'result'", "top_error"),
        ("sockstat", {"columns": "comm"}, "no column 'comm'", "would_block"),
        ("netsize", {"columns": "dev"}, "netsize shows distributions", "csv"),
        ("soconnect", {"sort": "failures"}, "--sort: there are no rows", "--summary"),
        ("tcpsynbl", {"sort": "drops"}, "--sort: there is no column 'drops'", "dropped?"),
    ],
)
def test_unknown_column_is_an_error_that_lists_those_there_are(tool, given, words, hint):
    with pytest.raises(UsageError) as caught:
        settings(tool, **given)
    assert words in caught.value.message
    assert hint in caught.value.hint


def test_only_tools_with_rows_can_sort_them():
    for tool in all_tools():
        names = {option.name for option in tool.options}
        assert ("sort" in names) is bool(tool.tables or tool.aggregation), tool.name


ROWS = [
    {"n": 2, "word": "b"},
    {"n": None, "word": "c"},
    {"n": 7, "word": None},
    {"n": 3, "word": "a"},
]


def test_numbers_fall_and_words_rise_and_unknown_values_are_last():
    assert [row["n"] for row in sorted_rows(ROWS, "n")] == [7, 3, 2, None]
    assert [row["word"] for row in sorted_rows(ROWS, "word")] == ["a", "b", "c", None]
    assert sorted_rows(ROWS, "") == ROWS
    assert sorted_rows(ROWS, "absent") == ROWS
    assert sorted_rows([], "n") == []
