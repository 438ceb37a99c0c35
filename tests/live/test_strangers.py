"""What strangers map, run and mount keeps gethostlatency neither from starting nor from ending."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import harness
import pytest
from conftest import Netbpf
from harness import SLOW, Json, Run, wait_until

from tests.unit import hostile

NOBODY = 65534
# A libc by its name, its type and where it is mapped; the process sleeps.
MAP = """
import mmap, os, signal, sys
signal.signal(signal.SIGIO, signal.SIG_IGN)
path, lease = sys.argv[1:]
fd = os.open(path, os.O_RDWR if lease == "lease" else os.O_RDONLY)
if lease == "lease":
    import fcntl
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
kept = mmap.mmap(fd, 4096, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_EXEC)
print("ready", flush=True)
sys.stdin.readline()
"""
# sched_process_exec is enough: names are looked up by what is there before.
ASK = "import socket\ntry: socket.getaddrinfo('strangers.invalid', None)\nexcept OSError: pass"


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """A directory that every user may look into, which pytest's own are not."""
    path = Path("/tmp") / f"netbpf-strangers-{os.getpid()}"
    path.mkdir(mode=0o755)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def mapping(path: Path, lease: str = "", user: int = NOBODY) -> Iterator[int]:
    """A process of an ordinary user that has a file mapped as code; yields its id."""
    if user:
        os.chown(path, user, user)
    process = subprocess.Popen(
        [sys.executable, "-c", MAP, str(path), lease],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, user=user, cwd="/",
    )  # fmt: skip
    try:
        assert process.stdout and process.stdout.readline() == "ready\n"
        yield process.pid
    finally:
        harness.kill(process)


def gap_of(run: Run, pid: int) -> Json:
    (gap,) = [gap for gap in run.summary["coverage"]["uncovered"] if gap["pid"] == pid]
    return dict(gap)


def helpers(pid: int) -> list[int]:
    """Return the processes that a process has forked, and those that these have."""
    words = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [child for word in words for child in (int(word), *helpers(int(word)))]


# --- files that are read for ever ---------------------------------------------------------------


@pytest.mark.parametrize("make", [hostile.hollow, hostile.repeated, hostile.repeated_symbols])
def test_libc_that_costs_too_much_is_given_up_and_named(
    netbpf: Netbpf, directory: Path, make: Callable[[Path], Path]
) -> None:
    path = make(directory / "libc.so.6")
    with mapping(path) as pid, netbpf("gethostlatency", returncode=0) as run:
        asker = subprocess.run([sys.executable, "-c", ASK], check=True, timeout=30 * SLOW)
        assert asker.returncode == 0
        run.wait_for(lambda events: any(e["host"] == "strangers.invalid" for e in events))
        wait_until(lambda: helpers(run.process.pid), what="the process apart")
    gap = gap_of(run, pid)
    assert gap["lost"] and "given up" in gap["reason"] and str(path) in gap["reason"]
    assert any(str(path) in note for note in run.summary["notes"])
    assert run.summary["lost"]["not_covered"] >= 1
    assert run.summary["complete"] is False


def test_fail_on_loss_counts_what_is_not_covered(netbpf: Netbpf, directory: Path) -> None:
    path = hostile.repeated(directory / "libc.so.6")
    with mapping(path) as pid:
        ours = ("--fail-on-loss", "-p", pid)
        with netbpf("gethostlatency", *ours, returncode=3) as run:
            pass
    assert run.summary["lost"]["not_covered"] == 1


def test_what_a_filter_leaves_out_is_not_lost(netbpf: Netbpf, directory: Path) -> None:
    path = hostile.repeated(directory / "libc.so.6")
    with mapping(path) as pid:
        with netbpf("gethostlatency", "--fail-on-loss", "-p", os.getpid()) as run:
            pass
        assert gap_of(run, pid)["lost"]
    assert run.summary["lost"]["not_covered"] == 0 and run.summary["complete"]


def test_process_that_ends_stays_in_the_account(netbpf: Netbpf, directory: Path) -> None:
    path = hostile.repeated(directory / "libc.so.6")
    with contextlib.ExitStack() as processes:
        pid = processes.enter_context(mapping(path))
        with netbpf("gethostlatency", "-p", pid) as run:
            processes.close()
    assert run.summary["lost"]["not_covered"] == 1


def test_lease_on_a_file_does_not_hold_up_the_start(netbpf: Netbpf, directory: Path) -> None:
    path = hostile.repeated(directory / "libc.so.6", size=1 << 20)
    with mapping(path, "lease") as pid, netbpf("gethostlatency", "-d", "1") as run:
        run.wait_end()
    assert "unavailable" in gap_of(run, pid)["reason"]


# --- files that never answer --------------------------------------------------------------------


class SlowFiles:
    """A FUSE file system with one file, libc.so.6, whose content never comes."""

    HEAD, OUT = struct.Struct("=IIQQIIII"), struct.Struct("=IiQ")
    LOOKUP, GETATTR, OPEN, READ, STATFS, INIT, OPENDIR = 1, 3, 14, 15, 17, 26, 27

    def __init__(self, where: Path) -> None:
        self.where = where
        where.mkdir()
        self.fuse = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        options = f"fd={self.fuse},rootmode=40755,user_id=0,group_id=0,allow_other"
        libc = harness.ctypes.CDLL(None, use_errno=True)
        done = libc.mount(b"slow", str(where).encode(), b"fuse", 0, options.encode())
        assert done == 0, os.strerror(harness.ctypes.get_errno())
        self.asked = threading.Event()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError, struct.error):
            while True:
                request = os.read(self.fuse, 1 << 20)
                _, kind, unique, node, *_ = self.HEAD.unpack_from(request)
                answer = self._answer(kind, node, request[self.HEAD.size :])
                if answer is None:
                    self.asked.set()
                    continue
                error, data = (-answer, b"") if isinstance(answer, int) else (0, answer)
                os.write(self.fuse, self.OUT.pack(16 + len(data), error, unique) + data)

    def _answer(self, kind: int, node: int, body: bytes) -> Any:
        if kind == self.INIT:
            return struct.pack("=IIIIHHIIHHI", 7, 31, 0, 0, 0, 0, 4096, 1, 0, 0, 0) + bytes(24)
        if kind == self.LOOKUP:
            if body != b"libc.so.6\0":
                return 2
            return struct.pack("=QQQQII", 2, 0, 60, 60, 0, 0) + self._attributes(2)
        if kind == self.GETATTR:
            return struct.pack("=QII", 60, 0, 0) + self._attributes(node)
        if kind in (self.OPEN, self.OPENDIR):
            return struct.pack("=QII", 1, 0, 0)
        if kind == self.STATFS:
            return bytes(80)
        if kind == self.READ:
            return None
        return 38  # ENOSYS

    @staticmethod
    def _attributes(node: int) -> bytes:
        mode = 0o100644 if node == 2 else 0o40755
        return struct.pack("=QQQQQQIIIIIIIIII", node, 1 << 20, 8, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0,
                           0, 4096, 0)  # fmt: skip

    def close(self) -> None:
        os.close(self.fuse)
        subprocess.run(["umount", "-l", str(self.where)], check=False, capture_output=True)


@pytest.fixture
def slow(directory: Path) -> Iterator[SlowFiles]:
    files = SlowFiles(directory / "slow")
    yield files
    files.close()


def test_file_that_never_answers_is_given_up(netbpf: Netbpf, slow: SlowFiles) -> None:
    path = slow.where / "libc.so.6"
    with mapping(path, user=0) as pid:
        with netbpf("gethostlatency", "-v") as run:
            assert slow.asked.wait(30 * SLOW), "the test itself failed: the file was not read"
            wait_until(lambda: "given up" in run.stderr, what="it to be given up")
            subprocess.run([sys.executable, "-c", ASK], check=True, timeout=30 * SLOW)
            run.wait_for(lambda events: any(e["host"] == "strangers.invalid" for e in events))
            began = time.monotonic()
            run.stop()
            assert time.monotonic() - began < 3 * SLOW  # not when the file answers: never
    gap = gap_of(run, pid)
    assert gap["lost"] and "reading its files blocks" in gap["reason"]
    assert run.summary["lost"]["not_covered"] >= 1


# --- the process apart --------------------------------------------------------------------------


def test_nothing_is_left_of_it_when_we_are_killed(netbpf: Netbpf, directory: Path) -> None:
    run = harness.start(directory, "gethostlatency")
    try:
        run.wait_ready()
        apart = helpers(run.process.pid)
        assert len(apart) == 2
    finally:
        harness.kill(run.process)
    wait_until(lambda: not any(map(is_alive, apart)), what="the end of the processes apart")


def is_alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return harness.process_state(pid) not in "ZX"
    return False


def test_there_is_another_one_when_it_is_killed(netbpf: Netbpf, directory: Path) -> None:
    """What the first one attached stays, and is not attached again; the next finds new files."""
    (libc,) = {os.path.realpath(path) for path in Path("/usr/lib").glob("*/libc.so.6")}
    own = Path(shutil.copy(libc, directory / "libc.so.6"))
    program = shutil.copy(os.path.realpath(sys.executable), directory / "newcomer")
    env = {**os.environ, "LD_LIBRARY_PATH": str(directory), "PYTHONHOME": sys.base_prefix}
    with netbpf("gethostlatency", "-v") as run:
        _, worker = helpers(run.process.pid)
        os.kill(worker, signal.SIGKILL)
        wait_until(lambda: worker not in helpers(run.process.pid), what="the end of the first")
        wait_until(lambda: len(helpers(run.process.pid)) == 2, what="another one")
        newcomer = subprocess.Popen(
            [program, "-c", "import sys; sys.stdin.readline()" + "\n" + ASK],
            stdin=subprocess.PIPE, env=env, cwd="/",
        )  # fmt: skip
        try:
            wait_until(lambda: f"probing {own}" in run.stderr, 30 * SLOW, "the new libc")
            newcomer.communicate(b"\n", timeout=30 * SLOW)
            run.wait_for(lambda events: any(e["pid"] == newcomer.pid for e in events))
        finally:
            harness.kill(newcomer)
    probed = [line.split("probing ")[1] for line in run.stderr.splitlines() if "probing " in line]
    assert [os.path.realpath(path) for path in probed].count(libc) == 1


def test_run_without_it_goes_on_and_is_incomplete(netbpf: Netbpf) -> None:
    with netbpf("gethostlatency") as run:
        keeper, worker = helpers(run.process.pid)
        os.kill(keeper, signal.SIGKILL)
        wait_until(lambda: not is_alive(worker), what="the end of the worker")
        subprocess.run([sys.executable, "-c", ASK], check=True, timeout=30 * SLOW)
        run.wait_for(lambda events: any(e["host"] == "strangers.invalid" for e in events))
    assert run.summary["complete"] is False
    assert any("coverage at the end is unknown" in note for note in run.summary["notes"])


def test_signal_to_the_whole_group_ends_it_in_order(netbpf: Netbpf, directory: Path) -> None:
    run = harness.start(directory, "gethostlatency", start_new_session=True)
    try:
        run.wait_ready()
        os.killpg(run.process.pid, signal.SIGINT)
        assert run.wait_end() == 0
        assert not any("coverage at the end is unknown" in note for note in run.summary["notes"])
        assert run.summary["coverage"]["processes"] > 0
    finally:
        harness.kill(run.process)


# --- many processes -----------------------------------------------------------------------------


def test_many_processes_with_a_libc_of_their_own_do_not_hold_up_the_start(
    netbpf: Netbpf, directory: Path
) -> None:
    """Each takes its time of reading; those of root are covered meanwhile."""
    with contextlib.ExitStack() as processes:
        for number in range(12):
            own = directory / str(number)
            own.mkdir()
            path = hostile.repeated_symbols(own / "libc.so.6", number=400_000)
            processes.enter_context(mapping(path))
        with netbpf("gethostlatency") as run:
            subprocess.run([sys.executable, "-c", ASK], check=True, timeout=30 * SLOW)
            run.wait_for(lambda events: any(e["host"] == "strangers.invalid" for e in events))
    assert run.returncode == 0
