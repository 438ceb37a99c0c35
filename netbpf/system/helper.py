"""A process that answers one question again and again, with rights that the tool has given up.

What a tool reads of the network is made by strangers; what needs a right that is good for more than
reading counters is therefore not done in the same process. The helper holds nothing of the tool's:
no program, no map, no output. It ends when the tool does, however that ends.
"""

from __future__ import annotations

import errno
import json
import os
import select
import signal
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Any

from netbpf.system import syscall_filter
from netbpf.system.forks import become_child, close_all_but, note_cpu
from netbpf.system.privileges import give_up

_PATIENCE = 5.0  # seconds that an answer may take
_LONGEST = 4096  # bytes of a question
_LENGTH = 8  # bytes of the number before an answer


class Helper:
    """A child process that calls `work` whenever it is asked, keeping the capabilities `kept`.

    `work` takes a question and returns an answer that JSON can hold. `cpu` are the seconds of CPU
    time until its last answer.
    """

    cpu = 0.0

    def __init__(self, work: Callable[[Any], Any], kept: Collection[str]) -> None:
        """Start it. Raises OSError."""
        theirs, self._questions = os.pipe()
        self._answers, answers = os.pipe()
        parent = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            _child(work, kept, parent, theirs, answers)
        os.close(theirs)
        os.close(answers)
        os.set_blocking(self._answers, False)
        self._data, self._waits = b"", False  # of the answer so far; is there one to come?

    def ask(self, question: Any = None, patience: float = _PATIENCE) -> Any:
        """Return what `work` returns for `question` (what JSON can hold).

        Raises TimeoutError if that takes more than `patience` seconds: what comes later is for the
        next question. Raises OSError if the helper is gone.
        """
        end = time.monotonic() + patience
        if not self._waits:
            os.write(self._questions, json.dumps(question).encode() + b"\n")
            self._waits = True
        while len(self._data) < _LENGTH or len(self._data) < _LENGTH + self._length:
            self._receive(end)
        answer = json.loads(self._data[_LENGTH : _LENGTH + self._length])
        self._data, self._waits = b"", False
        self.cpu, found = answer
        note_cpu(self, self.cpu)
        return found

    @property
    def _length(self) -> int:
        return int.from_bytes(self._data[:_LENGTH], "little")

    def _receive(self, end: float) -> None:
        poll = select.poll()
        poll.register(self._answers, select.POLLIN)
        if not poll.poll(max(end - time.monotonic(), 0) * 1000):
            raise TimeoutError(errno.ETIMEDOUT, "no answer")
        part = os.read(self._answers, 1 << 20)
        if not part:
            raise OSError(errno.EPIPE, "the helper is gone")
        self._data += part

    def _end(self) -> None:
        if self._questions >= 0:
            os.close(self._questions)
            self._questions = -1

    def close(self) -> None:
        """Let it end."""
        self._end()
        if self._answers >= 0:
            os.close(self._answers)
            self._answers = -1
            with suppress(OSError):
                os.waitpid(self.pid, 0)


def _child(
    work: Callable[[Any], Any], kept: Collection[str], parent: int, questions: int, answers: int
) -> None:
    status = 1
    try:
        _become_helper(kept, parent, {questions, answers})
        while question := os.read(questions, _LONGEST):
            answer = work(json.loads(question))
            data = json.dumps((time.process_time(), answer), separators=(",", ":")).encode()
            data = len(data).to_bytes(_LENGTH, "little") + data
            while data:
                data = data[os.write(answers, data) :]
        status = 0
    finally:
        os._exit(status)  # no atexit, no buffers of the parent flushed twice


def _become_helper(kept: Collection[str], parent: int, pipes: set[int]) -> None:
    # Ctrl-C ends the tool in order, which has a last question then.
    become_child(parent, signal.SIGTSTP)
    close_all_but(pipes)
    give_up(kept)
    if syscall_filter.available():
        with suppress(OSError):  # a kernel without filters
            syscall_filter.prepared(syscall_filter.Allowed(namespaces=True))()
