"""Text that fits: columns by priority and content, colours, resizing."""

from __future__ import annotations

import io

import pytest

from netbpf.declare.columns import Addr, Column, Comm, Count, Errno, Pid, Port
from netbpf.declare.keyed import KeyedTable
from netbpf.declare.network import KernelStack
from netbpf.declare.record import Record
from netbpf.declare.sockets import CallResult
from netbpf.declare.tool import all_tools
from netbpf.declare.values import width_of
from netbpf.output import screen
from netbpf.output.layout import Layout
from netbpf.output.screen import Screen, fold, report
from netbpf.output.text import describe_histogram
from netbpf.output.writers import make_writer
from tests.screens import FixedClock, Terminal

V6 = "2001:db8:5:17:a1b2:c3d4:e5f6:7788"


class Line(Record):
    """A line of 52 characters, and 22 more if there is room."""

    pid = Pid("process")
    comm = Comm("name", width=10)
    laddr = Addr("local address", priority=28)
    raddr = Addr("remote address", priority=60)
    rport = Port("port", wide=True)
    errno = Errno("error", wide=True)


def names(layout: Layout) -> list[str]:
    return [column.name for column in layout.shown]


def layout(limit: int | None, **more) -> Layout:
    columns = Line.columns
    return Layout(columns[:4], columns[4:], order=columns, limit=limit, **more)


@pytest.mark.parametrize(
    ("limit", "shown"),
    [
        (200, ["pid", "comm", "laddr", "raddr", "rport", "errno"]),
        (80, ["pid", "comm", "laddr", "raddr", "rport", "errno"]),
        (75, ["pid", "comm", "laddr", "raddr", "errno"]),
        (70, ["pid", "comm", "laddr", "raddr", "rport"]),
        (60, ["pid", "comm", "laddr", "raddr"]),
        (50, ["pid", "comm", "laddr", "raddr"]),
        (47, ["pid", "comm", "raddr"]),
        (30, ["pid", "comm"]),
        (16, ["pid", "comm"]),
        (10, ["pid"]),
        (3, ["pid"]),
        (None, ["pid", "comm", "laddr", "raddr"]),
    ],
)
def test_columns_are_left_out_and_added_by_priority(limit, shown):
    assert names(layout(limit)) == shown


def test_column_that_rows_are_sorted_by_is_left_out_late():
    for tool in all_tools():
        rows = [tool.aggregation] if tool.aggregation else []
        rows += [tool.by_table] if tool.by_table else []
        for one in rows:
            columns = one.counts if isinstance(one, KeyedTable) else one.row.columns
            (order,) = [c for c in columns if c.name == (getattr(one, "most", "") or one.order)]
            assert order.priority > 70, f"{tool.name} {order.name}"


def test_times_take_their_part_of_the_line():
    assert names(layout(60, taken=12)) == ["pid", "comm", "laddr", "raddr"]
    assert names(layout(60, taken=13)) == ["pid", "comm", "raddr"]


def test_pinned_columns_are_never_left_out():
    assert names(layout(30, pinned=True))[:4] == ["pid", "comm", "laddr", "raddr"]


def test_column_is_as_wide_as_an_ipv6_address_once_one_is_seen():
    narrow = layout(80)
    assert narrow.widths[2:4] == [15, 15]
    assert not narrow.grow(["1", "x", "10.0.0.1", "::1", "-"])
    assert narrow.grow(["1", "x", "10.0.0.1", V6, "-"])
    assert names(narrow) == ["pid", "comm", "laddr", "raddr"]
    assert narrow.widths[3] >= len(V6)
    assert narrow.cells(["1", "x", "10.0.0.1", V6])[3].strip() == V6
    assert narrow.grow(["1", "x", V6, V6])
    assert names(narrow) == ["pid", "comm", "raddr"]


def test_numbers_are_never_cut_and_text_is():
    columns = Line.columns[:2]
    small = Layout(columns, limit=16)
    texts = ["12345678901", "a long name"]
    small.grow(texts)
    assert small.cells(texts[:1]) == ["12345678901"]
    cut = Layout(columns, limit=18)
    cut.grow(["1", "a long name"])
    assert cut.cells(["1", "a long name"]) == ["      1", "a long na~"]


def test_long_path_in_a_column_of_addresses_is_cut():
    one = Layout(Line.columns[3:4], limit=80)
    path = "/run/" + "x" * 100
    one.grow([path])
    assert one.cells([path])[0].endswith("~")
    assert len(one.cells([path])[0]) <= 50


@pytest.mark.parametrize(
    ("text", "width", "shown"),
    [("redis", 8, "redis   "), ("数据库", 8, "数据库  "), ("数据库服务", 8, "数据库~ "),
     ("a数据库服务", 8, "a数据库~"), ("naïve", 8, "naïve   "),
     ("nai\u0308ve", 8, "nai\u0308ve   ")],
)  # fmt: skip
def test_wide_characters_take_two_columns_and_combining_ones_none(text, width, shown):
    assert width_of(shown) == width
    fitted = Layout([Comm("name", width=width)], limit=width)
    assert fitted.widths == [width]
    assert fitted.cells([text]) == [shown]


@pytest.mark.parametrize("limit", [None, 80])
def test_lines_with_wide_characters_are_aligned(limit):
    out = Terminal(limit) if limit else io.StringIO()
    writer = make_writer("text", "tcplife", Line.columns, FixedClock(), out)
    writer.begin()
    row = {"pid": 7, "laddr": "10.0.0.1", "raddr": "10.0.0.2", "rport": 80, "errno": None}
    names = ["redis", "数据库", "nai\u0308ve"]
    columns = {name: [value] * len(names) for name, value in row.items()}
    writer.events([0, 1, 2], {**columns, "comm": names})
    lines = out.getvalue().splitlines()
    assert len(lines) == 4
    assert len({width_of(line.partition(" 10.0.0.1")[0]) for line in lines[1:]}) == 1


def test_columns_grow_in_a_pipe_and_nothing_is_cut():
    pipe = layout(None)
    texts = ["12345678901", "a very long name", V6, V6]
    assert pipe.grow(texts)
    assert [cell.strip() for cell in pipe.cells(texts)] == texts
    assert pipe.widths == [11, 16, len(V6), len(V6)]


def test_stack_is_below_the_row_and_takes_no_width():
    class Drop(Record):
        stack = KernelStack("stack")
        count = Count("count")

    drop = Layout(Drop.columns, limit=20)
    assert names(drop) == ["count", "stack"]
    stack = "\n    kfree_skb\n    a_function_with_a_long_name"
    assert not drop.grow(["7", stack])
    assert drop.cells(["7", stack])[1] == stack


def written(stream: io.StringIO, *rows: dict, **settings):
    writer = make_writer("text", "demo", Line.columns, FixedClock(), stream, settings)
    writer.begin()
    for row in rows:
        writer.event(0, row)
    return writer


ROW = {
    "pid": 1,
    "comm": "curl",
    "laddr": "10.0.0.1",
    "raddr": "10.0.0.2",
    "rport": 80,
    "errno": None,
}


@pytest.fixture(autouse=True)
def _terminal(monkeypatch):
    monkeypatch.setattr(screen, "columns_of", lambda stream: stream.columns)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)


def test_heading_is_repeated_on_a_terminal_when_columns_change(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    out = Terminal(60)
    written(out, ROW, {**ROW, "raddr": V6}, ROW)
    lines = out.getvalue().splitlines()
    assert [line.split()[0] for line in lines] == ["PID", "1", "PID", "1", "1"]
    assert "LADDR" in lines[0] and "LADDR" not in lines[2]


def test_heading_comes_once_in_a_pipe():
    out = Terminal(0)
    written(out, ROW, {**ROW, "raddr": V6}, ROW)
    assert out.getvalue().count("PID") == 1


def test_rows_of_a_table_are_measured_before_the_heading(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    out = Terminal(60)
    writer = written(out)
    writer.rows(0, [ROW, {**ROW, "raddr": V6}])
    lines = out.getvalue().splitlines()
    assert [line.split()[0] for line in lines] == ["PID", "1", "1"]
    assert lines[0].index("RADDR") == lines[1].index("10.0.0.2") == lines[2].index("2001")


def test_resized_terminal_gets_other_columns(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    out = Terminal(120)
    writer = written(out, ROW)
    out.columns = 50
    writer.style.screen.refresh()
    writer.event(0, ROW)
    first, _, second, _ = out.getvalue().splitlines()
    assert "ERRNO" in first and "ERRNO" not in second


def test_failures_and_headings_are_painted_on_a_terminal_only():
    failed = {**ROW, "errno": "ECONNREFUSED"}
    out = Terminal(120)
    written(out, ROW, failed)
    heading, good, bad = out.getvalue().splitlines()
    assert heading.startswith("\x1b[1m") and heading.endswith("\x1b[0m")
    assert "\x1b" not in good
    assert bad.count("\x1b[31mConnection refused\x1b[0m") == 1
    pipe = Terminal(0)
    written(pipe, failed, wide=True)
    assert "\x1b" not in pipe.getvalue()


@pytest.mark.parametrize(
    ("environ", "colour"),
    [
        ({}, True),
        ({"NO_COLOR": ""}, True),
        ({"NO_COLOR": "1"}, False),
        ({"TERM": "dumb"}, False),
        ({"TERM": "xterm", "NO_COLOR": "0"}, False),
    ],
)
def test_colours_follow_the_environment(environ, colour):
    assert Screen(Terminal(80), environ).colour is colour
    assert not Screen(Terminal(0), environ).colour


@pytest.mark.parametrize(
    ("column", "value", "alert"),
    [
        (Count("x"), 3, False),
        (Count("x", alert=True), 3, True),
        (Count("x", alert=True), 0, False),
        (Count("x", alert=True), None, False),
        (Column("x", alert=("a", "b")), "b", True),
        (Column("x", alert=("a", "b")), "c", False),
        (Errno("x"), "EPERM", True),
        (Errno("x"), None, False),
        (CallResult("x", {}), "OK", False),
        (CallResult("x", {}), None, False),
        (CallResult("x", {}), "Connection refused", True),
    ],
)
def test_alert_is_what_deserves_attention(column, value, alert):
    assert column.is_alert(value) is alert


def test_messages_break_between_words_on_a_terminal(monkeypatch):
    text = "demo: " + "word " * 30
    for width in (0, 40):
        err = Terminal(width)
        monkeypatch.setattr("sys.stderr", err)
        report(text)
        lines = err.getvalue().splitlines()
        assert (len(lines) == 1) is (width == 0)
        if width:
            assert all(len(line) <= width for line in lines)
            assert all(line.startswith("  word") for line in lines[1:])


def test_fold_keeps_lines_and_does_not_break_words():
    assert fold("a b\nc", None) == "a b\nc"
    assert fold("aa bb\ncc", 4) == "aa\n  bb\ncc"
    assert fold("x" * 30, 10) == "x" * 30


def test_lost_data_is_red_on_a_terminal(monkeypatch):
    err = Terminal(80)
    monkeypatch.setattr("sys.stderr", err)
    writer = written(Terminal(80))
    writer.progress(0, {}, {"ring_full": 3})
    assert err.getvalue() == "\x1b[31mdemo: LOST DATA: 3 (ring_full 3)\x1b[0m\n"


def test_bars_of_a_histogram_fit_the_terminal():
    bucket = {"low": 0, "high": 9, "count": 5}
    histogram = {"key": {"dev": "lo"}, "unit": "us", "buckets": [bucket, {**bucket, "count": 1}]}
    for width in (46, 60, 76, 200):
        lines = describe_histogram(histogram, width=width).splitlines()
        assert max(map(len, lines)) == min(width, 76)
        assert lines[-2].count("*") == min(width, 76) - 36
        assert lines[-1].count("*") > 0


@pytest.mark.parametrize("sort", [None, "laddr"])
def test_column_of_sort_is_kept_on_a_narrow_terminal(sort):
    stream = Terminal(40)
    written(stream, ROW, sort=sort)
    heading = stream.getvalue().splitlines()[0]
    assert ("LADDR" in heading) == (sort == "laddr")
    assert Line.laddr.priority == 28  # of other runs
