"""The process apart: killed over what takes too long, forked again, gone when we are."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from netbpf.system import worker
from netbpf.system.worker import Worker, WorkerEnd

TREE = Path(__file__).parents[2]
LIMIT = 30.0


def receive(process: Worker, key: str) -> dict[str, Any]:
    """Return the first message with `key`."""
    end = time.monotonic() + LIMIT
    while time.monotonic() < end and not process.ended:
        process.wait(end)
        for message, descriptors in process.receive():
            if key in message:
                return {**message, "descriptors": descriptors}
    raise AssertionError(f"no message with {key}, ended: {process.ended}")


def is_gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state in "ZX"


def wait_until(condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + LIMIT
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()


@pytest.fixture
def start(monkeypatch) -> Iterator[Callable[..., Worker]]:
    monkeypatch.setattr(worker, "PATIENCE", 0.3)
    made = []

    def begin(work: Callable[[WorkerEnd], None], *keep: int) -> Worker:
        made.append(Worker(work, keep))
        return made[-1]

    yield begin
    for process in made:
        process.close()


def test_messages_of_any_length_and_descriptors_arrive(start, tmp_path):
    path = tmp_path / "file"
    path.write_text("content")

    def work(desk: WorkerEnd) -> None:
        files = [os.open(path, os.O_RDONLY) for _ in range(300)]
        desk.send({"long": "x" * 500_000})
        desk.send({"files": len(files)}, files)
        desk.receive()

    process = start(work)
    assert len(receive(process, "long")["long"]) == 500_000
    found: list[int] = []
    while len(found) < 300:
        found += receive(process, "files")["descriptors"]
    assert len(found) == 300
    assert {os.read(file, 10) for file in found} == {b"content"}
    assert not any(os.get_inheritable(file) for file in found)
    for file in found:
        os.close(file)


def test_what_never_ends_is_skipped_by_the_next_one(start, tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)

    def work(desk: WorkerEnd) -> None:
        for what in ("good", "blocks", "loops", "other"):
            if what not in desk.skipped:
                with desk.on(what):
                    if what == "blocks":
                        os.open(fifo, os.O_RDONLY)
                    while what == "loops":
                        pass
                    desk.send({what: desk.skipped})
        desk.receive()

    assert receive(start(work), "other")["other"] == ["blocks", "loops"]


def test_what_makes_it_fail_is_skipped_by_the_next_one(start):
    def work(desk: WorkerEnd) -> None:
        if "bad" not in desk.skipped:
            with desk.on("bad"):
                os.kill(os.getpid(), signal.SIGSEGV)
        if "worse" not in desk.skipped:
            with desk.on("worse"):
                raise ValueError
        desk.send({"end": desk.skipped})

    assert receive(start(work), "end")["end"] == ["bad", "worse"]


def test_message_that_is_torn_is_left_out(start):
    def work(desk: WorkerEnd) -> None:
        if not desk.skipped:
            desk.channel.send(b'<+{"torn": ')
            with desk.on("x"):
                raise ValueError
        desk.send({"whole": 1})

    assert receive(start(work), "whole") == {"whole": 1, "descriptors": []}


def test_its_memory_is_bounded(start):
    def work(desk: WorkerEnd) -> None:
        try:
            bytes(2 << 30)
        except MemoryError:
            desk.send({"bounded": True})

    assert receive(start(work), "bounded")


def test_what_it_is_at_can_be_asked(start, tmp_path, monkeypatch):
    monkeypatch.setattr(worker, "PATIENCE", LIMIT)

    def work(desk: WorkerEnd) -> None:
        with desk.on("process 7"):
            desk.send({"on": 1})
            time.sleep(LIMIT)

    process = start(work)
    receive(process, "on")
    assert process.stuck(0) == "process 7"
    assert process.stuck(LIMIT) == ""
    process.close()
    assert process.stuck(0) == ""
    process.close()


def test_it_holds_nothing_of_ours_but_what_it_needs(start):
    kept, other = os.open("/dev/null", os.O_RDONLY), os.open("/dev/zero", os.O_RDONLY)

    def work(desk: WorkerEnd) -> None:
        links = {n: os.readlink(f"/proc/self/fd/{n}") for n in (kept, other) if _is_open(n)}
        ours = [os.readlink(f"/proc/self/fd/{n}") for n in (0, 1, 2)]
        desk.send({"links": [links.get(kept), links.get(other)], "ours": ours})

    message = receive(start(work, kept), "links")
    assert message["links"] == ["/dev/null", None]
    assert message["ours"] == ["/dev/null"] * 3
    os.close(kept), os.close(other)


def _is_open(number: int) -> bool:
    return os.path.exists(f"/proc/self/fd/{number}")


@pytest.mark.parametrize("way", ["close", "kill"])
def test_both_processes_end_with_us(way):
    script = f"""
import os, sys, time
sys.path.insert(0, {str(TREE)!r})
from netbpf.system.worker import Worker
def work(desk):
    desk.send({{"pids": [os.getpid(), os.getppid()]}})
    with desk.on("sleep"):
        time.sleep({LIMIT})
process = Worker(work)
process.wait(time.monotonic() + {LIMIT})
for message, _ in process.receive():
    print(*message["pids"], flush=True)
sys.stdin.readline()
process.close()
"""
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as us:
        assert us.stdin and us.stdout
        pids = [int(word) for word in us.stdout.readline().split()]
        assert len(pids) == 2 and not any(map(is_gone, pids))
        if way == "kill":
            us.kill()
        else:
            us.stdin.close()
        us.wait()
        assert all(wait_until(lambda pid=pid: is_gone(pid)) for pid in pids)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_to_all_of_us_do_not_end_it(start, number):
    def work(desk: WorkerEnd) -> None:
        os.kill(os.getpid(), number), os.kill(os.getppid(), number)
        desk.send({"alive": 1})
        desk.receive()

    assert receive(start(work), "alive")
