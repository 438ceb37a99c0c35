"""Events, one line each."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, Optional

from netbpf.bpf.maps import Map
from netbpf.bpf.ringbuf import RingBuffer
from netbpf.declare.batch import Columns
from netbpf.declare.column import Column
from netbpf.declare.memory import ring_size
from netbpf.declare.probes import Role
from netbpf.declare.record import AmendedEvent, Event
from netbpf.declare.stacks import shown_with
from netbpf.declare.tool import Tool
from netbpf.kernel.clock import kernel_ns
from netbpf.output.clock import Clock
from netbpf.output.writers import Writer
from netbpf.run.attached import Attached
from netbpf.run.results.base import Result
from netbpf.run.results.decoded import EventDecoder
from netbpf.run.results.held import AMENDMENT, Held
from netbpf.run.results.open_events import OpenEvents
from netbpf.run.results.pending import Pending
from netbpf.run.results.sweeps import Sweeps
from netbpf.run.snapshot import run_iterators
from netbpf.run.stop import Stop

_REFRESH_SECONDS = 1.0  # between two snapshots of all processes' sockets
_PENDING_SECONDS = 10.0  # between two searches for abandoned calls
_BATCH = 1024  # records: about 20 ms, after which signals and other descriptors are served
_FEW = 2000  # records that are written after the stop on any machine, however slow
_MAX_DECODED = 1 << 18  # unread records that are counted one by one at the end
_STRAGGLERS = 256  # records after the end position whose programs may have run before the end


class EventResult(Result):
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
        self.title, self.requested = "the events", bool(tool.event_option)
        self.tool, self.settings, self.attached, self.clock = tool, settings, attached, clock
        self.columns = shown_with(event.columns, settings)
        self.event = event
        self._open_columns = self._text_of_open()
        if self._open_columns and tool.open_rows and tool.open_rows.only(settings):
            self.columns, self.heading = self._open_columns, False
        if self._per_interval:
            self.unit, self.heading = "rows", False
        self._decoder = EventDecoder(tool, event, settings, attached)
        self._time = [column.name for column in event.members].index("time")
        size = ring_size(settings["buffer"])
        self.ring = RingBuffer(attached.loaded.maps["events"], size, event.layout())
        self._delayed = (
            Held(event, self._late_amendments) if issubclass(event, AmendedEvent) else None
        )
        self._end = (1 << 64) - 1
        self._end_position = self._late_events = self._read_after_stop = 0
        self._open = OpenEvents(tool, event, attached)
        self._sweeps = Sweeps(attached)
        self._refreshed = 0.0
        self.pending: Optional[Pending] = None
        if tool.pending:
            name, age = tool.pending
            self.pending = Pending(event, attached.loaded.maps[name], age, attached)
        self._waiting: dict[bytes, tuple[Any, ...]] = {}
        self._written, self._taken = False, 0
        self._pending_ns = 0

    @property
    def _per_interval(self) -> bool:
        """Whether INTERVAL asks for rows instead of events."""
        used = (selection.probe for selection in self.attached.selections)
        return any(probe.role is Role.OPEN and probe.option == "interval" for probe in used)

    def _text_of_open(self) -> tuple[Column, ...]:
        rows = self.tool.open_rows
        text = self.settings["output"] == "text"
        return tuple(rows.columns(self.event.columns)) if rows and text else ()

    @property
    def invalid_records(self) -> int:
        """The number of records of the ring buffer that do not match the declaration."""
        return self.ring.invalid

    def begin(self, stop: Stop, writer: Writer) -> None:
        """Watch the ring buffer."""
        super().begin(stop, writer)
        stop.watch(self.ring.fd, data=True)
        apart = self._open_columns and self.columns is not self._open_columns
        self._open_writer = writer.sibling(self._open_columns) if apart else writer
        self._due = time.monotonic() + _PENDING_SECONDS if self.pending else float("inf")

    def next_due(self) -> float:
        """Return when to search for abandoned calls, to sweep, or to write a delayed event."""
        if self.stop.blocked:
            return float("inf")
        due = min(self._due, self._sweeps.due)
        return min(due, self._delayed.due if self._delayed else due)

    def read(self) -> bool:
        """Write the events of one batch; return whether any were read or written."""
        if self.stop.blocked:
            return False
        if time.monotonic() >= self._due:
            self._due += _PENDING_SECONDS
            self._write_abandoned()
        self._sweeps.run_if_due()
        return self._read_batch(_BATCH)

    def listen(self, wanted: bool) -> None:
        """Say whether the kernel shall wake the reader for the next record."""
        self.ring.listen(wanted)

    def _read_batch(self, limit: int) -> bool:
        rows = [row[1:] for row in self.ring.take(limit)]
        self._taken += len(rows)
        if self._delayed:
            now = time.monotonic()
            self._delayed.add(rows, now)
            self._write_all(self._delayed.release(now))
        else:
            self._write_all(rows)
        if self._decoder.unowned:
            self._refresh_owners()
        written, self._written = self._written, False
        return bool(rows) or written

    def _late_amendments(self) -> dict[int, int]:
        """Return {key: value} of the amendments that did not fit into the ring, once each."""
        late = Map.from_fd(self.attached.loaded.maps["late"])
        amendments = dict(late.items())
        for key in amendments:
            late.delete(key)
        return {int.from_bytes(key, sys.byteorder): v[0] for key, v in amendments.items()}

    def _refresh_owners(self) -> None:
        # Sockets created without a traced call: the next packet has the owner.
        self._decoder.unowned, now = False, time.monotonic()
        if now - self._refreshed > _REFRESH_SECONDS:
            self._refreshed = now
            run_iterators(self.attached.with_role(Role.STALE))  # stale entries may fill the map
            run_iterators(self.attached.with_role(Role.SNAPSHOT))

    def _read_to(self, position: int) -> None:
        """Write the records before a position of the ring, while time and output allow."""
        while self.ring.done < position and self.stop.may_write(self._read_after_stop < _FEW):
            before = self.ring.done
            self._read_batch(min(self.ring.count(before, position), _BATCH))
            if self.stop.reason:
                self._read_after_stop += self.ring.count(before, self.ring.done)
            if self.ring.done == before:  # a program is writing that record
                if not self.stop.reason:
                    break
                time.sleep(0.001)
        if self._delayed:
            self._write_all(self._delayed.release())

    @property
    def taken(self) -> int:
        """The number of records that were read from the ring."""
        return self._taken

    @property
    def waiting(self) -> int:
        """The number of records in the ring."""
        return self.ring.count(self.ring.done, self.ring.written)

    @property
    def unwritten(self) -> int:
        """The number of records in the ring, and of events that may be amended yet."""
        return self.waiting + (self._delayed.number if self._delayed else 0)

    @property
    def unread(self) -> int:
        """The number of events in the ring from before the end, at most as many as are wanted.

        Open events that were not listed count as well.
        """
        return self._open.unwritten + self._unread_events()

    def _unread_events(self) -> int:
        count = self.ring.count(self.ring.done, self._end_position)
        wanted = self.stop.remaining(self.seen)
        if not min(count, wanted) or count > _MAX_DECODED:
            return min(count, wanted)
        # Exact: an event whose program ran before the end may be after the end position.
        rows = [row[1:] for row in self.ring.peek(count + _STRAGGLERS)]
        amends = issubclass(self.event, AmendedEvent)
        key = [column.name for column in self.event.members].index("key") if amends else 0
        rows = [row for row in rows if row[self._time] <= self._end]
        return min(sum(not (amends and row[key] & AMENDMENT) for row in rows), wanted)

    @property
    def after_end(self) -> int:
        """The number of events after the end."""
        return self._late_events + self.ring.count(
            max(self.ring.done, self._end_position), self.ring.written
        )

    def drain(self) -> None:
        """Write the remaining events from before the end, then those that have not ended."""
        self._read_to(self.ring.written)
        if self.pending:
            # User-space probes are detached in the background: some may have ended, and were read.
            pending = self.pending.waiting()
            self._show_pending({k: raw for k, raw in self._waiting.items() if k in pending})

    def _write_all(self, raws: Sequence[Sequence[Any]]) -> None:
        if self.pending:
            raws = [event for raw in raws for event in self.pending.events_of(tuple(raw))]
        self._write(raws)

    def _write(self, raws: Sequence[Sequence[Any]]) -> None:
        timely = [raw for raw in raws if raw[self._time] <= self._end]
        self._late_events += len(raws) - len(timely)
        wanted = self.stop.remaining(self.seen)
        if not timely or not wanted:
            return
        times, columns = self._decoder.events([raw[self._time] for raw in timely], timely)
        if len(times) > wanted:
            times = times[:wanted]
            columns = {name: values[:wanted] for name, values in columns.items()}
        if times:
            self.namespaces.update(number or 0 for number in columns.get("netns", (0,)))
            self._show(times, columns)
            self._written = True  # a delayed event is written although no record was read
            self.seen += len(times)
            self.stop.remaining(self.seen)

    def _show(self, times: Sequence[int], columns: Columns) -> None:
        self.writer.events(times, columns)

    def collect(self, final: bool) -> None:
        """Read the open events, and note the position in the ring at which the interval ends."""
        self._sweeps.run()
        if self._open:
            self._open.read(self.stop)
        if final and not self.pending:
            # Detaching is not atomic: ignore events that only some probes could see.
            self._end = kernel_ns()
        self._end_position = self.ring.written

    def close_interval(self, final: bool) -> None:
        """Write the events of the interval, and those that have not ended (pending or open)."""
        if self.pending:
            self._read_pending()
            if not final:
                self._show_pending(self._waiting)
        self._read_to(self._end_position)  # before a table of the same interval
        if self._open:
            if self._per_interval:
                self._open_writer.new_table()
            self._open.write(self._decoder, self.stop, self._show_open)
            self.fields["open"] = self._open.number
            self.seen += self._open.number if self._per_interval else 0

    def _read_pending(self) -> None:
        assert self.pending
        self._write_abandoned()
        self._pending_ns = kernel_ns()
        self._waiting = self.pending.waiting()

    def _write_abandoned(self) -> None:
        assert self.pending
        self._read_to(self.ring.written)
        for raw in self.pending.remove_abandoned(kernel_ns()):
            self._write([raw])

    def _show_pending(self, waiting: Mapping[bytes, tuple[Any, ...]]) -> None:
        """Write the pending events `waiting`, the oldest first."""
        assert self.pending and self.tool.pending
        age = self.tool.pending[1]
        values = (
            self._decoder.one(self.pending.aged(raw, self._pending_ns)) for raw in waiting.values()
        )
        rows = sorted((row for row in values if row), key=lambda row: -row[age])
        for row in rows:
            self._show_waiting(self._pending_ns, row)
        self.fields["pending"] = len(rows)
        self.fields["abandoned"] = self.pending.abandoned

    def _show_waiting(self, ns: int, values: dict[str, Any]) -> None:
        self.writer.event(ns, values, "interval")

    def _show_open(self, times: Sequence[int], columns: Columns) -> None:
        self._open_writer.events(times, columns, "interval")
