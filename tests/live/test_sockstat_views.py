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

NOBODY = 65534
SORTABLE = ("bytes", "calls", "errors", "would_block", "restarted")


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
@pytest.mark.parametrize("interval", [(), ("0.2",)], ids=["at-the-end", "intervals"])
def test_the_most_frequent_error_of_each_process(
    netbpf: Any, start: Any, interval: tuple[str, ...]
) -> None:
    """Two processes, each with its own rows, over two intervals or at the end."""
    workers = [start("nb-err-a"), start("nb-err-b")]
    done: dict[Any, Counter[str]] = {}
    waits: Counter[Any] = Counter()
    with netbpf("sockstat", "--comm", "nb-err-*", "--top", 2, *interval) as run:
        for times in (1, 2):
            before = len(by_process(run))
            told = workers[0].go("failures", times), workers[1].go("errors", times + 2)
            for worker, one in zip(workers, told):
                for (op, _), errors in one.errors.items():
                    done.setdefault((op, worker.pid), Counter()).update(errors)
                waits.update({(op, worker.pid): r.would_block for (op,), r in one.joined().items()})
            if interval:
                wait_until(lambda before=before: settled(run, before), what="rows of both")
    rows = by_process(run)
    for name, wanted in (("errors", Counter({k: sum(e.values()) for k, e in done.items()})),
                         ("would_block", waits)):  # fmt: skip
        found: Counter[Any] = Counter()
        for row in rows:
            found[row["op"], row["pid"]] += row[name]
        assert +found == +wanted, name
    for row in rows:
        errors = done.get((row["op"], row["pid"]), Counter())
        # An interval may end in the middle of a scene: which is the most frequent differs then.
        most = [error for error, n in errors.items() if interval or n == max(errors.values())]
        assert row["top_error"] in (most if row["errors"] else [None]), (row, errors)
    assert len({row["time"] for row in rows}) >= 1 + len(interval)


def settled(run: Run, before: int) -> bool:
    """Tell whether an interval with rows of processes has been written since, and a later one."""
    rows = by_process(run)[before:]
    counters = [line["time"] for line in run.lines if line["type"] == "counters"]
    return bool(rows) and max(counters, default="") > rows[-1]["time"]


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
