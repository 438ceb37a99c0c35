"""A second opinion: tools of others, watching the same traffic.

`Watcher(tool, directory)` starts one of those that `bcc`, `libbpf` and `bpftrace` name; where it
cannot run, the test is skipped and says why.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Callable, NamedTuple

import harness
import pytest
from harness import START_TIMEOUT, TIMEOUT, wait_until

# It finds its tracepoint through tracefs: mounted where only this process sees it.
_COMMAND = "mount -t tracefs none /sys/kernel/tracing; exec tcplife -w"
_COLUMNS = 9  # PID COMM LADDR LPORT RADDR RPORT TX_KB RX_KB MS


class PeerTcplife:
    """The peer's tool, attached when the constructor returns."""

    def __init__(self, directory: Path) -> None:
        self._out = directory / "tcplife"
        with self._out.open("wb") as out:
            line = ["unshare", "--mount", "sh", "-c", _COMMAND]
            self._process = subprocess.Popen(
                line, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT
            )
        try:
            wait_until(self._attached, what="libbpf-tools' tcplife to attach")
        except AssertionError:
            self.kill()
            raise

    @staticmethod
    def installed() -> bool:
        """Is it there? bcc's tool of that name is another one, and called tcplife-bpfcc."""
        return shutil.which("tcplife") is not None

    def stop(self) -> list[tuple[str, ...]]:
        """End it and return (laddr, lport, raddr, rport, tx_kb, rx_kb) of each session."""
        # Its output is buffered until it ends in order.
        self._process.send_signal(2)
        assert self._process.wait(TIMEOUT) == 0, self._out.read_text()
        text = self._out.read_text().replace("::ffff:", "")
        rows = [line.split() for line in text.splitlines()[1:]]
        return [tuple(row[2:8]) for row in rows if len(row) == _COLUMNS]

    def kill(self) -> None:
        """End it whatever it does."""
        harness.kill(self._process)

    def _attached(self) -> bool:
        assert self._process.poll() is None, self._out.read_text()
        found = set()
        with contextlib.suppress(FileNotFoundError):
            for descriptor in Path(f"/proc/{self._process.pid}/fd").iterdir():
                found.add(os.readlink(descriptor))
        # It makes the epoll instance of its reader after it has attached.
        return {"anon_inode:bpf_link", "anon_inode:[eventpoll]"} <= found


# Both file systems where only the tool sees them, if they are not there already.
_MOUNTED = """
for place in "tracefs /sys/kernel/tracing" "debugfs /sys/kernel/debug"; do
    set -- ${place} "$@"
    mountpoint -q "$2" || mount -t "$1" none "$2" 2>/dev/null || :
    shift 2
done
exec "$@"
"""


class Tool(NamedTuple):
    """A tool of others: which kind of tool, its name, its package, and its command line."""

    kind: str
    name: str
    package: str
    command: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.kind}'s {self.name}"

    def version(self) -> str:
        """Return the version of its package, if Debian's package manager knows it."""
        words = ["dpkg-query", "-W", "-f", "${Version}", self.package]
        with contextlib.suppress(FileNotFoundError):
            return subprocess.run(words, capture_output=True, text=True, check=False).stdout
        return ""


def bcc(name: str, *words: str) -> Tool:
    """Name a tool of bcc: a Python program that compiles against the kernel's headers."""
    command = ("/usr/bin/python3", "-u", f"/usr/sbin/{name}-bpfcc", *words)
    return Tool("bcc", name, "bpfcc-tools", command)


def libbpf(name: str, *words: str) -> Tool:
    """Name a tool of libbpf-tools: a C program."""
    command = ("stdbuf", "-oL", f"/usr/sbin/{name}", *words)
    return Tool("libbpf-tools", name, "libbpf-tools", command)


def bpftrace(name: str) -> Tool:
    """Name a script that bpftrace's package ships."""
    return Tool("bpftrace", f"{name}.bt", "bpftrace", ("bpftrace", f"/usr/sbin/{name}.bt"))


class Watcher:
    """A tool of others at work; all its probes are attached when the constructor returns."""

    def __init__(self, tool: Tool, directory: Path) -> None:
        self.tool = tool
        self._out = directory / "peer"
        for word in tool.command:
            if word.startswith("/usr/sbin/") and not Path(word).exists():
                pytest.skip(f"no {tool} here: apt install {tool.package}")
        with self._out.open("wb") as out:
            self._process = subprocess.Popen(
                ["unshare", "--mount", "sh", "-c", _MOUNTED, "sh", *tool.command],
                stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
            )  # fmt: skip
        try:
            wait_until(self._ready, START_TIMEOUT, f"{tool} to attach")
        except BaseException:
            self.kill()
            raise

    @property
    def text(self) -> str:
        """Everything it said so far, without what marks an IPv4 address in an IPv6 socket."""
        return self._out.read_text(errors="replace").replace("::ffff:", "")

    def rows(self, columns: int) -> list[list[str]]:
        """Return the words of each line that has at least so many."""
        rows = [line.split() for line in self.text.splitlines()]
        return [row for row in rows if len(row) >= columns]

    def wait_for(self, condition: Callable[[], object]) -> None:
        """Wait until it has said something, and everything else that it had to say by then."""
        wait_until(lambda: condition() and self._sleeps(), what=f"{self.tool}: {condition}")

    def stop(self) -> None:
        """Let it end in order: some tools speak only then."""
        if self._process.poll() is None:
            self._process.send_signal(2)
            self._process.wait(TIMEOUT)

    def kill(self) -> None:
        """End it whatever it does."""
        harness.kill(self._process)

    def _ready(self) -> bool:
        if self._process.poll() is not None:
            said = [line for line in self.text.splitlines() if line.strip()] or ["nothing"]
            pytest.skip(
                f"{self.tool} does not run on this kernel (it does in `make vm KERNEL=6.1`), "
                f"it said: {said[-1]}"
            )
        # A line of its own, not a compiler's warning: it comes before or after attaching.
        return bool(_HEADS.search(self.text)) and self._sleeps()

    def _sleeps(self) -> bool:
        """Does it wait for events or for the end? Not so while it attaches or prints."""
        process = Path(f"/proc/{self._process.pid}")
        with contextlib.suppress(OSError):
            if process.joinpath("stat").read_text().rpartition(")")[2].split()[0] != "S":
                return False
            place = process.joinpath("wchan").read_text()
            return place in ("", "0") or "poll" in place or "nanosleep" in place
        return False


_HEADS = re.compile(r"^(Tracing|TIME|PID)\b", re.MULTILINE)
