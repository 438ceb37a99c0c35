"""A worker process for work on untrusted files, which can be killed at any time.

A file can hold up its reader: a file system that does not answer, a table that takes minutes. So
two processes are forked: a worker, and a supervisor that forks the next worker if one is killed,
with a list of what to leave out. A kernel timer kills the worker if it spends too long on one item
(`WorkerEnd.on`). A worker that cannot even die (a FUSE server received its request and does not
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

PATIENCE = 3.0  # seconds that one thing may take
_MORE_PATIENCE = 30.0
_LESS_PATIENCE = 0.5  # after some that took longer
_SOME = 3
_MOST = 200  # things that it is killed over, before there is no next one
_MEMORY = 384 << 20  # bytes that it may take beyond what it begins with
_MOST_STUCK = 8  # of it that cannot die
_NOTE, _HEAD = 4096, struct.Struct("=ddH")  # begin and latest end (monotonic), length; words follow
_LAG = 0.5  # seconds until a signal has done what it does
_LOOK = 1.0
_LARGEST = 1 << 16  # bytes of a part of a message
# A message's parts begin with whether they are the first and the last: one may be torn.
_FLAGS = {(True, True): b"<>", (True, False): b"<+", (False, False): b"++", (False, True): b"+>"}
_DESCRIPTORS = 200  # in one message: SCM_MAX_FD of the kernel is 253


class Note:
    """What the process is at, in memory that it shares with those that made it."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, _NOTE)

    def write(self, words: str, seconds: float) -> None:
        """Note that it is at something from now on, which may take so long."""
        raw = words.encode(errors="surrogateescape")[: _NOTE - _HEAD.size]
        self._memory[_HEAD.size : _HEAD.size + len(raw)] = raw
        now = time.monotonic()
        _HEAD.pack_into(self._memory, 0, now, now + seconds, len(raw))

    def extend(self, seconds: float) -> None:
        """Note that it may take so long from now on."""
        since, _, length = _HEAD.unpack_from(self._memory)
        _HEAD.pack_into(self._memory, 0, since, time.monotonic() + seconds, length)

    def clear(self) -> None:
        """Note that it is at nothing."""
        _HEAD.pack_into(self._memory, 0, 0.0, 0.0, 0)

    @property
    def overdue(self) -> bool:
        """Should it have been killed by now?"""
        until = float(_HEAD.unpack_from(self._memory)[1])
        return 0 < until < time.monotonic() - _LAG

    @property
    def since(self) -> float:
        """When it began with that, on the monotonic clock; 0 if it is at nothing or closed."""
        return 0.0 if self._memory.closed else float(_HEAD.unpack_from(self._memory)[0])

    def __str__(self) -> str:
        if self._memory.closed:
            return ""
        length = _HEAD.unpack_from(self._memory)[2]
        return self._memory[_HEAD.size : _HEAD.size + length].decode(errors="surrogateescape")

    def close(self) -> None:
        """Unmap it: it reads as nothing from now on."""
        self._memory.close()


class WorkerEnd:
    """What the process apart works with.

    `channel` leads to the process that made it; `skipped` are the things that earlier ones were
    killed over, in the words of `on`.
    """

    def __init__(self, channel: socket.socket, note: Note, skipped: Sequence[str]) -> None:
        self.channel, self.skipped = channel, skipped
        self._note = note
        self._patience = PATIENCE if len(skipped) < _SOME else _LESS_PATIENCE

    @contextmanager
    def on(self, what: str) -> Iterator[None]:
        """Be killed if the block takes too long; the next process has `what` in `skipped`."""
        self._note.write(what, self._patience)
        signal.setitimer(signal.ITIMER_REAL, self._patience)
        yield
        # After an error the note stays: it is what the next one is to skip.
        signal.setitimer(signal.ITIMER_REAL, 0)
        self._note.clear()

    def go_on(self) -> None:
        """Grant the thing at hand more time: for attaching, which waits for others' detaching.

        The kernel does one at a time, and for each end it waits: 0.1 s and more.
        """
        self._note.extend(_MORE_PATIENCE)
        signal.setitimer(signal.ITIMER_REAL, _MORE_PATIENCE)

    def send(self, message: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
        """Send a message; raises OSError if there is no one any more who receives it."""
        for start in range(_DESCRIPTORS, len(descriptors), _DESCRIPTORS):
            self.send(message, descriptors[start : start + _DESCRIPTORS])
        words = json.dumps(message).encode()
        last = (len(words) - 1) // _LARGEST
        for number in range(last + 1):
            part = _FLAGS[number == 0, number == last]
            part += words[number * _LARGEST : (number + 1) * _LARGEST]
            with_it = descriptors[:_DESCRIPTORS] if number == last else ()
            socket.send_fds(self.channel, [part], list(with_it))

    def receive(self) -> bytes:
        """Return the next message to it, b"" if the other end is closed."""
        return self.channel.recv(_LARGEST)


class Worker:
    """The other end: starts the process that does `work`, receives from it, and ends it.

    `keep` are the descriptors that it needs; all others, and our output, are closed there.
    `confine` gives up what it does not need, for good.
    """

    def __init__(
        self,
        work: Callable[[WorkerEnd], None],
        keep: Iterable[int] = (),
        confine: Callable[[], None] = lambda: None,
    ) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._note = Note()
        self.channel = ours
        self.ended = self._closed = False
        self._part = b""
        us = os.getpid()
        self._pid = os.fork()
        if self._pid == 0:
            try:
                _prepare(us, {*keep, theirs.fileno()})
                confine()
                _supervise(work, theirs, self._note)
            finally:
                os._exit(0)
        theirs.close()
        ours.setblocking(False)

    def receive(self) -> Iterator[tuple[dict[str, Any], list[int]]]:
        """Yield (message, descriptors) of all that is there now."""
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
        # Not by recv_fds(), which leaves out its flags.
        room = socket.CMSG_SPACE(_DESCRIPTORS * 4)
        data, more, _, _ = self.channel.recvmsg(_LARGEST + 2, room, socket.MSG_CMSG_CLOEXEC)
        numbers = array("i")
        for level, kind, raw in more:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                numbers.frombytes(raw[: len(raw) - len(raw) % numbers.itemsize])
        return data, list(numbers)

    def wait(self, until: float) -> None:
        """Wait for something to receive, up to the monotonic time `until`."""
        poll = select.poll()
        if not self.ended:
            poll.register(self.channel, select.POLLIN)
        poll.poll(max(until - time.monotonic(), 0.0) * 1000)

    def send(self, message: bytes) -> None:
        """Send a message, or lose it if the process is gone or does not receive any."""
        with suppress(OSError):
            self.channel.send(message)

    def stuck(self, seconds: float) -> str:
        """Return what it has been at for so long, in the words of `WorkerEnd.on`; "" if nothing."""
        since = self._note.since
        return str(self._note) if 0 < since < time.monotonic() - seconds else ""

    def close(self) -> None:
        """End it; never waits for what it is at."""
        if self._closed:
            return
        self._closed = True
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        self.channel.close()
        self._note.close()
        self.ended = True


def _prepare(parent: int, keep: set[int]) -> None:
    become_child(parent)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nothing, number)
    close_all_but(keep | {0, 1, 2})
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * mmap.PAGESIZE + _MEMORY
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _supervise(work: Callable[[WorkerEnd], None], channel: socket.socket, note: Note) -> None:
    skipped: list[str] = []
    stuck = 0
    us = os.getpid()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    while len(skipped) < _MOST and stuck < _MOST_STUCK:
        worker = os.fork()
        if worker == 0:
            status = 1
            try:
                end_with_parent(us)
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
                work(WorkerEnd(channel, note, skipped))
                status = 0
            finally:
                os._exit(status)
        ended = _await(worker, note)
        if ended == 0:
            return
        stuck += ended is None
        skipped.append(str(note))
        note.clear()
        time.sleep(min(0.01 * 2 ** len(skipped), 5.0))


def _await(worker: int, note: Note) -> Optional[int]:
    """Return the status with which a process ended, None if it does not when it is killed."""
    while True:
        ended, status = os.waitpid(worker, os.WNOHANG)
        if ended:
            return status
        if note.overdue:
            os.kill(worker, signal.SIGKILL)
            return None
        signal.sigtimedwait({signal.SIGCHLD}, _LOOK)
