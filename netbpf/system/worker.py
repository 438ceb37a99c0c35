"""A worker process for work on untrusted files, which can be killed at any time.

A file can block its reader: a file system that does not answer, a table that takes minutes. So two
processes are forked: a worker, and a supervisor that forks the next worker if one is killed, with a
list of items to skip. A kernel timer kills the worker if it spends too long on one item
(`WorkerEnd.item`). A worker that does not die (a FUSE server received its request and does not
answer) is abandoned and replaced. All of them end when this process ends, for whatever reason.
"""

from __future__ import annotations

import json
import mmap
import os
import resource
import select
import signal
import socket
import struct
import time
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Optional

from netbpf.system.forks import become_child, close_all_but
from netbpf.system.syscalls import end_with_parent

ITEM_SECONDS = 3.0  # time for one item
_EXTENDED_SECONDS = 30.0  # time for attaching
_REDUCED_SECONDS = 0.5  # time for one item after _SOME were skipped
_SOME = 3
_MAX_SKIPPED = 200  # items after which no further worker is forked
_MEMORY = 384 << 20  # bytes that a worker may allocate
_MAX_STUCK = 8  # workers that do not die
_SIZE, _HEAD = 4096, struct.Struct("=ddH")  # start, deadline (monotonic), length; the name follows
_LAG = 0.5  # seconds that a signal may take
_POLL_SECONDS = 1.0
_MAX_PART = 1 << 16  # bytes of a part of a message
# Each part begins with flags for the first and the last: a killed worker leaves messages torn.
_FLAGS = {(True, True): b"<>", (True, False): b"<+", (False, False): b"++", (False, True): b"+>"}
_DESCRIPTORS = 200  # in one message: SCM_MAX_FD of the kernel is 253


class CurrentItem:
    """The item that the worker works on, in memory that it shares with its parents."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, _SIZE)

    def begin(self, name: str, seconds: float) -> None:
        """Record that work on an item begins now and may take `seconds`."""
        raw = name.encode(errors="surrogateescape")[: _SIZE - _HEAD.size]
        self._memory[_HEAD.size : _HEAD.size + len(raw)] = raw
        now = time.monotonic()
        _HEAD.pack_into(self._memory, 0, now, now + seconds, len(raw))

    def extend(self, seconds: float) -> None:
        """Move the deadline to `seconds` from now."""
        since, _, length = _HEAD.unpack_from(self._memory)
        _HEAD.pack_into(self._memory, 0, since, time.monotonic() + seconds, length)

    def clear(self) -> None:
        """Record that the worker is idle."""
        _HEAD.pack_into(self._memory, 0, 0.0, 0.0, 0)

    @property
    def overdue(self) -> bool:
        """Whether the timer should have killed the worker by now."""
        until = float(_HEAD.unpack_from(self._memory)[1])
        return 0 < until < time.monotonic() - _LAG

    @property
    def since(self) -> float:
        """The monotonic time in seconds at which the item began; 0 if idle or closed."""
        return 0.0 if self._memory.closed else float(_HEAD.unpack_from(self._memory)[0])

    def __str__(self) -> str:
        if self._memory.closed:
            return ""
        length = _HEAD.unpack_from(self._memory)[2]
        return self._memory[_HEAD.size : _HEAD.size + length].decode(errors="surrogateescape")

    def close(self) -> None:
        """Unmap the memory; the item then reads as idle."""
        self._memory.close()


class WorkerEnd:
    """The worker's end of the channel.

    `channel` is a socket to the process that made the worker; `skipped` are the names of the items
    on which earlier workers were killed.
    """

    def __init__(
        self, channel: socket.socket, current: CurrentItem, skipped: Sequence[str]
    ) -> None:
        self.channel, self.skipped = channel, skipped
        self._current = current
        self._seconds = ITEM_SECONDS if len(skipped) < _SOME else _REDUCED_SECONDS

    @contextmanager
    def item(self, name: str) -> Iterator[None]:
        """Limit the block's time: the worker is killed after it, the next one skips `name`."""
        self._current.begin(name, self._seconds)
        signal.setitimer(signal.ITIMER_REAL, self._seconds)
        yield
        # Not after an error: the next worker must skip the current item.
        signal.setitimer(signal.ITIMER_REAL, 0)
        self._current.clear()

    def extend_deadline(self) -> None:
        """Give the current item more time, for attaching, which waits until others have detached.

        The kernel detaches one probe at a time, and waits 0.1 s and more for each.
        """
        self._current.extend(_EXTENDED_SECONDS)
        signal.setitimer(signal.ITIMER_REAL, _EXTENDED_SECONDS)

    def send(self, message: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
        """Send a message with descriptors; raises OSError if the receiver has ended."""
        for start in range(_DESCRIPTORS, len(descriptors), _DESCRIPTORS):
            self.send(message, descriptors[start : start + _DESCRIPTORS])
        data = json.dumps(message).encode()
        last = (len(data) - 1) // _MAX_PART
        for number in range(last + 1):
            part = _FLAGS[number == 0, number == last]
            part += data[number * _MAX_PART : (number + 1) * _MAX_PART]
            attached = descriptors[:_DESCRIPTORS] if number == last else ()
            socket.send_fds(self.channel, [part], list(attached))

    def receive(self) -> bytes:
        """Return the next message, b"" if the other end is closed."""
        return self.channel.recv(_MAX_PART)


class Worker:
    """The parent's end: start a process that does `work`, receive its messages, and end it.

    The child keeps only the descriptors `keep`; its standard streams are /dev/null. `confine` drops
    the privileges that it does not need.
    """

    def __init__(
        self,
        work: Callable[[WorkerEnd], None],
        keep: Iterable[int] = (),
        confine: Callable[[], None] = lambda: None,
    ) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._current = CurrentItem()
        self.channel = ours
        self.ended = self._closed = False
        self._part = b""
        us = os.getpid()
        self._pid = os.fork()
        if self._pid == 0:
            try:
                _prepare(us, {*keep, theirs.fileno()})
                confine()
                _supervise(work, theirs, self._current)
            finally:
                os._exit(0)
        theirs.close()
        ours.setblocking(False)

    def receive(self) -> Iterator[tuple[dict[str, Any], list[int]]]:
        """Yield (message, descriptors) of all messages that have arrived; does not wait."""
        while not self.ended:
            try:
                data, descriptors = self._receive_one()
            except BlockingIOError:
                return
            except OSError:
                data, descriptors = b"", []
            if not data:
                self.ended = True
                self.channel.close()
                return
            self._part = data[2:] if data[:1] == b"<" else self._part + data[2:]
            if data[1:2] == b">":
                yield json.loads(self._part), descriptors

    def _receive_one(self) -> tuple[bytes, list[int]]:
        # Not recv_fds(), which ignores its flags.
        space = socket.CMSG_SPACE(_DESCRIPTORS * 4)
        data, ancillary, _, _ = self.channel.recvmsg(_MAX_PART + 2, space, socket.MSG_CMSG_CLOEXEC)
        numbers = array("i")
        for level, kind, raw in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                numbers.frombytes(raw[: len(raw) - len(raw) % numbers.itemsize])
        return data, list(numbers)

    def wait(self, until: float) -> None:
        """Wait for a message, at most up to the monotonic time `until`."""
        poll = select.poll()
        if not self.ended:
            poll.register(self.channel, select.POLLIN)
        poll.poll(max(until - time.monotonic(), 0.0) * 1000)

    def send(self, message: bytes) -> None:
        """Send a message; it is lost if the worker has ended or its queue is full."""
        with suppress(OSError):
            self.channel.send(message)

    def stuck(self, seconds: float) -> str:
        """Return the item that the worker has been working on for `seconds` or more, else ""."""
        since = self._current.since
        return str(self._current) if 0 < since < time.monotonic() - seconds else ""

    def close(self) -> None:
        """Kill the processes, without waiting for the current item."""
        if self._closed:
            return
        self._closed = True
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        self.channel.close()
        self._current.close()
        self.ended = True


def _prepare(parent: int, keep: set[int]) -> None:
    become_child(parent)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(null, number)
    close_all_but(keep | {0, 1, 2})
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * mmap.PAGESIZE + _MEMORY
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _supervise(
    work: Callable[[WorkerEnd], None], channel: socket.socket, current: CurrentItem
) -> None:
    skipped: list[str] = []
    stuck = 0
    us = os.getpid()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    while len(skipped) < _MAX_SKIPPED and stuck < _MAX_STUCK:
        worker = os.fork()
        if worker == 0:
            status = 1
            try:
                end_with_parent(us)
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
                work(WorkerEnd(channel, current, skipped))
                status = 0
            finally:
                os._exit(status)
        ended = _await(worker, current)
        if ended == 0:
            return
        stuck += ended is None
        skipped.append(str(current))
        current.clear()
        time.sleep(min(0.01 * 2 ** len(skipped), 5.0))


def _await(worker: int, current: CurrentItem) -> Optional[int]:
    """Return the wait status of the worker, None if it is overdue: SIGKILL may not end it."""
    while True:
        ended, status = os.waitpid(worker, os.WNOHANG)
        if ended:
            return status
        if current.overdue:
            os.kill(worker, signal.SIGKILL)
            return None
        signal.sigtimedwait({signal.SIGCHLD}, _POLL_SECONDS)
