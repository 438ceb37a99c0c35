"""Aggregations: rows computed from events by their columns."""

from __future__ import annotations

import pytest

from netbpf.declare import Row
from netbpf.declare import columns as c
from netbpf.declare.aggregation import (
    Aggregation,
    Largest,
    Last,
    MostCommon,
    Number,
    Percentile,
    Sum,
    percentile,
)
from netbpf.run.results.aggregates import Aggregator


def going_on(values, ended):
    return not ended


class Port(Row):
    """The calls of a port."""

    port = c.Port("port")
    calls = c.Count("calls", over=Number())
    pending = c.Count("not ended", over=Number(when=going_on))
    total = c.Count("sum", over=Sum("size"))
    last = c.Count("last", over=Last("size"))
    largest = c.Count("largest", over=Largest("size"))
    p50 = c.Count("median", over=Percentile("size", 50))
    p99 = c.Count("nearly all", over=Percentile("size", 99))
    error = c.Errno("most frequent", over=MostCommon("error"))


def counted(events, having=lambda row, settings: True, most=10, **settings):
    one = Aggregator(
        Aggregation(Port, ["port"], "calls", having), {"map_entries": most, **settings}
    )
    for port, size, error, ended in events:
        one.add({"port": port, "size": size, "error": error}, ended)
    return one, one.since_last()[1]


def test_each_column_is_computed_from_the_events_of_its_row():
    events = [(80, 3, None, True), (80, 9, "EIO", True), (80, None, "EPERM", True)]
    events += [(80, 5, "EIO", True), (80, 1000, "ENOENT", False)]
    _, rows = counted(events)
    assert rows == [
        {"port": 80, "calls": 4, "pending": 1, "total": 17, "last": 5, "largest": 9, "p50": 5,
         "p99": 9, "error": "EIO"}
    ]  # fmt: skip


def test_aggregate_without_a_value_is_null():
    _, (row,) = counted([(80, None, None, True)])
    assert [row[name] for name in ("last", "largest", "p50", "error")] == [None] * 4
    assert (row["calls"], row["total"]) == (1, 0)


def test_rows_are_filtered_and_in_falling_order():
    events = [(1, 1, None, True)] * 2 + [(2, 1, None, True)] * 5 + [(3, 1, None, True)]
    _, rows = counted(events, lambda row, settings: row["calls"] >= settings["least"], least=2)
    assert [row["port"] for row in rows] == [2, 1]


def test_each_interval_starts_empty():
    one, _ = counted([(80, 1, None, True)])
    assert one.since_last()[1] == []
    one.add({"port": 80, "size": 7, "error": None}, True)
    assert one.since_last()[1][0]["total"] == 7


def test_events_beyond_the_limit_of_keys_are_in_a_row_without_a_key():
    one, rows = counted([(port, 1, None, True) for port in (1, 2, 3, 4, 1)], most=2)
    assert {row["port"]: row["calls"] for row in rows} == {1: 2, 2: 1, None: 2}
    assert one.crowded


def test_percentiles_of_one_column_share_their_values():
    one, _ = counted([])
    assert len(one._distinct) == 7


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [([], 50, None), ([7], 1, 7), ([1, 2, 3, 4], 50, 2), ([1, 2, 3, 4], 51, 3), ([1, 2], 100, 2)],
)
def test_percentile_is_the_value_that_this_share_does_not_exceed(values, percent, expected):
    assert percentile(values, percent) == expected
