"""Known socket calls: a process (programs/socket_calls.py) that makes them, and what must be said.

`Caller.go(SCENE, TIMES)` makes it play a scene and returns the rows that sockstat must show for it:
{(op, proto): Row}. strace(1) tells what the same process did from outside.
"""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Optional

import pytest
from harness import TIMEOUT, Json, Run, kill
from topology import Host

PROGRAM = Path(__file__).parent / "programs" / "socket_calls.py"
WAITS = ("EAGAIN", "EINPROGRESS")
# The system calls that strace shows as one of sockstat's operations.
OPS = {
    "accept4": "accept",
    **dict.fromkeys(("sendto", "sendmsg", "write", "writev"), "send"),
    **dict.fromkeys(("recvfrom", "recvmsg", "read", "readv"), "recv"),
}
ALL_OPS = "socket socketpair bind listen connect accept send recv close".split()


class Row(NamedTuple):
    """The numbers of a row."""

    calls: int = 0
    errors: int = 0
    would_block: int = 0
    bytes: int = 0

    def __add__(self, other: Row) -> Row:  # type: ignore[override]
        return Row(*map(sum, zip(self, other)))


Rows = dict[tuple[Any, ...], Row]
Size = tuple[str, str, Optional[int]]


class Told(NamedTuple):
    """What a process says that it did: rows by op and proto, and errors by op and proto.

    `sizes` counts messages by op, proto and size, which is None if the data was only looked at.
    """

    rows: Rows
    errors: dict[tuple[str, str], Counter[str]]
    sizes: Mapping[Size, int] = MappingProxyType({})

    @classmethod
    def of(cls, lines: Iterable[tuple[str, str, str, int, int]]) -> Told:
        """Sum up [op, proto, error, calls, bytes]."""
        rows: Rows = {}
        errors: dict[tuple[str, str], Counter[str]] = {}
        for op, proto, error, calls, moved in lines:
            waits = calls if error in WAITS else 0
            failed = calls - waits if error else 0
            rows[op, proto] = rows.get((op, proto), Row()) + Row(calls, failed, waits, moved)
            if failed:
                errors.setdefault((op, proto), Counter())[error] += calls
        return cls(rows, errors)

    def joined(self) -> Rows:
        """Return the rows by operation only."""
        found: Rows = {}
        for (op, _), row in self.rows.items():
            found[op,] = found.get((op,), Row()) + row
        return found


def shown(rows: Iterable[Json], *names: str) -> Rows:
    """Return what sockstat said, by the columns `names`, summed over intervals."""
    found: Rows = {}
    for row in rows:
        key = tuple(row[name] for name in names or ("op", "proto"))
        found[key] = found.get(key, Row()) + Row(*(row[name] for name in Row._fields))
    return found


def totals(run: Run) -> list[Json]:
    """Return the rows of all processes together."""
    return [row for row in run.rows if "pid" not in row]


def by_process(run: Run) -> list[Json]:
    """Return the rows of single processes."""
    return [row for row in run.rows if "pid" in row]


def difference(found: Mapping[Any, Any], wanted: Mapping[Any, Any]) -> str:
    """Return in words what two sets of rows differ in, or nothing."""
    return "\n".join(
        f"{key}: shown {found.get(key)}, done {wanted.get(key)}"
        for key in sorted({*found, *wanted})
        if found.get(key) != wanted.get(key)
    )


class Caller:
    """A process that makes socket calls when it is told to."""

    def __init__(self, process: subprocess.Popen[str], comm: str) -> None:
        self._process = process
        self.comm = comm
        self.pid = process.pid

    @classmethod
    def start(
        cls,
        comm: str = "nb-calls",
        host: Host | None = None,
        uid: int = 0,
        cgroup: Path | None = None,
        trace: Path | None = None,
    ) -> Caller:
        """Start a process named `comm`; with `trace`, strace writes there what it does."""
        program = [sys.executable, "-I", "-S", str(PROGRAM), comm, str(TIMEOUT * 2), str(uid)]
        if trace:
            program = ["strace", "-f", "-yy", "-o", str(trace), *program]
        if host:
            program = host.inside(*program)
        if cgroup:
            script = 'echo $$ > "$0/cgroup.procs"; exec "$@"'
            program = ["sh", "-c", script, str(cgroup), *program]
        pipe = subprocess.PIPE
        process = subprocess.Popen(program, stdin=pipe, stdout=pipe, text=True, bufsize=1)
        caller = cls(process, comm)
        caller.go("nothing", 1)
        return caller

    def tell(self, scene: str, times: int = 1, *words: object) -> None:
        """Have a scene played whose answer is fetched later."""
        assert self._process.stdin
        print(scene, times, *words, file=self._process.stdin, flush=True)

    def answer(self) -> Json:
        """Return the next line that it says."""
        assert self._process.stdout
        answer = json.loads(self._process.stdout.readline() or '{"error": "it has ended"}')
        assert "error" not in answer, f"{self.comm}: {answer['error']}"
        return dict(answer)

    def go(self, scene: str, times: int = 1, *words: object) -> Told:
        """Have a scene played and return what was done."""
        self.tell(scene, times, *words)
        answer = self.answer()
        sizes = {(op, proto, size): n for op, proto, size, n in answer["sizes"]}
        return Told.of(answer["rows"])._replace(sizes=sizes)

    def stop(self) -> None:
        """Let it end and wait for it."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        try:
            self._process.wait(TIMEOUT)
        finally:
            kill(self._process)
            self._process.stdout.close()


def needs_ring(caller: Caller) -> None:
    """Skip the test if io_uring is forbidden."""
    try:
        caller.go("ring")
    except AssertionError as error:
        if "io_uring is not allowed" not in str(error):
            raise
        pytest.skip("needs io_uring, and sysctl kernel.io_uring_disabled=0")


@contextlib.contextmanager
def callers() -> Iterator[Any]:
    """Yield a function like Caller.start; all that it started end with the block."""
    with contextlib.ExitStack() as stack:

        def start(*words: Any, **options: Any) -> Caller:
            caller = Caller.start(*words, **options)
            stack.callback(caller.stop)
            return caller

        yield start


_LINE = re.compile(r"^\d+ +(\w+)\((.*)\) += (-?\d+)(?:<[^>]*>+)?(?: (E\w+))?")
_SOCKET = re.compile(r"^\d+<(?:TCP|UDP|UNIX|NETLINK|PACKET|RAW|socket)")


def traced(path: Path) -> dict[str, Counter[str]]:
    """Return {op: {error or "": number}} of what strace saw of sockets."""
    found: dict[str, Counter[str]] = {}
    for line in path.read_text().splitlines():
        match = _LINE.match(line)
        if not match:
            continue
        name, args, _, error = match.groups()
        op = OPS.get(name, name)
        elsewhere = op in ("send", "recv", "close") and not _SOCKET.match(args)
        if op in ALL_OPS and not elsewhere:
            found.setdefault(op, Counter())[error or ""] += 1
    return found
