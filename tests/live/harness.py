"""Run a netbpf tool during known traffic, and wait for conditions instead of sleeping.

`with netbpf("tcplife", "--lport", "8080") as run:` starts the tool with JSON output and enters
the block when all its probes are attached. Inside, `run.wait_for(23)` waits for that many events.
At the end of the block, the tool gets a SIGINT, `run.events`, `run.summary` and the others are
complete, and each line has been checked against the tool's own schema.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, Callable

import jsonschema
from compared import spoiled

SOURCE_TREE = Path(__file__).resolve().parents[2]
# In an emulated VM everything takes about ten times as long: NETBPF_TEST_SLOW=10.
SLOW = float(os.environ.get("NETBPF_TEST_SLOW", "1"))
START_TIMEOUT = 60 * SLOW
TIMEOUT = 10 * SLOW
# Attempts for tests that fail if the kernel skips a run of a program, and reports it. Under
# emulation a run takes long enough to be interrupted.
ATTEMPTS = 3 if SLOW > 1 else 1

# With it, output that a tool does not flush would be written nevertheless.
os.environ.pop("PYTHONUNBUFFERED", None)

Json = dict[str, Any]
Condition = Callable[[list[Json]], Any]

_BPF_PROG_GET_NEXT_ID = 11
# Numbers of accept and accept4: on x86, and in the generic table of newer architectures.
_ACCEPTS = {"43", "288"} if platform.machine() == "x86_64" else {"202", "242"}
_SYS_BPF = {"x86_64": 321, "ppc64le": 361, "s390x": 351}  # 280 everywhere else


def wait_until(condition: Callable[[], Any], timeout: float = TIMEOUT, what: str = "") -> Any:
    """Return the first true result of `condition`; fail if there is none within `timeout` s."""
    end = time.monotonic() + timeout
    pause = 0.001
    while not (result := condition()):
        if time.monotonic() > end:
            raise AssertionError(f"waited {timeout:g} s without success for {what or condition}")
        time.sleep(pause)
        pause = min(pause * 1.5, 0.05)
    return result


def seconds(stamp: str) -> float:
    """Convert a time of the tool's output (RFC 3339, UTC) to seconds since 1970."""
    assert stamp.endswith("Z"), stamp
    return datetime.fromisoformat(stamp.replace("Z", "+00:00")).timestamp()


def command(*args: object) -> list[str]:
    """Return the command line that runs netbpf from the source tree."""
    return [sys.executable, "-m", "netbpf", *map(str, args)]


def netbpf_once(*args: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a netbpf command that ends by itself."""
    options = {"cwd": SOURCE_TREE, "text": True, "timeout": START_TIMEOUT, **options}
    return subprocess.run(
        command(*args), capture_output=True, stdin=subprocess.DEVNULL, check=False, **options
    )


@functools.cache
def validator(tool: str) -> jsonschema.Draft202012Validator:
    """Return the validator for lines of a tool's JSON output, from `netbpf schema TOOL`."""
    done = netbpf_once("schema", tool)
    assert done.returncode == 0, done.stderr
    schema = json.loads(done.stdout)
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


class Run:
    """A running tool, and its output."""

    def __init__(self, tool: str, process: subprocess.Popen[bytes], directory: Path) -> None:
        self.tool = tool
        self.process = process
        self.ready_file = directory / "ready"
        self._stdout = directory / "stdout"
        self._stderr = directory / "stderr"
        self._parsed: list[Json] = []
        self._offset = 0

    @property
    def lines(self) -> list[Json]:
        """All complete lines so far."""
        with self._stdout.open("rb") as file:
            file.seek(self._offset)
            new = file.read()
        complete = new[: new.rfind(b"\n") + 1]
        self._offset += len(complete)
        self._parsed += map(json.loads, complete.decode().splitlines())
        return [spoiled(line) for line in self._parsed]

    @property
    def events(self) -> list[Json]:
        """The events so far."""
        return self._of_type("event")

    @property
    def rows(self) -> list[Json]:
        """The table rows so far."""
        return self._of_type("interval")

    @property
    def histograms(self) -> list[Json]:
        """The histograms so far."""
        return self._of_type("histogram")

    @property
    def summary(self) -> Json:
        """The summary, which is the last line of a completed run."""
        assert self.lines, f"no output; stderr:\n{self.stderr}"
        last = self.lines[-1]
        assert last["type"] == "summary", f"the last line is no summary: {last}"
        return last

    @property
    def stdout(self) -> str:
        """Everything on stdout so far, for runs without JSON output."""
        return self._stdout.read_text()

    @property
    def stderr(self) -> str:
        """Everything on stderr so far."""
        return self._stderr.read_text(errors="replace")

    @property
    def returncode(self) -> int | None:
        """The exit status, None while it runs."""
        return self.process.poll()

    def wait_for(self, wanted: int | Condition, timeout: float = TIMEOUT) -> list[Json]:
        """Wait until there are that many events, or until `wanted(events)` is true."""
        condition: Condition = wanted if callable(wanted) else lambda events: len(events) >= wanted

        def fulfilled() -> bool:
            # Read before the events: the last line may be written just before the end.
            ended = self.returncode is not None
            if condition(self.events):
                return True
            assert not ended, f"{self.tool} ended early ({self.returncode}):\n{self.stderr}"
            return False

        try:
            wait_until(fulfilled, timeout, "events")
        except AssertionError as error:
            seen = len(self.events)
            raise AssertionError(f"{error}; {seen} events, stderr:\n{self.stderr}") from None
        return self.events

    def wait_ready(self) -> None:
        """Wait until the tool reports that its probes are attached."""

        def ready() -> bool:
            # A tool that ended normally was ready, and has removed the file.
            ended = self.returncode
            assert ended in (None, 0, 3), f"{self.tool} did not start ({ended}):\n{self.stderr}"
            return self.ready_file.exists() or ended is not None

        wait_until(ready, START_TIMEOUT, f"{self.tool}'s ready file")

    def wait_end(self, timeout: float = TIMEOUT) -> int:
        """Wait until the tool ends by itself and return its exit status."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.tool} still runs after {timeout:g} s") from None

    def stop(self, by: signal.Signals = signal.SIGINT) -> int:
        """Stop the tool by a signal, wait for its end, and return its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(by)
        return self.wait_end()

    def validate(self) -> None:
        """Check every line against the tool's schema."""
        check = validator(self.tool)
        assert self.lines
        for line in self._parsed:
            check.validate(line)

    def _of_type(self, kind: str) -> list[Json]:
        return [line for line in self.lines if line["type"] == kind]


def accepting(pid: int) -> int:
    """Return the number of threads of a process that are in accept."""
    calls = Path(f"/proc/{pid}/task").glob("*/syscall")
    return sum(call.read_text().split()[0] in _ACCEPTS for call in calls)


def process_state(pid: int) -> str:
    """Return the state of a process from /proc/PID/stat: R, S, T ..."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


@contextlib.contextmanager
def stopped(run: Run) -> Iterator[None]:
    """Stop a tool from reading within the block."""
    run.process.send_signal(signal.SIGSTOP)
    wait_until(lambda: process_state(run.process.pid) == "T", what="the reader to stop")
    try:
        yield
    finally:
        run.process.send_signal(signal.SIGCONT)


def kill(process: subprocess.Popen[Any]) -> None:
    """Kill a child process, stopped or not."""
    if process.poll() is None:
        process.kill()
        process.wait()


@contextlib.contextmanager
def running(
    directory: Path,
    tool: str,
    *args: object,
    json_lines: bool = True,
    returncode: int = 0,
    **options: Any,
) -> Iterator[Run]:
    """Run a tool within the block; see the module's docstring and `attended`."""
    run = start(directory, tool, *args, json_lines=json_lines, **options)
    with attended(run, json_lines, returncode):
        yield run


@contextlib.contextmanager
def attended(run: Run, json_lines: bool = True, returncode: int = 0) -> Iterator[Run]:
    """Enter the block when a started tool is ready, and stop the tool after the block.

    It must end with `returncode`, and its JSON lines must match its schema.
    """
    try:
        run.wait_ready()
        yield run
        status = run.stop()
        assert status == returncode, f"{run.tool} ended with {status}:\n{run.stderr}"
        assert "Traceback" not in run.stderr, run.stderr
        if json_lines:
            run.validate()
            assert run.summary["tool"] == run.tool
    finally:
        kill(run.process)


def start(
    directory: Path, tool: str, *args: object, json_lines: bool = True, **options: Any
) -> Run:
    """Start a tool with its output in files of `directory`, as a pipe would have to be read.

    `options` go to Popen.
    """
    output = ["--json"] if json_lines else []
    line = command(tool, *output, "--ready-file", directory / "ready", *args)
    with (directory / "stdout").open("wb") as out, (directory / "stderr").open("wb") as err:
        streams = {"stdin": subprocess.DEVNULL, "stdout": out, "stderr": err}
        process = subprocess.Popen(line, cwd=SOURCE_TREE, **{**streams, **options})
    return Run(tool, process, directory)


def programs_of(pid: int) -> set[int]:
    """Return the ids of the BPF programs that a process holds, directly or through a link."""
    ids: set[int] = set()
    for description in Path(f"/proc/{pid}/fdinfo").iterdir():
        with contextlib.suppress(FileNotFoundError):
            words = description.read_text().split()
            ids |= {int(words[i + 1]) for i, word in enumerate(words) if word == "prog_id:"}
    return ids


def bpf_programs() -> set[int]:
    """Return the ids of all BPF programs in the kernel, from bpf(2)."""
    libc = ctypes.CDLL(None, use_errno=True)
    number = _SYS_BPF.get(platform.machine(), 280)
    attributes = (ctypes.c_uint32 * 32)()
    ids: set[int] = set()
    while libc.syscall(number, _BPF_PROG_GET_NEXT_ID, attributes, ctypes.sizeof(attributes)) == 0:
        ids.add(attributes[1])
        attributes[0] = attributes[1]
    return ids
