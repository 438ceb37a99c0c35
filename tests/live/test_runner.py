"""How a run ends, and what it says of what it lost; tried with tcplife, true of every tool."""

from __future__ import annotations

import os
import select
import signal
from pathlib import Path
from typing import Any

import harness
import pytest
import traffic
from crowd import Crowd
from harness import SLOW, wait_until

pytestmark = pytest.mark.alone

# --- losses --------------------------------------------------------------------------------------


def test_full_ring_is_counted_event_by_event_and_fails_the_run_if_asked(
    netbpf: Any, crowd: Crowd
) -> None:
    # Only what is ours: all that was lost must be known.
    words = ("--netns", crowd.left.inode, "--buffer", "4k", "--fail-on-loss")
    with netbpf("tcplife", *words, returncode=3) as run:
        with harness.stopped(run):
            sessions = crowd.play(101)
    wanted = traffic.clients(sessions)
    lost = run.summary["lost"]
    assert lost["ring_full"] > 0
    assert run.summary["events"] == len(run.events)
    assert len(run.events) + lost["ring_full"] == sum(wanted.values())
    assert run.summary["complete"] is False
    assert not crowd.lines(run) - wanted


def test_full_map_is_counted(netbpf: Any, crowd: Crowd) -> None:
    with netbpf("tcplife", "--netns", crowd.left.inode, "--map-entries", "7") as run:
        crowd.play(31, ("client-fin",), window=31)
    assert run.summary["lost"]["map_full"] > 0
    assert run.summary["complete"] is False


# --- the end -------------------------------------------------------------------------------------


def test_max_events_ends_the_run_after_exactly_that_many(netbpf: Any, crowd: Crowd) -> None:
    with netbpf("tcplife", "-n", "7", "--netns", crowd.left.inode) as run:
        crowd.play(23)
        assert run.wait_end() == 0
    assert len(run.events) == run.summary["events"] == 7


def test_probes_that_cost_more_than_allowed_end_the_run(netbpf: Any, crowd: Crowd) -> None:
    with netbpf("tcplife", "--max-overhead", "0.001", "--netns", crowd.left.inode) as run:

        def ended() -> bool:
            crowd.play(7)
            return run.process.poll() is not None

        wait_until(ended, what="the limit to be seen, which is looked at every second")
    assert run.summary["stopped_by"] == "max-overhead"
    assert any("--max-overhead" in note for note in run.summary["notes"])


def test_probes_that_cost_less_than_allowed_go_on(netbpf: Any, crowd: Crowd) -> None:
    words = ("--max-overhead", "100000", "-d", 1.5 * SLOW, "--netns", crowd.left.inode)
    with netbpf("tcplife", *words) as run:
        crowd.play(7)
        assert run.wait_end() == 0
    assert run.summary["stopped_by"] == "duration"


def test_duration_ends_the_run_in_time(netbpf: Any, crowd: Crowd) -> None:
    seconds = 0.7 * SLOW
    with netbpf("tcplife", "-d", seconds, "--netns", crowd.left.inode) as run:
        sessions = crowd.play(3)
        assert run.wait_end() == 0
    assert len(run.events) == len(sessions)
    begin, end = (harness.seconds(run.summary[name]) for name in ("start", "end"))
    assert seconds <= end - begin < seconds + 2 * SLOW


def test_sigterm_ends_the_run_in_order_with_all_that_came_before(netbpf: Any, crowd: Crowd) -> None:
    with netbpf("tcplife", "--netns", crowd.left.inode) as run:
        programs = harness.programs_of(run.process.pid)
        assert programs and programs <= harness.bpf_programs()
        sessions = crowd.play(23)
        # Not waiting for the events: what is in the buffer when the signal comes must be shown.
        assert run.stop(signal.SIGTERM) == 0
    assert run.summary["events"] == len(run.events) == len(sessions)
    wait_until(lambda: not programs & harness.bpf_programs(), what="the programs' removal")


def test_closed_pipe_ends_the_run_quickly(tmp_path: Path, crowd: Crowd) -> None:
    read, write = os.pipe()
    run = harness.start(tmp_path, "tcplife", stdout=write)
    os.close(write)
    try:
        run.wait_ready()
        crowd.play(1)
        assert select.select([read], [], [], harness.TIMEOUT)[0], "no line came"
        # As `head -1` does when it has seen enough; nothing more happens on the network.
        os.close(read)
        assert run.wait_end(3 * SLOW) == 0
        assert "Traceback" not in run.stderr
        assert "Broken" not in run.stderr
    finally:
        harness.kill(run.process)


def test_sigkill_leaves_neither_files_nor_programs(tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    run = harness.start(tmp_path, "tcplife", env={**os.environ, "TMPDIR": str(scratch)})
    try:
        run.wait_ready()
        programs = harness.programs_of(run.process.pid)
        assert programs and programs <= harness.bpf_programs()
    finally:
        harness.kill(run.process)
    assert list(scratch.iterdir()) == []
    wait_until(lambda: not programs & harness.bpf_programs(), what="the programs' removal")
