"""Histograms from BPF maps: sums over CPUs, differences between intervals, percentiles."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Optional

from netbpf.bpf.maps import Map, possible_cpus
from netbpf.declare.columns import Gauge
from netbpf.declare.histogram import SLOTS, Histogram, bucket_bounds
from netbpf.declare.keys import Key
from netbpf.declare.stacks import end_of
from netbpf.run.results.base import with_names

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Totals = Mapping[bytes, NDArray[np.uint64]]

_PERCENTILES = (50, 90, 99)


def value_size(declared: Histogram) -> int:
    """Return the size of the C value in bytes: buckets, count, sum, extra sums."""
    return (SLOTS + 2) * 8 + (declared.extra.size if declared.extra else 0)


class HistogramReader:
    """Reads the map of a declared histogram; each read returns the values since the last one.

    The map is never cleared: values that are counted while it is read appear in the next interval,
    so that the intervals add up to the total.
    """

    def __init__(
        self, declared: Histogram, fd: int, join: bool = False, by: Sequence[Key] = ()
    ) -> None:
        """Read the map of descriptor `fd`; merge the histograms of each value of the keys `by`.

        Without them, `join` merges keys that differ only in wide columns.
        """
        self.declared = declared
        self._by = tuple(by)
        wide = {c.name for c in declared.key.columns if c.wide} if join and not by else set()
        self._shown = [name for name in declared.shown_keys(by) if name not in wide]
        self._map = Map(fd, declared.key.size, value_size(declared), per_cpu=True)
        self._seen: Totals = {}
        self._decode = declared.key.decoder()
        members = declared.extra.members if declared.extra else ()
        # For a table of the same map; they add up to nothing.
        self._gauges = [SLOTS + 2 + i for i, column in enumerate(members)
                        if isinstance(column, Gauge)]  # fmt: skip

    def total(self) -> Totals:
        """Return {raw key: sums over all CPUs} since the start; all members are u64."""
        import numpy as np

        cpus, totals = possible_cpus(), {}
        for key, raw in self._map.items():
            totals[key] = np.frombuffer(raw, np.uint64).reshape(cpus, -1).sum(axis=0)
            totals[key][self._gauges] = 0
        return totals

    def since_last(self) -> list[dict[str, Any]]:
        """Return the histograms of the interval that ends now, in their declared order."""
        import numpy as np

        seen, grown = {}, {}
        for key, sums in self.total().items():
            before = self._seen.get(key, np.zeros_like(sums))
            # A value of an earlier interval may be taken back in this one. If a sum would be
            # negative, the rest is subtracted in the next interval.
            grown[key] = np.maximum((sums - before).view(np.int64), 0).view(np.uint64)
            seen[key] = before + grown[key]
        self._seen = seen
        # Extra sums can increase without a value in a bucket.
        histograms = [self._histogram(key, s) for key, s in self._joined(grown) if s.any()]
        histograms.sort(key=_order)
        if self.declared.order:
            histograms.sort(key=lambda histogram: -histogram[self.declared.order])
        return histograms

    def _joined(self, grown: Totals) -> Iterable[tuple[dict[str, Any], NDArray[np.uint64]]]:
        joined: dict[tuple[Any, ...], tuple[dict[str, Any], NDArray[np.uint64]]] = {}
        for raw_key, sums in grown.items():
            whole = self._decode(self.declared.key.layout().unpack(raw_key))
            if self.declared.keyed:
                whole = self.declared.keyed.values(with_names(whole, self._by), self._by)
            key = {name: whole[name] for name in self._shown}
            same = joined.get(tuple(key.values()))
            joined[tuple(key.values())] = (key, sums if same is None else same[1] + sums)
        return joined.values()

    def _histogram(self, key: dict[str, Any], sums: NDArray[np.uint64]) -> dict[str, Any]:
        declared = self.declared
        members = declared.extra.members if declared.extra else ()
        extra = {column.name: int(sums[SLOTS + 2 + i]) for i, column in enumerate(members)}
        return _fields(declared, key, sums, extra)


class HistogramCounter:
    """Counts a declared column of events by key; each read starts a new interval.

    An interval has at most `max_keys` keys. Events with further keys are counted under a key of
    nulls, and `crowded` is set.
    """

    def __init__(
        self, declared: Histogram, max_keys: int, keys: Optional[Sequence[Key]] = None
    ) -> None:
        """Count the column `declared.of` by `keys`, or by the columns of the declared key."""
        self._declared = declared
        columns = declared.key.columns
        self._keys = tuple(Key(column.name) for column in columns) if keys is None else tuple(keys)
        self._max_keys = max_keys
        self._counts: dict[tuple[Any, ...], list[int]] = {}
        self.crowded = False

    def add(self, values: Mapping[str, Any]) -> None:
        """Count one event, unless it has no value."""
        if values[self._declared.of] is None:
            return
        key = tuple(one.value(values) for one in self._keys)
        if key not in self._counts and len(self._counts) >= self._max_keys:
            self.crowded = True
            key = (None,) * len(key)
        slots = self._counts.setdefault(key, [0] * (SLOTS + 2))
        value = int(values[self._declared.of])
        for slot, n in ((min(value.bit_length(), SLOTS - 1), 1), (SLOTS, 1), (SLOTS + 1, value)):
            slots[slot] += n

    def since_last(self) -> list[dict[str, Any]]:
        """Return the histograms of the interval that ends now, sorted by key."""
        import numpy as np

        taken, self._counts = self._counts, {}
        histograms = []
        for key, slots in taken.items():
            named = dict(zip((one.name for one in self._keys), key))
            if "stack" in named:
                named["stack_end"] = end_of(named["stack"])
            histograms.append(_fields(self._declared, named, np.array(slots, np.uint64), {}))
        return sorted(histograms, key=_order)


def _fields(
    declared: Histogram, key: dict[str, Any], sums: NDArray[np.uint64], extra: dict[str, int]
) -> dict[str, Any]:
    slots = sums[:SLOTS]
    fields: dict[str, Any] = {
        "key": key,
        "unit": declared.unit,
        "buckets": buckets(slots),
        "count": int(sums[SLOTS]),
        "sum": int(sums[SLOTS + 1]),
        "percentiles": percentiles(slots),
    }
    return {**fields, **(declared.describe(fields, extra) if declared.describe else extra)}


def _order(histogram: Mapping[str, Any]) -> tuple[str, ...]:
    values = histogram["key"].values()
    return tuple(f"{value:020}" if isinstance(value, int) else str(value) for value in values)


def buckets(slots: NDArray[np.uint64]) -> list[dict[str, int]]:
    """Return the buckets from the lowest to the highest one that is not empty."""
    used = [index for index, count in enumerate(slots.tolist()) if count]
    if not used:
        return []
    rows = []
    for slot in range(used[0], used[-1] + 1):
        low, high = bucket_bounds(slot)
        rows.append({"low": low, "high": high, "count": int(slots[slot])})
    return rows


def percentiles(slots: NDArray[np.uint64]) -> dict[str, Any]:
    """Return p50, p90 and p99, each as the upper bound of its bucket."""
    import numpy as np

    running = np.cumsum(slots)
    total = int(running[-1])
    values: dict[str, Any] = {"bounds": "upper bound of the bucket"}
    for percent in _PERCENTILES:
        rank = -(-total * percent // 100)
        slot = int(np.searchsorted(running, rank)) if total else 0
        values[f"p{percent}"] = bucket_bounds(slot)[1] if total else None
    return values
