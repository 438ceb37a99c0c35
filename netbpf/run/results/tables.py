"""Read tables from BPF maps: the entries that changed since the last interval."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import Any

from netbpf.bpf.maps import Map, possible_cpus
from netbpf.declare.columns import Latest
from netbpf.declare.record import Record
from netbpf.declare.table import Entry, Table


def read_totals(declared: type[Record], fd: int) -> dict[str, int]:
    """Return the sums of a per-CPU array that has a u64 for each column."""
    array, totals = Map(fd, 4, 8, per_cpu=True), {}
    for index, column in enumerate(declared.columns):
        raw = array.get(struct.pack("=I", index)) or b""
        totals[column.name] = sum(struct.unpack(f"={len(raw) // 8}Q", raw))
    return totals


class TableReader:
    """Reads the map of a declared table; each read returns the entries that changed since the last.

    The map is not cleared, so that the intervals add up to the total. An entry whose sums have
    decreased was deleted and created again: it counts as new.
    """

    def __init__(self, declared: Table, fd: int) -> None:
        """Read the map with descriptor `fd`."""
        self._declared = declared
        self._map = Map(fd, declared.key.size, declared.sums.size, per_cpu=declared.per_cpu)
        members = declared.sums.members
        self._names = [column.name for column in members if column.ctype == "u64"]
        places = {name: index for index, name in enumerate(self._names)}
        self._latest = {
            column.name: (places[column.name], places[column.when])
            for column in members if isinstance(column, Latest)
        }  # fmt: skip
        self._samples = [column.name for column in members if column.ctype != "u64"]
        self._sample_of = declared.sums.decoder()
        self._sample_layout = declared.sums.layout()
        self._row = struct.Struct(f"={len(self._names)}Q")
        self._decode = declared.key.decoder()
        self._unpack = declared.key.layout().unpack
        self._seen: dict[bytes, dict[str, int]] = {}

    def since_last(self) -> list[Entry]:
        """Return (key, increase) of every entry that changed; gauges have their current value."""
        entries = dict(self._map.items())
        now = {key: self._combine(raw) for key, raw in entries.items()}
        before, self._seen = self._seen, now
        if self._declared.forget:
            self._forget(
                key for key in now if now[key] == before.get(key) and self._is_removable(now[key])
            )
        grown = ((key, self._increase(sums, before.get(key, {}))) for key, sums in now.items())
        return [
            (self._decode(self._unpack(key)), {**sums, **self._sample(entries[key])})
            for key, sums in grown
            if self._is_shown(sums)
        ]

    def _is_removable(self, sums: dict[str, int]) -> bool:
        forget = self._declared.forget
        return not isinstance(forget, str) or bool(sums[forget])

    def _forget(self, idle: Iterable[bytes]) -> None:
        # Removing returns the last value, which belongs to this interval.
        now = self._seen
        self._seen = dict(now)
        for key, last in self._map.take(list(idle)):
            now[key] = self._combine(last)
            del self._seen[key]

    def _sample(self, raw: bytes) -> dict[str, Any]:
        if not self._samples:
            return {}
        rows = list(self._rows(raw))
        largest = rows.index(max(rows))  # by the first sum
        layout = self._sample_layout
        values = self._sample_of(layout.unpack_from(raw, largest * layout.size))
        return {name: values[name] for name in self._samples}

    def _combine(self, raw: bytes) -> dict[str, int]:
        cpus = list(self._rows(raw))
        gauges = self._declared.gauges
        combined = {
            name: max(values) if name in gauges else sum(values)
            for name, values in zip(self._names, zip(*cpus))
        }
        for name, (place, when) in self._latest.items():
            combined[name] = max(cpus, key=lambda values: values[when])[place]
        return combined

    def _rows(self, raw: bytes) -> Iterator[tuple[int, ...]]:
        count = possible_cpus() if self._declared.per_cpu else 1
        stride = self._declared.sums.size
        return (self._row.unpack_from(raw, i * stride) for i in range(count))

    def _increase(self, now: dict[str, int], before: dict[str, int]) -> dict[str, int]:
        gauges = self._declared.gauges
        if any(now[n] < before.get(n, 0) for n in now if n not in gauges):
            before = {}
        return {n: v if n in gauges else v - before.get(n, 0) for n, v in now.items()}

    def _is_shown(self, sums: dict[str, int]) -> bool:
        ignored = set(self._declared.gauges) - set(self._declared.shown)
        return any(value for name, value in sums.items() if name not in ignored)
