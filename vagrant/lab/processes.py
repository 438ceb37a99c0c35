"""Children: in sessions of their own, so that Ctrl-C reaches them only in order, with time limits.

A first signal sets `stopping`; who waits for a child then ends it and raises Stopped. The clean-up
does not look at `stopping`, so nothing breaks it off.
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
    """The run was asked to end."""


class Ended(Exception):
    """A child was ended before it was done; the message says why."""


def say(text: str) -> None:
    """Print a line of progress; standard output is for the table."""
    print(f"vm: {text}", file=sys.stderr, flush=True)


def span(since: float) -> str:
    """Return the time since `since` (of time.monotonic) in words."""
    seconds = int(time.monotonic() - since)
    return f"{seconds} s" if seconds < 300 else f"{seconds // 60} min"


def check() -> None:
    """Raise Stopped if the run was asked to end."""
    if stopping.is_set():
        raise Stopped


def ask(
    command: Sequence[str], limit: float = 60, env: Optional[Mapping[str, str]] = None
) -> tuple[int, str]:
    """Run a short command, whatever signals arrive; return its status and standard output.

    A command that is not there, or that takes more than `limit` seconds, has the status 127 or 124.
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

    `watch` is called several times a second, and ends the child by returning why. Raises Ended
    for that and after `limit` seconds, and Stopped. `orphan` is the signal that the child gets if
    this program is killed.
    """
    deadline = time.monotonic() + limit
    guarded = ["setpriv", "--pdeathsig", orphan, *command]
    with log.open("ab") as output:
        child = subprocess.Popen(
            guarded,
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
            raise Ended(f"took longer than {limit / 60:g} min")
        reason = watch()
        if reason:
            raise Ended(reason)


def end(child: subprocess.Popen[bytes]) -> None:
    """End a child and whatever it started in its session's first process group."""
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
    """Return the last lines of a log, printable and without Ruby's stacks; [] if there is none."""
    try:
        text = path.read_bytes().decode("utf-8", "replace")
    except OSError:
        return []
    # A console has colours, and lines that are written over.
    text = re.sub(r"\x1b(\[[0-9;?]*[A-Za-z]|.)", "", text)
    lines = [line.rstrip("\r").rpartition("\r")[2].expandtabs() for line in text.split("\n")]
    told = [line for line in lines if line.strip() and not re.match(r" *from /usr/.*:in `", line)]
    return ["".join(c if c.isprintable() else "?" for c in line) for line in told[-count:]]
