"""A run ends when it is told to, whatever comes in and whoever does not read what it writes.

The truth is what the traffic made: each session is two events, and each of them is in the output,
or in a number of the summary.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import harness
import pytest
from crowd import Crowd
from harness import SLOW, Json, wait_until
from topology import Host
from traffic import Line, clients

pytestmark = pytest.mark.alone

WAYS = {
    "SIGINT": signal.SIGINT, "SIGTERM": signal.SIGTERM, "SIGHUP": signal.SIGHUP,
    "duration": ("-d", str(4 * SLOW)), "count": (str(1 * SLOW), "4"), "max-events": ("-n", "250"),
}  # fmt: skip
SESSIONS = 300  # two lines of 450 bytes each: several times what a pipe of 64 KiB holds


class Reader:
    """The other end of an output, which reads when it is told to."""

    def __init__(self, kind: str, directory: Path) -> None:
        if kind == "pipe":
            self.read, self.write = os.pipe()
        elif kind == "fifo":
            path = directory / "fifo"
            os.mkfifo(path)
            self.read = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
            self.write = os.open(path, os.O_WRONLY)
        elif kind == "socket":
            one, two = socket.socketpair()
            two.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 14)
            self.read, self.write = one.detach(), two.detach()
        else:
            self.read, self.write = pty.openpty()
        flags = fcntl.fcntl(self.read, fcntl.F_GETFL)
        fcntl.fcntl(self.read, fcntl.F_SETFL, flags | os.O_NONBLOCK)

    def lines(self) -> list[str]:
        """Return the whole lines that can be read now."""
        found = b""
        with contextlib.suppress(BlockingIOError):
            while chunk := os.read(self.read, 1 << 16):
                found += chunk
        return found.decode()[: found.rfind(b"\n") + 1].splitlines()

    def close(self) -> None:
        for fd in (self.read, self.write):
            os.close(fd)


@pytest.fixture(params=["pipe", "fifo", "socket", "terminal"])
def reader(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Reader]:
    found = Reader(request.param, tmp_path)
    yield found
    found.close()


def numbers(stderr: str) -> dict[str, int]:
    """Return {cause: number} of the summary in words, which names no zeros."""
    (first,) = re.findall(r"^\w+: \d+ events? in .*$", stderr, re.MULTILINE)
    return {cause: int(number) for cause, number in re.findall(r"(\w+) (\d+)[,)]", first)}


def delivered_and_lost(lines: list[str], stderr: str) -> tuple[list[Json], int]:
    """Return the events that were read, and how many are named as lost.

    The summary is in the output if there was room for it, else it is on stderr in words.
    """
    found = [json.loads(line) for line in lines]
    events = [line for line in found if line["type"] == "event"]
    summaries = [line for line in found if line["type"] == "summary"]
    lost = summaries[0]["lost"] if summaries else numbers(stderr)
    assert lost["unwritten"] > 0
    return events, sum(lost.values())


@pytest.mark.parametrize("way", WAYS)
def test_reader_that_does_not_read_keeps_no_run_from_ending(
    way: str, tmp_path: Path, crowd: Crowd
) -> None:
    pipe = Reader("pipe", tmp_path)
    how = WAYS[way]
    words = how if isinstance(how, tuple) else ()
    netns = ("--netns", crowd.left.inode)
    run = harness.start(tmp_path, "tcplife", *netns, *words, stdout=pipe.write)
    try:
        run.wait_ready()
        programs = harness.programs_of(run.process.pid)
        crowd.play(SESSIONS)
        if isinstance(how, signal.Signals):
            run.process.send_signal(how)
        assert run.wait_end() == 0
        wait_until(lambda: not programs & harness.bpf_programs(), what="the programs' removal")
        assert "Traceback" not in run.stderr
        # With -n, what comes after that many is not asked for.
        events, lost = delivered_and_lost(pipe.lines(), run.stderr)
        assert len(events) + lost == (250 if way == "max-events" else SESSIONS)
    finally:
        harness.kill(run.process)
        pipe.close()


def test_delivered_and_lost_are_all_whatever_the_output_is(
    reader: Reader, tmp_path: Path, crowd: Crowd
) -> None:
    run = harness.start(tmp_path, "tcplife", "--netns", crowd.left.inode, stdout=reader.write)
    try:
        run.wait_ready()
        wanted = clients(crowd.play(SESSIONS))
        assert run.stop() == 0
    finally:
        harness.kill(run.process)
    events, lost = delivered_and_lost(reader.lines(), run.stderr)
    assert len(events) + lost == SESSIONS
    assert not Counter(map(Line.of, events)) - wanted


@pytest.mark.parametrize("output", ["text", "csv"])
def test_messages_go_where_nobody_reads_and_stop_nothing(
    output: str, tmp_path: Path, crowd: Crowd
) -> None:
    pipe = Reader("pipe", tmp_path)
    words = ("-o", output, "-v", "--netns", crowd.left.inode)
    streams = {"stdout": pipe.write, "stderr": pipe.write}
    run = harness.start(tmp_path, "tcplife", *words, json_lines=False, **streams)
    try:
        run.wait_ready()
        crowd.play(3 * SESSIONS)
        assert run.stop() == 0
    finally:
        harness.kill(run.process)
        pipe.close()


def test_slow_reader_gets_everything(tmp_path: Path, crowd: Crowd) -> None:
    pipe = Reader("pipe", tmp_path)
    run = harness.start(tmp_path, "tcplife", "--netns", crowd.left.inode, stdout=pipe.write)
    found: list[str] = []
    try:
        run.wait_ready()
        crowd.play(SESSIONS)

        def all_there() -> bool:
            with contextlib.suppress(BlockingIOError):
                found.append(os.read(pipe.read, 5000).decode())
            return "".join(found).count('"type":"event"') == SESSIONS

        wait_until(all_there, what="all events, a few at a time")
        assert run.stop() == 0
        summary = json.loads(pipe.lines()[-1])
    finally:
        harness.kill(run.process)
        pipe.close()
    assert summary["events"] == SESSIONS and summary["complete"] is True


def test_second_signal_still_leaves_a_summary(tmp_path: Path, crowd: Crowd) -> None:
    pipe = Reader("pipe", tmp_path)
    run = harness.start(tmp_path, "tcplife", "--netns", crowd.left.inode, stdout=pipe.write)
    try:
        run.wait_ready()
        crowd.play(SESSIONS)
        for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM):
            run.process.send_signal(number)
            time.sleep(0.02)
        assert run.wait_end() == 0
        events, lost = delivered_and_lost(pipe.lines(), run.stderr)
        assert len(events) + lost == SESSIONS
    finally:
        harness.kill(run.process)
        pipe.close()


CALLER = """
import socket, sys, time
input()
for _ in range(int(sys.argv[1])):
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).close()
    time.sleep(0.001)
print("done", flush=True)
input()
"""


def test_intervals_that_nobody_reads_become_part_of_the_next(tmp_path: Path) -> None:
    # Nothing is lost by it: the calls of all rows are those that the program made.
    pipe, calls = Reader("pipe", tmp_path), 3000
    command = [sys.executable, "-c", CALLER, str(calls)]
    caller = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert caller.stdin and caller.stdout
    words = ("0.01", "-p", str(caller.pid))
    run = harness.start(tmp_path, "sockstat", *words, stdout=pipe.write)
    found: list[str] = []
    try:
        run.wait_ready()
        caller.stdin.write(b"\n")
        caller.stdin.flush()
        assert caller.stdout.readline() == b"done\n"
        found += pipe.lines()

        def calls_of() -> int:
            found.extend(pipe.lines())
            rows = [row for row in map(json.loads, found) if row.get("op") == "socket"]
            return sum(row["calls"] for row in rows)

        wait_until(lambda: calls_of() == calls, what="all calls")
        assert run.stop() == 0
        found += pipe.lines()
    finally:
        harness.kill(run.process)
        caller.communicate(b"\n")
        pipe.close()
    assert any("became part of the next one" in note for note in json.loads(found[-1])["notes"])


# --- more than can be read ----------------------------------------------------------------------

FLOOD = """
import socket, sys, time
one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
end = time.monotonic() + float(sys.argv[1])
while time.monotonic() < end:
    for _ in range(100):
        one.sendto(b"x", ("127.0.0.1", 9))
"""


@contextlib.contextmanager
def flood(host: Host, seconds: float) -> Iterator[subprocess.Popen[bytes]]:
    """Send datagrams to a port that nobody listens on, faster than they can be shown."""
    command = host.inside(sys.executable, "-c", FLOOD, str(seconds))
    process = subprocess.Popen(command)
    try:
        yield process
    finally:
        harness.kill(process)


@pytest.mark.parametrize("way", ["duration", "SIGTERM", "SIGINT"])
@pytest.mark.parametrize("shape", [("--events",), ("--events", "0.5")], ids=["lines", "intervals"])
def test_flood_keeps_no_run_from_ending(
    way: str, shape: tuple[str, ...], netbpf: Any, one_host: Host
) -> None:
    words = [*shape, "--netns", one_host.inode, "--buffer", "64k"]
    words += ["-d", SLOW] if way == "duration" else []
    with netbpf("skbdrop", *words) as run, flood(one_host, 30 * SLOW) as load:
        if way != "duration":
            run.wait_for(1000)
            run.process.send_signal(WAYS[way])
        assert run.wait_end() == 0
        assert load.poll() is None  # it went on all the time
    assert run.summary["stopped_by"] == way
    assert run.summary["events"] == len(run.events)
    assert run.summary["after_end"] > 0


# --- a full disk --------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", place]
    subprocess.run(mount, check=True)
    yield place
    subprocess.run(["umount", place], check=True)


@pytest.mark.parametrize("output", ["json", "text", "csv"])
def test_full_disk_is_one_line_and_a_summary_on_stderr(
    output: str, small_disk: Path, tmp_path: Path, crowd: Crowd
) -> None:
    words = ("-o", output, "-w", "--netns", crowd.left.inode)
    with (small_disk / "out").open("wb") as out:
        run = harness.start(tmp_path, "tcplife", *words, json_lines=False, stdout=out)
    try:
        run.wait_ready()
        for _ in range(9):
            if run.returncode is None:
                crowd.play(SESSIONS)
        assert run.wait_end() == 1
    finally:
        harness.kill(run.process)
    errors = [line for line in run.stderr.splitlines() if line.startswith("netbpf: error")]
    assert errors == ["netbpf: error: standard output: No space left on device"]
    assert numbers(run.stderr)["unwritten"] > 0
    assert "Traceback" not in run.stderr


def test_device_that_takes_nothing_is_a_full_disk(tmp_path: Path) -> None:
    with open("/dev/full", "wb") as full:
        run = harness.start(tmp_path, "tcplife", "-d", "0.3", stdout=full)
    assert run.wait_end(harness.START_TIMEOUT) == 1
    assert "No space left on device" in run.stderr
    assert re.search(r"^tcplife: \d+ events? in ", run.stderr, re.MULTILINE)


# --- the ready file -----------------------------------------------------------------------------


def test_ready_file_is_there_only_while_probes_are_attached(netbpf: Any) -> None:
    with netbpf("tcpnagle") as run:
        assert run.ready_file.read_text() == f"{run.process.pid}\n"
    assert not run.ready_file.exists()


def test_stale_ready_file_is_removed_even_if_the_start_fails(tmp_path: Path) -> None:
    sign = tmp_path / "ready"
    sign.write_text("4711\n")
    done = harness.netbpf_once("tcplife", "--ready-file", sign, "--no-such-option")
    assert done.returncode == 2
    assert not sign.exists()
