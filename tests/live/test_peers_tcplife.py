"""Sessions, as netbpf's tcplife and its peers tell them."""

from __future__ import annotations

import contextlib
from typing import Any, NamedTuple

import peer_tools
import pytest
import traffic
from compared import compares
from crowd import Crowd
from harness import Json, wait_until
from peer_tools import (
    Record,
    Tool,
    at_fault,
    bcc,
    book,
    bpftrace,
    libbpf,
    near,
    strings,
    tools,
    watched,
)
from test_tcplife import ends_of, worker
from traffic import ENDS, Line, Session


class Life(NamedTuple):
    """Sessions, what netbpf said of them, and what a peer said: rows by their ends."""

    tool: Tool
    sessions: list[Session]
    left: Session  # its server closed first, and was gone when that was acknowledged
    events: dict[tuple[Any, ...], Json]
    rows: dict[tuple[Any, ...], list[list[str]]]


@pytest.fixture(**tools(libbpf("tcplife", "-w"), bcc("tcplife"), bpftrace("tcplife")))
def life(request: Any, crowd: Crowd, tmp_path_factory: pytest.TempPathFactory) -> Life:
    with watched(request.param, tmp_path_factory, "tcplife") as (peer, run):
        sessions = crowd.play(60, tuple(ENDS))
        left = left_alone(crowd)
        last = crowd.connect().end()
        peer.wait_for(lambda: ends(last) <= {key_of(row) for row in peer.rows(9)})
        run.wait_for(lambda found: ends(last) <= {strings(ends_of(one)) for one in found})
        peer.stop()
    events = {strings(ends_of(one)): one for one in crowd.ours(run.events)}
    hosts = (crowd.left, crowd.right)
    addresses = {addr for host in hosts for addr in (host.ipv4, host.ipv6)}
    rows: dict[tuple[Any, ...], list[list[str]]] = {}
    for row in peer.rows(9):
        if {row[2], row[4]} <= addresses:
            rows.setdefault(key_of(row), []).append(row)
    return Life(request.param, sessions, left, events, rows)


def left_alone(crowd: Crowd) -> Session:
    """Make a session whose server closes and ends before its FIN arrives at the client."""
    client, server = crowd.pairs[0]
    with contextlib.ExitStack() as stack:
        accepting = stack.enter_context(worker(server, "nb-worker"))
        session = traffic.connect(client, accepting)
        session.transfer(up=1234, down=4099)
        session.closes = ENDS["server-fin"]
        fins = f"tcp dport {session.local[1]} tcp flags & fin == fin"
        with crowd.left.dropping(fins) as drops:
            accepting.ask("close", id=session.id)
            wait_until(drops.count, what="the FIN")
            stack.close()
    assert client.ask("ended", id=session.id)["how"] == "fin"
    return session


def key_of(row: list[str]) -> tuple[str, ...]:
    """Return the ends in PID COMM LADDR LPORT RADDR RPORT TX_KB RX_KB MS."""
    return tuple(row[2:6])


def ends(session: Session) -> set[tuple[Any, ...]]:
    return {strings(ends_of(line._asdict())) for line in session.lines()}


def all_lines(life: Life) -> list[Line]:
    return [line for session in (*life.sessions, life.left) for line in session.lines()]


def test_tcplife_sees_the_sessions_and_bytes_that_its_peers_see(life: Life) -> None:
    for line in all_lines(life):
        key = strings(ends_of(line._asdict()))
        assert Line.of(life.events[key]) == line
        (row,) = life.rows[key]
        assert peer_tools.kilobytes(line, row), (line, row)
    # And those of one session more, which told that all others were out.
    assert len(life.events) == len(all_lines(life)) + 2
    assert set(life.events) == set(life.rows)


def test_tcplife_measures_the_durations_that_its_peers_measure(life: Life) -> None:
    checked = 0
    for line in all_lines(life):
        key = strings(ends_of(line._asdict()))
        event, milliseconds = life.events[key], float(life.rows[key][0][8])
        if event["duration_us"]:
            wanted = event["duration_us"]
            # Two measure from the end of the handshake, bpftrace from the begin of an active one.
            if life.tool.script and line.role == "active":
                wanted += event["handshake_us"]
            assert near(milliseconds * 1000, wanted, rounded=1000), (event, life.rows[key])
            checked += 1
    assert checked > 50


@compares("tcplife", "pid")
def test_tcplife_names_the_process_that_closed_first_and_has_ended(
    life: Life, record: Record
) -> None:
    """Peers name whoever is on the CPU when the FIN is acknowledged: not a process that is gone."""
    (_, line) = life.left.lines()
    key = strings(ends_of(line._asdict()))
    event, (row,) = life.events[key], life.rows[key]
    assert (event["pid"], event["comm"], event["owner"]) == (line.pid, "nb-worker", "exact")
    at_fault(life.tool, row[0] != str(line.pid), row, record)


def test_tcplife_names_the_owner_whoever_is_on_the_cpu(life: Life, record: Record) -> None:
    wrong = []
    for line in all_lines(life):
        key = strings(ends_of(line._asdict()))
        assert (life.events[key]["pid"], life.events[key]["comm"]) == (line.pid, line.comm)
        if life.rows[key][0][0] != str(line.pid):
            wrong.append((line.close, line.pid, *life.rows[key][0]))
    record(life.tool, f"{len(wrong)} of {len(all_lines(life))} are wrong, such as {wrong[:5]}")


@pytest.mark.parametrize("tool", [book("tcplife")], ids=str)
def test_tcplife_shows_the_remote_port(
    tool: Tool, crowd: Crowd, tmp_path_factory: pytest.TempPathFactory, record: Record
) -> None:
    """The book's script swaps its bytes in place, which does nothing in bpftrace 0.17."""
    with watched(tool, tmp_path_factory, "tcplife") as (peer, run):
        wanted = ends(crowd.connect().end())
        local = {one[:2] for one in wanted}
        peer.wait_for(lambda: local <= {key_of(row)[:2] for row in peer.rows(9)})
        run.wait_for(lambda found: wanted <= {strings(ends_of(one)) for one in found})
    theirs = {key_of(row) for row in peer.rows(9)}
    at_fault(tool, not wanted & theirs, theirs, record)
