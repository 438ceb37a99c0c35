"""Lookups of names, as netbpf's gethostlatency and its peers tell them."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import pytest
import resolver
from harness import Json
from peer_tools import Record, Tool, at_fault, bcc, book, bpftrace, libbpf, near, tools, watched
from test_gethostlatency import LATE, Lab, expected

QUESTIONS = [
    ("gethostbyname_r", LATE),
    ("gethostbyname", LATE),
    ("gethostbyname2", "none.test"),
    ("getaddrinfo", "fail.test"),
    ("getaddrinfo", "one.test"),
    ("getaddrinfo", LATE),
]


class Lookups(NamedTuple):
    """What programs asked and were told, and by pid what netbpf and a peer said of it."""

    tool: Tool
    answers: list[Json]
    events: dict[int, Json]
    rows: dict[str, list[list[str]]]


@pytest.fixture(
    **tools(libbpf("gethostlatency"), bpftrace("gethostlatency"), book("gethostlatency"))
)
def lookups(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Lookups:
    with resolver.namespace() as namespace:
        lab = Lab(namespace, tmp_path_factory.mktemp("lab"))
        askers = [lab.waiting(lab.build("glibc"), *question) for question in QUESTIONS]
        with watched(request.param, tmp_path_factory, "gethostlatency") as (peer, run):
            answers = [asker.answer() for asker in askers]
            pids = {asker.pid for asker in askers}
            last = str(askers[-1].pid)
            peer.wait_for(lambda: last in {row[1] for row in peer.rows(5)})
            run.wait_for(lambda events: pids <= {event["pid"] for event in events})
    rows: dict[str, list[list[str]]] = {}
    for row in peer.rows(5):
        rows.setdefault(row[1], []).append(row)
    events = {event["pid"]: event for event in run.events}
    return Lookups(request.param, answers, events, rows)


def test_gethostlatency_sees_the_lookups_and_times_that_its_peers_see(lookups: Lookups) -> None:
    for (function, host), said in zip(QUESTIONS, lookups.answers):
        event = lookups.events[said["pid"]]
        assert (event["func"], event["host"], event["result"]) == (function, host, expected(said))
        if not function.endswith("_r"):
            (row,) = lookups.rows[str(said["pid"])]
            assert row[2:3] + row[4:] == [event["comm"], host]
            rounded = 1000 if lookups.tool.script else 10
            assert near(float(row[3]) * 1000, event["latency_us"], rounded), (row, event)


def test_gethostlatency_sees_the_reentrant_functions(lookups: Lookups, record: Record) -> None:
    said = lookups.answers[0]
    assert lookups.events[said["pid"]]["func"] == "gethostbyname_r"
    rows = lookups.rows.get(str(said["pid"]), [])
    at_fault(lookups.tool, not rows, rows, record)


def test_gethostlatency_says_which_functions_another_tool_keeps_from_it(
    tmp_path_factory: pytest.TempPathFactory, record: Record
) -> None:
    """The kernel refuses a second probe if the first names a semaphore: bcc does so by mistake."""
    tool = bcc("gethostlatency")
    with watched(tool, tmp_path_factory, "gethostlatency") as (_, run):
        pass
    notes = [note for note in run.summary["notes"] if "cannot be probed at" in note]
    at_fault(tool, bool(notes), notes, record)
    for function in ("getaddrinfo", "gethostbyname", "gethostbyname2"):
        assert f"{function}, {function}()" in notes[0]
    assert "gethostbyname_r" not in notes[0] and "Invalid argument" in notes[0]
    gaps = {gap["pid"]: gap["reason"] for gap in run.summary["coverage"]["uncovered"]}
    assert "libc.so.6 cannot be probed" in gaps[os.getpid()]
