"""Text on a real terminal: its width, a resize, Ctrl-C, colours, and what is said at the start."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import harness
import pytest
from harness import SLOW, wait_until
from topology import Host

V6 = "2001:db8:5:17:a1b2:c3d4:e5f6:7788"
CLOSED = 9  # port without a listener
ASK = """
import socket, sys
for address in sys.argv[1:]:
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as one:
        one.connect_ex((address, 9))
"""
SGR = re.compile(r"\x1b\[(?:1|31|0)m")


class Terminal:
    """A tool whose terminal this process holds the other end of."""

    def __init__(self, width: int, ready: Path, words: tuple[object, ...], **environ: str) -> None:
        self._master, slave = pty.openpty()
        self._ready, self._text = ready, ""
        self.resize(width)
        env = {**os.environ, "TERM": "xterm", **environ}
        line = harness.command(*words, "--ready-file", ready)
        self.process = subprocess.Popen(
            [sys.executable, "-c", _ON_TERMINAL, *line],
            stdin=slave, stdout=slave, stderr=slave, cwd=harness.SOURCE_TREE, env=env,
            start_new_session=True,
        )  # fmt: skip
        os.close(slave)
        os.set_blocking(self._master, False)

    def resize(self, width: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", 40, width, 0, 0))

    def press(self, keys: bytes) -> None:
        os.write(self._master, keys)

    @property
    def text(self) -> str:
        """What the terminal has received so far."""
        with contextlib.suppress(BlockingIOError, OSError):
            while chunk := os.read(self._master, 1 << 16):
                self._text += chunk.decode().replace("\r\n", "\n")
        return self._text

    def lines(self) -> list[str]:
        """Return the lines without colours."""
        return SGR.sub("", self.text).splitlines()

    def wait_ready(self) -> None:
        wait_until(self._ready.exists, harness.START_TIMEOUT, f"the start: {self.text}")

    def end(self) -> str:
        """Press Ctrl-C and return what the terminal received in all."""
        self.press(b"\x03")
        wait_until(lambda: self.text is None or self.process.poll() is not None, 20 * SLOW, "end")
        return self.text

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
        os.close(self._master)


# Makes standard input the controlling terminal, which sends SIGINT for Ctrl-C.
_ON_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Any]:
    """Return a function that starts a tool on a terminal of that width, and waits until it runs."""
    opened = []

    def start(width: int, *words: object, **environ: str) -> Terminal:
        opened.append(Terminal(width, tmp_path / f"ready{len(opened)}", words, **environ))
        opened[-1].wait_ready()
        return opened[-1]

    yield start
    for one in opened:
        one.close()


@pytest.fixture(scope="module")
def host(one_host: Host) -> Host:
    one_host.run("ip", "address", "add", f"{V6}/128", "dev", "lo")
    return one_host


def ask(host: Host, shown: Terminal, *addresses: str) -> None:
    """Try to connect to a closed port of each address, and wait until the lines are there."""
    before = shown.text.count("refused") + shown.text.count("~")
    host.run(sys.executable, "-c", ASK, *addresses)
    wait_until(
        lambda: shown.text.count("refused") + shown.text.count("~") >= before + len(addresses),
        what=f"lines: {shown.text!r}",
    )


@pytest.mark.parametrize("width", [80, 120, 200])
def test_lines_fit_the_terminal_and_addresses_are_whole(
    terminal: Any, host: Host, width: int
) -> None:
    shown = terminal(width, "soconnect", "--netns", host.inode)
    ask(host, shown, "127.0.0.1")
    assert not any(V6 in line for line in shown.lines())
    ask(host, shown, V6)
    shown.end()
    lines = shown.lines()
    assert max(map(len, lines)) <= width
    assert sum(V6 in line for line in lines) >= 1
    first, second = (line.split() for line in lines if line.split()[:1] == ["PID"])
    assert first[:7] == ["PID", "PROCESS", "FAM", "ADDRESS", "PORT", "LAT(us)", "RESULT"]
    assert ("PROTO" in first) is (width > 80)
    assert ("FAM" in second) is (width > 80) and "LAT(us)" in second


def test_resized_terminal_gets_the_columns_that_fit_now(terminal: Any, host: Host) -> None:
    shown = terminal(160, "soconnect", "--netns", host.inode)
    ask(host, shown, "127.0.0.1")
    shown.resize(80)
    ask(host, shown, "127.0.0.1")
    shown.resize(160)
    ask(host, shown, "127.0.0.1")
    shown.end()
    headings = [line for line in shown.lines() if line.split()[:1] == ["PID"]]
    assert [("CALL(us)" in line) for line in headings] == [True, False, True]


def test_ctrl_c_begins_a_new_line(terminal: Any, host: Host) -> None:
    for words in (("sockstat",), ("soconnect",), ("tcpnagle",)):
        shown = terminal(80, *words, "--netns", host.inode)
        text = shown.end()
        assert "^C" in text
        assert text.partition("^C")[2].startswith("\n")
        assert f"{words[0]}: " in text.partition("^C")[2]


def test_summary_breaks_between_words(terminal: Any, host: Host) -> None:
    shown = terminal(60, "sockstat", "--netns", host.inode)
    shown.end()
    lines = shown.lines()
    assert max(map(len, lines)) <= 60
    (probes,) = (index for index, line in enumerate(lines) if "probes" in line)
    assert lines[probes + 1].startswith("  ")


@pytest.mark.parametrize("tool", ["sockstat", "netsize", "tcpsynbl", "tcpnagle", "skbdrop"])
def test_tool_without_events_says_at_once_what_it_does(
    terminal: Any, host: Host, tool: str
) -> None:
    shown = terminal(80, tool, "--netns", host.inode)
    wait_until(lambda: "Ctrl-C" in shown.text, what="the announcement")
    assert shown.text.startswith(f"{tool}: tracing until Ctrl-C, results at the end: ")
    shown.end()


@pytest.mark.parametrize(
    ("environ", "colours"),
    [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)],
)
def test_failures_are_red_and_headings_bold_unless_switched_off(
    terminal: Any, host: Host, environ: dict[str, str], colours: bool
) -> None:
    shown = terminal(120, "soconnect", "--netns", host.inode, **environ)
    ask(host, shown, "127.0.0.1")
    text = shown.end()
    assert ("\x1b[31mConnection refused\x1b[0m" in text) is colours
    assert ("\x1b[1m    PID PROCESS" in text) is colours
    assert ("\x1b" in text) is colours


def test_pipe_has_no_colours_and_the_columns_of_80_characters(netbpf: Any, host: Host) -> None:
    with netbpf("soconnect", "--netns", host.inode, json_lines=False) as run:
        host.run(sys.executable, "-c", ASK, "127.0.0.1", V6)
        wait_until(lambda: run.stdout.count("\n") >= 3, what="two lines")
    assert "\x1b" not in run.stdout + run.stderr
    heading, *lines = run.stdout.splitlines()
    assert heading.split() == ["PID", "PROCESS", "FAM", "ADDRESS", "PORT", "LAT(us)", "RESULT"]
    assert all(line.endswith("Connection refused") for line in lines)
    assert V6 in lines[1].split()
    assert run.stderr.splitlines()[0].endswith("nothing lost")


def test_columns_and_order_can_be_chosen(netbpf: Any, host: Host) -> None:
    chosen = ("--columns", "attempts,raddr", "--sort", "raddr", "--summary")
    words = ("soconnect", "--netns", host.inode, *chosen)
    with (
        netbpf(*words, json_lines=False) as text,
        netbpf(*words, "-o", "csv", json_lines=False) as csv,
    ):
        with netbpf(*words) as whole:
            host.run(sys.executable, "-c", ASK, V6, V6, "127.0.0.1")
    assert [line.split() for line in text.stdout.splitlines()] == [
        ["ATTEMPTS", "ADDRESS"],
        ["1", "127.0.0.1"],
        ["2", V6],
    ]
    rows = [line.split(",") for line in csv.stdout.splitlines()]
    assert [row[1:] for row in rows] == [
        ["type", "attempts", "raddr"],
        ["interval", "1", "127.0.0.1"],
        ["interval", "2", V6],
    ]
    assert [row["raddr"] for row in whole.rows] == ["127.0.0.1", V6]
    assert all("p99_us" in row for row in whole.rows)


def test_ports_and_times_have_names(netbpf: Any, host: Host) -> None:
    with netbpf("soconnect", "--netns", host.inode, "-D", "discard", "-d", "1m") as run:
        host.run(sys.executable, "-c", ASK, "127.0.0.1")
        run.wait_for(1)
    assert run.events[0]["rport"] == CLOSED
