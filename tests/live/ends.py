"""Processes that connect and accept as they are told, and say what came of it.

`with End.start("nb-client", host) as client:` starts programs/connector.py in a namespace;
`client.connect(...)` makes one attempt and returns what the program itself saw of it.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import select
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from harness import TIMEOUT, Json, kill
from topology import Host

PROGRAM = Path(__file__).parent / "programs" / "connector.py"
numbers = itertools.count(1000)  # small numbers and words are for tests to choose


class Attempt(NamedTuple):
    """What soconnect must say about an attempt, as far as that is certain."""

    pid: int
    proto: str
    family: str
    raddr: str
    rport: int | None
    errno: str | None
    isasync: bool

    @classmethod
    def of(cls, event: Json) -> Attempt:
        """Return the same facts of an event."""
        names = [name for name in cls._fields if name != "isasync"]
        return cls(*(event[name] for name in names), event["async"])


class Done(NamedTuple):
    """An attempt as the program saw it: its id, the line for it, local end, and monotonic times.

    `returned` is when connect(2) returned, `over` when the program knew what came of it.
    """

    id: int
    line: Attempt
    local: tuple[str, int]
    begin: float
    returned: float
    over: float


class End:
    """A process that connects and accepts."""

    def __init__(self, process: subprocess.Popen[bytes], comm: str) -> None:
        self.process = process
        self.comm = comm
        self.pid = self.ask("hello")["pid"]

    @classmethod
    @contextlib.contextmanager
    def start(
        cls, comm: str, host: Host | None = None, before: Sequence[object] = ()
    ) -> Iterator[End]:
        """Run a process for the time of the block, started through the command `before`."""
        program = [sys.executable, "-I", "-S", str(PROGRAM), comm, str(TIMEOUT)]
        line = [*map(str, before), *program]
        process = subprocess.Popen(
            host.inside(*line) if host else line,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0,
        )  # fmt: skip
        try:
            yield cls(process, comm)
            assert process.stdin
            process.stdin.close()
            process.wait(TIMEOUT)
        finally:
            kill(process)

    def tell(self, do: str, **words: Any) -> None:
        """Give an order whose answer is fetched later."""
        assert self.process.stdin
        self.process.stdin.write(json.dumps({"do": do, **words}).encode() + b"\n")

    def answer(self) -> Json:
        """Return the answer to the oldest order without one."""
        assert self.process.stdout
        ready, _, _ = select.select([self.process.stdout], [], [], 2 * TIMEOUT)
        assert ready, f"{self.comm} gives no answer"
        answer = json.loads(self.process.stdout.readline() or b'{"error": "it has ended"}')
        assert "error" not in answer, f"{self.comm}: {answer['error']}"
        return dict(answer)

    def ask(self, do: str, **words: Any) -> Json:
        """Give an order and return the answer."""
        self.tell(do, **words)
        return self.answer()

    def listen(self, family: str, addr: str = "", **words: Any) -> tuple[int, int]:
        """Listen, on all addresses if none is given; return id and port."""
        addr = addr or ("0.0.0.0" if family == "ipv4" else "::")
        ident = next(numbers)
        return ident, self.ask("listen", id=ident, family=family, addr=addr, **words)["port"]

    def connect(
        self,
        family: str,
        addr: str,
        port: int = 0,
        kind: str = "stream",
        wait: bool = True,
        finish: bool = True,
        **words: Any,
    ) -> Done:
        """Make an attempt and wait until it is over, unless told not to wait for the end."""
        ident = next(numbers)
        self.ask("open", id=ident, family=family, kind=kind, wait=wait, **words)
        seen = self.ask("connect", id=ident, family=family, addr=addr, port=port)
        isasync = seen["errno"] == "EINPROGRESS"
        last = self.ask("finish", id=ident) if isasync and finish else seen
        shown = addr.replace("::ffff:", "")
        line = Attempt(
            self.pid,
            kind if family == "unix" else "udp" if kind == "dgram" else "tcp",
            "ipv4" if shown != addr else family,
            shown,
            port or None,
            last["errno"] or None,
            isasync,
        )
        local = (str(last["local"][0]).replace("::ffff:", ""), last["local"][1])
        return Done(ident, line, local, seen["begin"], seen["end"], last["end"])
