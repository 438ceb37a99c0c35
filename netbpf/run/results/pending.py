"""Name lookups that have begun and not ended: which of them wait, and which will never return.

The BPF program reports what it sees end: a return, or the thread that ended or went elsewhere. Here
is what takes a look at the whole map: goroutines of a process that has ended, threads whose end was
missed, and calls that a thread has left by a jump, which nothing but its stack shows.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

from netbpf.bpf.maps import Map
from netbpf.declare.record import Event
from netbpf.declare.values import ABANDONED
from netbpf.kernel.processes import has_ended, ids_differ
from netbpf.kernel.thread_stacks import Stack
from netbpf.run.program import Attached

_KEY = struct.Struct("=QII")  # struct call_key in include/lookups.bpf.h: thread, pid, function
_LIBC = (0, 255)  # of the functions: NO_FUNC and OTHER_STACK; the others are Go's
_TAIL = struct.Struct("=QQQQ")  # struct call behind its event: sp, born, back, signalled
_PROCESS_ENDED = 3  # there, among the results

Raw = tuple[Any, ...]


class Pending:
    """The map of pending events; `abandoned` counts the lookups that will never return."""

    def __init__(self, event: type[Event], fd: int, age: str, attached: Attached) -> None:
        """Take the events' declaration, the map's descriptor and the name of the age's column.

        `attached` tells which threads have left their calls.
        """
        self._attached = attached
        self._map = Map.from_fd(fd)
        self._event = event
        self._layout = event.layout()
        names = [column.name for column in event.members]
        self._time, self._age, self._result, self._pid = map(
            names.index, ("time", age, "result", "pid")
        )
        self.abandoned = 0

    def events_of(self, raw: Raw) -> list[Raw]:
        """Return the events that a record of the ring stands for, itself or the calls it ended."""
        if raw[self._result] == _PROCESS_ENDED:
            return list(self._ended(raw[self._pid], raw[self._time]))
        self.abandoned += raw[self._result] == ABANDONED
        return [raw]

    def waiting(self) -> dict[bytes, Raw]:
        """Return what is in the map."""
        return {key: self._layout.unpack_from(entry) for key, entry in self._map.items()}

    def aged(self, raw: Raw, now: int) -> Raw:
        """Return a call that waits, with its age at `now` (ns)."""
        return self._changed(raw, {self._age: now - raw[self._time]})

    def gone(self, now: int) -> Iterator[Raw]:
        """Remove the calls that will never return from the map, and yield them as events."""
        entries = list(self._map.items())
        stacks = dict(self._stacks(entries))
        left = set(self._attached.left([*stacks.values()])) if stacks else set()
        for key, entry in entries:
            _, pid, _ = _KEY.unpack(key)
            raw = self._layout.unpack_from(entry)
            if has_ended(pid):
                when = now
            elif key in stacks and stacks[key] in left:
                when = _TAIL.unpack_from(entry, self._event.size)[3] or now
            else:
                continue
            # What has returned since the map was read is no longer in there.
            still = self._map.get(key)
            if still and self._layout.unpack_from(still)[self._time] == raw[self._time]:
                yield self._abandoned(key, raw, when)

    def _stacks(self, entries: list[tuple[bytes, bytes]]) -> Iterator[tuple[bytes, Stack]]:
        """Yield (key, where its stack was) of each call of libc whose process is there."""
        for key, entry in entries if not ids_differ() else ():
            thread, pid, function = _KEY.unpack(key)
            sp, _, back, _ = _TAIL.unpack_from(entry, self._event.size)
            if function in _LIBC and not has_ended(pid):
                yield key, (pid, thread, sp, back)

    def _ended(self, pid: int, when: int) -> Iterator[Raw]:
        for key, raw in self.waiting().items():
            if _KEY.unpack(key)[1] == pid and raw[self._time] < when:
                yield self._abandoned(key, raw, when)

    def _abandoned(self, key: bytes, raw: Raw, when: int) -> Raw:
        self._map.delete(key)
        self.abandoned += 1
        age = when - raw[self._time]
        return self._changed(raw, {self._time: when, self._age: age, self._result: ABANDONED})

    def _changed(self, raw: Raw, members: dict[int, int]) -> Raw:
        return tuple(members.get(index, value) for index, value in enumerate(raw))
