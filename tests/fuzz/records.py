"""Data from BPF programs: the ring buffer, its records, values of maps."""

from __future__ import annotations

import io
import json
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
from hypothesis import strategies as st

from netbpf.bpf import ringbuf
from netbpf.bpf.ringbuf import RingBuffer
from netbpf.declare.histogram import SLOTS, bucket_bounds
from netbpf.declare.tool import Tool, all_tools
from netbpf.output.writers import make_writer
from netbpf.run.results import histograms, tables
from netbpf.run.results.histograms import (
    HistogramCounter,
    HistogramReader,
    buckets,
    percentiles,
    value_size,
)
from netbpf.run.results.tables import TableReader
from tests.fuzz.target import Target
from tests.unit.test_ringbuf import BUSY, DISCARDED, PAGE, RECORD, SIZE, Ring
from tests.unit.test_writers import FixedClock

TOOLS = {tool.name: tool for tool in all_tools()}
CPUS = 2


@contextmanager
def mapped(memory: Ring) -> Iterator[RingBuffer]:
    """A reader of memory written by a test."""

    def fake(fd: int, length: int, *_: int, offset: int = 0) -> Any:
        return memory.producer if offset else memory.consumer

    real, ringbuf.mmap = (
        ringbuf.mmap,
        SimpleNamespace(mmap=fake, PAGESIZE=PAGE, MAP_SHARED=1, PROT_READ=1, PROT_WRITE=2),
    )
    try:
        ring = RingBuffer(0, SIZE, RECORD)
        yield ring
        ring.close()
    finally:
        ringbuf.mmap = real


KINDS = st.sampled_from(["good", "good", "discarded", "busy", "other", "take", "commit"])
STEPS = st.lists(st.tuples(KINDS, st.integers(0, 2**64 - 1)), max_size=40)


def ring(steps: list[tuple[str, int]]) -> None:
    """Records come in order, each once, up to the first unfinished one."""
    memory, wanted, got, busy = Ring(), [], [], []
    with mapped(memory) as reader:
        for what, number in steps:
            if what == "take":
                got += [row[1] for row in reader.take()]
            elif what == "commit" and busy:
                memory.commit(busy.pop(0), RECORD.size)
            elif what in ("good", "discarded", "busy", "other"):
                if memory.position - memory.consumed + 32 > SIZE:
                    continue
                flags = {"discarded": DISCARDED, "busy": BUSY}.get(what, 0)
                record = RECORD.pack(number, 1)[: -1 if what == "other" else None]
                at = memory.write(record, flags)
                if what == "busy":
                    busy.append(at)
                if what in ("good", "busy"):
                    wanted.append(number)
        for at in busy:
            memory.commit(at, RECORD.size)
        got += [row[1] for row in reader.take()]
        assert got == wanted
        assert memory.consumed == memory.position


POSITIONS = st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.binary(max_size=64))


def positions(case: tuple[int, int, bytes]) -> None:
    """For any values of the positions, the reader stays in its memory."""
    done, written, data = case
    memory = Ring()
    struct.pack_into("=Q", memory.consumer, 0, done)
    struct.pack_into("=Q", memory.producer, 0, written)
    memory.producer[PAGE : PAGE + len(data)] = data
    with mapped(memory) as reader:
        rows = reader.take()
        assert len(rows) <= SIZE // 8 and all(row[0] == RECORD.size for row in rows)


NUMBERS = st.sampled_from([0, 1, 2, 255, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1])


def raw(size: int) -> st.SearchStrategy[bytes]:
    """Bytes of a record: random, or numbers with a special meaning."""
    words = st.lists(NUMBERS, min_size=size // 8 + 1, max_size=size // 8 + 1)
    special = words.map(lambda row: struct.pack(f"={len(row)}Q", *row)[:size])
    return special | st.binary(min_size=size, max_size=size)


EVENTS = st.sampled_from([tool.name for tool in TOOLS.values() if tool.event]).flatmap(
    lambda name: st.tuples(st.just(name), raw(TOOLS[name].event.size))
)


def decoded(tool: Tool, data: bytes) -> dict[str, Any]:
    """Return the values of an event as they are written."""
    event = tool.event
    assert event
    values = event.decoder()(event.layout().unpack(data))
    return {**values, **{c.name: "x" for c in event.columns if c.json_type == "string" and c.ctype
                         and isinstance(values[c.name], int)}}  # fmt: skip


def event(case: tuple[str, bytes]) -> None:
    """Each record can be written in each format, as one line without control characters."""
    tool = TOOLS[case[0]]
    values = decoded(tool, case[1])
    columns = tool.event.columns if tool.event else ()
    for output in ("json", "csv", "text"):
        out = io.StringIO()
        writer = make_writer(output, tool.name, columns, FixedClock(), out, {"time": True})
        writer.begin()
        writer.event(int.from_bytes(case[1][:8], sys.byteorder), values)
        lines = out.getvalue().split("\n")
        assert lines.pop() == "" and out.getvalue().encode()
        if output == "json":
            (line,) = lines
            found = json.loads(line)
            assert {name: found[name] for name in values} == values
        if output == "text":
            assert all(line.isprintable() for line in lines), lines


TABLES = [(tool, number) for tool in TOOLS.values() for number in range(len(tool.tables))]


def entries(key: int, value: int) -> st.SearchStrategy[list[tuple[bytes, bytes]]]:
    """Entries of a map with keys and values of these sizes."""
    return st.lists(st.tuples(raw(key), raw(value * CPUS)), max_size=3)


ENTRIES = st.sampled_from(range(len(TABLES))).flatmap(
    lambda n: st.tuples(
        st.just(n),
        entries(declared(n).key.size, declared(n).sums.size),
        entries(declared(n).key.size, declared(n).sums.size),
    )
)


def declared(number: int) -> Any:
    """Return a tool's table."""
    tool, which = TABLES[number]
    return tool.tables[which]


class FakeMap:
    """A map whose entries a test sets."""

    entries: dict[bytes, bytes] = {}

    def __init__(self, *_: Any, **__: Any) -> None:
        """Take anything."""

    def items(self) -> list[tuple[bytes, bytes]]:
        """Return the entries."""
        return list(self.entries.items())

    def take(self, keys: list[bytes]) -> list[tuple[bytes, bytes]]:
        """Remove entries and return them."""
        return [(key, self.entries[key]) for key in keys if key in self.entries]


@contextmanager
def fake_maps(module: Any) -> Iterator[None]:
    """Have `module` read FakeMap."""
    kept = module.Map, module.possible_cpus
    module.Map, module.possible_cpus = FakeMap, lambda: CPUS
    try:
        yield
    finally:
        module.Map, module.possible_cpus = kept


def table(case: tuple[int, list[tuple[bytes, bytes]], list[tuple[bytes, bytes]]]) -> None:
    """For any content of the map, increases between two reads are not negative."""
    with fake_maps(tables):
        reader = TableReader(declared(case[0]), 0)
        for entries in case[1:]:
            FakeMap.entries = dict(entries)
            for key, sums in reader.since_last():
                json.dumps([key, sums])
                assert all(v >= 0 for v in sums.values() if isinstance(v, int))


HISTOGRAMS = [t.histogram for t in TOOLS.values() if t.histogram and t.histogram.map]
COUNTS = st.sampled_from(range(len(HISTOGRAMS))).flatmap(
    lambda n: st.tuples(st.just(n), entries(HISTOGRAMS[n].key.size, value_size(HISTOGRAMS[n])))
)


def histogram(case: tuple[int, list[tuple[bytes, bytes]]]) -> None:
    """For any content of the map, the distributions can be written."""
    with fake_maps(histograms):
        reader = HistogramReader(HISTOGRAMS[case[0]], 0)
        for entries in (case[1], [], case[1]):
            FakeMap.entries = dict(entries)
            json.dumps(reader.since_last())


SLOT_COUNTS = st.lists(st.integers(0, 2**40), min_size=SLOTS, max_size=SLOTS)


def ranks(counts: list[int]) -> None:
    """Percentiles and buckets agree with those of the single values."""
    slots = np.array(counts, np.uint64)
    found, total = percentiles(slots), sum(counts)
    for percent in (50, 90, 99):
        rank, running = -(-total * percent // 100), 0
        wanted = None
        for slot, count in enumerate(counts):
            running += count
            if total and running >= rank:
                wanted = bucket_bounds(slot)[1]
                break
        assert found[f"p{percent}"] == wanted
    rows = buckets(slots)
    assert sum(row["count"] for row in rows) == total
    assert all(a["high"] + 1 == b["low"] for a, b in zip(rows, rows[1:]))


COUNTED = [t for t in TOOLS.values() if t.histogram and t.histogram.of and t.event]
VALUES = st.sampled_from(range(len(COUNTED))).flatmap(
    lambda n: st.tuples(st.just(n), st.lists(raw(COUNTED[n].event.size), max_size=5))
)


def counted(case: tuple[int, list[bytes]]) -> None:
    """Each event with a value counts in the distribution of its key."""
    tool = COUNTED[case[0]]
    assert tool.histogram
    counter, known = HistogramCounter(tool.histogram, 2), 0
    for data in case[1]:
        values = decoded(tool, data)
        counter.add(values)
        known += values[tool.histogram.of] is not None
    rows = counter.since_last()
    json.dumps(rows)
    assert sum(row["count"] for row in rows) == known


TARGETS = (
    Target("ring", STEPS, ring),
    Target("ring-positions", POSITIONS, positions),
    Target("event", EVENTS, event),
    Target("table", ENTRIES, table),
    Target("histogram", COUNTS, histogram),
    Target("percentiles", SLOT_COUNTS, ranks),
    Target("counted", VALUES, counted),
)
