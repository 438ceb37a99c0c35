"""Name lookups that have begun and not ended: which of them wait, and which will never return.

The BPF program reports what it sees end: a return, or the thread that ended or went elsewhere. Here
is what takes a look at the whole map: goroutines of a process that has ended, threads whose end was
missed, and calls that a thread has left by a jump, which nothing but its stack shows.
"""

from __future__ import annotations

import os
import platform
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from netbpf.declare.record import Event
from netbpf.declare.values import ABANDONED
from netbpf.kernel.maps import Map
from netbpf.kernel.processes import has_ended, ids_differ

_KEY = struct.Struct("=QII")  # struct call_key in include/lookups.bpf.h: thread, pid, function
_LIBC = (0, 255)  # of the functions: NO_FUNC and OTHER_STACK; the others are Go's
_TAIL = struct.Struct("=QQQQ")  # struct call behind its event: sp, born, back, signalled
_STACK_SPAN = 1 << 20  # STACK_SPAN there
_PROCESS_ENDED = 3  # there, among the results

Raw = tuple[Any, ...]


class Pending:
    """The map of pending events; `abandoned` counts the lookups that will never return."""

    def __init__(self, event: type[Event], fd: int, age: str) -> None:
        """Take the events' declaration, the map's descriptor and the name of the age's column."""
        self._map = Map.opened(fd)
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
        for key, entry in list(self._map.items()):
            thread, pid, function = _KEY.unpack(key)
            sp, _, back, signalled = _TAIL.unpack_from(entry, self._event.size)
            raw = self._layout.unpack_from(entry)
            if has_ended(pid):
                when = now
            elif not ids_differ() and function in _LIBC and _has_left(pid, thread, sp, back):
                when = signalled or now
            else:
                continue
            # What has returned since the map was read is no longer in there.
            still = self._map.get(key)
            if still and self._layout.unpack_from(still)[self._time] == raw[self._time]:
                yield self._abandoned(key, raw, when)

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


def _has_left(pid: int, thread: int, sp: int, back: int) -> bool:
    """Tell whether a thread that sleeps has left the call that it made with the stack at `sp`.

    Either it sleeps higher on the stack (further away is another one: nothing is known then), or
    its return address has been overwritten. During the call that is `back`; with a uretprobe it is
    the kernel's, the first of a page. What is not overwritten yet cannot be told from a call.
    """
    with suppress(OSError, ValueError, IndexError):
        words = Path(f"/proc/{pid}/task/{thread}/syscall").read_text().split()
        if len(words) < 3:
            return False  # it runs
        above = int(words[-2], 16) - sp
        return 0 < above < _STACK_SPAN or (above <= 0 and _is_overwritten(pid, sp, back))
    return False


def _is_overwritten(pid: int, sp: int, back: int) -> bool:
    if platform.machine() != "x86_64":
        return False  # elsewhere the return address is in a register first
    memory = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
    try:
        found = int.from_bytes(os.pread(memory, 8, sp), "little")
        return found != back and found & 0xFFF != 0
    finally:
        os.close(memory)
