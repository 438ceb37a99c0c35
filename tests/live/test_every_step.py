"""Whatever fails at whichever step, nothing is left: no program in the kernel, no file, no sign.

An exception is raised in each function of netbpf that a run calls, one run per function. The runs
are forks of a process that has imported everything, so that each takes a moment.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import harness
import pytest
from harness import SLOW, SOURCE_TREE, wait_until

import netbpf.cli
import netbpf.run.session  # noqa: F401 - so that the forks need not

pytestmark = pytest.mark.alone

PACKAGE = str(SOURCE_TREE / "netbpf")
# Where something is opened, made, attached or written, and where it is closed again.
PLACES = tuple(
    f"{PACKAGE}/{place}"
    for place in (
        "cli.py", "commands/", "run/", "output/outlet.py", "output/writers.py", "bpf/attach.py",
        "binaries/binary.py", "bpf/cache.py", "kernel/clock.py", "kernel/counters.py",
        "system/file_limit.py", "bpf/layout.py", "binaries/scan.py", "bpf/loader.py",
        "bpf/compiler.py", "bpf/maps.py", "system/privileges.py", "system/links.py",
    )
)  # fmt: skip
TOOLS = ("tcplife", "sockstat", "gethostlatency")
AT_ONCE = 6  # runs, which mostly wait for the kernel to detach
ERRORS = [OSError(5, "injected"), MemoryError("injected"), ValueError("injected")]
QUICK_STARTS = 300
Hook = Callable[[FrameType, str, Any], None]


class Steps:
    """Counts the functions of netbpf in the order of their first call, and raises in one."""

    def __init__(self, at: int = -1, error: BaseException | None = None) -> None:
        self.found: dict[str, None] = {}
        self._at, self._error = at, error

    def hook(self, frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event != "call" or not code.co_filename.startswith(PLACES):
            return
        if code.co_name.startswith("<") or code.co_name == "main":
            return  # a comprehension is part of its function; main is where failures arrive
        name = f"{code.co_filename[len(PACKAGE) + 1 :]}:{code.co_name}:{code.co_firstlineno}"
        if name not in self.found:
            self.found[name] = None
            if len(self.found) - 1 == self._at and self._error:
                raise self._error


def forked(directory: Path, words: tuple[str, ...], prepare: Callable[[], None]) -> int:
    """Run netbpf with `words` in a fork; return its process id. Output goes to `directory`."""
    pid = os.fork()
    if pid:
        return pid
    try:
        for fd, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(directory / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), fd)
        sys.stdout = sys.__stdout__ = os.fdopen(1, "w", closefd=False)
        sys.stderr = sys.__stderr__ = os.fdopen(2, "w", closefd=False)
        os.chdir(directory)
        os.environ["TMPDIR"] = str(directory)
        signal.alarm(int(60 * SLOW))
        try:
            prepare()
            netbpf.cli.main(words)
        except SystemExit as end:
            sys.setprofile(None)
            sys.stderr.flush()
            os._exit(end.code if isinstance(end.code, int) else 0)
        os._exit(0)
    finally:
        sys.stderr.flush()
        os._exit(99)


def ended(pid: int) -> int:
    """Wait for a fork and return its exit status, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def files(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()} - {"stdout", "stderr"}


def test_exception_at_any_step_leaves_nothing(tmp_path: Path) -> None:
    programs, mounts = harness.bpf_programs(), Path("/proc/self/mounts").read_text()
    wrong, known = [], set()
    for tool in TOOLS:
        words = (tool, "-d", "0.01", "--json", "--ready-file", "ready")
        steps = list_steps(tmp_path, words)
        assert len(steps) > 100, steps
        fresh = [index for index, step in enumerate(steps) if step not in known]
        known.update(steps)
        for first in range(0, len(fresh), AT_ONCE):
            batch = fresh[first : first + AT_ONCE]
            pids = [broken_run(tmp_path / f"{tool}-{index}", words, index) for index in batch]
            for index, pid in zip(batch, pids):
                fault = fault_of(tmp_path / f"{tool}-{index}", ended(pid))
                wrong += [(steps[index], *fault)] if fault else []
    assert not wrong
    wait_until(lambda: not harness.bpf_programs() - programs, 60 * SLOW, "the programs' removal")
    assert Path("/proc/self/mounts").read_text() == mounts


def broken_run(directory: Path, words: tuple[str, ...], index: int) -> int:
    """Start a run that meets an exception in its step number `index`; return its process id."""
    directory.mkdir()
    steps = Steps(index, ERRORS[index % len(ERRORS)])
    return forked(directory, words, lambda: sys.setprofile(steps.hook))


def fault_of(directory: Path, status: int) -> tuple[Any, ...]:
    """Return what is wrong with how a run ended, () if nothing."""
    stderr = (directory / "stderr").read_text()
    # Some failures are expected where they happen: a process may end while it is looked at.
    said = "error" in stderr or status == 0
    if status in (0, 1, 69, 77) and said and "Traceback" not in stderr and not files(directory):
        return ()
    return status, files(directory), stderr[-300:]


def list_steps(place: Path, words: tuple[str, ...]) -> list[str]:
    """Return the functions that a run calls, in the order of their first call."""
    listing = place / "steps"

    def prepare() -> None:
        steps, me = Steps(), os.getpid()
        found = listing.open("w")  # now: a tool that runs may not write to other files any more
        sys.setprofile(steps.hook)
        leave = os._exit

        def note(status: int) -> None:
            if os.getpid() == me:
                found.write("\n".join(steps.found))
                found.flush()
            leave(status)

        os._exit = note  # type: ignore[assignment]

    assert ended(forked(place, words, prepare)) == 0, (place / "stderr").read_text()
    found = listing.read_text().splitlines()
    listing.unlink()
    return found


@pytest.mark.parametrize("megabytes", [60, 90, 120, 200, 300])
def test_run_without_memory_leaves_nothing(megabytes: int, tmp_path: Path) -> None:
    programs = harness.bpf_programs()
    limit = megabytes << 20

    def prepare() -> None:
        os.environ["NETBPF_CACHE"] = "off"
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    words = ("tcplife", "-d", "0.05", "--ready-file", "ready")
    status = ended(forked(tmp_path, words, prepare))
    stderr = (tmp_path / "stderr").read_text()
    # The compiler itself aborts where it gets no memory.
    assert status in (0, 1, 69, -signal.SIGABRT, -signal.SIGSEGV), (status, stderr)
    assert "are missing" not in stderr  # they are there
    assert "Traceback" not in stderr
    assert not files(tmp_path)
    wait_until(lambda: not harness.bpf_programs() - programs, 60 * SLOW, "the programs' removal")


def test_hundreds_of_quick_starts_leave_nothing(tmp_path: Path) -> None:
    programs = harness.bpf_programs()
    words = ("tcplife", "-d", "0.001", "--ready-file", "ready")
    places = [tmp_path / str(number) for number in range(AT_ONCE)]
    for place in places:
        place.mkdir()
    for _ in range(QUICK_STARTS // AT_ONCE):
        for pid in [forked(place, words, lambda: None) for place in places]:
            assert ended(pid) == 0, [(place / "stderr").read_text() for place in places]
        assert not any(files(place) for place in places)
    wait_until(lambda: not harness.bpf_programs() - programs, 60 * SLOW, "the programs' removal")
