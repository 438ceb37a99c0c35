"""Tools in one process show what each of them shows alone, and end together.

Truth: each tool in a process of its own, at the same time, on the same traffic.
"""

from __future__ import annotations

import contextlib
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import harness
import pytest
from crowd import Crowd
from harness import Json, Run, netbpf_once, validator, wait_until
from traffic import Line, clients

pytestmark = pytest.mark.alone

SESSIONS = 101
TOOLS = ("tcplife", "tcpstates", "soconnect", "soaccept", "tcpretrans", "so1stbyte --events",
         "sockstat", "tcpsynbl", "skbdrop", "gethostlatency")  # fmt: skip


@contextlib.contextmanager
def together(directory: Path, *words: object, returncode: int = 0) -> Iterator[Run]:
    """Run `netbpf record` with these words within the block."""
    run = harness.start(directory, "record", *words, json_lines=False)
    with harness.attended(run, json_lines=False, returncode=returncode):
        yield run


def name_of(line: str) -> str:
    return line.partition(" ")[0]


def of_tool(run: Run, tool: str, kind: str = "event") -> list[Json]:
    return [line for line in run.lines if line["tool"] == tool and line["type"] == kind]


def summaries(run: Run) -> dict[str, Json]:
    return {line["tool"]: line for line in run.lines if line["type"] == "summary"}


def plain(event: Json) -> tuple[tuple[str, str], ...]:
    """What two processes must agree on: each measures times by itself."""
    return tuple(
        (name, str(value))
        for name, value in event.items()
        if name != "time" and not name.endswith("_us")
    )


def shown(events: list[Json]) -> Counter[tuple[tuple[str, str], ...]]:
    return Counter(map(plain, events))


@pytest.mark.parametrize("side", ["left", "right"])
def test_each_tool_shows_what_it_shows_alone(
    netbpf: Any, crowd: Crowd, tmp_path: Path, side: str
) -> None:
    netns = ("--netns", str(getattr(crowd, side).inode))
    most = "soconnect" if side == "left" else "soaccept"
    lines = [" ".join((line, *netns)) for line in TOOLS]
    with contextlib.ExitStack() as alone:
        runs = {name_of(line): alone.enter_context(netbpf(*line.split(), *netns)) for line in TOOLS}
        with together(tmp_path, *lines) as session:
            sessions = crowd.play(SESSIONS)
            for tool in ("tcplife", most):
                wanted = len(runs[tool].wait_for(SESSIONS if side == "left" else 23))
                wait_until(lambda tool=tool, n=wanted: len(of_tool(session, tool)) >= n, what=tool)
    if side == "left":
        assert Counter(map(Line.of, of_tool(session, "tcplife"))) == clients(sessions)
    for tool, run in runs.items():
        assert shown(of_tool(session, tool)) == shown(run.events), tool
        if tool != "sockstat":  # whose rows are of the whole run, and the runs begin apart
            assert len(of_tool(session, tool, "interval")) == len(run.rows), tool
    calls = [row for row in of_tool(session, "sockstat", "interval") if row["op"] == "connect"]
    assert sum(row["calls"] for row in calls) == (SESSIONS if side == "left" else 0)


def test_every_line_matches_the_schema_of_its_tool(crowd: Crowd, tmp_path: Path) -> None:
    with together(tmp_path, *TOOLS) as session:
        crowd.play(23)
    assert set(summaries(session)) == set(map(name_of, TOOLS))
    for line in session.lines:
        validator(line["tool"]).validate(line)
    ends = summaries(session).values()
    assert all(end["complete"] for end in ends), [end["lost"] for end in ends]
    assert len({end["start"] for end in ends}) == 1
    assert {end["stopped_by"] for end in ends} == {"SIGINT"}


def test_filters_by_process_find_owners_that_are_shared(crowd: Crowd, tmp_path: Path) -> None:
    pid = crowd.root.pid
    with together(tmp_path, f"tcplife -p {pid}", f"tcpstates -p {pid}") as session:
        crowd.play(SESSIONS)
        wait_until(lambda: of_tool(session, "tcplife"), what="sessions")
    for tool in ("tcplife", "tcpstates"):
        assert {event["pid"] for event in of_tool(session, tool)} == {pid}


def test_tools_with_different_filters(crowd: Crowd, tmp_path: Path) -> None:
    mine, other = crowd.root.pid, crowd.nobody.pid
    with together(tmp_path, f"tcplife -p {mine}", f"tcpstates -p {other}") as session:
        crowd.play(SESSIONS)
        wait_until(
            lambda: of_tool(session, "tcplife") and of_tool(session, "tcpstates"), what="both"
        )
    assert {event["pid"] for event in of_tool(session, "tcplife")} == {mine}
    assert {event["pid"] for event in of_tool(session, "tcpstates")} == {other}


@pytest.mark.parametrize("older", [False, True], ids=["new", "older"])
def test_owner_of_a_socket_is_shared(crowd: Crowd, tmp_path: Path, older: bool) -> None:
    open_before = [crowd.connect() for _ in range(11)] if older else []
    netns = crowd.left.inode
    lines = [f"{tool} --netns {netns}" for tool in ("tcplife", "tcpstates", "tcpwin")]
    with together(tmp_path, *lines) as session:
        made = open_before or [crowd.connect() for _ in range(11)]
        for one in made:
            one.end()
        wait_until(lambda: len(of_tool(session, "tcplife")) >= 11, what="sessions")
    for tool in ("tcplife", "tcpstates"):
        found = {(event["pid"], event["owner"]) for event in of_tool(session, tool)}
        assert {pid for pid, _ in found} == {crowd.root.pid}, (tool, found)


def test_owners_without_room_are_a_loss_of_each_tool_that_shows_them(
    crowd: Crowd, tmp_path: Path
) -> None:
    held = []
    words = [f"{tool} --map-entries 8 --netns {crowd.left.inode}" for tool in ("tcplife", "tcpwin")]
    with together(tmp_path, *words) as session:
        held = [crowd.connect() for _ in range(23)]
        for one in held:
            one.end()
    for tool, end in summaries(session).items():
        assert end["lost"]["map_full"], tool
        assert not end["complete"]


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_end_leaves_no_program(crowd: Crowd, tmp_path: Path, by: signal.Signals) -> None:
    before = harness.bpf_programs()
    run = harness.start(tmp_path, "record", "tcplife", "tcpstates", "skbdrop", json_lines=False)
    try:
        run.wait_ready()
        ours = harness.programs_of(run.process.pid)
        assert len(ours) >= 6
        run.stop(by)
    finally:
        harness.kill(run.process)
    wait_until(lambda: not ours & harness.bpf_programs(), what="the programs to end")
    assert not ours & before
    assert run.ready_file.exists() == (by == signal.SIGKILL)


def test_programs_that_find_owners_are_loaded_once(tmp_path: Path) -> None:
    def held(number: int, *lines: str) -> int:
        directory = tmp_path / str(number)
        directory.mkdir()
        with together(directory, *lines) as session:
            return len(harness.programs_of(session.process.pid))

    one, another = held(1, "tcpretrans"), held(2, "tcprtt --by comm")
    both = held(3, "tcpretrans", "tcprtt --by comm")
    assert both <= one + another - 2  # the state and the accepts, at least


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("tcplife", "tcplife"), "tcplife is given twice"),
        (("tcplife -d 3",), "tcplife: --duration is for the whole session"),
        (("tcplife -n 3",), "tcplife: --max-events is for the whole session"),
        (("sockstat 1 3",), "sockstat: COUNT is for the whole session"),
        (("tcplif",), "no tool named 'tcplif'"),
        (("tcplife '",), "is not a command line"),
        (("tcplife --frobnicate",), "no such option: --frobnicate"),
        ((), "missing argument"),
        (("tcplife", "-d", "x"), "--duration"),
        (("tcplife", "--netns", "1"), "no such option: --netns"),
    ],
)
def test_usage_errors(words: tuple[str, ...], message: str) -> None:
    done = netbpf_once("record", *words)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert done.stdout == ""
