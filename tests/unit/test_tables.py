"""Tables: the increase of each entry since the last interval, and current values of gauges."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import pytest

from netbpf.declare.columns import Count, Gauge, Latest
from netbpf.declare.record import Record, Row
from netbpf.declare.table import Table
from netbpf.run.results import tables
from netbpf.run.results.tables import TableReader

CPUS = 2


class Key(Record):
    """A key."""

    port = Count("port")


class Sums(Record):
    """A value."""

    calls = Count("calls")
    deepest = Count("longest queue")


class Gauges(Record):
    """A value with a gauge."""

    calls = Count("calls")
    deepest = Gauge("longest queue")


class FakeMap:
    """A map whose rows a test sets."""

    def __init__(self, fd: int, key_size: int, size: int, per_cpu: bool) -> None:
        assert (key_size, size) == (8, 16)
        self.rows: dict[int, list[tuple[int, int]]] = {}

    def take(self, keys: Sequence[bytes]):
        for key in keys:
            row = self.rows.pop(struct.unpack("=Q", key)[0], None)
            if row:
                yield key, b"".join(struct.pack("=QQ", *cpu) for cpu in row)

    def items(self):
        return [
            (struct.pack("=Q", key), b"".join(struct.pack("=QQ", *row) for row in rows))
            for key, rows in self.rows.items()
        ]


def reader(monkeypatch: pytest.MonkeyPatch, sums: type[Record] = Sums, **more) -> TableReader:
    monkeypatch.setattr(tables, "Map", FakeMap)
    monkeypatch.setattr(tables, "possible_cpus", lambda: CPUS)
    return TableReader(Table("m", Key, sums, Key, lambda groups, settings: [], **more), 5)


def test_sums_are_added_over_cpus_and_gauges_are_the_greatest(monkeypatch):
    one = reader(monkeypatch, Gauges)
    one._map.rows = {80: [(3, 7), (4, 5)]}
    assert one.since_last() == [({"port": 80}, {"calls": 7, "deepest": 7})]
    one._map.rows = {80: [(3, 7), (5, 9)]}  # now it is another CPU's
    assert one.since_last() == [({"port": 80}, {"calls": 1, "deepest": 9})]


def test_latest_value_is_that_of_the_cpu_that_wrote_last(monkeypatch):
    class Dated(Record):
        """A value that was read at a time."""

        length = Latest("length of the queue", "read_ns", shown=True)
        read_ns = Gauge("when it was read")

    one = reader(monkeypatch, Dated)
    one._map.rows = {80: [(7, 100), (3, 200)]}
    assert one.since_last() == [({"port": 80}, {"length": 3, "read_ns": 200})]
    assert one.since_last() == [({"port": 80}, {"length": 3, "read_ns": 200})]  # it is not 0
    one._map.rows = {80: [(0, 300), (3, 200)]}
    assert one.since_last() == []


def test_only_entries_that_grew_are_rows_of_an_interval(monkeypatch):
    one = reader(monkeypatch, Gauges)
    one._map.rows = {80: [(3, 7), (4, 5)], 443: [(1, 1), (0, 0)]}
    one.since_last()
    one._map.rows = {80: [(3, 7), (6, 5)], 443: [(1, 9), (0, 0)]}
    assert one.since_last() == [({"port": 80}, {"calls": 2, "deepest": 7})]
    assert one.since_last() == []


def test_entry_that_was_created_again_is_new(monkeypatch):
    one = reader(monkeypatch)
    one._map.rows = {80: [(30, 0), (4, 0)]}
    one.since_last()
    one._map.rows = {80: [(2, 0), (0, 0)]}
    assert one.since_last() == [({"port": 80}, {"calls": 2, "deepest": 0})]


def test_entry_that_was_missing_in_one_interval_is_new(monkeypatch):
    one = reader(monkeypatch)
    one._map.rows = {80: [(30, 0), (4, 0)]}
    one.since_last()
    one._map.rows = {}
    assert one.since_last() == []
    one._map.rows = {80: [(50, 0), (0, 0)]}
    assert one.since_last() == [({"port": 80}, {"calls": 50, "deepest": 0})]


def test_map_that_is_not_per_cpu_has_one_value(monkeypatch):
    one = reader(monkeypatch, per_cpu=False)
    one._map.rows = {80: [(3, 7)]}
    assert one.since_last() == [({"port": 80}, {"calls": 3, "deepest": 7})]


def test_idle_entries_are_removed_and_their_last_values_are_not_lost(monkeypatch):
    one = reader(monkeypatch, forget=True)
    one._map.rows = {80: [(3, 0), (0, 0)], 443: [(1, 0), (0, 0)]}
    assert len(one.since_last()) == 2
    one._map.rows[443] = [(2, 0), (0, 0)]
    taken, take = [], one._map.take

    def late(keys: Sequence[bytes]):
        taken.extend(keys)
        one._map.rows[80] = [(5, 0), (0, 0)]  # counted between reading and removing
        return take(keys)

    one._map.take = late
    assert [(key["port"], sums["calls"]) for key, sums in one.since_last()] == [(80, 2), (443, 1)]
    assert len(taken) == 1 and list(one._map.rows) == [443]
    one._map.rows[80] = [(1, 0), (0, 0)]  # made again
    one._map.rows[443] = [(3, 0), (0, 0)]
    assert sorted((k["port"], s["calls"]) for k, s in one.since_last()) == [(80, 1), (443, 1)]


def test_idle_entries_are_kept_while_their_gauge_is_0(monkeypatch):
    one = reader(monkeypatch, Gauges, forget="deepest")
    one._map.rows = {80: [(3, 0), (0, 0)], 443: [(1, 1), (0, 0)]}
    assert len(one.since_last()) == 2
    assert one.since_last() == [] and list(one._map.rows) == [80]
    one._map.rows[80] = [(4, 1), (0, 0)]  # its last one
    assert [sums["calls"] for _, sums in one.since_last()] == [1]
    assert one.since_last() == [] and one._map.rows == {}


class Sampled(Record):
    """A value with a sample."""

    calls = Count("calls")
    last = Count("the last one", ctype="u32")


def test_samples_are_from_the_cpu_that_counted_most(monkeypatch):
    rows = b"".join(struct.pack("=QI4x", *cpu) for cpu in ((2, 7), (5, 9)))
    monkeypatch.setattr(tables, "possible_cpus", lambda: CPUS)
    monkeypatch.setattr(tables, "Map", lambda *a, **more: None)
    one = TableReader(Table("m", Key, Sampled, Key, lambda groups, settings: []), 5)
    one._map = type("Rows", (), {"items": lambda self: [(struct.pack("=Q", 80), rows)]})()
    assert one.since_last() == [({"port": 80}, {"calls": 7, "last": 9})]


def test_rows_are_ordered_limited_and_then_completed():
    class Shown(Row):
        """A row."""

        port = Count("port")
        calls = Count("calls")
        per_deepest = Count("calls per longest queue")

    def complete(row, settings):
        return {"per_deepest": row["calls"] // row["deepest"]}

    table = Table("m", Key, Sums, Shown, order="calls", limit="top", complete=complete)
    entries = [({"port": n}, {"calls": n * 10, "deepest": n}) for n in (1, 3, 2)]
    rows = table.build(entries, {"top": 2})
    assert rows == [
        {"port": 3, "calls": 30, "per_deepest": 10}, {"port": 2, "calls": 20, "per_deepest": 10},
    ]  # fmt: skip
