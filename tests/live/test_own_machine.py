"""What may only be done to a machine of our own: setting its clock, taking a CPU, sending it to
sleep.

The lab's machines are; `make vm` says so to these tests, which are skipped everywhere else.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import harness
import pytest
from crowd import Crowd
from harness import SLOW, wait_until
from traffic import Line, Session, clients

pytestmark = pytest.mark.skipif(
    os.environ.get("NETBPF_TEST_OWN_MACHINE") != "1",
    reason="changes the machine's clock and CPUs: run it in a VM with make vm",
)
HOUR = 3600
SECOND_CPU = Path("/sys/devices/system/cpu/cpu1/online")


@pytest.fixture(params=[HOUR, -HOUR], ids=["forward", "back"])
def step(request: pytest.FixtureRequest) -> Iterator[int]:
    """How far the wall clock is to be set; it is right again afterwards."""
    wall, steady = time.time(), time.monotonic()
    yield request.param
    time.clock_settime(time.CLOCK_REALTIME, wall + time.monotonic() - steady)


def test_wall_clock_that_is_set_disturbs_no_interval_and_no_latency(
    step: int, netbpf: Any, crowd: Crowd
) -> None:
    interval = 1.0 * SLOW
    with netbpf("tcplife", str(interval), "--open", "--netns", crowd.left.inode) as run:
        began = time.monotonic()
        sessions = crowd.play(7)
        run.wait_for(7)
        time.clock_settime(time.CLOCK_REALTIME, time.time() + step)
        before = time.time()
        sessions += crowd.play(7)
        events = run.wait_for(14)
        took = time.monotonic() - began
    assert Counter(map(Line.of, run.events)) == clients(sessions)
    for event in events[7:]:
        assert before <= harness.seconds(event["time"]) <= before + took
        assert (event["duration_us"] or 0) < took * 1e6
    assert any("wall clock was set" in note for note in run.summary["notes"])
    assert run.summary["complete"]


def test_wall_clock_that_is_set_does_not_change_how_long_a_run_takes(
    step: int, netbpf: Any
) -> None:
    with netbpf("tcplife", "-d", str(2 * SLOW)) as run:
        began = time.monotonic()
        time.clock_settime(time.CLOCK_REALTIME, time.time() + step)
        assert run.wait_end(10 * SLOW) == 0
        assert time.monotonic() - began < 4 * SLOW


def test_cpu_that_goes_and_comes_back_loses_nothing(netbpf: Any, crowd: Crowd) -> None:
    if not SECOND_CPU.exists():
        pytest.skip("this machine has one CPU: NETBPF_VM_CPUS=2 make vm")
    sessions: list[Session] = []
    with netbpf("tcplife", "--netns", crowd.left.inode) as run:
        with netbpf("sockstat", str(SLOW), "--netns", crowd.left.inode) as counting:
            try:
                for online in ("0", "1", "0", "1"):
                    SECOND_CPU.write_text(online)
                    sessions += crowd.play(11)
            finally:
                SECOND_CPU.write_text("1")
            run.wait_for(len(sessions))
    assert Counter(map(Line.of, run.events)) == clients(sessions)
    calls = [row["calls"] for row in counting.rows if row["op"] == "connect"]
    assert sum(calls) == len(sessions)
    assert run.summary["complete"] and counting.summary["complete"]


POWER = Path("/sys/power")


@pytest.fixture
def suspended() -> Iterator[Any]:
    """A call that suspends this machine and wakes it 5 s later.

    The kernel's own test of suspending (Documentation/power/basic-pm-debugging.rst) does all of it
    but turn off the power: tasks are frozen, devices and clocks suspended. It needs nothing that
    wakes the machine, which emulated ones may not have.
    """
    level, kind = POWER / "pm_test", POWER / "mem_sleep"
    if not level.exists() or "deep" not in (kind.read_text() if kind.exists() else ""):
        pytest.skip("needs CONFIG_PM_SLEEP_DEBUG and a machine with S3, as in `make vm`")
    before = kind.read_text().partition("[")[2].partition("]")[0]
    kind.write_text("deep")
    level.write_text("core")
    yield lambda: (POWER / "state").write_text("mem")
    level.write_text("none")
    kind.write_text(before)


def test_machine_that_sleeps_goes_on_where_it_was(
    netbpf: Any, crowd: Crowd, suspended: Any
) -> None:
    with netbpf("tcplife", "--netns", crowd.left.inode) as run:
        sessions = crowd.play(7)
        run.wait_for(7)
        wall, steady = time.time(), time.monotonic()
        suspended()
        slept = time.time() - wall - (time.monotonic() - steady)
        before = time.time()
        sessions += crowd.play(7)
        events = run.wait_for(14)
        after = time.time()
    assert Counter(map(Line.of, run.events)) == clients(sessions)
    assert slept > 1, "the test itself failed: the machine did not sleep"
    for event in events[7:]:
        assert before <= harness.seconds(event["time"]) <= after
    wait_until(lambda: run.summary["complete"], what="a complete summary")
