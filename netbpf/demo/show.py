"""A look at every tool on a machine with nothing going on: it makes its own traffic on loopback.

The tools that this kernel can run start one after the other, as many at a time as there are CPUs to
compile them, each in a process of its own, and stop by themselves. Traffic flows until the last has
stopped. Everything that is started here is a child, known by its id, and ended with this process.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Callable, NamedTuple

import netbpf
from netbpf.declare.tool import Tool
from netbpf.declare.values import escape
from netbpf.demo import traffic
from netbpf.doctor import report
from netbpf.doctor.machine import BAD, check_bcc
from netbpf.errors import EXIT_FAILURE, PrivilegeError, Unsupported
from netbpf.kernel.inspect import LiveKernel
from netbpf.system.privileges import missing_privileges

_SECONDS = 2  # how long each tool watches
_PATIENCE = 90  # how long to wait for the next to start or stop: emulated machines compile slowly
_NEWS = 15  # how often to say how far it is, where it takes longer
_GRACE = 5  # how long a tool that was told to finish may take
_MOST_LINES = 9  # shown of a tool's output, its heading included
_MOST_BARS = 24  # the same for histograms and tables, which say little without their second half


class Running(NamedTuple):
    """A tool at work, the files that its words go to, and its ready file."""

    tool: Tool
    process: subprocess.Popen[bytes]
    out: IO[bytes]
    err: IO[bytes]
    ready: Path

    @property
    def started(self) -> bool:
        """Whether it is attached, or has ended."""
        return self.process.poll() is not None or self.ready.exists()


def show(tools: Sequence[Tool]) -> int:
    """Run `tools` over a little traffic and print what each saw; return the exit code.

    Raises PrivilegeError without root, Unsupported if this machine can run none of them.
    """
    lacking = missing_privileges()
    if lacking:
        hint = "run it as root: sudo netbpf demo"
        raise PrivilegeError(f"tracing needs {', '.join(lacking)}", hint)
    bcc = check_bcc()
    if bcc.state == BAD:
        raise Unsupported(f"bcc: {bcc.words}", bcc.hint)
    usable, problems = _usable(tools)
    for tool in tools:
        if tool not in usable:
            print(f"{tool.name}: not on this kernel: {'; '.join(problems[tool.name])}")
    if not usable:
        raise Unsupported("this kernel can run none of them", "see 'netbpf doctor'")
    names = ", ".join(tool.name for tool in usable)
    print(f"Making a little traffic on loopback for: {names} (some seconds) ...", flush=True)
    with traffic.flowing(), contextlib.ExitStack() as files:
        running: list[Running] = []
        try:
            for tool in usable:
                _wait(running, lambda: sum(not one.started for one in running) < _cpus())
                running.append(_start(tool, files))
            _wait(running, lambda: all(one.process.poll() is not None for one in running))
        finally:
            _end(running)
        failed = [one.tool.name for one in running if not _print(one)]
    return EXIT_FAILURE if failed else 0


def _usable(tools: Sequence[Tool]) -> tuple[list[Tool], Mapping[str, list[str]]]:
    kernel = LiveKernel()
    reports = {tool.name: report.examine_tool(tool, kernel) for tool in tools}
    problems = {name: report["problems"] for name, report in reports.items()}
    return [tool for tool in tools if reports[tool.name]["usable"]], problems


def _words(tool: Tool) -> list[str]:
    """Return the arguments: the traffic is on loopback, so other devices can be left out."""
    narrow = ["-i", "lo"] if any(option.name == "interface" for option in tool.options) else []
    return [*narrow, "-d", str(_SECONDS)]


def _cpus() -> int:
    return len(os.sched_getaffinity(0))


def _start(tool: Tool, files: contextlib.ExitStack) -> Running:
    # The same package wherever it came from, and nothing from the current directory, which may be
    # a stranger's.
    place = str(Path(netbpf.__file__).resolve().parents[1])
    path = os.pathsep.join(filter(None, (place, os.environ.get("PYTHONPATH"))))
    # Files without names: nothing is left of them, however this ends.
    out, err = (files.enter_context(tempfile.TemporaryFile()) for _ in range(2))
    sign = Path(files.enter_context(tempfile.TemporaryDirectory(prefix="netbpf-demo-"))) / "ready"
    process = subprocess.Popen(
        [sys.executable, "-m", "netbpf", tool.name, *_words(tool), "--ready-file", str(sign)],
        cwd="/",
        env={**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"},
        stdin=subprocess.DEVNULL,
        stdout=out,
        stderr=err,
    )
    return Running(tool, process, out, err, sign)


def _wait(running: Sequence[Running], fulfilled: Callable[[], bool]) -> None:
    """Wait until it is so, or until nothing has changed for too long."""
    state: tuple[int, ...] = ()
    changed = news = time.monotonic()
    while not fulfilled() and time.monotonic() < changed + _PATIENCE:
        now = (
            sum(one.started for one in running),
            sum(one.process.poll() is None for one in running),
        )
        if now != state:
            state, changed = now, time.monotonic()
        if time.monotonic() > news + _NEWS:
            news = time.monotonic()
            print(f"... {state[0]} of them have started", flush=True)
        time.sleep(0.02)


def _end(running: Sequence[Running]) -> None:
    """Ask those that still run to finish, and end those that do not."""
    late = [one.process for one in running if one.process.poll() is None]
    for process in late:
        process.send_signal(signal.SIGTERM)
    end = time.monotonic() + _GRACE
    for process in late:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(end - time.monotonic(), 0.1))
        process.kill()
        process.wait()


def _print(one: Running) -> bool:
    """Print what a tool said; tell whether it ended well."""
    tool, status = one.tool, one.process.returncode
    print(f"\n{'-' * 78}\n{tool.name}: {tool.summary}\n")
    print(f"$ sudo netbpf {tool.name} {' '.join(_words(tool))}")
    lines = _lines(one.out)
    most = _MOST_LINES if tool.event else _MOST_BARS
    left = len(lines) - most
    print("\n".join([*lines[:most], *([f"... {left} more lines"] if left > 0 else [])]))
    print("\n".join(_lines(one.err)))
    if status:
        print(f"{tool.name} ended with status {status}")
    sys.stdout.flush()
    return status == 0


def _lines(file: IO[bytes]) -> list[str]:
    file.seek(0)
    text = file.read().decode("utf-8", "backslashreplace")
    return [escape(line) for line in text.splitlines()]
