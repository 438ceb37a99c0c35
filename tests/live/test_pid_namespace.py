"""A tool in a PID namespace: -p means the process that /proc has there, columns show the host's id.

The truth is the program's own: it prints its id as it sees it, the kernel has both in NSpid of the
host's /proc, and what it does is known.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import harness
import pytest
import resolver
from harness import wait_until

HERE = harness.SOURCE_TREE
SOCKETS = 7
PROGRAM = (
    "import os, socket, sys\n"
    "print(os.getpid(), flush=True); sys.stdin.readline()\n"
    f"for _ in range({SOCKETS}): socket.socket()\n"
    "print('made', flush=True); sys.stdin.readline()\n"
)


class Inside:
    """A PID namespace with a /proc of its own; `command` runs something in it."""

    def __init__(self, holder: int) -> None:
        self._holder = holder

    def command(self, *words: object) -> list[str]:
        where = ("nsenter", "--target", str(self._holder), "--pid", "--mount", f"--wd={HERE}")
        return [*where, *map(str, words)]

    def popen(self, *words: object, **options: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(self.command(*words), text=True, **options)


@contextlib.contextmanager
def namespace() -> Iterator[Inside]:
    holder = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "sleep", "300"]
    with subprocess.Popen(holder) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        first = wait_until(lambda: children.read_text().split(), what="the namespace's first")
        wait_until(lambda: Path(f"/proc/{first[0]}/comm").read_text() == "sleep\n")
        yield Inside(int(first[0]))
        process.kill()


@pytest.fixture
def inside() -> Iterator[Inside]:
    with namespace() as found:
        yield found


@contextlib.contextmanager
def program(inside: Inside) -> Iterator[tuple[subprocess.Popen[str], int, int]]:
    """Start the program; yield it with its id in the namespace and with that of the host."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with inside.popen(sys.executable, "-c", PROGRAM, **pipes) as process:
        local = int(process.stdout.readline())
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
        host = int(children.split()[0])
        status = Path(f"/proc/{host}/status").read_text()
        assert f"NSpid:\t{host}\t{local}\n" in status
        yield process, local, host
        process.stdin.close()


def go(process: subprocess.Popen[str]) -> None:
    process.stdin.write("\n")
    process.stdin.flush()
    assert process.stdout.readline() == "made\n"


def test_pid_is_that_of_the_namespace_and_columns_show_the_hosts(
    inside: Inside, netbpf: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = harness.command
    with program(inside) as (process, local, host), program(inside) as (other, _, _):
        monkeypatch.setattr(harness, "command", lambda *words: inside.command(*usual(*words)))
        with netbpf("sockstat", "-p", local, "--top", "3", "-d", 2 * harness.SLOW) as run:
            go(process)
            go(other)
            assert run.wait_end() == 0
    rows = [row for row in run.rows if row["op"] == "socket"]
    assert [row["calls"] for row in rows if "proto" in row] == [SOCKETS]
    assert [(row["pid"], row["calls"]) for row in rows if "pid" in row] == [(host, SOCKETS)]
    assert any("ids are those of the host" in note for note in run.summary["notes"])


def test_process_of_the_host_is_not_one_of_the_namespace(inside: Inside) -> None:
    missing = Path("/proc/sys/kernel/pid_max").read_text().strip()
    line = inside.command(*harness.command("sockstat", "-p", missing, "-d", "0.2"))
    done = subprocess.run(
        line, capture_output=True, text=True, check=False, cwd=harness.SOURCE_TREE
    )
    assert done.returncode == 2
    assert f"there is no process {missing}" in done.stderr and "hint:" in done.stderr


def test_lookup_that_waits_is_pending_in_a_pid_namespace(
    netbpf: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = harness.command
    # Mounts that are made later are not seen inside: the network namespace's comes first.
    with resolver.namespace() as names, namespace() as inside:
        monkeypatch.setattr(harness, "command", lambda *words: inside.command(*usual(*words)))
        with netbpf("gethostlatency", "--host", "*.test", "-d", 2 * harness.SLOW) as run:
            process = inside.popen(*names.command(["getent", "hosts", "never.test"]))
            assert run.wait_end() == 0
        harness.kill(process)
    assert [row["host"] for row in run.rows] == ["never.test"]
    assert run.summary["pending"] == 1
