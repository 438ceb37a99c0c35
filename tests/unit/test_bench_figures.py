"""The figures of benchmarks."""

from __future__ import annotations

import pytest

from bench import sessions
from bench.contestants import ALL, FLOOR, NETBPF, NOTHING, PLAIN, contestants
from bench.figures import figure, ratio, table
from netbpf.declare.tool import find_tool, tool_names


def test_median_has_the_quartiles_around_it():
    assert figure([5, 1, 4, 2, 3]) == (3, 2, 4, 5)
    assert str(figure([1000.0, 3000.0, 2000.0])) == "2,000 (1,500 to 2,500)"
    assert figure([7]) == (7, 7, 7, 1) and str(figure([7])) == "7.00"


def test_nothing_is_compared_with_what_is_not_above_zero():
    assert ratio(3, 4) == "0.75"
    assert ratio(3, 0) == ratio(3, -0.1) == "-"


def test_table_is_markdown():
    lines = table(("tool", "us"), [("netbpf", 1), ("bcc", 2)]).splitlines()
    assert lines == ["| tool | us |", "| --- | ---: |", "| netbpf | 1 |", "| bcc | 2 |"]


@pytest.mark.parametrize("name", tool_names())
def test_each_tool_has_a_floor_and_filters_of_its_own(name):
    flags = {flag for option in find_tool(name).options for flag in option.flags}
    mine, floor, *_ = contestants(name, flags, ("netbpf",))
    assert (mine.suite, floor.suite) == (NETBPF, FLOOR)
    filtered = [NOTHING, ALL] if {"-p", "-i", "-L"} & flags else []
    assert list(mine.variants) == [PLAIN, *filtered]
    for words in mine.variants.values():
        assert all(word in flags for word in words if word.startswith("-"))


def test_session_is_compared_with_the_sum_and_the_largest_of_its_tools():
    one = {"cpu": [100.0, 102.0, 98.0], "rss": [20.0] * 3, "extra": [2.0] * 3}
    ten = {"cpu": [300.0] * 3, "rss": [30.0] * 3, "extra": [10.0] * 3}
    found = {**dict.fromkeys(sessions.TEN, one), sessions.RECORD: ten, sessions.TRIAGE: ten}
    text = sessions.as_markdown(found)
    assert "| sum of ten | 1000.0 | 200.0 | 20.0 |" in text
    wanted = (
        "CPU 3.00 of the largest of the ten, RSS 1.50 of the largest, extra time 0.50 of the sum"
    )
    assert f"- {sessions.RECORD}: {wanted}" in text
