"""The demonstration shows something, in time, and leaves nothing behind however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import harness
import pytest
from conftest import Netbpf
from harness import SLOW, SOURCE_TREE, command, wait_until

from netbpf.declare.tool import tool_names
from netbpf.demo import traffic

pytestmark = pytest.mark.alone

SECONDS = 30 * SLOW  # for all tools together
POWERLESS = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")


class Demo:
    """A demonstration under way; all of its processes carry a mark in their environment."""

    def __init__(self, directory: Path, *words: str) -> None:
        self.mark = f"NETBPF_DEMO_TEST={uuid.uuid4()}"
        name, _, value = self.mark.partition("=")
        self.out = directory / "out"
        with self.out.open("wb") as out:
            self.process = subprocess.Popen(
                command("demo", *words),
                cwd=directory,  # not where netbpf is
                env={**os.environ, name: value, "PYTHONPATH": str(SOURCE_TREE)},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def said(self) -> str:
        return self.out.read_text()

    def processes(self) -> set[str]:
        """Return the names of the processes that it consists of."""
        return {name for process in Path("/proc").iterdir() if (name := self._name_of(process))}

    def _name_of(self, process: Path) -> str:
        try:
            ours = self.mark.encode() in (process / "environ").read_bytes()
            return (process / "comm").read_text().strip() if ours else ""
        except OSError:
            return ""  # gone, or no process

    def wait(self) -> int:
        return self.process.wait(SECONDS)


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Demo]:
    one = Demo(tmp_path, "tcplife", "netsize")
    try:
        yield one
    finally:
        harness.kill(one.process)
        wait_until(lambda: not one.processes(), 10 * SLOW, "what the demonstration started to end")


def under_way(demo: Demo) -> None:
    wanted = {"demo-serve", "demo-ask", "demo-full"}
    wait_until(lambda: wanted <= demo.processes(), harness.START_TIMEOUT, "its traffic")


def test_every_tool_is_shown_within_half_a_minute(tmp_path: Path) -> None:
    start = time.monotonic()
    demo = Demo(tmp_path)
    status = demo.wait()
    assert time.monotonic() - start < SECONDS
    said = demo.said()
    assert status == 0, said
    for name in tool_names():
        if f"{name}: not on this kernel" not in said:
            assert f"$ sudo netbpf {name} " in said
            assert f"\n{name}: " in said.split(f"$ sudo netbpf {name} ")[1]  # its summary
    assert "Traceback" not in said
    assert not demo.processes()


def test_only_the_tools_that_were_asked_for(demo: Demo) -> None:
    assert demo.wait() == 0, demo.said()
    shown = [line.split()[3] for line in demo.said().splitlines() if line.startswith("$ sudo")]
    assert shown == ["tcplife", "netsize"]
    assert "dev=lo" in demo.said()


def test_traffic_is_of_many_kinds(netbpf: Netbpf) -> None:
    def enough(events: list[harness.Json]) -> bool:
        served = {event["tx_bytes"] for event in events if event["comm"] == "demo-serve"}
        closes = {event["close"] for event in events if event["comm"] == "demo-ask"}
        return {211, 4093, 65521, 1048573} <= served and "refused" in closes

    with netbpf("tcplife", "--comm", "demo-*") as run, traffic.flowing():
        run.wait_for(enough)


def test_look_ups_are_of_names_that_exist_and_not(netbpf: Netbpf) -> None:
    wanted = {"localhost", "netbpf-demo.invalid"}
    with netbpf("gethostlatency", "--comm", "demo-*") as run, traffic.flowing():
        run.wait_for(lambda events: wanted <= {event["host"] for event in events})


def test_ctrl_c_ends_all_of_it(demo: Demo) -> None:
    under_way(demo)
    os.killpg(demo.process.pid, signal.SIGINT)  # as a terminal does
    assert demo.wait() == 0, demo.said()
    assert not demo.processes()
    assert "Traceback" not in demo.said()


def test_sigterm_to_it_alone_ends_all_of_it(demo: Demo) -> None:
    under_way(demo)
    demo.process.terminate()
    demo.wait()


def test_nothing_survives_a_kill(demo: Demo) -> None:
    under_way(demo)
    demo.process.kill()
    demo.wait()


def test_without_privileges_root_is_asked_for() -> None:
    done = subprocess.run(
        [*POWERLESS, *command("demo")], cwd=SOURCE_TREE, text=True, capture_output=True
    )
    assert done.returncode == 77
    assert done.stdout == ""
    assert "hint: run it as root: sudo netbpf demo" in done.stderr


def test_an_unknown_tool_is_a_usage_error() -> None:
    done = harness.netbpf_once("demo", "tcplive")
    assert done.returncode == 2
    assert "tcplive" in done.stderr
