"""The worker process: killed if an item takes too long, forked again, gone with its parent."""

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
    monkeypatch.setattr(worker, "ITEM_SECONDS", 0.3)
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

    def work(end: WorkerEnd) -> None:
        files = [os.open(path, os.O_RDONLY) for _ in range(300)]
        end.send({"long": "x" * 500_000})
        end.send({"files": len(files)}, files)
        end.receive()

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


def test_item_that_never_ends_is_skipped_by_the_next_worker(start, tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)

    def work(end: WorkerEnd) -> None:
        for what in ("good", "blocks", "loops", "other"):
            if what not in end.skipped:
                with end.item(what):
                    if what == "blocks":
                        os.open(fifo, os.O_RDONLY)
                    while what == "loops":
                        pass
                    end.send({what: end.skipped})
        end.receive()

    assert receive(start(work), "other")["other"] == ["blocks", "loops"]


def test_item_that_crashes_the_worker_is_skipped_by_the_next_one(start):
    def work(end: WorkerEnd) -> None:
        if "bad" not in end.skipped:
            with end.item("bad"):
                os.kill(os.getpid(), signal.SIGSEGV)
        if "worse" not in end.skipped:
            with end.item("worse"):
                raise ValueError
        end.send({"end": end.skipped})

    assert receive(start(work), "end")["end"] == ["bad", "worse"]


def test_torn_message_is_dropped(start):
    def work(end: WorkerEnd) -> None:
        if not end.skipped:
            end.channel.send(b'<+{"torn": ')
            with end.item("x"):
                raise ValueError
        end.send({"whole": 1})

    assert receive(start(work), "whole") == {"whole": 1, "descriptors": []}


def test_memory_is_bounded(start):
    def work(end: WorkerEnd) -> None:
        try:
            bytes(2 << 30)
        except MemoryError:
            end.send({"bounded": True})

    assert receive(start(work), "bounded")


def test_current_item_is_reported(start, tmp_path, monkeypatch):
    monkeypatch.setattr(worker, "ITEM_SECONDS", LIMIT)

    def work(end: WorkerEnd) -> None:
        with end.item("process 7"):
            end.send({"on": 1})
            time.sleep(LIMIT)

    process = start(work)
    receive(process, "on")
    assert process.stuck(0) == "process 7"
    assert process.stuck(LIMIT) == ""
    process.close()
    assert process.stuck(0) == ""
    process.close()


def test_worker_holds_only_the_descriptors_it_needs(start):
    kept, other = os.open("/dev/null", os.O_RDONLY), os.open("/dev/zero", os.O_RDONLY)

    def work(end: WorkerEnd) -> None:
        links = {n: os.readlink(f"/proc/self/fd/{n}") for n in (kept, other) if _is_open(n)}
        ours = [os.readlink(f"/proc/self/fd/{n}") for n in (0, 1, 2)]
        end.send({"links": [links.get(kept), links.get(other)], "ours": ours})

    message = receive(start(work, kept), "links")
    assert message["links"] == ["/dev/null", None]
    assert message["ours"] == ["/dev/null"] * 3
    os.close(kept), os.close(other)


def _is_open(number: int) -> bool:
    return os.path.exists(f"/proc/self/fd/{number}")


@pytest.mark.parametrize("how", ["close", "kill"])
def test_both_processes_end_with_the_parent(how):
    script = f"""
import os, sys, time
sys.path.insert(0, {str(TREE)!r})
from netbpf.system.worker import Worker
def work(end):
    end.send({{"pids": [os.getpid(), os.getppid()]}})
    with end.item("sleep"):
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
    ) as parent:
        assert parent.stdin and parent.stdout
        pids = [int(word) for word in parent.stdout.readline().split()]
        assert len(pids) == 2 and not any(map(is_gone, pids))
        if how == "kill":
            parent.kill()
        else:
            parent.stdin.close()
        parent.wait()
        assert all(wait_until(lambda pid=pid: is_gone(pid)) for pid in pids)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_to_the_process_group_are_ignored(start, number):
    def work(end: WorkerEnd) -> None:
        os.kill(os.getpid(), number), os.kill(os.getppid(), number)
        end.send({"alive": 1})
        end.receive()

    assert receive(start(work), "alive")
