"""Tools that run at the same time see everything, each for itself, and start and end as alone."""

from __future__ import annotations

import contextlib
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import harness
import pytest
from crowd import Crowd
from harness import Run, wait_until
from traffic import Line, Session, clients

from netbpf.declare.options import by_name
from netbpf.declare.tool import all_tools

pytestmark = pytest.mark.alone

SESSIONS = 101


def shown(run: Run) -> Counter[Line]:
    return Counter(map(Line.of, run.events))


def test_all_tools_at_once(netbpf: Any, crowd: Crowd) -> None:
    netns = {  # some are of the whole machine
        tool.name: ("--netns", crowd.left.inode) if "netns" in by_name(tool.options) else ()
        for tool in all_tools()
    }
    with contextlib.ExitStack() as all_of_them:
        runs = {
            tool: all_of_them.enter_context(netbpf(tool, *words)) for tool, words in netns.items()
        }
        sessions = crowd.play(SESSIONS)
        runs["tcplife"].wait_for(SESSIONS)
        runs["soconnect"].wait_for(SESSIONS)
    assert shown(runs["tcplife"]) == clients(sessions)
    assert len(runs["soconnect"].events) == SESSIONS
    calls = [row for row in runs["sockstat"].rows if row["op"] == "connect"]
    assert sum(row["calls"] for row in calls) == SESSIONS
    for tool, run in runs.items():
        assert run.summary["complete"], (tool, run.summary["lost"])


def test_the_same_tool_five_times(netbpf: Any, crowd: Crowd) -> None:
    with contextlib.ExitStack() as five:
        runs = [
            five.enter_context(netbpf("tcplife", "--netns", crowd.left.inode)) for _ in range(5)
        ]
        sessions = crowd.play(SESSIONS)
        for run in runs:
            run.wait_for(SESSIONS)
    assert [shown(run) for run in runs] == [clients(sessions)] * 5
    assert all(run.summary["complete"] for run in runs)


def test_starts_beside_ends(netbpf: Any, crowd: Crowd, tmp_path: Path) -> None:
    # While one run counts, others of the same probes come and go, in order and not.
    sessions: list[Session] = []
    programs = harness.bpf_programs()
    with netbpf("tcplife", "--netns", crowd.left.inode) as run:
        for number in range(9):
            place = tmp_path / str(number)
            place.mkdir()
            other = harness.start(place, ("tcplife", "soaccept", "sockstat")[number % 3])
            try:
                sessions += crowd.play(11)
                other.wait_ready()
                sessions += crowd.play(11)
                if number % 2:
                    assert other.stop() == 0
                else:
                    other.process.send_signal(signal.SIGKILL)
            finally:
                harness.kill(other.process)
        run.wait_for(len(sessions))
    assert shown(run) == clients(sessions)
    assert run.summary["complete"]
    wait_until(lambda: not harness.bpf_programs() - programs, what="the programs' removal")
