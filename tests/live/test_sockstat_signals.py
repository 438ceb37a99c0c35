"""sockstat counts calls that signals interrupt as the program saw them.

The truth is the program's own: it counts each return of a call and its errno, and sends itself the
signals, the next one only when it waits in the call again. What Linux does with an interrupted call
is in signal(7), "Interruption of system calls and library functions by signal handlers".
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import calls
import pytest
from bpf_maps import keys_of
from calls import by_process, difference, shown, totals
from compared import compares
from harness import Json, Run, accepting, wait_until

TIMES = 7


@pytest.fixture(scope="module")
def start() -> Iterator[Any]:
    with calls.callers() as start:
        yield start


def restarted(rows: list[Json]) -> dict[tuple[str, str], int]:
    """Return by operation and protocol how often calls were made again, where any was."""
    found: dict[tuple[str, str], int] = {}
    for row in rows:
        if row["restarted"]:
            key = (row["op"], row.get("proto", ""))
            found[key] = found.get(key, 0) + row["restarted"]
    return found


def row_of(run: Run, op: str, proto: str) -> Json:
    (row,) = [row for row in totals(run) if (row["op"], row["proto"]) == (op, proto)]
    return row


PROTO = {"recv": "unix", "accept": "tcp4", "connect": "unix"}


@compares("sockstat", "restarted", shape="--top")
@pytest.mark.parametrize("kind", ["rawtp", "tp"])
@pytest.mark.parametrize("how", ["restart", "fail", "both"])
@pytest.mark.parametrize("op", PROTO)
def test_interrupted_calls_count_as_the_program_saw_them(
    netbpf: Any, start: Any, op: str, how: str, kind: str
) -> None:
    caller = start("nb-signals")
    words = ("-p", caller.pid, "--top", 1, "--probe", f"signal={kind}")
    with netbpf("sockstat", *words) as run:
        told = caller.go("interrupted", 1, op, how, TIMES)
    assert not difference(shown(totals(run)), told.rows)
    assert not difference(shown(by_process(run), "op"), told.joined())
    again = {"restart": TIMES, "fail": 0, "both": (TIMES + 1) // 2}[how]
    assert restarted(totals(run)) == ({(op, PROTO[op]): again} if again else {})
    assert restarted(by_process(run)) == ({(op, ""): again} if again else {})
    row = row_of(run, op, PROTO[op])
    assert row["errors"] == TIMES - again
    assert row["top_error"] == ("EINTR" if TIMES > again else None)
    assert run.summary["complete"]


@compares("sockstat", "restarted", shape="rows")
def test_a_process_that_is_stopped_and_continued_sees_no_error(netbpf: Any, start: Any) -> None:
    caller = start("nb-stopped")
    with netbpf("sockstat", "-p", caller.pid) as run:
        caller.tell("blocked")
        ports = caller.answer()["ports"]
        for _ in range(3):
            os.kill(caller.pid, signal.SIGSTOP)
            wait_until(lambda: states(caller.pid) == {"T"}, what="a stopped process")
            os.kill(caller.pid, signal.SIGCONT)
            wait_until(lambda: waits(caller.pid) == 3, what="three threads in accept")
        for port in ports:
            socket.create_connection(("127.0.0.1", port)).close()
        caller.answer()
    row = row_of(run, "accept", "tcp4")
    assert (row["calls"], row["errors"], row["restarted"]) == (3, 0, 9)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGABRT])
@pytest.mark.parametrize("stopped", [False, True])
def test_a_call_in_which_the_process_dies_is_a_call_without_error(
    netbpf: Any, start: Any, number: signal.Signals, stopped: bool
) -> None:
    caller = start("nb-killed")
    with netbpf("sockstat", "-p", caller.pid) as run:
        caller.tell("blocked_recv")
        fd = caller.answer()["fd"]
        wait_until(lambda: in_call(caller.pid, fd), what="a process that waits in recv")
        if stopped:
            os.kill(caller.pid, signal.SIGSTOP)
            wait_until(lambda: states(caller.pid) == {"T"}, what="a stopped process")
        os.kill(caller.pid, number)
        if stopped:
            os.kill(caller.pid, signal.SIGCONT)
        wait_until(lambda: states(caller.pid) <= {"Z"}, what="the end of the process")
        assert keys_of(run, "interruptions") == [] == keys_of(run, "calls")
    row = row_of(run, "recv", "unix")
    assert (row["calls"], row["errors"], row["restarted"]) == (1, 0, 0), row


def test_a_restart_is_no_reason_to_take_a_later_signal_for_an_error(
    netbpf: Any, start: Any
) -> None:
    """A call that a stop interrupted ends well; what signals do after that is not its business."""
    caller = start("nb-later")
    with netbpf("sockstat", "-p", caller.pid) as run:
        caller.tell("blocked")
        ports = caller.answer()["ports"]
        os.kill(caller.pid, signal.SIGSTOP)
        wait_until(lambda: states(caller.pid) == {"T"}, what="a stopped process")
        os.kill(caller.pid, signal.SIGCONT)
        for port in ports:
            socket.create_connection(("127.0.0.1", port)).close()
        caller.answer()
        told = caller.go("interrupted", 1, "recv", "fail", 2)
    assert row_of(run, "accept", "tcp4")["errors"] == 0
    assert row_of(run, "accept", "tcp4")["restarted"] == 3
    assert shown(run.rows)["recv", "unix"] == told.rows["recv", "unix"]


def test_a_call_with_a_time_limit_is_not_made_again(netbpf: Any, start: Any) -> None:
    """SO_RCVTIMEO: the handler has SA_RESTART, and the call fails all the same (signal(7))."""
    caller = start("nb-timed")
    with netbpf("sockstat", "-p", caller.pid) as run:
        told = caller.go("interrupted", 1, "timed", "restart", TIMES)
    assert told.errors["recv", "unix"] == {"EINTR": TIMES}
    assert not difference(shown(run.rows), told.rows)
    assert restarted(run.rows) == {} and row_of(run, "recv", "unix")["top_error"] == "EINTR"


def test_no_interval_takes_back_what_an_earlier_one_counted(netbpf: Any, start: Any) -> None:
    """A stop interrupts a call; whether it is made again is decided some intervals later.

    The truth is the program's: its one call of recv fails with EINTR, and none is made again.
    """
    caller = start("nb-decides")
    with netbpf("sockstat", "-p", caller.pid, "0.1") as run:
        caller.tell("fails_at_the_end")
        fd = caller.answer()["fd"]
        wait_until(lambda: in_call(caller.pid, fd), what="a process that waits in recv")
        os.kill(caller.pid, signal.SIGSTOP)
        wait_until(lambda: states(caller.pid) == {"T"}, what="a stopped process")
        seen = intervals(run)
        wait_until(lambda: intervals(run) >= seen + 2, what="two more intervals")
        os.kill(caller.pid, signal.SIGUSR2)
        os.kill(caller.pid, signal.SIGCONT)
        caller.answer()
    assert restarted(run.rows) == {}
    (row,) = [row for row in run.rows if row["op"] == "recv"]
    assert (row["calls"], row["errors"], row["top_error"]) == (1, 1, "EINTR")


def test_interrupted_calls_without_room_are_counted(netbpf: Any, start: Any) -> None:
    """Three threads are stopped in recv, one has room: the map is that of interrupted calls."""
    caller = start("nb-crowd")
    words = ("-p", caller.pid, "--map-entries", 1, "--fail-on-loss")
    with netbpf("sockstat", *words, returncode=3) as run:
        caller.tell("blocked_recvs")
        assert caller.answer()["threads"] == 3
        os.kill(caller.pid, signal.SIGSTOP)
        wait_until(lambda: states(caller.pid) == {"T"}, what="a stopped process")
        assert len(keys_of(run, "interruptions")) == 1
        os.kill(caller.pid, signal.SIGKILL)
        wait_until(lambda: states(caller.pid) <= {"Z"}, what="the end of the process")
        assert keys_of(run, "interruptions") == [], "what is kept of threads that are gone"
    assert run.summary["lost"]["map_full"] == 2


def intervals(run: Run) -> int:
    return len([line for line in run.lines if line["type"] == "counters"])


def states(pid: int) -> set[str]:
    """Return the states of a process's threads, by their letters."""
    found = set()
    for task in Path(f"/proc/{pid}/task").glob("*/stat"):
        with contextlib.suppress(OSError):  # a thread that has just ended
            found.add(task.read_text().rpartition(")")[2].split()[0])
    return found


def waits(pid: int) -> int:
    """Return how many threads of a process are back in accept."""
    return accepting(pid) if states(pid) == {"S"} else 0


def in_call(pid: int, fd: int) -> bool:
    """Tell whether the process waits in a call whose first argument is `fd`."""
    return Path(f"/proc/{pid}/syscall").read_text().split()[1:2] == [hex(fd)]
