"""The process that answers with rights that the tool has given up."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from netbpf.system.forks import cpu_seconds
from netbpf.system.helper import Helper


def wait_until(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_answers_come_from_another_process_each_time_anew():
    numbers = iter(range(9))
    helper = Helper(lambda _: [os.getpid(), next(numbers)], ())
    try:
        assert [helper.ask() for _ in range(2)] == [[helper.pid, 0], [helper.pid, 1]]
        assert helper.pid != os.getpid()
        assert next(numbers) == 0  # ours were not asked
    finally:
        helper.close()
    assert not Path(f"/proc/{helper.pid}").exists()


def test_long_answers_arrive_whole():
    helper = Helper(lambda _: "x" * (1 << 20), ())
    assert helper.ask() == "x" * (1 << 20)
    helper.close()


def test_it_holds_nothing_but_its_two_pipes():
    file = os.open("/dev/null", os.O_RDONLY)
    helper = Helper(lambda _: sorted(os.listdir("/proc/self/fd")), ())
    try:
        assert len(helper.ask()) == 3  # and the listing itself
        assert str(file) not in helper.ask()
    finally:
        helper.close()
        os.close(file)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_of_the_group_are_not_its_own(number):
    helper = Helper(lambda _: 5, ())
    assert helper.ask() == 5
    os.kill(helper.pid, number)
    assert helper.ask() == 5
    helper.close()


def test_one_that_is_gone_is_an_error_and_not_waited_for():
    helper = Helper(lambda _: 5, ())
    os.kill(helper.pid, signal.SIGKILL)
    wait_until(lambda: state(helper.pid) == "Z")
    with pytest.raises(OSError):
        helper.ask()
    helper.close()


def test_answer_that_comes_too_late_is_that_of_the_next_question():
    helper = Helper(lambda question: time.sleep(0.3) or question, ())
    for _ in range(2):
        with pytest.raises(TimeoutError):
            helper.ask("first", 0.1)
    assert helper.ask("second") == "first"
    assert helper.ask("third") == "third"
    helper.close()


def test_answer_that_comes_in_parts_is_put_together():
    helper = Helper(lambda _: "x" * (1 << 18), ())
    for patience in (0.0, 0.0, 0.0):  # what a pipe holds is 64 KiB
        with contextlib.suppress(TimeoutError):
            helper.ask(None, patience)
        time.sleep(0.02)
    assert helper.ask() == "x" * (1 << 18)
    helper.close()


def test_work_that_fails_is_an_error(capfd):
    helper = Helper(lambda _: 1 // 0, ())
    with pytest.raises(OSError):
        helper.ask()
    helper.close()


def test_its_cpu_time_is_told():
    helper = Helper(lambda _: sum(range(1 << 20)), ())
    before = cpu_seconds() - time.process_time()
    helper.ask()
    assert cpu_seconds() - time.process_time() > before
    assert helper.cpu > 0
    helper.close()


def test_it_keeps_what_it_is_given_and_no_more():
    status = Path("/proc/self/status")
    helper = Helper(lambda _: status.read_text(), ["CAP_SYS_PTRACE"])
    lines = dict(line.split(":\t") for line in helper.ask().splitlines() if ":\t" in line)
    helper.close()
    assert int(lines["CapEff"], 16) in (0, 1 << 19)  # root's or another user's
    assert lines["CapPrm"] == lines["CapEff"] and int(lines["CapInh"], 16) == 0
    assert lines["NoNewPrivs"] == "1"
