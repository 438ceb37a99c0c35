"""Run every tool on traffic that this process generates on loopback.

The tools that this kernel supports start one after the other, each in a process of its own; as many
compile at once as there are CPUs. Each stops by itself. Traffic flows until the last tool has
stopped. All processes started here are children, and end with this process.
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

_SECONDS = 2  # how long each tool traces
_TIMEOUT = 90  # seconds without a tool starting or stopping: emulated machines compile slowly
_PROGRESS = 15  # seconds between progress messages
_GRACE = 5  # seconds for a tool to exit after SIGTERM
_MAX_LINES = 9  # of a tool's output, including the heading
_MAX_BARS = 24  # the same for histograms and tables, which are longer


class Running(NamedTuple):
    """A running tool: its process, the files with its output, and its ready file."""

    tool: Tool
    process: subprocess.Popen[bytes]
    out: IO[bytes]
    err: IO[bytes]
    ready: Path

    @property
    def started(self) -> bool:
        """Whether the tool is attached or has exited."""
        return self.process.poll() is not None or self.ready.exists()


def show(tools: Sequence[Tool]) -> int:
    """Run `tools` on generated traffic and print their output; return the exit code.

    Raises PrivilegeError without root, Unsupported if this machine can run none of them.
    """
    missing = missing_privileges()
    if missing:
        hint = "run it as root: sudo netbpf demo"
        raise PrivilegeError(f"tracing needs {', '.join(missing)}", hint)
    bcc = check_bcc()
    if bcc.state == BAD:
        raise Unsupported(f"bcc: {bcc.words}", bcc.hint)
    usable, problems = _usable(tools)
    for tool in tools:
        if tool not in usable:
            print(f"{tool.name}: not supported on this kernel: {'; '.join(problems[tool.name])}")
    if not usable:
        raise Unsupported("this kernel supports none of these tools", "run 'netbpf doctor'")
    names = ", ".join(tool.name for tool in usable)
    print(f"Generating loopback traffic for: {names} (a few seconds) ...", flush=True)
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


def _args(tool: Tool) -> list[str]:
    """Return the arguments; traffic is on loopback, so other devices are excluded."""
    filters = ["-i", "lo"] if any(option.name == "interface" for option in tool.options) else []
    return [*filters, "-d", str(_SECONDS)]


def _cpus() -> int:
    return len(os.sched_getaffinity(0))


def _start(tool: Tool, files: contextlib.ExitStack) -> Running:
    # Import this very package, and nothing from the current directory, which may be untrusted.
    directory = str(Path(netbpf.__file__).resolve().parents[1])
    path = os.pathsep.join(filter(None, (directory, os.environ.get("PYTHONPATH"))))
    # Unnamed files disappear when this process ends.
    out, err = (files.enter_context(tempfile.TemporaryFile()) for _ in range(2))
    sign = Path(files.enter_context(tempfile.TemporaryDirectory(prefix="netbpf-demo-"))) / "ready"
    process = subprocess.Popen(
        [sys.executable, "-m", "netbpf", tool.name, *_args(tool), "--ready-file", str(sign)],
        cwd="/",
        env={**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"},
        stdin=subprocess.DEVNULL,
        stdout=out,
        stderr=err,
    )
    return Running(tool, process, out, err, sign)


def _wait(running: Sequence[Running], condition: Callable[[], bool]) -> None:
    """Wait until `condition()` is true, or until no tool has started or exited for _TIMEOUT."""
    state: tuple[int, ...] = ()
    changed = printed = time.monotonic()
    while not condition() and time.monotonic() < changed + _TIMEOUT:
        now = (
            sum(one.started for one in running),
            sum(one.process.poll() is None for one in running),
        )
        if now != state:
            state, changed = now, time.monotonic()
        if time.monotonic() > printed + _PROGRESS:
            printed = time.monotonic()
            print(f"... {state[0]} tools have started", flush=True)
        time.sleep(0.02)


def _end(running: Sequence[Running]) -> None:
    """Terminate the tools that still run; kill those that do not exit."""
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
    """Print the output of a tool; return whether it succeeded."""
    tool, status = one.tool, one.process.returncode
    print(f"\n{'-' * 78}\n{tool.name}: {tool.summary}\n")
    print(f"$ sudo netbpf {tool.name} {' '.join(_args(tool))}")
    lines = _lines(one.out)
    limit = _MAX_LINES if tool.event else _MAX_BARS
    rest = len(lines) - limit
    print("\n".join([*lines[:limit], *([f"... {rest} more lines"] if rest > 0 else [])]))
    print("\n".join(_lines(one.err)))
    if status:
        print(f"{tool.name} exited with status {status}")
    sys.stdout.flush()
    return status == 0


def _lines(file: IO[bytes]) -> list[str]:
    file.seek(0)
    text = file.read().decode("utf-8", "backslashreplace")
    return [escape(line) for line in text.splitlines()]
