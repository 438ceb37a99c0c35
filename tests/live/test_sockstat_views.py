"""sockstat's errors one by one, its two tables over intervals, in any order, and what has no room.

The truth is what the program that made the calls wrote down: programs/socket_calls.py.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
from collections import Counter
from collections.abc import Iterator
from typing import Any

import calls
import pytest
import topology
from bpf_maps import keys_of
from calls import Told, by_process, difference, shown, totals
from compared import compares
from harness import Run, wait_until

from netbpf.declare.calls import OPS, PROTOS
from netbpf.tools.sockstat import SORTABLE

NOBODY = 65534


@pytest.fixture(scope="module")
def start() -> Iterator[Any]:
    with calls.callers() as start:
        yield start


def counted(run: Run) -> set[tuple[str, str, str]]:
    """Return (operation, protocol, error) of all that the kernel counts apart."""
    keys = [struct.unpack("=iBB2x", key) for key in keys_of(run, "calls_by_protocol")]
    return {(OPS[op], PROTOS[proto], errno.errorcode.get(e, "")) for e, op, proto in keys}


@compares("sockstat", "would_block", "errors", "calls", "bytes", shape="rows")
def test_each_error_of_each_protocol_is_counted_as_itself(netbpf: Any, start: Any) -> None:
    caller = start("nb-failures")
    with netbpf("sockstat", "-p", caller.pid) as run:
        caller.tell("failures", 3)
        lines = caller.answer()["rows"]
        assert counted(run) == {(op, proto, error) for op, proto, error, _, _ in lines}
    assert not difference(shown(run.rows), Told.of(lines).rows)
    for row in run.rows:
        mine = [line for line in lines if line[:2] == [row["op"], row["proto"]]]
        waits = [line[3] for line in mine if line[2] in calls.WAITS]
        assert row["would_block"] == sum(waits), row
    failed = {error for _, _, error, _, _ in lines}
    assert failed >= {
        "EPIPE", "ECONNRESET", "ECONNREFUSED", "EAGAIN", "EISCONN", "EINVAL", "EADDRINUSE",
        "EADDRNOTAVAIL",
    }  # fmt: skip


@compares("sockstat", "top_error", "errors", "would_block", shape="--top")
def test_the_most_frequent_error_of_each_process(netbpf: Any, start: Any) -> None:
    """Two processes, two intervals: each has rows of its own, each row its own errors."""
    workers = [start("nb-err-a"), start("nb-err-b")]
    done: list[dict[Any, Counter[str]]] = []
    with netbpf("sockstat", "--comm", "nb-err-*", "--top", 2, "0.2") as run:
        for times in (1, 2):
            before = len(by_process(run))
            told = workers[0].go("failures", times), workers[1].go("errors", times + 2)
            done.append(together(dict(zip(workers, told))))
            wait_until(lambda before=before: settled(run, before), what="rows of both")
    stamps = sorted({row["time"] for row in by_process(run)})
    found: Counter[Any] = Counter()
    for row in by_process(run):
        found[row["op"], row["pid"]] += row["errors"]
        one = done[0].get((row["op"], row["pid"]), Counter())
        assert (row["top_error"] is None) == (not row["errors"]), row
        # Scenes are the same in both intervals, so an error's share is as well.
        assert row["top_error"] in (None, *top(one)), (row, one)
    wanted: Counter[Any] = Counter()
    for errors in done:
        wanted.update({key: sum(each.values()) for key, each in errors.items()})
    assert {key: n for key, n in found.items() if n} == wanted
    assert len(stamps) >= 2


def together(told: dict[Any, Told]) -> dict[Any, Counter[str]]:
    """Return the errors by operation and process."""
    found: dict[Any, Counter[str]] = {}
    for worker, one in told.items():
        for (op, _), errors in one.errors.items():
            found.setdefault((op, worker.pid), Counter()).update(errors)
    return found


def top(errors: Counter[str]) -> list[str]:
    return [error for error, n in errors.items() if n == max(errors.values())]


def settled(run: Run, before: int) -> bool:
    """Tell whether an interval with rows of processes has been written since, and a later one."""
    rows = by_process(run)[before:]
    counters = [line["time"] for line in run.lines if line["type"] == "counters"]
    return bool(rows) and counters[-1] > rows[-1]["time"]


@pytest.mark.parametrize("column", SORTABLE)
def test_rows_are_sorted_by_the_column_that_is_named(netbpf: Any, start: Any, column: str) -> None:
    workers = [start(f"nb-sort-{name}") for name in "ab"]
    words = ("--comm", "nb-sort-*", "--top", 1, "--sort", column)
    with netbpf("sockstat", *words) as run:
        told = [workers[0].go("unix", 2), workers[1].go("failures", 1)]
        restarts = workers[0].go("interrupted", 1, "recv", "restart", 3)
    values = [row[column] for row in totals(run)]
    assert values == sorted(values, reverse=True) and values[0] > 0
    for row in by_process(run):
        own = []
        for number, one in enumerate(told):
            rows = one.joined().get((row["op"],), calls.Row())
            if not number:
                rows = rows + restarts.joined().get((row["op"],), calls.Row())
            again = 3 if not number and row["op"] == "recv" else 0
            own.append(again if column == "restarted" else getattr(rows, column))
        assert row[column] == max(own), (row, own)


def test_a_process_without_room_counts_in_the_first_table_and_as_lost(
    netbpf: Any, start: Any
) -> None:
    """100 processes send once each: 4 rows fit for each entry that was asked for."""
    caller = start("nb-many")
    words = ("--comm", "nb-many", "--top", 200, "--map-entries", 16, "--fail-on-loss")
    with netbpf("sockstat", *words, returncode=3) as run:
        told = caller.go("children_send", 1, 100)
    assert not difference(shown(totals(run)), told.rows)
    # Of the caller itself, four operations: its recv and socketpair come before the second child
    # and have a row; close comes when there is none left.
    senders = [row for row in by_process(run) if row["op"] == "send"]
    rows = len(by_process(run))
    assert rows == 64 and run.summary["lost"]["map_full"] == (100 - len(senders)) + 2


FILTERS: dict[str, Any] = {
    "pid": lambda mine, path: ("-p", mine.pid),
    "pids": lambda mine, path: ("-p", f"1,{mine.pid}"),
    "comm": lambda mine, path: ("--comm", mine.comm),
    "uid": lambda mine, path: ("-u", NOBODY),
    "cgroup": lambda mine, path: ("--cgroup", path),
}


@pytest.mark.parametrize("name", FILTERS)
def test_what_a_filter_excludes_takes_no_room(netbpf: Any, start: Any, name: str) -> None:
    """Foreign threads that wait in accept and are stopped, and maps with one entry."""
    other = start("nb-foreign")
    with topology.cgroup("kept") as path, contextlib.ExitStack() as stack:
        mine = start("nb-kept", cgroup=path, uid=NOBODY)
        stack.callback(mine.stop)  # before its cgroup can go
        words = (*FILTERS[name](mine, path), "--map-entries", 1)
        with netbpf("sockstat", *words) as run:
            other.tell("blocked")
            ports = other.answer()["ports"]
            waiting = len(keys_of(run, "calls"))
            told = mine.go("unix", 3)
            for port in ports:
                socket.create_connection(("127.0.0.1", port)).close()
            other.answer()
    assert waiting == 0
    assert not difference(shown(run.rows), told.rows)
    assert run.summary["lost"]["map_full"] == 0 and run.summary["complete"]
