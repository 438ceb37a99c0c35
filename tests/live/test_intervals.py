"""Intervals: as many as asked for, none between the last and the end, each at its time."""

from __future__ import annotations

import socket
import time
from typing import Any

import harness
import pytest
from topology import Host


def ends(run: Any, kind: str) -> list[float]:
    """Return the times of the intervals, each once, in seconds."""
    stamps = {line["time"] for line in run.lines if line["type"] == kind}
    return sorted(map(harness.seconds, stamps))


@pytest.mark.parametrize("tool", ["sockstat", "tcpsynbl"])
def test_count_is_the_number_of_intervals(tool: str, netbpf: Any, one_host: Host) -> None:
    with netbpf(tool, "--netns", one_host.inode, "0.3", "3") as run:
        assert run.wait_end() == 0
    times = ends(run, "counters")
    assert len(times) == 3
    begin = harness.seconds(run.summary["start"])
    for number, stamp in enumerate(times, 1):
        assert 0.3 * number <= stamp - begin < 0.3 * number + 2 * harness.SLOW
    assert run.summary["stopped_by"] == "count"


def test_count_of_open_sessions_is_the_number_of_lists(netbpf: Any, one_host: Host) -> None:
    with one_host.socket(socket.AF_INET, socket.SOCK_STREAM) as server:
        server.bind(("127.0.0.1", 0))
        server.listen(1)
        port = server.getsockname()[1]
        with one_host.socket(socket.AF_INET, socket.SOCK_STREAM) as client:
            client.connect(server.getsockname())
            with netbpf("tcplife", "--open", "-D", port, "0.3", "2") as run:
                assert run.wait_end() == 0
    assert len(ends(run, "interval")) == 2
    # Both ends have this port; the remote one is the client's.
    assert len(run.rows) == 2


def test_interval_that_is_due_at_the_stop_is_the_last_one(netbpf: Any, one_host: Host) -> None:
    with netbpf("sockstat", "--netns", one_host.inode, "-d", "0.9", "0.3") as run:
        assert run.wait_end() == 0
    assert len(ends(run, "counters")) == 3
    assert run.summary["stopped_by"] == "duration"


def test_intervals_do_not_drift(netbpf: Any, one_host: Host) -> None:
    with netbpf("sockstat", "--netns", one_host.inode, "0.1", "20") as run:
        assert run.wait_end() == 0
    times = ends(run, "counters")
    begin = harness.seconds(run.summary["start"])
    assert len(times) == 20
    # Each is late by what one reading takes, not by the sum of all before it.
    late = [stamp - begin - 0.1 * number for number, stamp in enumerate(times, 1)]
    assert min(late) >= 0
    assert late[-1] - min(late) < 0.1 * harness.SLOW


def test_ready_is_not_before_the_probes_see(netbpf: Any, one_host: Host) -> None:
    # What happens at once after the sign is seen, and nothing after the stop.
    with netbpf("sockstat", "--netns", one_host.inode) as run:
        sockets = [one_host.socket(socket.AF_INET, socket.SOCK_STREAM) for _ in range(7)]
        assert run.stop() == 0
        sockets += [one_host.socket(socket.AF_INET, socket.SOCK_STREAM) for _ in range(7)]
    for sock in sockets:
        sock.close()
    assert [row["calls"] for row in run.rows if row["op"] == "socket"] == [7]
    assert harness.seconds(run.summary["end"]) <= time.time()
