"""Times are the host's: in time namespaces, and after the wall clock was set.

The truth is the test's own clock, read before and after what it does. This machine's clock is never
set: a wall clock of the tool's own is.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
import pytest
import resolver
from harness import wait_until
from topology import Host

SHIFT = 500_000  # seconds
APART = ("unshare", "--time", "--monotonic", str(SHIFT), "--boottime", str(SHIFT))
CONNECT = (
    "import socket, sys\n"
    "with socket.create_server(('127.0.0.1', 0)) as server:\n"
    "    socket.create_connection(server.getsockname()).close()\n"
)
# Before 6.3 only the children of unshare(1) are in the new namespace: a program forks.
FORKED = ("sh", "-c", '"$@"; exit $?', "sh", sys.executable, "-c", CONNECT)


@pytest.fixture
def shifted(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Let tools run in a time namespace."""
    usual = harness.command

    def shift() -> None:
        monkeypatch.setattr(harness, "command", lambda *words: [*APART, *usual(*words)])

    return shift


@pytest.mark.parametrize("inside", ["tool", "program", "both"])
def test_times_in_time_namespaces_are_those_of_the_host(
    inside: str, netbpf: Any, one_host: Host, shifted: Callable[[], None]
) -> None:
    if inside != "program":
        shifted()
    program = (*APART, *FORKED) if inside != "tool" else FORKED
    begin = time.time()
    with netbpf("soconnect", "--netns", one_host.inode) as run:
        before = time.time()
        one_host.run(*program)
        after = time.time()
        (event,) = run.wait_for(1)
    assert before <= harness.seconds(event["time"]) <= after
    assert event["handshake_us"] < (after - before) * 1e6
    start, end = (harness.seconds(run.summary[name]) for name in ("start", "end"))
    assert begin <= start <= before and after <= end <= time.time()


def test_age_of_a_lookup_that_waits_is_right_in_a_time_namespace(
    netbpf: Any, shifted: Callable[[], None]
) -> None:
    shifted()
    with resolver.namespace() as names:
        with netbpf("gethostlatency", "--host", "*.test") as run:
            before = time.time()
            process = names.popen(["getent", "hosts", "never.test"])
            wait_until(lambda: names.server.lookups("never.test"), what="the lookup")
            names.run(["getent", "hosts", "one.test"])
            event = run.wait_for(1)[0]
        after = time.time()
        harness.kill(process)
    (row,) = run.rows
    assert 0 < row["latency_us"] < (after - before) * 1e6
    assert before <= harness.seconds(event["time"]) <= harness.seconds(row["time"]) <= after


def test_wall_clock_that_is_set_meanwhile_shifts_no_other_time(
    netbpf: Any, one_host: Host, tmp_path: Path
) -> None:
    # The tool's interpreter gets a wall clock that jumps once a file is there.
    jump = tmp_path / "jump"
    (tmp_path / "sitecustomize.py").write_text(
        "import os, time\n"
        "usual = time.time_ns\n"
        f"time.time_ns = lambda: usual() + 3600 * 10**9 * os.path.exists({str(jump)!r})\n"
    )
    tool_path = {"PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    env = {**harness.os.environ, **tool_path}
    with netbpf("soconnect", "--netns", one_host.inode, env=env) as run:
        moments = []
        for number in range(1, 4):
            before = time.time()
            one_host.run(sys.executable, "-c", CONNECT)
            moments.append((before, time.time()))
            run.wait_for(number)
            if number == 1:
                jump.touch()
        assert run.stop(signal.SIGINT) == 0
    # The second connection lets the tool look at its clock; whether it comes before or after the
    # step is not known to a tool that no alarm of the kernel woke up.
    for event, (before, after), step in zip(run.events, moments, (0, None, 3600)):
        if step is not None:
            assert before + step <= harness.seconds(event["time"]) <= after + step
    assert harness.seconds(run.summary["start"]) <= moments[0][0]
    assert harness.seconds(run.summary["end"]) >= moments[2][1] + 3600
    assert any("wall clock was set" in note for note in run.summary["notes"])
