"""A child process that answers requests with capabilities that the tool has dropped.

A tool parses untrusted data from the network, so work that needs powerful capabilities runs in
another process. The helper shares no program, map or output with the tool, and ends when the tool
ends, even after SIGKILL.
"""

from __future__ import annotations

import errno
import json
import os
import select
import signal
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from typing import Any

from netbpf.system import syscall_filter
from netbpf.system.forks import become_child, close_all_but, note_cpu
from netbpf.system.privileges import drop_capabilities

_TIMEOUT = 5.0  # seconds to wait for an answer
_MAX_QUESTION = 4096  # bytes
_LENGTH = 8  # bytes of the length before an answer


class Helper:
    """A child process that answers questions, and keeps the capabilities `kept`.

    `tasks` are the functions that answer, by name; they take and return JSON values. `cpu` is the
    CPU time in seconds that the child had used at its last answer.
    """

    cpu = 0.0

    def __init__(self, tasks: Mapping[str, Callable[[Any], Any]], kept: Collection[str]) -> None:
        """Start the child. Raises OSError."""
        theirs, self._questions = os.pipe()
        self._answers, answers = os.pipe()
        parent = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            _child(tasks, kept, parent, theirs, answers)
        os.close(theirs)
        os.close(answers)
        os.set_blocking(self._answers, False)
        self._data, self._pending = b"", ""  # received part of the answer; the task that it is of

    def ask(self, task: str, question: Any = None, timeout: float = _TIMEOUT) -> Any:
        """Return what a task returns for `question` (a JSON value).

        Raises TimeoutError after `timeout` seconds; the late answer is returned for the task's next
        question. Raises OSError if the child has ended.
        """
        end = time.monotonic() + timeout
        if self._pending not in ("", task):
            self._answer(end)
        if not self._pending:
            os.write(self._questions, json.dumps((task, question)).encode() + b"\n")
            self._pending = task
        return self._answer(end)

    def _answer(self, end: float) -> Any:
        while len(self._data) < _LENGTH or len(self._data) < _LENGTH + self._length:
            self._receive(end)
        answer = json.loads(self._data[_LENGTH : _LENGTH + self._length])
        self._data, self._pending = b"", ""
        self.cpu, result = answer
        note_cpu(self, self.cpu)
        return result

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
            raise OSError(errno.EPIPE, "the helper process has ended")
        self._data += part

    def close(self) -> None:
        """End the child."""
        if self._questions >= 0:
            os.close(self._questions)
            self._questions = -1
        if self._answers >= 0:
            os.close(self._answers)
            self._answers = -1
            with suppress(OSError):
                os.waitpid(self.pid, 0)


def _child(
    tasks: Mapping[str, Callable[[Any], Any]],
    kept: Collection[str],
    parent: int,
    questions: int,
    answers: int,
) -> None:
    status = 1
    try:
        _become_helper(kept, parent, {questions, answers})
        while question := os.read(questions, _MAX_QUESTION):
            task, words = json.loads(question)
            answer = tasks[task](words)
            data = json.dumps((time.process_time(), answer), separators=(",", ":")).encode()
            data = len(data).to_bytes(_LENGTH, "little") + data
            while data:
                data = data[os.write(answers, data) :]
        status = 0
    finally:
        os._exit(status)  # skip atexit handlers and the parent's unflushed buffers


def _become_helper(kept: Collection[str], parent: int, pipes: set[int]) -> None:
    # After Ctrl-C the tool shuts down in order and asks once more.
    become_child(parent, signal.SIGTSTP)
    close_all_but(pipes)
    drop_capabilities(kept)
    if syscall_filter.available():
        with suppress(OSError):  # a kernel without seccomp filters
            syscall_filter.prepare(syscall_filter.Allowed(namespaces=True, statistics=True))()
