"""Name lookups that have not ended: which are waiting, and which will never return.

The BPF program reports a return, and the end of a thread or its next call. This module checks the
whole map for the rest: goroutines of a process that has ended, threads whose end was missed, and
calls that a thread has left by a jump, which only its stack shows.
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
from netbpf.run.attached import Attached

_KEY = struct.Struct("=QII")  # struct call_key in include/lookups.bpf.h: thread, pid, function
_LIBC = (0, 255)  # functions NO_FUNC and OTHER_STACK; all others are Go's
_TAIL = struct.Struct("=QQQQ")  # members of struct call after its event: sp, born, back, signalled
_PROCESS_ENDED = 3  # in include/lookups.bpf.h, a value of the column result

Raw = tuple[Any, ...]


class Pending:
    """The map of pending lookups; `abandoned` counts those that will never return."""

    def __init__(self, event: type[Event], fd: int, age: str, attached: Attached) -> None:
        """Read the map with descriptor `fd`, whose values begin with `event`; `age` is a column.

        `attached` returns which threads have left their calls.
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
        """Return the events of a record: itself, or the calls of a process that ended."""
        if raw[self._result] == _PROCESS_ENDED:
            return list(self._ended(raw[self._pid], raw[self._time]))
        self.abandoned += raw[self._result] == ABANDONED
        return [raw]

    def waiting(self) -> dict[bytes, Raw]:
        """Return {raw key: event} of the map."""
        return {key: self._layout.unpack_from(entry) for key, entry in self._map.items()}

    def aged(self, raw: Raw, now: int) -> Raw:
        """Return a pending call with its age at `now` (ns)."""
        return self._changed(raw, {self._age: now - raw[self._time]})

    def remove_abandoned(self, now: int) -> Iterator[Raw]:
        """Remove calls that will never return from the map, and yield them as events."""
        entries = list(self._map.items())
        stacks = dict(self._stacks(entries))
        left = set(self._attached.left_calls([*stacks.values()])) if stacks else set()
        for key, entry in entries:
            _, pid, _ = _KEY.unpack(key)
            raw = self._layout.unpack_from(entry)
            if has_ended(pid):
                when = now
            elif key in stacks and stacks[key] in left:
                when = _TAIL.unpack_from(entry, self._event.size)[3] or now
            else:
                continue
            # A call that has returned since the map was read is no longer in it.
            current = self._map.get(key)
            if current and self._layout.unpack_from(current)[self._time] == raw[self._time]:
                yield self._abandoned(key, raw, when)

    def _stacks(self, entries: list[tuple[bytes, bytes]]) -> Iterator[tuple[bytes, Stack]]:
        """Yield (key, stack at the call) of each call of libc whose process is alive."""
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
