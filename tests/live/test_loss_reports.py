"""A loss is reported when it happens: while the tool runs, and in the rows of that interval.

The truth: the reader is stopped while its ring buffer of a page, which holds a few dozen events,
gets hundreds.
"""

from __future__ import annotations

import csv
import io
import re
import subprocess
import sys
from typing import Any

import pytest
from crowd import Crowd
from harness import SLOW, Json, Run, stopped, wait_until
from topology import Host

pytestmark = pytest.mark.alone

DROPS = """
import socket, sys
one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for _ in range(int(sys.argv[1])):
    one.sendto(b"x", ("127.0.0.1", 9))
"""


def overwhelm(run: Run, crowd: Crowd, sessions: int = 101) -> None:
    """Stop the reader while more happens than the ring holds."""
    with stopped(run):
        crowd.play(sessions)


def progress(run: Run) -> list[Json]:
    return [line for line in run.lines if line["type"] == "progress"]


def test_loss_is_a_progress_line_while_the_tool_runs(netbpf: Any, crowd: Crowd) -> None:
    with netbpf("tcplife", "--netns", crowd.left.inode, "--buffer", "4k") as run:
        crowd.play(3)
        overwhelm(run, crowd)
        wait_until(lambda: progress(run), what="a progress line")
        assert run.returncode is None
    (line,) = progress(run)
    assert line["lost"]["ring_full"] == run.summary["lost"]["ring_full"] > 0
    assert line["complete"] is False
    assert 0 < line["events"] <= run.summary["events"]
    assert 0 < line["overhead"]["runs"] <= run.summary["overhead"]["runs"]


def test_progress_comes_every_ten_seconds_without_a_loss(netbpf: Any, crowd: Crowd) -> None:
    with netbpf("tcplife", "--netns", crowd.left.inode) as run:
        crowd.play(3)
        wait_until(lambda: progress(run), 15 * SLOW, "a progress line")
    (line,) = progress(run)
    assert line["complete"] is True and not any(line["lost"].values())
    assert line["events"] == 3
    assert 10 <= line["seconds"] < 10 + 4 * SLOW


@pytest.mark.parametrize("output", ["text", "csv"])
def test_loss_is_a_line_on_stderr_while_the_tool_runs(
    output: str, netbpf: Any, crowd: Crowd
) -> None:
    words = ("-o", output, "--netns", crowd.left.inode, "--buffer", "4k")
    with netbpf("tcplife", *words, json_lines=False) as run:
        overwhelm(run, crowd)
        wait_until(lambda: "LOST DATA" in run.stderr, what="the message")
        said = run.stderr
        # More losses are for the next report, ten seconds later.
        overwhelm(run, crowd)
        wait_until(lambda: len(run.stdout.splitlines()) > 30, what="events")
    found = re.findall(r"^tcplife: LOST DATA: (\d+) \(ring_full (\d+)\)$", said, re.MULTILINE)
    assert len(found) == 1 and found[0][0] == found[0][1]
    (total,) = re.findall(r"; LOST DATA \(ring_full (\d+)", run.stderr)
    assert int(total) >= int(found[0][0]) > 0


def drop(host: Host, number: int) -> None:
    """Send datagrams to a port where nobody listens."""
    subprocess.run(host.inside(sys.executable, "-c", DROPS, str(number)), check=True)


DROPPING = ("--events", "--buffer", "4k", str(2 * SLOW))  # an event and a count in a table


def test_rows_of_an_interval_with_losses_are_marked_in_json(netbpf: Any, one_host: Host) -> None:
    with netbpf("skbdrop", *DROPPING, "--netns", one_host.inode) as run:
        drop(one_host, 30_000)
        wait_until(lambda: any("lost" in row for row in run.rows), 20 * SLOW, "a marked row")
        before = len(run.rows)
        drop(one_host, 5)
        wait_until(lambda: len(run.rows) > before, 20 * SLOW, "a clean row")
    rows = [row for row in run.rows if row["reason"] == "NO_SOCKET"]
    assert sum(row["count"] for row in rows) == 30_005
    lost = [row.get("lost", 0) for row in rows]
    assert sum(lost) == run.summary["lost"]["ring_full"] > 0
    assert len(run.events) + sum(lost) == 30_005
    assert not lost[-1]


def test_interval_with_losses_is_marked_in_text(netbpf: Any, one_host: Host) -> None:
    words = (*DROPPING, "--netns", one_host.inode)
    with netbpf("skbdrop", *words, json_lines=False) as run:
        drop(one_host, 30_000)
        wait_until(lambda: "in this interval" in run.stdout, 20 * SLOW, "the marked interval")
    mark = r"^LOST DATA: (\d+) \(ring_full \d+\) in this interval$"
    marks = re.findall(mark, run.stdout, re.MULTILINE)
    (total,) = re.findall(r"; LOST DATA \(ring_full (\d+)", run.stderr)
    assert sum(map(int, marks)) == int(total) > 0


def test_rows_of_an_interval_with_losses_are_marked_in_csv(netbpf: Any, crowd: Crowd) -> None:
    words = ("--summary", "--buffer", "4k", "--netns", crowd.left.inode, "-o", "csv", "0.5")
    with netbpf("soconnect", *words, json_lines=False) as run:
        overwhelm(run, crowd)
        wait_until(lambda: ",interval," in run.stdout, what="the marked interval")
        run.stop()
    # All rows of an interval have its mark.
    rows = csv.DictReader(io.StringIO(run.stdout))
    marks = {row["time"]: int(row["lost"]) for row in rows}
    (total,) = re.findall(r"; LOST DATA \(ring_full (\d+)", run.stderr)
    assert sum(marks.values()) == int(total) > 0


def test_run_without_intervals_has_no_column_for_their_losses(netbpf: Any) -> None:
    with netbpf("sockstat", "-d", 0.3, "-o", "csv", json_lines=False) as run:
        run.wait_end()
    assert "lost" not in run.stdout.splitlines()[0].split(",")
