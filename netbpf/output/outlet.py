"""A text stream that never waits for its reader.

What the reader does not take at once is kept, up to the next flush(). A pipe or a terminal is
opened a second time for that, so that O_NONBLOCK is set for us alone and not for the shell and
for everybody else who writes to it.
"""

from __future__ import annotations

import errno
import io
import os
import select
import stat
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Optional

if TYPE_CHECKING:
    import socket

_GRAIN = 1 << 16  # bytes that are written at once
_MSG_DONTWAIT = 0x40  # include/linux/socket.h
_MOST_KEPT = 1 << 16  # characters of messages that are kept for a reader who does not read


class _Aside(str):
    """Text that is not data: a heading, a blank line."""


class Outlet(io.TextIOBase):
    """Writes text to the descriptor `fd` as far as its reader takes it.

    With `messages` each line is sent at once, and what finds no reader is dropped beyond 64 KiB.
    `error` is what ended the stream (the reader closed the pipe, the disk is full): from then on
    everything is dropped. Nothing here raises it.
    """

    def __init__(self, fd: int, encoding: str = "utf-8", messages: bool = False) -> None:
        self.error: Optional[OSError] = None
        self._fd = fd
        self._messages = messages
        self._terminal = os.isatty(fd)
        self._charset = encoding
        mode = os.fstat(fd).st_mode
        self._own = _own_description(fd, mode)
        # A pipe takes so much whole or not at all: a line is never cut, however this ends.
        self._grain = select.PIPE_BUF if stat.S_ISFIFO(mode) or self._own is None else _GRAIN
        self._socket = _socket(fd) if stat.S_ISSOCK(mode) else None
        self._refused = 0  # records that came after the error
        self._lines: deque[str] = deque()
        self._group: list[str] = []  # the lines that are being written,
        self._data = b""  # their bytes,
        self._done = 0  # and how many of these the reader has taken

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """The name of the encoding; what it cannot express is written as an escape."""
        return self._charset

    def fileno(self) -> int:
        """Return the descriptor that was given."""
        return self._fd

    def isatty(self) -> bool:
        """Return whether a terminal reads this."""
        return self._terminal

    def writable(self) -> bool:
        """Return that one can write."""
        return True

    def write(self, text: str) -> int:
        """Take one record, or text of messages; data is sent by flush()."""
        if self.error is None:
            self._lines.append(text)
        else:
            self._refused += type(text) is not _Aside
        if self._messages and "\n" in text:
            self.flush()
            while self.blocked and sum(map(len, self._lines)) > _MOST_KEPT:
                self._lines.pop()
        return len(text)

    def aside(self, text: str) -> None:
        """Take text that is no record."""
        self.write(_Aside(text))

    @property
    def blocked(self) -> bool:
        """Is something kept that the reader has not taken?"""
        return self.error is None and bool(self._data or self._lines)

    def drop(self) -> int:
        """Drop what the reader has not taken; return how many records it did not get whole."""
        if isinstance(self.error, BrokenPipeError):
            return 0  # it wanted no more
        dropped = self._refused + sum(type(line) is not _Aside for line in self._lines)
        done = self._done
        for line in self._group:
            done -= len(self._encoded(line))
            dropped += done < 0 and type(line) is not _Aside
        self._lines.clear()
        if not self._done:  # else a line is cut: its rest comes first, if anything does
            self._group, self._data = [], b""
        return dropped

    def flush(self) -> None:
        """Write what the reader takes now."""
        try:
            while self.blocked:
                if not self._data:
                    self._next_group()
                sent = self._send(self._data)
                if not sent:
                    return
                self._done += sent
                self._data = self._data[sent:]
                if not self._data:
                    self._group, self._done = [], 0
        except OSError as error:
            self._give_up(error)

    def finish(self, until: float) -> None:
        """Write what the reader takes until the monotonic time `until`."""
        self.flush()
        while self.blocked and time.monotonic() < until:
            self.wait_for_room(until)
            self.flush()

    def wait_for_room(self, until: float) -> bool:
        """Sleep until the reader takes more, or until the monotonic time `until`.

        Return whether it takes more.
        """
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        return bool(poll.poll(max(until - time.monotonic(), 0) * 1000))

    def close(self) -> None:
        """Let go of the second description; the descriptor that was given stays open."""
        if self._own is not None and self._own != self._fd:
            os.close(self._own)
        if self._socket:
            self._socket.close()
        self._own = self._socket = None

    def _next_group(self) -> None:
        size = 0
        while self._lines and (not size or size + len(self._lines[0]) <= self._grain):
            size += len(self._lines[0])
            self._group.append(self._lines.popleft())
        self._data = self._encoded("".join(self._group))

    def _send(self, data: bytes) -> int:
        try:
            if self._socket:
                return self._socket.send(data, _MSG_DONTWAIT)
            if self._own is None:
                return os.write(self._fd, data[: self._grain]) if self.wait_for_room(0.0) else 0
            return os.write(self._own, data)
        except BlockingIOError:
            return 0

    def _give_up(self, error: OSError) -> None:
        if error.errno == errno.EIO and self._terminal:
            error = BrokenPipeError(errno.EPIPE, "the terminal has gone")
        self.error = error

    def _encoded(self, text: str) -> bytes:
        return text.encode(self._charset, "backslashreplace")


def _socket(fd: int) -> socket.socket:
    import socket  # takes 6 ms, and is seldom needed

    return socket.socket(fileno=os.dup(fd))


def _own_description(fd: int, mode: int) -> Optional[int]:
    """Return a descriptor that does not wait, or None: then poll() is asked before each write.

    A file on a disk has no reader to wait for: it is written through the descriptor itself, which
    may append or share its position with others.
    """
    if stat.S_ISREG(mode):
        return fd
    if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
        flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        with suppress(OSError):  # of another user, or nobody reads
            return os.open(f"/proc/self/fd/{fd}", flags)
    return None
