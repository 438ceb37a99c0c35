"""Non-blocking output to pipes, sockets, terminals and files, with stalled readers."""

from __future__ import annotations

import errno
import fcntl
import os
import pty
import socket
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from netbpf.output.outlet import Outlet

SOON = 5.0  # seconds that a test would wait at most if it failed
LINE = "x" * 99 + "\n"


class Ends:
    """The two ends of a pipe, socket or terminal."""

    def __init__(self, kind: str) -> None:
        if kind == "pipe":
            self.read, self.write = os.pipe()
        elif kind == "socket":
            one, two = socket.socketpair()
            self.read, self.write = one.detach(), two.detach()
        else:
            self.read, self.write = pty.openpty()

    def close(self) -> None:
        for fd in (self.read, self.write):
            with suppress(OSError):
                os.close(fd)


@pytest.fixture(params=["pipe", "socket", "terminal"])
def ends(request: pytest.FixtureRequest) -> Iterator[Ends]:
    found = Ends(request.param)
    yield found
    found.close()


def drained(fd: int) -> bytes:
    """Return what can be read now."""
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_NONBLOCK)
    found = b""
    with suppress(BlockingIOError):
        while chunk := os.read(fd, 1 << 16):
            found += chunk
    fcntl.fcntl(fd, fcntl.F_SETFL, flags)
    return found


def filled(out: Outlet) -> int:
    """Write until the reader accepts no more; return the number of lines.

    A terminal makes room in the background, several times.
    """
    lines = still = 0
    while still < 5:
        while not out.blocked:
            out.write(LINE)
            out.flush()
            lines, still = lines + 1, 0
            assert lines < 100_000
        time.sleep(0.01)
        out.flush()
        still += 1
    return lines


def test_write_never_blocks_and_buffered_text_follows(ends):
    out = Outlet(ends.write)
    started = time.monotonic()
    lines = filled(out)
    for _ in range(1000):
        out.write(LINE)
    out.flush()
    assert time.monotonic() - started < SOON
    assert out.blocked
    found = b""
    while out.blocked:
        found += drained(ends.read)
        out.flush()
    found += drained(ends.read)
    assert found.replace(b"\r\n", b"\n") == LINE.encode() * (lines + 1000)
    out.close()


def test_delivered_and_dropped_lines_add_up(ends):
    out = Outlet(ends.write)
    lines = filled(out)
    for _ in range(23):
        out.write(LINE)
    out.aside("a heading\n")
    dropped = out.drop()
    assert dropped >= 23
    assert drained(ends.read).count(b"\n") + dropped == lines + 23
    out.close()


def test_line_in_a_pipe_is_never_cut():
    ends = Ends("pipe")
    out = Outlet(ends.write)
    filled(out)
    out.drop()
    assert drained(ends.read).endswith(b"\n")
    assert not out.blocked
    out.close()
    ends.close()


def test_other_writers_stay_blocking(ends):
    before = fcntl.fcntl(ends.write, fcntl.F_GETFL)
    out = Outlet(ends.write)
    filled(out)
    assert fcntl.fcntl(ends.write, fcntl.F_GETFL) == before
    assert not before & os.O_NONBLOCK
    out.close()


def test_pipe_that_cannot_be_reopened_does_not_block(monkeypatch):
    def refuse(*_: object) -> int:
        raise PermissionError(errno.EACCES, "of another user")

    monkeypatch.setattr(os, "open", refuse)
    ends = Ends("pipe")
    out = Outlet(ends.write)
    lines = filled(out)
    monkeypatch.undo()
    assert drained(ends.read).count(b"\n") + out.drop() == lines
    ends.close()


def test_finish_waits_until_its_deadline(ends):
    out = Outlet(ends.write)
    filled(out)
    started = time.monotonic()
    out.finish(started + 0.1)
    assert 0.1 <= time.monotonic() - started < SOON
    assert out.blocked
    drained(ends.read)
    out.finish(time.monotonic() + SOON)
    assert not out.blocked
    out.close()


def test_closed_pipe_is_an_error_without_losses(ends):
    out = Outlet(ends.write)
    os.close(ends.read)
    out.write(LINE)
    out.flush()
    assert isinstance(out.error, BrokenPipeError)
    out.write(LINE)
    assert not out.blocked
    assert out.drop() == 0
    out.close()


def test_full_disk_is_an_error_and_every_line_is_counted():
    with open("/dev/full", "wb") as full:
        out = Outlet(full.fileno())
        for _ in range(7):
            out.write(LINE)
        out.flush()
        assert out.error and out.error.errno == errno.ENOSPC
        out.write(LINE)
        out.aside("more\n")
        assert not out.blocked
        assert out.drop() == 8
        out.close()


def test_file_in_append_mode_is_appended_to(tmp_path):
    with open(tmp_path / "out", "ab") as file:
        out = Outlet(file.fileno())
        out.write("one\n")
        out.flush()
        os.write(file.fileno(), b"two\n")
        out.write("three \udcff \u263a\n")
        out.flush()
        out.close()
        assert os.fstat(file.fileno())
    assert (tmp_path / "out").read_text() == "one\ntwo\nthree \\udcff \u263a\n"


def test_messages_are_written_by_line_and_buffered_within_bounds():
    ends = Ends("pipe")
    out = Outlet(ends.write, messages=True)
    print("hello", file=out)
    assert drained(ends.read) == b"hello\n"
    for _ in range(10_000):
        print(LINE, file=out)
    assert out.blocked
    assert out.drop() * len(LINE) < 1 << 18
    out.close()
    ends.close()


def test_close_keeps_the_original_descriptor(ends):
    before = set(os.listdir("/proc/self/fd"))
    out = Outlet(ends.write)
    out.close()
    out.close()
    assert set(os.listdir("/proc/self/fd")) == before
