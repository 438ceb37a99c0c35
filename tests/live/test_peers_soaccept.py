"""Accepted connections, as netbpf's soaccept and its peers tell them."""

from __future__ import annotations

import contextlib
from typing import Any, NamedTuple

import peer_tools
import pytest
from ends import End
from harness import Json, wait_until
from peer_tools import Record, Tool, at_fault, bcc, bpftrace, strings, tools, watched
from test_soaccept import waiting
from topology import Host

BACKLOG = 7


class Accepts(NamedTuple):
    """Accepts, and a peer's lines: (pid, comm, raddr, rport, laddr, lport, more...)."""

    tool: Tool
    early: tuple[str, ...]  # of a call to accept that was waiting when the tools began
    made: list[tuple[str, ...]]
    events: dict[tuple[str, ...], Json]
    lines: dict[tuple[str, ...], list[str]]


@pytest.fixture(**tools(bcc("tcpaccept"), bpftrace("tcpaccept")))
def accepts(
    request: Any, two_hosts: tuple[Host, Host], tmp_path_factory: pytest.TempPathFactory
) -> Accepts:
    left, right = two_hosts
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(End.start("nb-client", left))
        servers = [stack.enter_context(End.start("nb-server", right)) for _ in range(2)]
        (one, port), (two, other) = (server.listen("ipv4", backlog=BACKLOG) for server in servers)
        servers[1].tell("accept", id=100, listener=two)
        wait_until(lambda: waiting(servers[1]), what="a call to accept")
        peer, run = stack.enter_context(watched(request.param, tmp_path_factory, "soaccept"))
        client.connect("ipv4", right.ipv4, other)
        early = accepted(servers[1], servers[1].answer())
        for _ in range(4):
            client.connect("ipv4", right.ipv4, port)
        asked = ({"four": four, "null": null} for four in (True, False) for null in (True, False))
        made = [
            accepted(servers[0], servers[0].ask("accept", id=number, listener=one, **words))
            for number, words in enumerate(asked, 101)
        ]
        peer.wait_for(lambda: f" {made[-1][2]} " in peer.text)
        run.wait_for(lambda events: {early, *made} <= set(map(accept_of, events)))
    lines = {(row[0], *row[2:6]): row for row in peer_tools.accepts(peer)}
    events = {accept_of(event): event for event in run.events}
    return Accepts(request.param, early, made, events, lines)


def accepted(server: End, told: Json) -> tuple[str, ...]:
    return strings((server.pid, *told["remote"], *told["local"]))


def accept_of(event: Json) -> tuple[str, ...]:
    return strings(tuple(event[n] for n in ("pid", "raddr", "rport", "laddr", "lport")))


def test_soaccept_sees_what_its_peers_see_with_and_without_an_address(accepts: Accepts) -> None:
    for key in accepts.made:
        assert key in accepts.events and key in accepts.lines, (key, accepts.lines)
        assert accepts.events[key]["comm"] == accepts.lines[key][1] == "nb-server"


def test_soaccept_sees_the_call_that_waited_when_it_began(accepts: Accepts, record: Record) -> None:
    assert accepts.events[accepts.early]["result"] == "OK"
    line = accepts.lines.get(accepts.early)
    at_fault(accepts.tool, line is None, line, record)


def test_soaccept_shows_the_queue_of_the_listener(accepts: Accepts, record: Record) -> None:
    events = [accepts.events[key] for key in accepts.made]
    ours = [f"{event['queue']}/{event['queue_max']}" for event in events]
    assert ours == [f"{queue}/{BACKLOG}" for queue in (3, 2, 1, 0)]
    theirs = [" ".join(accepts.lines[key][6:]) for key in accepts.made]
    at_fault(accepts.tool, theirs != ours, theirs, record)
