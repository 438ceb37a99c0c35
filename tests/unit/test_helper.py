"""The helper process answers with capabilities that the tool has dropped."""

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

TASK = "task"


def doing(work: Callable[[Any], Any]) -> dict[str, Callable[[Any], Any]]:
    return {TASK: work}


def wait_until(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_each_answer_comes_from_a_new_call_in_another_process():
    numbers = iter(range(9))
    helper = Helper(doing(lambda _: [os.getpid(), next(numbers)]), ())
    try:
        assert [helper.ask(TASK) for _ in range(2)] == [[helper.pid, 0], [helper.pid, 1]]
        assert helper.pid != os.getpid()
        assert next(numbers) == 0  # this process's copy was not used
    finally:
        helper.close()
    assert not Path(f"/proc/{helper.pid}").exists()


def test_long_answers_arrive_whole():
    helper = Helper(doing(lambda _: "x" * (1 << 20)), ())
    assert helper.ask(TASK) == "x" * (1 << 20)
    helper.close()


def test_helper_holds_only_its_two_pipes():
    file = os.open("/dev/null", os.O_RDONLY)
    helper = Helper(doing(lambda _: sorted(os.listdir("/proc/self/fd"))), ())
    try:
        assert len(helper.ask(TASK)) == 3  # the third lists the directory
        assert str(file) not in helper.ask(TASK)
    finally:
        helper.close()
        os.close(file)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_to_the_process_group_are_ignored(number):
    helper = Helper(doing(lambda _: 5), ())
    assert helper.ask(TASK) == 5
    os.kill(helper.pid, number)
    assert helper.ask(TASK) == 5
    helper.close()


def test_helper_that_has_ended_is_an_error_without_waiting():
    helper = Helper(doing(lambda _: 5), ())
    os.kill(helper.pid, signal.SIGKILL)
    wait_until(lambda: state(helper.pid) == "Z")
    with pytest.raises(OSError):
        helper.ask(TASK)
    helper.close()


def test_late_answer_is_returned_for_the_next_question():
    helper = Helper(doing(lambda question: time.sleep(0.3) or question), ())
    for _ in range(2):
        with pytest.raises(TimeoutError):
            helper.ask(TASK, "first", 0.1)
    assert helper.ask(TASK, "second") == "first"
    assert helper.ask(TASK, "third") == "third"
    helper.close()


def test_late_answer_is_none_to_another_task():
    helper = Helper({"slow": lambda _: time.sleep(0.3) or "slow", "fast": lambda word: word}, ())
    with pytest.raises(TimeoutError):
        helper.ask("slow", None, 0.1)
    with pytest.raises(TimeoutError):
        helper.ask("fast", 1, 0.0)
    assert helper.ask("fast", 2) == 2
    assert helper.ask("slow") == "slow"
    helper.close()


def test_answer_that_arrives_in_parts_is_assembled():
    helper = Helper(doing(lambda _: "x" * (1 << 18)), ())
    for timeout in (0.0, 0.0, 0.0):  # a pipe holds 64 KiB
        with contextlib.suppress(TimeoutError):
            helper.ask(TASK, None, timeout)
        time.sleep(0.02)
    assert helper.ask(TASK) == "x" * (1 << 18)
    helper.close()


def test_work_that_fails_is_an_error(capfd):
    helper = Helper(doing(lambda _: 1 // 0), ())
    with pytest.raises(OSError):
        helper.ask(TASK)
    helper.close()


def test_cpu_time_is_reported():
    helper = Helper(doing(lambda _: sum(range(1 << 20))), ())
    before = cpu_seconds() - time.process_time()
    helper.ask(TASK)
    assert cpu_seconds() - time.process_time() > before
    assert helper.cpu > 0
    helper.close()


def test_helper_keeps_only_the_given_capabilities():
    status = Path("/proc/self/status")
    helper = Helper(doing(lambda _: status.read_text()), ["CAP_SYS_PTRACE"])
    lines = dict(line.split(":\t") for line in helper.ask(TASK).splitlines() if ":\t" in line)
    helper.close()
    assert int(lines["CapEff"], 16) in (0, 1 << 19)  # 0 if not run as root
    assert lines["CapPrm"] == lines["CapEff"] and int(lines["CapInh"], 16) == 0
    assert lines["NoNewPrivs"] == "1"
