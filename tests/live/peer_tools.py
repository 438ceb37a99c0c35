"""A second opinion: netbpf and its peers watch the same traffic, which a test made and knows.

Where a peer is right, both must say the same. Where it is known to be wrong, the test asserts what
netbpf says, and then that the peer says otherwise: a peer that was mended is a skip with its
version, as that is no failure of ours. What a peer gets wrong by chance is only recorded.

`Watcher(tool, directory)` starts one of those that `bcc`, `libbpf`, `bpftrace` and `book` name;
where it cannot run, the test is skipped and says why.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable, NamedTuple

import harness
import pytest
from harness import SLOW, START_TIMEOUT, TIMEOUT, Run, wait_until
from traffic import Line

_HEAD = re.compile(r"^(Tracing|TIME|PID)\b", re.MULTILINE)
_WITHOUT = re.compile(r"could not attach probe k(ret)?probe:.*")
# Numbers of poll, epoll_wait and nanosleep with their variants: on x86, and on newer architectures.
_WAITING = {"7", "23", "35", "230", "232", "270", "271", "281"} | {"22", "72", "73", "101", "115"}
# Both file systems where only the tool sees them, if they are not there already.
_MOUNTED = """
for place in "tracefs /sys/kernel/tracing" "debugfs /sys/kernel/debug"; do
    set -- ${place} "$@"
    mountpoint -q "$2" || mount -t "$1" none "$2" 2>/dev/null || :
    shift 2
done
exec "$@"
"""
# No package has the book's scripts, and they are not ours to copy. Whoever has them puts them here.
BOOK = Path(__file__).parent / "book"


class Tool(NamedTuple):
    """A tool of others: which kind of tool, its name, its package, and its command line."""

    kind: str
    name: str
    package: str
    command: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.name} of {self.kind}"

    @property
    def mend(self) -> str:
        """How to get it."""
        if str(BOOK) in self.command[-1]:
            return "its repository, bpf-perf-tools-book, has it; its place is tests/live/book"
        return f"apt install {self.package}"

    @property
    def script(self) -> bool:
        """Is it one that bpftrace runs? bpftrace's own are descendants of the book's."""
        return self.command[0] == "bpftrace"

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


def book(name: str, *words: str) -> Tool:
    """Name a script of the book BPF Performance Tools, chapter 10."""
    return Tool(
        "the book", f"{name}.bt", "bpftrace", ("bpftrace", *words, str(BOOK / f"{name}.bt"))
    )


class Watcher:
    """A tool of others at work; all its probes are attached when the constructor returns."""

    def __init__(self, tool: Tool, directory: Path) -> None:
        self.tool = tool
        self._out = directory / "peer"
        for word in tool.command:
            if word.startswith("/") and not Path(word).exists():
                pytest.skip(f"no {tool} here: {tool.mend}")
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
        wait_until(lambda: self._waits() and condition() and self._waits(), what=str(self.tool))

    def stop(self) -> None:
        """Let it end in order: some tools speak only then."""
        wait_until(self._waits, what=f"{self.tool} to be done with what it has")
        self._process.send_signal(2)
        self._process.wait(TIMEOUT)

    def kill(self) -> None:
        """End it whatever it does."""
        harness.kill(self._process)

    def _ready(self) -> bool:
        if without := _WITHOUT.search(self.text):
            pytest.skip(f"{self.tool} does not see everything on this kernel: {without[0]}")
        # Some say their first line before, some after they have attached.
        return self._waits() and bool(_HEAD.search(self.text))

    def _waits(self) -> bool:
        """Does it wait for events or for the end? Not so while it attaches or prints."""
        if self._process.poll() is not None:
            said = [line for line in self.text.splitlines() if line.strip()] or ["nothing"]
            pytest.skip(
                f"{self.tool} does not run on this kernel (it does in `make vm KERNEL=6.1`), "
                f"it said: {said[-1]}"
            )
        with contextlib.suppress(OSError):
            call = Path(f"/proc/{self._process.pid}/syscall").read_text().split()[0]
            return call in _WAITING
        return False


# --- side by side ---------------------------------------------------------------------------------

Record = Callable[[Tool, object], None]  # the fixture `record`: notes a peer's words


def tools(*found: Tool) -> Any:
    """Parameters of a fixture: one peer after the other."""
    return {"scope": "module", "params": found, "ids": [tool.kind for tool in found]}


@contextlib.contextmanager
def watched(
    tool: Tool, factory: pytest.TempPathFactory, name: str, *words: object
) -> Iterator[tuple[Watcher, Run]]:
    """Let the peer and a tool of netbpf watch, in the block; WORDS are netbpf's."""
    peer = Watcher(tool, factory.mktemp("peer"))
    try:
        with harness.running(factory.mktemp("netbpf"), name, *words) as run:
            yield peer, run
    finally:
        peer.kill()


def at_fault(tool: Tool, wrong: bool, said: object, record: Record) -> None:
    """Note what a peer said that is known to be wrong, or say that it was mended."""
    record(tool, said)
    if not wrong:
        pytest.skip(f"{tool} {tool.version()} is right here, and was not before: {said}")


def near(value: float, wanted: float, rounded: float = 0.0) -> bool:
    """Are both the same time (us), but for what two probes and rounding make of it?"""
    return abs(value - wanted) <= rounded + 2000 * SLOW + 0.05 * wanted


def strings(words: tuple[Any, ...]) -> tuple[str, ...]:
    """Return what a peer prints of the same values."""
    return tuple(map(str, words))


# --- what they say --------------------------------------------------------------------------------

_AGAIN = re.compile(
    r"^\S+ +(\d+) +(?:\d +)?(\S+:\d+) +(?:([RL])> +)?(\S+:\d+) +(\w+)", re.MULTILINE
)
_LIMIT = re.compile(r"(?:backlog_max = |@backlog\[)(\d+)")
_MAP = re.compile(r"@(\w+): *$")
_MAP_BUCKET = re.compile(r"[\[(](?:\.\.\.)?(\d+)([KMG]?)(?:, \S+)?[\])] +(\d+) ")
_BUCKET = re.compile(r"\s*\[?(\d+)(?:\s*->\s*\d+|\]|, \d+\))\s*:?\s+(\d+)\b")


def kilobytes(line: Line, row: list[str]) -> bool:
    """Are TX_KB and RX_KB of tcplife's row this line's, with the SYN and FIN that peers count?"""
    failed = line.close in ("refused", "timeout")
    fin = line.close in ("fin-local", "fin-remote")
    sent = {line.tx_bytes + (line.role == "active" and not failed) + fin}
    # One that closed first may be gone before the other's FIN arrives, and then has not seen it.
    received = {line.rx_bytes + fin, line.rx_bytes + (fin and line.close != "fin-local")}
    as_shown = (lambda n: f"{n / 1024:.2f}") if "." in row[6] else (lambda n: str(n // 1024))
    return row[6] in map(as_shown, sent) and row[7] in map(as_shown, received)


def again(text: str) -> list[tuple[str, ...]]:
    """Return (pid, local end, R or L, remote end, state) of each line of tcpretrans."""
    return [found.groups("") for found in _AGAIN.finditer(text)]


def samples(text: str) -> dict[int, dict[int, int]]:
    """Return the histograms of tcpsynbl: {limit: {lower bound of the bucket: count}}."""
    found: dict[int, dict[int, int]] = {}
    limit = 0
    for line in text.splitlines():
        if head := _LIMIT.match(line):
            limit = int(head[1])
        elif bucket := _BUCKET.match(line):
            found.setdefault(limit, {})[int(bucket[1])] = int(bucket[2])
    return found


def accepts(peer: Watcher) -> list[list[str]]:
    """Return [pid, comm, raddr, rport, more...] of each line of tcpaccept and soaccept.bt."""
    rows = peer.rows(6)
    if peer.tool.kind == "bpftrace":  # TIME comes first
        return [row[1:] for row in rows]
    return [row[:2] + row[3:] for row in rows]  # without the version of IP, or the family


def maps(text: str) -> dict[str, dict[int, int]]:
    """Return the histograms that bpftrace prints at its end: {name: {lower bound: count}}."""
    found: dict[str, dict[int, int]] = {}
    name = ""
    for line in text.splitlines():
        if head := _MAP.match(line):
            name = head[1]
        elif bucket := _MAP_BUCKET.match(line):
            low = int(bucket[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[bucket[2]]
            found.setdefault(name, {})[low] = int(bucket[3])
    return found
