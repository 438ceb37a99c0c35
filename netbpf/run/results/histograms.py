"""Histograms from BPF maps: sums over CPUs, differences between intervals, percentiles."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from netbpf.bpf.maps import Map, possible_cpus
from netbpf.declare.histogram import SLOTS, Histogram, bucket_bounds

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Totals = Mapping[bytes, NDArray[np.uint64]]

_PERCENTILES = (50, 90, 99)


def value_size(declared: Histogram) -> int:
    """Return the size of the C value in bytes: buckets, count, sum, then the extra sums."""
    return (SLOTS + 2) * 8 + (declared.extra.size if declared.extra else 0)


class HistogramReader:
    """Reads one declared histogram's map; each read returns what came since the last one.

    The map is never cleared: what is counted while it is read appears in the next interval, so
    that the intervals add up to the total.
    """

    def __init__(self, declared: Histogram, fd: int, join: bool = False) -> None:
        """Take the declaration and the map's descriptor; `join` leaves wide key columns out."""
        self.declared = declared
        self._left_out = {c.name for c in declared.key.columns if c.wide} if join else set()
        self._map = Map(fd, declared.key.size, value_size(declared), per_cpu=True)
        self._seen: Totals = {}
        self._decode = declared.key.decoder()

    def total(self) -> Totals:
        """Return {raw key: sums over all CPUs} since the start; all members are u64."""
        import numpy as np

        cpus, found = possible_cpus(), {}
        for key, raw in self._map.items():
            found[key] = np.frombuffer(raw, np.uint64).reshape(cpus, -1).sum(axis=0)
        return found

    def since_last(self) -> list[dict[str, Any]]:
        """Return the histograms of the interval that ends now, in the order of their keys."""
        import numpy as np

        seen, grown = {}, {}
        for key, sums in self.total().items():
            before = self._seen.get(key, np.zeros_like(sums))
            # What was counted before this interval may be taken back in it, and so more than came:
            # the rest is taken off what comes in the next one.
            grown[key] = np.maximum((sums - before).view(np.int64), 0).view(np.uint64)
            seen[key] = before + grown[key]
        self._seen = seen
        # A sum without a value in a bucket is something as well.
        found = [self._histogram(key, sums) for key, sums in self._joined(grown) if sums.any()]
        return sorted(found, key=_order)

    def _joined(self, grown: Totals) -> Iterable[tuple[dict[str, Any], NDArray[np.uint64]]]:
        joined: dict[tuple[Any, ...], tuple[dict[str, Any], NDArray[np.uint64]]] = {}
        for raw_key, sums in grown.items():
            whole = self._decode(self.declared.key.layout().unpack(raw_key))
            key = {name: value for name, value in whole.items() if name not in self._left_out}
            same = joined.get(tuple(key.values()))
            joined[tuple(key.values())] = (key, sums if same is None else same[1] + sums)
        return joined.values()

    def _histogram(self, key: dict[str, Any], sums: NDArray[np.uint64]) -> dict[str, Any]:
        declared = self.declared
        extra = declared.extra.members if declared.extra else ()
        more = {column.name: int(sums[SLOTS + 2 + i]) for i, column in enumerate(extra)}
        return _described(declared, key, sums, more)


class HistogramCounter:
    """Counts a declared column of events by their key; each read begins anew.

    At most `most` keys are kept apart in an interval; what comes after is counted under a key of
    which nothing is known, and `crowded` is true.
    """

    def __init__(self, declared: Histogram, most: int) -> None:
        """Take the declaration."""
        self._declared = declared
        self._names = [column.name for column in declared.key.columns]
        self._most = most
        self._found: dict[tuple[Any, ...], list[int]] = {}
        self.crowded = False

    def add(self, values: Mapping[str, Any]) -> None:
        """Count one event, unless it has no value."""
        if values[self._declared.of] is None:
            return
        key = tuple(values[name] for name in self._names)
        if key not in self._found and len(self._found) >= self._most:
            self.crowded = True
            key = (None,) * len(key)
        slots = self._found.setdefault(key, [0] * (SLOTS + 2))
        value = int(values[self._declared.of])
        for slot, more in ((min(value.bit_length(), SLOTS - 1), 1), (SLOTS, 1), (SLOTS + 1, value)):
            slots[slot] += more

    def since_last(self) -> list[dict[str, Any]]:
        """Return the histograms of the interval that ends now, in the order of their keys."""
        import numpy as np

        taken, self._found = self._found, {}
        found = []
        for key, slots in taken.items():
            named = dict(zip(self._names, key))
            found.append(_described(self._declared, named, np.array(slots, np.uint64), {}))
        return sorted(found, key=_order)


def _described(
    declared: Histogram, key: dict[str, Any], sums: NDArray[np.uint64], more: dict[str, int]
) -> dict[str, Any]:
    slots = sums[:SLOTS]
    found: dict[str, Any] = {
        "key": key,
        "unit": declared.unit,
        "buckets": buckets(slots),
        "count": int(sums[SLOTS]),
        "sum": int(sums[SLOTS + 1]),
        "percentiles": percentiles(slots),
    }
    return {**found, **(declared.describe(found, more) if declared.describe else more)}


def _order(histogram: Mapping[str, Any]) -> tuple[str, ...]:
    values = histogram["key"].values()
    return tuple(f"{value:020}" if isinstance(value, int) else str(value) for value in values)


def buckets(slots: NDArray[np.uint64]) -> list[dict[str, int]]:
    """Return the buckets from the lowest to the highest that counted something."""
    used = [index for index, count in enumerate(slots.tolist()) if count]
    if not used:
        return []
    rows = []
    for slot in range(used[0], used[-1] + 1):
        low, high = bucket_bounds(slot)
        rows.append({"low": low, "high": high, "count": int(slots[slot])})
    return rows


def percentiles(slots: NDArray[np.uint64]) -> dict[str, Any]:
    """Return p50, p90 and p99 as the upper bound of the bucket that each falls into."""
    import numpy as np

    running = np.cumsum(slots)
    total = int(running[-1])
    found: dict[str, Any] = {"bounds": "upper bound of the bucket"}
    for percent in _PERCENTILES:
        rank = -(-total * percent // 100)
        slot = int(np.searchsorted(running, rank)) if total else 0
        found[f"p{percent}"] = bucket_bounds(slot)[1] if total else None
    return found
