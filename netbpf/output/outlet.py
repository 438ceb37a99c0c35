"""A text stream that never blocks on its reader.

Data that the reader has not accepted is buffered until the next flush(). Pipes and terminals are
reopened, because O_NONBLOCK belongs to the open file description, which is shared with the shell
and with other writers.
"""

from __future__ import annotations

import errno
import io
import os
import select
import stat
import time
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Optional

if TYPE_CHECKING:
    import socket

_CHUNK = 1 << 16  # bytes per write
_MSG_DONTWAIT = 0x40  # include/linux/socket.h
_MAX_MESSAGES = 1 << 16  # characters of messages buffered for a stalled reader


class _Aside(str):
    """Text that is not a record: a heading or a blank line."""


class Outlet(io.TextIOBase):
    """Writes text to the descriptor `fd` as fast as its reader accepts it.

    With `messages`, each line is written at once, and lines beyond 64 KiB of unread text are
    dropped. `error` is the error that ended the stream (pipe closed, disk full); all later text is
    dropped. No method raises it.
    """

    def __init__(self, fd: int, encoding: str = "utf-8", messages: bool = False) -> None:
        self.error: Optional[OSError] = None
        self._fd = fd
        self._messages = messages
        self._terminal = os.isatty(fd)
        self._charset = encoding
        mode = os.fstat(fd).st_mode
        self._nonblocking = _reopen(fd, mode)
        # Writes of up to PIPE_BUF bytes to a pipe are atomic, so that no line is ever cut.
        atomic = stat.S_ISFIFO(mode) or self._nonblocking is None
        self._chunk = select.PIPE_BUF if atomic else _CHUNK
        self._socket = _socket(fd) if stat.S_ISSOCK(mode) else None
        self._dropped = 0  # records written after the error
        self._lines: deque[str] = deque()
        self._batch: list[str] = []  # the lines being written
        self._data = b""  # bytes of the batch that are not yet written
        self._done = 0  # bytes of the batch that are written

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """The name of the encoding; characters that it lacks are written as escapes."""
        return self._charset

    def fileno(self) -> int:
        """Return the original descriptor."""
        return self._fd

    def isatty(self) -> bool:
        """Return whether the stream is a terminal."""
        return self._terminal

    def writable(self) -> bool:
        """Return True."""
        return True

    def write(self, text: str) -> int:
        """Buffer one record, to be written by flush(); messages are written at once."""
        if self.error is None:
            self._lines.append(text)
        else:
            self._dropped += type(text) is not _Aside
        if self._messages and "\n" in text:
            self.flush()
            while self.blocked and sum(map(len, self._lines)) > _MAX_MESSAGES:
                self._lines.pop()
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:  # type: ignore[override]
        """Buffer many records."""
        if self.error is None and not self._messages:
            self._lines.extend(lines)
        else:
            super().writelines(lines)

    def aside(self, text: str) -> None:
        """Buffer text that is not a record."""
        self.write(_Aside(text))

    @property
    def blocked(self) -> bool:
        """Whether text is buffered that the reader has not accepted."""
        return self.error is None and bool(self._data or self._lines)

    def drop(self) -> int:
        """Drop buffered text; return the number of records that were not written completely."""
        if isinstance(self.error, BrokenPipeError):
            return 0  # the reader closed the pipe on purpose
        dropped = self._dropped + sum(type(line) is not _Aside for line in self._lines)
        done = self._done
        for line in self._batch:
            done -= len(self._encoded(line))
            dropped += done < 0 and type(line) is not _Aside
        self._lines.clear()
        if not self._done:  # else finish the line that is half written
            self._batch, self._data = [], b""
        return dropped

    def flush(self) -> None:
        """Write what the reader accepts now."""
        try:
            while self.blocked:
                if not self._data:
                    self._next_batch()
                sent = self._send(self._data)
                if not sent:
                    return
                self._done += sent
                self._data = self._data[sent:]
                if not self._data:
                    self._batch, self._done = [], 0
        except OSError as error:
            self._fail(error)

    def finish(self, until: float) -> None:
        """Write what the reader accepts until the monotonic time `until`, in seconds."""
        self.flush()
        while self.blocked and time.monotonic() < until:
            self.wait_for_room(until)
            self.flush()

    def wait_for_room(self, until: float) -> bool:
        """Sleep until the reader accepts more or until the monotonic time `until`, in seconds.

        Return whether it accepts more.
        """
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        return bool(poll.poll(max(until - time.monotonic(), 0) * 1000))

    def close(self) -> None:
        """Close the reopened descriptor; the original stays open."""
        if self._nonblocking is not None and self._nonblocking != self._fd:
            os.close(self._nonblocking)
        if self._socket:
            self._socket.close()
        self._nonblocking = self._socket = None

    def _next_batch(self) -> None:
        size = 0
        while self._lines and (not size or size + len(self._lines[0]) <= self._chunk):
            size += len(self._lines[0])
            self._batch.append(self._lines.popleft())
        self._data = self._encoded("".join(self._batch))

    def _send(self, data: bytes) -> int:
        try:
            if self._socket:
                return self._socket.send(data, _MSG_DONTWAIT)
            if self._nonblocking is None:
                return os.write(self._fd, data[: self._chunk]) if self.wait_for_room(0.0) else 0
            return os.write(self._nonblocking, data)
        except BlockingIOError:
            return 0

    def _fail(self, error: OSError) -> None:
        if error.errno == errno.EIO and self._terminal:
            error = BrokenPipeError(errno.EPIPE, "the terminal was closed")
        self.error = error

    def _encoded(self, text: str) -> bytes:
        return text.encode(self._charset, "backslashreplace")


def _socket(fd: int) -> socket.socket:
    import socket  # takes 6 ms and is rarely needed

    return socket.socket(fileno=os.dup(fd))


def _reopen(fd: int, mode: int) -> Optional[int]:
    """Return a non-blocking descriptor, or None if poll() must precede each write.

    A regular file never blocks: it is written through `fd` itself, which may be in append mode or
    share its offset with other writers.
    """
    if stat.S_ISREG(mode):
        return fd
    if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
        flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        with suppress(OSError):  # owned by another user, or a pipe without reader
            return os.open(f"/proc/self/fd/{fd}", flags)
    return None
