"""Writers: the same record as text, JSON and CSV, with untrusted strings."""

from __future__ import annotations

import csv
import io
import json
import os

import pytest

from netbpf.declare.columns import Addr, Bytes, Comm, Count, Duration, Errno, Pid
from netbpf.declare.record import Record
from netbpf.output.clock import Clock
from netbpf.output.text import describe_summary
from netbpf.output.writers import TextWriter, make_writer
from tests.unit.test_columns import HOSTILE


class Line(Record):
    """The record that the tests write."""

    pid = Pid("process")
    comm = Comm("name", width=8)
    raddr = Addr("address", width=9)
    tx_bytes = Bytes("sent", header="TX_KB")
    span_us = Duration("time", header="MS", wide=True)
    errno = Errno("error", wide=True, width=20)
    cgroup = Count("cgroup", text=False)


class FixedClock(Clock):
    """Event times are seconds since 1970, and tracing began at 1000 s."""

    def __init__(self) -> None:
        super().__init__()
        self._offset = 0
        self.start = 1000 * 10**9

    def local(self, ns: int) -> str:
        return self.rfc3339(ns)[11:26]


class Terminal(io.StringIO):
    """An output stream that is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _no_colours(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")


AT = 1001 * 10**9 + 500_000_000
FIRST = {
    "pid": 41, "comm": "curl", "raddr": "10.0.0.1", "tx_bytes": 1536, "span_us": 12_345,
    "errno": "ECONNREFUSED", "cgroup": 7,
}  # fmt: skip
UNKNOWN = dict.fromkeys(FIRST)


def written(output: str, *records: dict, stream: io.StringIO | None = None, **settings) -> str:
    out = stream or io.StringIO()
    writer = make_writer(output, "demo", Line.columns, FixedClock(), out, settings)
    writer.begin()
    for record in records:
        writer.event(AT, record)
    return out.getvalue()


def test_text_has_a_heading_and_aligned_columns():
    assert written("text", FIRST, UNKNOWN).splitlines() == [
        "    PID COMM     RADDR        TX_KB",
        "     41 curl     10.0.0.1      1.50",
        "      - -        -                -",
    ]


def test_wide_text_shows_all_but_machine_columns():
    lines = written("text", FIRST, wide=True).splitlines()
    assert lines[0].split() == ["PID", "COMM", "RADDR", "TX_KB", "MS", "ERRNO"]
    assert lines[1].endswith(os.strerror(111))
    assert "12.3" in lines[1]


def test_time_columns_come_first():
    assert written("text", FIRST, time=True, timestamp=True).splitlines() == [
        "TIME               TIME(s)     PID COMM     RADDR        TX_KB",
        "00:16:41.500000   1.500000      41 curl     10.0.0.1      1.50",
    ]


def test_heading_can_come_before_the_first_event_and_comes_once():
    out = io.StringIO()
    writer = make_writer("text", "demo", Line.columns, FixedClock(), out, {})
    assert isinstance(writer, TextWriter)
    writer.begin()
    assert out.getvalue() == ""
    writer.heading_now()
    writer.event(AT, FIRST)
    assert out.getvalue().count("PID") == 1


def test_json_is_one_object_per_line_with_time_and_values():
    lines = written("json", FIRST, UNKNOWN).splitlines()
    head = {"tool": "demo", "type": "event", "time": "1970-01-01T00:16:41.500000Z"}
    assert [json.loads(line) for line in lines] == [{**head, **FIRST}, {**head, **UNKNOWN}]
    assert list(json.loads(lines[0])) == ["tool", "type", "time", *FIRST]


def test_csv_has_a_header_and_empty_cells_for_unknown_values():
    assert written("csv", FIRST, UNKNOWN) == (
        "time,type,pid,comm,raddr,tx_bytes,span_us,errno,cgroup\r\n"
        "1970-01-01T00:16:41.500000Z,event,41,curl,10.0.0.1,1536,12345,ECONNREFUSED,7\r\n"
        "1970-01-01T00:16:41.500000Z,event,,,,,,,\r\n"
    )


QUOTED = ["a,b", 'say "hi"', "two\nlines", "\r", " space ", "'", ";", "=1+1", '"']


@pytest.mark.parametrize("name", QUOTED)
def test_csv_round_trips(name):
    text = written("csv", {**FIRST, "comm": name})
    rows = list(csv.reader(io.StringIO(text, newline="")))
    assert rows[1][3] == name
    assert len(rows) == 2


@pytest.mark.parametrize("raw", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("output", ["text", "json", "csv"])
def test_untrusted_name_is_safe_in_every_format(output, raw):
    # GIVEN a name that a stranger chose
    name = Comm("x").converter()(raw.ljust(16, b"\0"))
    # WHEN it is written
    text = written(output, {**FIRST, "comm": name}, stream=Terminal())
    # THEN a terminal sees lines of printable characters
    data = text.encode("utf-8")
    assert all(line.isprintable() for line in text.replace("\r\n", "\n").split("\n")[:-1])
    # AND a program reads it back
    if output == "json":
        assert json.loads(data.decode("utf-8"))["comm"] == name
    assert len(text.splitlines()) == (1 if output == "json" else 2)


def test_json_is_ascii_so_that_any_locale_can_write_it():
    assert written("json", {**FIRST, "comm": "caf\u00e9"}).isascii()


HISTOGRAM = {
    "key": {"dev": "lo\x1b[1m", "point": None},
    "unit": "bytes",
    "buckets": [
        {"low": 0, "high": 0, "count": 1},
        {"low": 1, "high": 1, "count": 0},
        {"low": 2, "high": 3, "count": 80},
    ],
    "count": 81,
    "sum": 200,
    "percentiles": {"p50": 3},
    "headline": "81 packets",
}


class Key(Record):
    """Columns of a histogram in CSV."""

    dev = Comm("device")
    point = Count("point")
    low = Count("low")
    high = Count("high")
    count = Count("count")


def histogram(output: str, **settings) -> str:
    out = io.StringIO()
    writer = make_writer(output, "demo", Key.columns, FixedClock(), out, settings)
    writer.begin()
    writer.histogram(AT, HISTOGRAM)
    return out.getvalue()


def test_histogram_as_bars_with_at_least_one_star():
    lines = histogram("text", time=True).splitlines()
    assert lines[1] == "00:16:41.500000 dev=lo\\x1b[1m point=-: 81 packets"
    assert lines[2].split() == ["bytes", ":", "count", "distribution"]
    assert [line.count("*") for line in lines[3:6]] == [1, 0, 40]
    assert len({line.index("|") for line in lines[3:6]}) == 1
    assert "2 -> 3 : 80" in lines[5]


def test_histogram_as_json_has_no_headline():
    found = json.loads(histogram("json"))
    assert found["type"] == "histogram"
    assert "headline" not in found
    assert found["buckets"] == HISTOGRAM["buckets"]


def test_histogram_as_csv_is_a_row_per_bucket():
    rows = list(csv.reader(io.StringIO(histogram("csv"))))
    assert rows[0] == ["time", "type", "dev", "point", "low", "high", "count"]
    assert [row[4:] for row in rows[1:]] == [["0", "0", "1"], ["1", "1", "0"], ["2", "3", "80"]]


def test_counters_are_an_object_in_json_and_those_that_grew_in_text():
    for output, expected in (
        ("json", '"type":"counters"'),
        ("text", "kernel: TcpExt.ListenDrops +3"),
    ):
        out = io.StringIO()
        writer = make_writer(output, "demo", Line.columns, FixedClock(), out, {})
        writer.begin()
        writer.counters(AT, {"TcpExt.ListenDrops": 3, "TcpExt.ListenOverflows": 0})
        assert expected in out.getvalue()
    assert "Overflows" not in out.getvalue()


def test_rows_of_other_columns_go_to_the_same_stream_but_not_into_csv():
    for output in ("text", "json", "csv"):
        out = io.StringIO()
        writer = make_writer(output, "demo", Key.columns, FixedClock(), out, {})
        writer.begin()
        before = out.getvalue()
        writer.sibling(Line.columns).event(AT, FIRST, "interval")
        assert ("ECONNREFUSED" in out.getvalue()) is (output == "json")
        assert (out.getvalue() == before) is (output == "csv")


SUMMARY = {
    "tool": "demo", "events": 23, "unit": "events", "seconds": 1.04, "complete": True,
    "lost": {"ring_full": 0, "map_full": 0},
    "probes": [{"name": "state", "kind": "rawtp"}, {"name": "accept", "kind": None}],
    "counters": {"Tcp.OutRsts": 2},
    "overhead": {"measured": True, "cpu_percent": 0.1234, "runs": 46, "ns_per_run": 980.5,
                 "reader_cpu_seconds": 0.042},
    "notes": ["eth0\x1b[1m does not pass GRO"],
}  # fmt: skip


def test_summary_is_text_on_stderr_or_a_json_object(capsys):
    for output in ("text", "csv", "json"):
        out = io.StringIO()
        writer = make_writer(output, "demo", Line.columns, FixedClock(), out, {})
        writer.begin()
        begun = out.getvalue()
        writer.summary(SUMMARY)
        words = capsys.readouterr().err
        if output == "json":
            assert json.loads(out.getvalue()) == {"type": "summary", **SUMMARY}
            assert words == ""
        else:
            assert out.getvalue() == begun
            assert words.splitlines() == [
                "demo: 23 events in 1.0 s; nothing lost",
                "demo: probes state=rawtp, accept=none; cost: 0.12 % of one CPU"
                " (46 runs, 980.5 ns each), reader 4 %",
                "demo: kernel counters: Tcp.OutRsts +2",
                "demo: note: eth0\\x1b[1m does not pass GRO",
            ]


def test_summary_highlights_lost_data(capsys):
    lost = {**SUMMARY, "complete": False, "lost": {"ring_full": 7}, "counters": {}, "notes": []}
    make_writer("text", "demo", (), FixedClock(), io.StringIO()).summary(lost)
    assert "LOST DATA (ring_full 7)" in capsys.readouterr().err


def test_summary_without_overhead_statistics():
    text = describe_summary({**SUMMARY, "overhead": {"measured": False}})
    assert "not measured" in text[1]


def test_summary_shows_zeros_only_if_asked():
    counted = {**SUMMARY, "counters": {"Tcp.OutRsts": 2, "Tcp.InErrs": 0}}
    quiet = "\n".join(describe_summary(counted))
    assert "ring_full" not in quiet and "InErrs" not in quiet
    verbose = describe_summary(counted, zeros=True)
    assert verbose[0].endswith("nothing lost (ring_full 0, map_full 0)")
    assert verbose[2] == "demo: kernel counters: Tcp.OutRsts +2, Tcp.InErrs +0"
    lost = {**counted, "complete": False, "lost": {"ring_full": 7, "map_full": 0}}
    assert describe_summary(lost)[0].endswith("LOST DATA (ring_full 7)")
    none = {**counted, "counters": {"Tcp.OutRsts": 0}}
    assert describe_summary(none)[2] == "demo: kernel counters: none grew"


def test_verbose_summary_shows_zeros(capsys):
    make_writer("text", "demo", (), FixedClock(), io.StringIO(), {"verbose": True}).summary(SUMMARY)
    assert "nothing lost (ring_full 0, map_full 0)" in capsys.readouterr().err


def test_columns_can_be_chosen_for_text_and_csv():
    chosen = ["cgroup", "raddr", "pid"]
    assert written("text", FIRST, columns=chosen).splitlines() == [
        "   CGROUP RADDR         PID",
        "        7 10.0.0.1       41",
    ]
    assert written("csv", FIRST, columns=chosen).splitlines() == [
        "time,type,cgroup,raddr,pid",
        "1970-01-01T00:16:41.500000Z,event,7,10.0.0.1,41",
    ]
    assert written("json", FIRST, columns=chosen) == written("json", FIRST)


def test_table_without_a_chosen_column_is_left_out():
    assert written("text", FIRST, columns=["absent"]) == ""
