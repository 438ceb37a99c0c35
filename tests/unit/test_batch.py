"""Many events at once become the same lines as one by one."""

from __future__ import annotations

import io
import random

import pytest

from netbpf.declare.batch import Memo, columns_of, rows_of
from netbpf.declare.tool import all_tools
from netbpf.output.clock import Clock
from netbpf.output.screen import Screen
from netbpf.output.writer import Style
from netbpf.output.writers import CsvWriter, JsonWriter, TextWriter

EVENTS = {tool.name: tool for tool in all_tools() if tool.event}
NUMBERS = (0, 1, 2, 6, 10, 80, 443, 1000, 60_000, 2**16 - 1, 2**32 - 1, 2**40, 2**64 - 1)
TEXTS = (b"nginx", b"", b"a b\x1b[31m", b"\xff\xfe", b"fifteen letters")
ADDRESSES = (
    bytes(16),
    bytes(10) + b"\xff\xff" + bytes([10, 0, 3, 9]),
    bytes.fromhex("20010db8000000000000000000000001"),
    bytes.fromhex("20010db8aaaabbbbccccddddeeeeffff"),
)


def member(column, chance, plain):
    """Return a raw value: one of a few, or with `plain` one that fits its column in text."""
    kind, _, length = column.ctype.partition("[")
    if kind in ("u8", "char") and length:
        size = int(length[:-1])
        found = chance.choice((TEXTS if kind == "char" else ADDRESSES)[: 2 if plain else None])
        return found[:size].ljust(size, b"\0")
    bits = int(kind[1:])
    number = chance.choice(NUMBERS[: 7 if plain else None])
    return number % 2**bits - (2**bits if kind[0] == "s" and number % 2**bits >> (bits - 1) else 0)


def raws_of(event, number, plain):
    chance = random.Random(f"{event.__name__} {plain}")
    start = 10**15
    raws = []
    for _ in range(number):
        start += chance.choice((0, 999, 10**6, 10**9))
        values = {c.name: member(c, chance, plain) for c in event.members}
        raws.append([start if c.name == "time" else values[c.name] for c in event.members])
    return raws


def clock():
    made = Clock(now=lambda: 10**15)
    made._offset = 17 * 10**17
    return made


def screen(width):
    """Return a terminal of `width` columns without colours, or none at all."""
    made = Screen(io.StringIO())
    made.terminal, made.width = width is not None, width
    return made


class Stream(io.StringIO):
    """A stream that knows its records."""

    def __init__(self):
        super().__init__()
        self.records = []

    def write(self, text):
        self.records.append(text)
        return len(text)


def written(kind, tool, settings, write):
    """Return what a writer writes with write(writer)."""
    stream = Stream()
    columns = [column.name for column in tool.event.columns if column.in_text]
    chosen = {**settings, "columns": columns[: settings.get("columns", 0)]}
    style = Style(chosen, screen(settings.get("width")))
    writer = kind(tool.name, tool.event.columns, clock(), stream, style)
    writer.begin()
    write(writer)
    return stream.records


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("name", EVENTS)
def test_columns_are_decoded_as_records_are(name, plain):
    event = EVENTS[name].event
    raws = raws_of(event, 200, plain)
    decode, decode_all = event.decoder(), event.batch_decoder()
    assert list(rows_of(decode_all(raws))) == [decode(raw) for raw in raws]
    assert list(rows_of(decode_all(raws[:1]))) == [decode(raws[0])]


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("settings", [
    {}, {"wide": True}, {"time": True}, {"timestamp": True, "time": "seconds"}, {"interval": 1},
    {"columns": 2}, {"width": 80}, {"width": 200, "time": True}, {"width": 40},
], ids=lambda settings: " ".join(settings) or "plain")  # fmt: skip
@pytest.mark.parametrize("kind", [JsonWriter, CsvWriter, TextWriter])
@pytest.mark.parametrize("name", EVENTS)
def test_lines_of_a_batch_are_those_of_single_events(name, kind, settings, plain):
    tool = EVENTS[name]
    raws = raws_of(tool.event, 100, plain)
    time = [column.name for column in tool.event.members].index("time")
    times = [raw[time] for raw in raws]
    columns = tool.event.batch_decoder()(raws)

    def one_by_one(writer):
        for ns, values in zip(times, rows_of(columns)):
            writer.event(ns, values)

    def in_batches(writer):
        for first in range(0, len(raws), 30):
            part = {name: values[first : first + 30] for name, values in columns.items()}
            writer.events(times[first : first + 30], part)

    wanted = written(kind, tool, settings, one_by_one)
    assert written(kind, tool, settings, in_batches) == wanted
    assert len(wanted) >= len(raws)


@pytest.mark.parametrize("lost", [{}, {"ring_full": 3}], ids=["complete", "incomplete"])
@pytest.mark.parametrize("kind", [JsonWriter, CsvWriter, TextWriter])
def test_rows_of_an_interval_are_the_same_in_a_batch(kind, lost):
    tool = EVENTS["tcplife"]
    raws = raws_of(tool.event, 50, False)
    times = list(range(50))
    columns = tool.event.batch_decoder()(raws)

    def one_by_one(writer):
        writer.interval.lost = lost
        writer.events(times[:9], {name: values[:9] for name, values in columns.items()})
        for ns, values in zip(times, rows_of(columns)):
            writer.event(ns, values, "interval")

    def in_batches(writer):
        writer.interval.lost = lost
        writer.events(times[:9], {name: values[:9] for name, values in columns.items()})
        writer.events(times, columns, "interval")

    settings = {"interval": 1}
    assert written(kind, tool, settings, in_batches) == written(kind, tool, settings, one_by_one)


@pytest.mark.parametrize("width", [None, 80, 200])
def test_usual_lines_are_written_by_column(monkeypatch, width):
    tool = EVENTS["tcplife"]
    raws = raws_of(tool.event, 100, True)
    columns = tool.event.batch_decoder()(raws)
    columns["laddr"] = columns["raddr"] = ["10.0.3.9"] * len(raws)

    def fail(self, ns, values, kind="event"):
        raise AssertionError("this line is written alone")

    for kind in (JsonWriter, CsvWriter, TextWriter):
        if kind is CsvWriter and width:  # escapes for the terminal
            continue
        monkeypatch.setattr(kind, "event", fail)
        settings = {"width": width}
        lines = written(kind, tool, settings, lambda w: w.events(range(len(raws)), columns))
        assert len(lines) >= len(raws)


def test_memo_is_bounded():
    calls = []
    memo = Memo(lambda number: calls.append(number) or str(number))
    numbers = list(range(5000))
    assert memo.all(numbers) == [str(number) for number in numbers]
    assert len(memo) < 5000 == len(calls)
    assert memo.all([4999, 4999]) == ["4999", "4999"]
    assert len(calls) == 5000


def test_rows_and_columns_are_the_same_records():
    rows = [{"a": 1, "b": "x"}, {"a": 2, "b": None}]
    assert list(rows_of(columns_of(rows))) == rows
    assert columns_of([]) == {}
