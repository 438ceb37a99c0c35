"""Histograms: buckets, percentiles and intervals."""

from __future__ import annotations

import random

import numpy as np
import pytest

from netbpf.declare.columns import Count, Enum, Gauge
from netbpf.declare.histogram import SLOTS, Histogram, bucket_bounds
from netbpf.declare.record import Record
from netbpf.run.results import histograms
from netbpf.run.results.histograms import (
    HistogramCounter,
    HistogramReader,
    buckets,
    percentiles,
    value_size,
)

CPUS = 3


def slots_of(values) -> np.ndarray:
    """Count values as record_value() in histogram.bpf.h does."""
    slots = np.zeros(SLOTS, np.uint64)
    for value in values:
        slots[min(int(value).bit_length(), SLOTS - 1)] += np.uint64(1)
    return slots


def test_every_value_is_in_its_bucket_and_buckets_are_contiguous():
    for value in [*range(70), *(2**k + d for k in range(7, SLOTS - 1) for d in (-1, 0, 1))]:
        low, high = bucket_bounds(value.bit_length())
        assert low <= value <= high
    for slot in range(1, SLOTS):
        assert bucket_bounds(slot)[0] == bucket_bounds(slot - 1)[1] + 1


def test_zero_and_one_have_separate_buckets():
    assert bucket_bounds(0) == (0, 0)
    assert bucket_bounds(1) == (1, 1)


def test_buckets_from_the_lowest_to_the_highest_include_empty_ones():
    assert buckets(slots_of([2, 3, 17])) == [
        {"low": 2, "high": 3, "count": 2},
        {"low": 4, "high": 7, "count": 0},
        {"low": 8, "high": 15, "count": 0},
        {"low": 16, "high": 31, "count": 1},
    ]
    assert buckets(slots_of([])) == []


@pytest.mark.parametrize("spread", [1, 10, 5000, 10**9])
def test_percentiles_are_upper_bounds(spread):
    chance = random.Random(47)
    for size in (1, 2, 3, 10, 99, 100, 101, 1000):
        values = np.array([int(chance.expovariate(1 / spread)) for _ in range(size)])
        found = percentiles(slots_of(values))
        for percent in (50, 90, 99):
            # The smallest value that at least this share does not exceed.
            truth = int(np.sort(values)[-(-size * percent // 100) - 1])
            assert found[f"p{percent}"] == bucket_bounds(truth.bit_length())[1], (size, percent)


def test_percentiles_of_nothing_are_unknown():
    assert percentiles(slots_of([])) == {
        "bounds": "upper bound of the bucket", "p50": None, "p90": None, "p99": None,
    }  # fmt: skip


class Key(Record):
    """A key with padding at its end."""

    port = Count("port", ctype="u32")
    point = Enum("point", {0: "in", 1: "out"})


class Sums(Record):
    """Extra sums."""

    small = Count("small ones")


class FakeMap:
    """A per-CPU map: {key: [values of each CPU]}."""

    def __init__(self, fd: int, key_size: int, size: int, per_cpu: bool) -> None:
        assert (fd, key_size, size, per_cpu) == (5, 8, (SLOTS + 3) * 8, True)
        self.rows: dict[bytes, np.ndarray] = {}

    def count(self, port: int, point: int, cpu: int, value: int, times: int = 1) -> None:
        key = Key.layout().pack(port, point)
        row = self.rows.setdefault(key, np.zeros((CPUS, SLOTS + 3), np.uint64))[cpu]
        more = np.zeros(SLOTS + 3, np.int64)
        more[value.bit_length()] = more[SLOTS] = times
        more[SLOTS + 1] = value * times
        more[SLOTS + 2] = times if value < 128 else 0
        row += more.astype(np.uint64)

    def items(self):
        return [(key, row.tobytes()) for key, row in self.rows.items()]


DECLARED = Histogram("sizes", Key, "bytes", extra=Sums)


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> HistogramReader:
    monkeypatch.setattr(histograms, "Map", FakeMap)
    monkeypatch.setattr(histograms, "possible_cpus", lambda: CPUS)
    return HistogramReader(DECLARED, 5)


def test_size_of_the_c_value():
    assert value_size(DECLARED) == (SLOTS + 3) * 8
    assert value_size(Histogram("x", Key, "us")) == (SLOTS + 2) * 8


def test_cpus_are_added_and_keys_are_decoded_and_sorted(reader):
    for port, point, cpu, value in [(80, 1, 0, 5), (80, 0, 1, 200), (80, 0, 2, 6), (443, 0, 0, 1)]:
        reader._map.count(port, point, cpu, value)
    found = reader.since_last()
    assert [one["key"] for one in found] == [
        {"port": 80, "point": "in"},
        {"port": 80, "point": "out"},
        {"port": 443, "point": "in"},
    ]
    assert (found[0]["count"], found[0]["sum"], found[0]["small"]) == (2, 206, 1)
    assert found[0]["unit"] == "bytes"


def test_gauges_for_a_table_of_the_same_map_are_no_values(monkeypatch, reader):
    class Gauges(Record):
        """A value that is not a sum."""

        small = Gauge("current number")

    one = HistogramReader(Histogram("sizes", Key, "bytes", extra=Gauges), 5)
    one._map.count(80, 0, 0, 5)
    (found,) = one.since_last()
    assert (found["count"], found["small"]) == (1, 0)
    one._map.rows[Key.layout().pack(80, 0)][0][SLOTS + 2] = 7
    assert one.since_last() == []


def test_keys_that_differ_only_in_omitted_columns_are_added(monkeypatch, reader):
    class WideKey(Record):
        """The same key with a wide port."""

        port = Count("port", ctype="u32", wide=True)
        point = Enum("point", {0: "in", 1: "out"})

    declared = Histogram("sizes", WideKey, "bytes", extra=Sums)
    joined = HistogramReader(declared, 5, join=True)
    for port, value in ((80, 5), (443, 6), (25, 700)):
        joined._map.count(port, 0, 0, value)
    joined._map.count(80, 1, 0, 9)
    found = [(one["key"], one["count"], one["sum"], one["small"]) for one in joined.since_last()]
    assert found == [({"point": "in"}, 3, 711, 2), ({"point": "out"}, 1, 9, 1)]


def test_intervals_have_the_new_values_and_add_up(reader):
    chance, total = random.Random(53), 0
    for _ in range(10):
        sent = [chance.randrange(5000) for _ in range(chance.randint(0, 50))]
        for value in sent:
            reader._map.count(80, 0, chance.randrange(CPUS), value)
        found = reader.since_last()
        assert sum(one["count"] for one in found) == len(sent)
        assert sum(one["sum"] for one in found) == sum(sent)
        assert sum(b["count"] for one in found for b in one["buckets"]) == len(sent)
        total += len(sent)
    assert total > 100


def test_interval_without_new_values_is_empty(reader):
    reader._map.count(80, 0, 0, 5)
    assert len(reader.since_last()) == 1
    assert reader.since_last() == []


def test_sums_without_a_value_are_shown(reader):
    reader._map.count(80, 0, 0, 5)
    reader.since_last()
    for row in reader._map.rows.values():
        row[0][SLOTS + 2] += np.uint64(3)
    [one] = reader.since_last()
    assert (one["count"], one["buckets"], one["small"]) == (0, [], 3)
    assert one["percentiles"]["p99"] is None


def test_value_taken_back_in_a_later_interval_makes_no_negative_number(reader):
    # GIVEN a packet that was counted in one interval
    reader._map.count(80, 0, 0, 1000)
    reader.since_last()
    # WHEN it is taken back, on another CPU, in the next one
    reader._map.count(80, 0, 1, 1000, times=-1)
    for value in (5, 6):
        reader._map.count(80, 0, 1, value)
    found = reader.since_last()
    reader._map.count(80, 0, 1, 1000)
    found += reader.since_last()
    # THEN nothing wraps around, and the total of its bucket is correct again
    numbers = [b["count"] for one in found for b in one["buckets"]]
    numbers += [one[name] for one in found for name in ("count", "sum", "small")]
    assert all(0 <= number < 10_000 for number in numbers), found


def test_description_adds_fields(reader):
    def describe(found, sums):
        return {"average": found["sum"] / found["count"], "headline": f"{sums['small']} small"}

    reader.declared = Histogram("sizes", Key, "bytes", extra=Sums, describe=describe)
    reader._map.count(80, 0, 0, 100)
    [one] = reader.since_last()
    assert (one["average"], one["headline"]) == (100, "1 small")
    assert "small" not in one


def test_events_are_counted_by_their_columns():
    declared = Histogram("", Key, "us", of="latency_us", option="histogram")
    counter = HistogramCounter(declared, max_keys=2)
    for port, latency in [(80, 5), (80, 6), (443, 0), (80, 2**60)]:
        counter.add({"port": port, "point": "in", "latency_us": latency, "other": 1})
    found = counter.since_last()
    assert [(one["key"]["port"], one["count"], one["sum"]) for one in found] == [
        (80, 3, 11 + 2**60),
        (443, 1, 0),
    ]
    assert counter.since_last() == []
    assert not counter.crowded


def test_event_without_a_value_is_not_counted():
    counter = HistogramCounter(Histogram("", Key, "us", of="us"), max_keys=2)
    for value in (None, 3):
        counter.add({"port": 1, "point": "in", "us": value})
    assert [(one["count"], one["sum"]) for one in counter.since_last()] == [(1, 3)]


def test_keys_beyond_the_limit_are_counted_under_the_unknown_key():
    counter = HistogramCounter(Histogram("", Key, "us", of="us"), max_keys=2)
    for port in (1, 2, 3, 4, 1):
        counter.add({"port": port, "point": "in", "us": 1})
    found = {one["key"]["port"]: one["count"] for one in counter.since_last()}
    assert found == {1: 2, 2: 1, None: 2}
    assert counter.crowded
