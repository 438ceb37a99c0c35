"""gethostlatency reports lookups that never return, with the time until they were left.

The truth is the program's own (programs/leave.c): it prints CLOCK_MONOTONIC at the begin of its
lookup and where it leaves it, and a name server that never answers keeps it waiting until then.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import resolver
import topology
from bpf_maps import keys_of
from compared import compares
from harness import SLOW, Json, Run, seconds, wait_until

PROGRAMS = Path(__file__).parent / "programs"
NAME = "nb-leave"
# A tenth of the usual 300 ms: signals, breakpoints and the end of a process take that much at most.
SLACK_US = 30_000 * SLOW


@pytest.fixture(scope="module")
def namespace() -> Iterator[resolver.Namespace]:
    with resolver.namespace(f"netbpf-left-{os.getpid()}") as found:
        yield found


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The program, with a libc of its own: on the common one others may have uretprobes."""
    directory = tmp_path_factory.mktemp("leave")
    mapped = re.search(r"/\S+/libc\.so\.6$", Path("/proc/self/maps").read_text(), re.M)
    assert mapped
    shutil.copy(mapped[0], directory)
    words = ("-O1", "-fexceptions", f"-Wl,-rpath,{directory}", "-lpthread")
    topology.must("gcc", "-o", directory / NAME, PROGRAMS / "leave.c", *words)
    return str(directory / NAME)


class Leaver:
    """A program that begins a lookup when it is let."""

    def __init__(self, namespace: resolver.Namespace, *words: object) -> None:
        self.process = namespace.popen(list(map(str, words)))
        self.pid = self.process.pid
        self._out: Any = self.process.stdout
        assert self._out.readline() == "ready\n"

    def go(self) -> None:
        assert self.process.stdin
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def said(self) -> Json:
        """Return what it prints when it leaves the lookup."""
        return dict(json.loads(self._out.readline()))

    def end(self) -> int:
        """Wait for its end."""
        return self.process.wait(30 * SLOW)


def check(event: Json, said: Json, name: str = "never.test") -> None:
    assert (event["pid"], event["comm"]) == (said["pid"], NAME)
    assert (event["host"], event["result"]) == (name, "abandoned")
    age = (said["left"] - said["begin"]) / 1000
    assert abs(event["latency_us"] - age) < SLACK_US, (event, said)
    left = time.time() - (time.monotonic_ns() - said["left"]) / 1e9
    assert abs(seconds(event["time"]) - left) < SLACK_US / 1e6


def of(run: Run, result: str) -> list[Json]:
    return [event for event in run.events if event["result"] == result]


LEFT = ("jump-and-ask", "jump-and-end", "exec", "exec-in-thread", "exec-by-asker", "cancel", "exit",
        "cancel-cleanup")  # fmt: skip


@pytest.mark.parametrize("kind", ["rawtp", "tp"])
@pytest.mark.parametrize("way", LEFT)
def test_a_lookup_that_is_left(
    netbpf: Any, namespace: resolver.Namespace, program: str, way: str, kind: str
) -> None:
    forced = f"exit={kind},exec={kind},signal={kind}"
    leaver = Leaver(namespace, program, way)
    with netbpf("gethostlatency", "--comm", NAME, "--probe", forced) as run:
        leaver.go()
        said = leaver.said()
        leaver.end()
        run.wait_for(lambda _: of(run, "abandoned"))
        wait_until(lambda: not keys_of(run, "calls"), what="a map without what has ended")
    check(of(run, "abandoned")[0], said)
    answered = ["one.test"] if way == "jump-and-ask" else []
    assert [event["host"] for event in run.events if event["result"] == "OK"] == answered
    assert len(run.events) == 1 + len(answered)
    assert (run.rows, run.summary["pending"], run.summary["abandoned"]) == ([], 0, 1)


@pytest.mark.parametrize("words", [(), ("0.2",)], ids=["at-the-end", "at-an-interval"])
def test_a_lookup_that_was_left_does_not_wait(
    netbpf: Any, namespace: resolver.Namespace, program: str, words: tuple[str, ...]
) -> None:
    """The program does nothing that could show it: only where it sleeps does."""
    leaver = Leaver(namespace, program, "jump-and-sleep")
    with netbpf("gethostlatency", "--comm", NAME, *words) as run:
        leaver.go()
        said = leaver.said()
        if words:
            run.wait_for(1)
        else:
            time.sleep(0.2)  # until it sleeps
    leaver.process.kill()
    leaver.end()
    check(run.events[0], said)
    assert len(run.events) == 1
    waited = [row for row in run.rows if row["latency_us"] > 300_000 + SLACK_US]
    assert not waited and run.summary["pending"] == 0


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGABRT])
def test_a_lookup_in_which_the_process_is_killed(
    netbpf: Any, namespace: resolver.Namespace, program: str, number: signal.Signals
) -> None:
    """Also where signals with a handler came in the middle, which did not leave it."""
    leaver = Leaver(namespace, program, "profiled")
    with netbpf("gethostlatency", "--comm", NAME) as run:
        leaver.go()
        said = leaver.said()
        time.sleep(0.33)
        said["left"] = time.monotonic_ns()
        os.kill(leaver.pid, number)
        assert leaver.end() == -number
        run.wait_for(1)
    (event,) = run.events
    check(event, said)
    assert event["latency_us"] > 330_000  # not one of the handlers before


@pytest.mark.parametrize(
    ("way", "inner"),
    [
        ("other-stack", "127.0.0.7"),
        ("coroutine", "127.0.0.8"),
        # Where a uretprobe would end the program with SIGILL:
        ("higher-stack", "127.0.0.7"),
        ("higher-coroutine", "127.0.0.8"),
        ("fork", ""),
        ("vfork", ""),
    ],
)
def test_a_lookup_that_returns_after_all(
    netbpf: Any, namespace: resolver.Namespace, program: str, way: str, inner: str
) -> None:
    leaver = Leaver(namespace, program, way)
    with netbpf("gethostlatency", "--comm", NAME) as run:
        leaver.go()
        said = leaver.said()
        assert leaver.end() == 0
        run.wait_for(1 + bool(inner))
    found = {event["host"]: event for event in run.events}
    assert set(found) == {"slow-400.test", *([inner] if inner else [])}
    assert {event["result"] for event in run.events} == {"OK"}
    if "coroutine" not in way:  # there `begin` is that of the other one
        age = (said["left"] - said["begin"]) / 1000
        assert abs(found["slow-400.test"]["latency_us"] - age) < SLACK_US
    assert len(run.events) == len(found) and run.summary["abandoned"] == 0


@compares("gethostlatency", "sum", shape="histogram")
def test_abandoned_lookups_fail_and_count(
    netbpf: Any, namespace: resolver.Namespace, program: str
) -> None:
    """--failed shows them, --min-ms goes by their age, --histogram counts them and says so."""
    leavers = [Leaver(namespace, program, "cancel", ms) for ms in (100, 400)]
    pids = ",".join(str(leaver.pid) for leaver in leavers)
    with (
        netbpf("gethostlatency", "-p", pids, "--failed", "--min-ms", 250) as failed,
        netbpf("gethostlatency", "-p", pids, "--histogram") as counted,
    ):
        for leaver in leavers:
            leaver.go()
        said = [leaver.said() for leaver in leavers]
        for leaver in leavers:
            leaver.end()
    (event,) = failed.events
    check(event, said[1])
    (histogram,) = counted.histograms
    assert histogram["key"] == {"host": "never.test"} and histogram["count"] == 2
    total = sum((one["left"] - one["begin"]) / 1000 for one in said)
    assert abs(histogram["sum"] - total) < 2 * SLACK_US
    assert counted.summary["abandoned"] == 2
    assert any(note.startswith("2 never returned") for note in counted.summary["notes"])


def test_text_has_a_word_for_it(netbpf: Any, namespace: resolver.Namespace, program: str) -> None:
    leaver = Leaver(namespace, program, "cancel")
    with netbpf("gethostlatency", "--comm", NAME, json_lines=False) as run:
        leaver.go()
        leaver.end()
        wait_until(lambda: "never.test" in run.stdout)
    assert run.stdout.splitlines()[1].endswith("never.test                   abandoned")


# --- long names ----------------------------------------------------------------------------------

SCRIPT = """
import encodings.idna, json, socket, sys
print("ready", flush=True); sys.stdin.readline()
for host, service in json.loads(sys.argv[1]):
    try: socket.getaddrinfo(host.encode(), service.encode())
    except OSError: pass
"""
LONG = [
    ("a" * 254, "s" * 31, None),
    ("b" * 255, "80", "host"),
    ("c" * 1500, "t" * 32, "host,service"),
    ("d.test", "u" * 200, "service"),
]


@compares("gethostlatency", "truncated")
def test_what_is_too_long_is_marked(netbpf: Any, namespace: resolver.Namespace) -> None:
    """The truth is what the program asked for: up to 254 and 31 bytes are held whole."""
    asked = json.dumps([(host, service) for host, service, _ in LONG])
    asker = Leaver(namespace, "/usr/bin/python3", "-c", SCRIPT, asked)
    with (
        netbpf("gethostlatency", "-p", asker.pid) as run,
        netbpf("gethostlatency", "-p", asker.pid, "-w", json_lines=False) as text,
    ):
        asker.go()
        asker.end()
        run.wait_for(len(LONG))
        wait_until(lambda: text.stdout.count("\n") > len(LONG))
    found = [(event["host"], event["service"], event["truncated"]) for event in run.events]
    assert found == [(host[:254], service[:31], cut) for host, service, cut in LONG]
    lines = text.stdout.splitlines()[1:]
    for line, (host, service, cut) in zip(lines, LONG):
        assert (f"{host[:254]}..." in line) is ("host" in (cut or "")), line
        assert (f"{service[:31]}..." in line) is ("service" in (cut or "")), line
