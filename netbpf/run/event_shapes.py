"""Results made of events: a line each, distributions, or digests of them."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, Optional

from netbpf.declare.columns import Container
from netbpf.declare.digest import Digest
from netbpf.declare.histogram import Histogram
from netbpf.declare.record import AmendedEvent, Event
from netbpf.declare.tool import Tool
from netbpf.kernel.cgroups import container_of, path_of
from netbpf.kernel.clock import kernel_ns
from netbpf.kernel.maps import Map
from netbpf.output.clock import Clock
from netbpf.output.writers import Writer
from netbpf.run.digests import DigestReader
from netbpf.run.held import Held
from netbpf.run.histograms import HistogramCounter
from netbpf.run.pending import Pending
from netbpf.run.program import Attached
from netbpf.run.shape import Shape, bucket_columns
from netbpf.run.snapshot import read_records, run_iterators
from netbpf.run.stop import Stop
from netbpf.run.stream import RingBuffer, ring_size

_LEARN_SECONDS = 1.0  # between two looks at all processes' sockets
_PENDING_SECONDS = 10.0  # between two looks at what has not ended


class EventShape(Shape):
    """A line per event."""

    heading = True

    def __init__(
        self,
        tool: Tool,
        event: type[Event],
        settings: Mapping[str, Any],
        attached: Attached,
        clock: Clock,
    ) -> None:
        super().__init__()
        self.title, self.asked = "the events", bool(tool.event_option)
        self.tool, self.settings, self.attached, self.clock = tool, settings, attached, clock
        self.columns = event.columns
        self.event = event
        self._decode = event.decoder()
        self._time = [column.name for column in event.members].index("time")
        size = ring_size(settings["buffer"])
        self.ring = RingBuffer(attached.loaded.maps["events"], size, event.layout())
        self._held = Held(event, self._late) if issubclass(event, AmendedEvent) else None
        self._until = (1 << 64) - 1
        self._enrich = tool.hooks.get("enrich")
        self._strangers, self._learnt = False, 0.0
        # A column that the probes in use cannot tell holds zeros.
        self._lost = {c.name: None for c in event.columns if c.name in attached.lacking}
        self._containers = [c.name for c in event.columns if isinstance(c, Container)]
        self.pending: Optional[Pending] = None
        if tool.pending:
            name, age = tool.pending
            self.pending = Pending(event, attached.loaded.maps[name], age)
        self._waiting: dict[bytes, tuple[Any, ...]] = {}
        self._written = False
        self._stopped = 0

    @property
    def strange(self) -> int:
        """Records of the ring buffer that were not what was declared."""
        return self.ring.strange

    def begin(self, stop: Stop, writer: Writer) -> None:
        """Watch the ring."""
        super().begin(stop, writer)
        stop.watch(self.ring.fd)
        self._due = time.monotonic() + _PENDING_SECONDS if self.pending else float("inf")

    def next_due(self) -> float:
        """Return when to look at what has not ended, or to write an event that is held back."""
        return min(self._due, self._held.due if self._held else self._due)

    def read(self) -> bool:
        """Write the events of one batch; return whether any were read or written."""
        if time.monotonic() >= self._due:
            self._due += _PENDING_SECONDS
            self._write_gone()
        rows = [row[1:] for row in self.ring.take()]
        if self._held:
            now = time.monotonic()
            self._held.add(rows, now)
            self._write_all(self._held.release(now))
        else:
            self._write_all(rows)
        if self._strangers:
            self._learn()
        written, self._written = self._written, False
        return bool(rows) or written

    def _late(self) -> dict[int, int]:
        """Return {key: value} of the amendments that found no room in the ring, once each."""
        late = Map.opened(self.attached.loaded.maps["late"])
        found = dict(late.items())
        for key in found:
            late.delete(key)
        return {int.from_bytes(key, sys.byteorder): value[0] for key, value in found.items()}

    def _learn(self) -> None:
        # Sockets whose making shows nowhere: from the next packet on, their owner is known.
        self._strangers, now = False, time.monotonic()
        if now - self._learnt > _LEARN_SECONDS:
            self._learnt = now
            run_iterators(self.attached, "stale")  # they may take the room
            run_iterators(self.attached, "snapshot")

    def drain(self) -> None:
        """Write all that is left in the ring, then what will never end in there."""
        self._read_all()
        if self.pending:
            # User-space probes are detached in the background: what ended just now was just read.
            still = self.pending.waiting()
            self._show_pending({k: raw for k, raw in self._waiting.items() if k in still})

    def _read_all(self) -> None:
        while self.read():
            pass
        if self._held:
            self._write_all(self._held.release())

    def _write_all(self, rows: Iterable[Sequence[Any]]) -> None:
        for row in rows:
            for event in self.pending.events_of(tuple(row)) if self.pending else (row,):
                self._write(event)

    def _write(self, raw: Sequence[Any]) -> None:
        if not self.stop.room(self.seen) or raw[self._time] > self._until:
            return
        values = self._values(raw)
        if values is None:
            return
        self.namespaces.add(values.get("netns") or 0)
        self._show(raw[self._time], values)
        self._written = True  # it may have waited for a moment in which nothing else comes
        self.seen += 1
        self.stop.room(self.seen)

    def _show(self, ns: int, values: dict[str, Any]) -> None:
        self.writer.event(ns, values)

    def _values(self, raw: Sequence[Any]) -> Optional[dict[str, Any]]:
        values: dict[str, Any] = {**self._decode(raw), **self._lost}
        for name in self._containers:
            values[name] = container_of(path_of(values[name])) or None
        if self.tool.relearn and values["owner"] == "unknown":
            self._strangers = self._strangers or values[self.tool.relearn] == "yes"
        return self._enrich(values, self.settings) if self._enrich else values

    def close_interval(self, final: bool) -> None:
        """Write what has not ended: the map of pending events, what the iterator `open` sees."""
        if self.pending:
            self._look_at_pending()
            if not final:
                self._show_pending(self._waiting)
        if "open" in self.attached.links:
            self._list_open()
        self._read_all()  # a table that follows stands behind the events of its time
        if final and not self.pending:
            # Probes are detached one after the other: what comes meanwhile is seen by half of them.
            self._until = kernel_ns()

    def _look_at_pending(self) -> None:
        assert self.pending
        self._write_gone()
        self._stopped = kernel_ns()
        self._waiting = self.pending.waiting()

    def _write_gone(self) -> None:
        assert self.pending
        self._read_all()
        for raw in self.pending.gone(kernel_ns()):
            self._write(raw)

    def _show_pending(self, waiting: Mapping[bytes, tuple[Any, ...]]) -> None:
        """Write what waited at the last look, the oldest first."""
        assert self.pending and self.tool.pending
        age = self.tool.pending[1]
        found = (self._values(self.pending.aged(raw, self._stopped)) for raw in waiting.values())
        rows = sorted((row for row in found if row), key=lambda row: -row[age])
        for row in rows:
            self._show_waiting(self._stopped, row)
        self.more["pending"] = len(rows)
        self.more["abandoned"] = self.pending.abandoned

    def _show_waiting(self, ns: int, values: dict[str, Any]) -> None:
        self.writer.event(ns, values, "interval")

    def _list_open(self) -> None:
        self._read_all()
        seen = set()
        key = self.tool.hooks["same"]
        layout = self.event.layout()
        probes = ("open", "open_calls")
        for raw in chain.from_iterable(read_records(self.attached, p, layout) for p in probes):
            values = self._decode(raw)
            if key(values) not in seen:
                seen.add(key(values))
                self._show_open(raw[self._time], values)
        self.more["open"] = len(seen)

    def _show_open(self, ns: int, values: dict[str, Any]) -> None:
        self.writer.event(ns, values, "interval")


class DistributionShape(EventShape):
    """Distributions of a column of the events, counted while they are read."""

    unit = "values"
    heading = False

    def __init__(self, declared: Histogram, *more: Any) -> None:
        super().__init__(*more)
        self.declared = declared
        self.columns = (*declared.key.columns, *bucket_columns())
        self.counter = HistogramCounter(declared, self.settings["map_entries"])

    def _show(self, ns: int, values: dict[str, Any]) -> None:
        self.counter.add(values)

    def _show_waiting(self, ns: int, values: dict[str, Any]) -> None:
        pass

    def close_interval(self, final: bool) -> None:
        """Write the distributions of the interval; those of the last one come with drain()."""
        if self.pending:
            self._look_at_pending()
        if not final:
            self._read_all()
            self._write_histograms()

    def drain(self) -> None:
        """Write the last distributions."""
        super().drain()
        self._write_histograms()
        if self.more.get("pending"):
            self.note(f"{self.more['pending']} had not ended and are not counted")
        if self.more.get("abandoned"):
            number = self.more["abandoned"]
            self.note(f"{number} never returned: they count with the time until they were left")
        if self.counter.crowded:
            self.note("the key null holds what found no room among --map-entries keys")

    def _write_histograms(self) -> None:
        now = kernel_ns()
        for histogram in self.counter.since_last():
            self.writer.histogram(now, histogram)


class DigestShape(EventShape):
    """Rows made of the events while they are read."""

    def __init__(self, declared: Digest, *more: Any) -> None:
        super().__init__(*more)
        self.columns = declared.row.columns
        self._intervals = 0
        self.reader = DigestReader(declared, self.settings)

    def _show(self, ns: int, values: dict[str, Any]) -> None:
        self.reader.add(values, True)

    def _show_open(self, ns: int, values: dict[str, Any]) -> None:
        self.reader.add(values, False)

    def close_interval(self, final: bool) -> None:
        """Write the rows of the interval; those of the last one come with drain()."""
        super().close_interval(final)
        if not final:
            self._write_rows()

    def drain(self) -> None:
        """Write the last rows."""
        self._read_all()
        self._write_rows()
        if self.reader.crowded:
            self.note("the row without a key holds what found no room among --map-entries rows")

    def _write_rows(self) -> None:
        now, rows = self.reader.since_last()
        if self._intervals:
            self.writer.new_table()
        self._intervals += 1
        for row in rows:
            self.writer.event(now, row, "interval")
