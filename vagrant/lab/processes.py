"""Run child processes with time limits, in their own sessions so that Ctrl-C does not reach them.

The first signal sets `stopping`; functions that wait for a child then terminate it and raise
Stopped. The clean-up ignores `stopping`, so that signals do not interrupt it.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Callable, Optional

stopping = threading.Event()
POLL_SECONDS = 0.25
GRACE_SECONDS = 20


class Stopped(Exception):
    """A signal stopped the run."""


class Terminated(Exception):
    """A child was terminated before it exited; the message is the reason."""


def notice(text: str) -> None:
    """Print a progress message to stderr; stdout is for the table."""
    print(f"vm: {text}", file=sys.stderr, flush=True)


def elapsed(since: float) -> str:
    """Format the time since `since`, which is from time.monotonic()."""
    seconds = int(time.monotonic() - since)
    return f"{seconds} s" if seconds < 300 else f"{seconds // 60} min"


def check() -> None:
    """Raise Stopped if a signal has arrived."""
    if stopping.is_set():
        raise Stopped


def capture(
    command: Sequence[str], limit: float = 60, env: Optional[Mapping[str, str]] = None
) -> tuple[int, str]:
    """Run a short command, ignoring signals; return its status and standard output.

    The status is 127 if the command does not exist, 124 if it takes more than `limit` seconds.
    """
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            errors="replace",
            timeout=limit,
            env={**os.environ, **(env or {})},
            start_new_session=True,
        )
    except FileNotFoundError:
        return 127, ""
    except subprocess.TimeoutExpired:
        return 124, ""
    return done.returncode, done.stdout


def run(
    command: Sequence[str],
    log: Path,
    limit: float,
    env: Optional[Mapping[str, str]] = None,
    watch: Optional[Callable[[], str]] = None,
    orphan: str = "TERM",
) -> int:
    """Run `command` with its output appended to `log`; return its status.

    `watch` is called several times per second and returns a reason to terminate the child, or "".
    Raises Terminated for that reason or after `limit` seconds, and Stopped. `orphan` is the signal
    sent to the child if this process is killed.
    """
    deadline = time.monotonic() + limit
    command = ["setpriv", "--pdeathsig", orphan, *command]
    with log.open("ab") as output:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(env or {})},
            start_new_session=True,
        )
        try:
            return _wait(child, deadline, limit, watch or str)
        finally:
            end(child)


def _wait(
    child: subprocess.Popen[bytes], deadline: float, limit: float, watch: Callable[[], str]
) -> int:
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return child.wait(POLL_SECONDS)
        check()
        if time.monotonic() > deadline:
            raise Terminated(f"took longer than {limit / 60:g} min")
        reason = watch()
        if reason:
            raise Terminated(reason)


def end(child: subprocess.Popen[bytes]) -> None:
    """Terminate a child and its process group."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(GRACE_SECONDS)
            if number == signal.SIGTERM and _group_is_gone(child.pid):
                return


def _group_is_gone(group: int) -> bool:
    deadline = time.monotonic() + GRACE_SECONDS
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(POLL_SECONDS / 5)
    return False


def tail(path: Path, count: int) -> list[str]:
    """Return the last printable lines of a log without Ruby backtraces; [] if it is missing."""
    try:
        text = path.read_bytes().decode("utf-8", "replace")
    except OSError:
        return []
    # Consoles contain escape sequences and overwritten lines.
    text = re.sub(r"\x1b(\[[0-9;?]*[A-Za-z]|.)", "", text)
    lines = [line.rstrip("\r").rpartition("\r")[2].expandtabs() for line in text.split("\n")]
    kept = [line for line in lines if line.strip() and not re.match(r" *from /usr/.*:in `", line)]
    return ["".join(c if c.isprintable() else "?" for c in line) for line in kept[-count:]]
