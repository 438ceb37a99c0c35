"""Start a tool, wait until it is attached, stop it, and account what it used."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from netbpf.system.links import enable_statistics

SOURCE_TREE = Path(__file__).resolve().parent.parent
READY_SECONDS, STOP_SECONDS = 60.0, 30.0
_POLL_SECONDS = 0.002
_KEPT = 1 << 16  # bytes of output
_HEAD = re.compile(rb"^(Tracing|TIME|PID|SKADDR)\b", re.MULTILINE)


class CannotRun(Exception):
    """A tool did not attach or end; the message is the reason."""


class Usage(NamedTuple):
    """CPU seconds and peak resident memory in KiB of a process and the children it waited for."""

    cpu_seconds: float
    peak_kib: int


class Running:
    """A tool that is attached.

    `ready_seconds` is the wall time from its start until then, `output` the end of what it has
    printed, `lines` how many lines that were.
    """

    def __init__(
        self, command: Iterable[str], ready: Path | None, cpu: int | None, cache: str
    ) -> None:
        self._master, slave = pty.openpty()  # on a terminal, tools do not buffer their lines
        self._poll = select.poll()
        self._poll.register(self._master, select.POLLIN)
        self._errors = tempfile.TemporaryFile()
        self._ready = ready
        self.output, self.lines = b"", 0
        if ready:
            ready.unlink(missing_ok=True)
        begin = time.monotonic()
        self._process = subprocess.Popen(
            ["taskset", "-c", str(cpu), *command] if cpu is not None else [*command],
            stdin=subprocess.DEVNULL, stdout=slave, stderr=self._errors, cwd=SOURCE_TREE,
            env=_environment(cache),
        )  # fmt: skip
        os.close(slave)
        self.pid = self._process.pid
        try:
            self._wait_until_attached(begin + READY_SECONDS)
        except BaseException:
            self._process.kill()
            self._process.wait()
            self._close()
            raise
        self.ready_seconds = time.monotonic() - begin
        # A tool whose terminal is full would lose events, and cost less than it does.
        self._drain = threading.Thread(target=self._drain_terminal, daemon=True)
        self._drain.start()

    def _wait_until_attached(self, deadline: float) -> None:
        while time.monotonic() < deadline:
            self._read(_POLL_SECONDS)
            # Some print their header before they attach the last probe: then they do not wait yet.
            if self._ready.exists() if self._ready else self._said_header() and _waits(self.pid):
                return
            if os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                raise CannotRun(self._reason())
        raise CannotRun(f"it did not attach within {READY_SECONDS:g} s")

    def _said_header(self) -> bool:
        return bool(_HEAD.search(self.output))

    def _reason(self) -> str:
        self._errors.seek(0)
        text = (self.output + b"\n" + self._errors.read()).decode(errors="replace")
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        messages = [line for line in lines if not line.startswith("raise ")]
        errors = [line for line in messages if re.search("error|fail|could not", line, re.I)]
        return (errors or messages[-1:] or ["it ended without a message"])[0][:160]

    def _read(self, seconds: float) -> bool:
        """Take what the tool prints within `seconds`; return False at the end."""
        if self._poll.poll(seconds * 1e3):
            try:
                part = os.read(self._master, 1 << 16)
            except OSError:  # EIO: the other end is closed
                return False
            self.lines += part.count(b"\n")
            self.output = self.output[-_KEPT:] + part
        return True

    def _drain_terminal(self) -> None:
        while self._read(0.1):
            pass

    def memory(self) -> tuple[int, int]:
        """Return RSS and PSS in KiB of the tool's process and its children."""
        pids = [self.pid, *_children(self.pid)]
        sums = {"Rss": 0, "Pss": 0}
        for pid in pids:
            with contextlib.suppress(OSError):
                for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
                    name, _, value = line.partition(":")
                    if name in sums:
                        sums[name] += int(value.split()[0])
        return sums["Rss"], sums["Pss"]

    def stop(self) -> Usage:
        """Interrupt the tool and wait for it."""
        # Popen's methods would reap a process that has already ended, and discard its usage.
        os.kill(self.pid, signal.SIGINT)
        deadline = time.monotonic() + STOP_SECONDS
        while True:
            pid, status, usage = os.wait4(self.pid, os.WNOHANG)
            if pid:
                break
            time.sleep(_POLL_SECONDS)
            if time.monotonic() > deadline:
                os.kill(self.pid, signal.SIGKILL)
        self._process.returncode = os.waitstatus_to_exitcode(status)
        self._drain.join(STOP_SECONDS)
        if self._drain.is_alive():
            raise RuntimeError(f"{self._process.args} has ended, but not all of its processes")
        self._close()
        return Usage(usage.ru_utime + usage.ru_stime, usage.ru_maxrss)

    def _close(self) -> None:
        os.close(self._master)
        self._errors.close()


@contextlib.contextmanager
def running(
    command: Iterable[str], ready: Path | None, cpu: int | None = None, cache: str = "off"
) -> Iterator[Running]:
    """Run a tool in the block; `ready` is its ready file, None if it prints a header.

    `cpu` is where it runs, `cache` is NETBPF_CACHE: a directory for compiled programs, or "off".
    Raises CannotRun if it does not attach.
    """
    tool = Running(command, ready, cpu, cache)
    try:
        yield tool
    finally:
        if tool._process.returncode is None:
            tool.stop()


def _environment(cache: str) -> dict[str, str]:
    # Python's bytecode goes elsewhere, as the source tree may belong to another user.
    keep = {name: text for name, text in os.environ.items() if not name.startswith("PYTHON")}
    bytecode = str(Path(tempfile.gettempdir(), "netbpf-bench-bytecode"))
    return {**keep, "PYTHONPYCACHEPREFIX": bytecode, "NETBPF_CACHE": cache}


def _children(pid: int) -> list[int]:
    found: list[int] = []
    with contextlib.suppress(OSError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            found += [int(child), *_children(int(child))]
    return found


def _waits(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "S"
    return False


class Runs:
    """Runs of BPF programs: `number` of them, `ns` of one on average."""

    number, ns = 0, 0.0


@contextlib.contextmanager
def measured(pid: int) -> Iterator[Runs]:
    """Have the kernel measure the programs that a process holds, in the block."""
    runs = Runs()
    stats = enable_statistics()
    try:
        before = _program_runs(pid)
        yield runs
        after = _program_runs(pid)
    finally:
        os.close(stats)
    runs.number = sum(after[one][1] - before[one][1] for one in before if one in after)
    spent = sum(after[one][0] - before[one][0] for one in before if one in after)
    runs.ns = spent / runs.number if runs.number else 0.0


def _program_runs(pid: int) -> dict[str, tuple[int, int]]:
    """Return {id: (ns, runs)} of the programs that a process holds."""
    found = {}
    for file in Path(f"/proc/{pid}/fdinfo").iterdir():
        with contextlib.suppress(OSError):
            text = file.read_text()
            if "prog_id" in text and "run_cnt" in text:
                lines = (line.partition(":") for line in text.splitlines())
                fields = {name: value.strip() for name, _, value in lines}
                found[fields["prog_id"]] = (int(fields["run_time_ns"]), int(fields["run_cnt"]))
    return found
