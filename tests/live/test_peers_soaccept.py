"""Accepted connections, as netbpf's soaccept and its peers tell them."""

from __future__ import annotations

import contextlib
from typing import Any, NamedTuple

import peer_tools
import pytest
from ends import End
from harness import Json, accepting, wait_until
from peer_tools import Record, Tool, at_fault, bcc, book, bpftrace, strings, tools, watched
from topology import Host

BACKLOG = 7


Key = tuple[str, ...]  # pid, raddr, rport


class Accepts(NamedTuple):
    """Accepts, and a peer's lines: [pid, comm, raddr, rport, more...]."""

    tool: Tool
    early: Key  # of a call to accept that was waiting when the tools began
    made: dict[Key, bool]  # did the call ask for the other end's address?
    events: dict[Key, Json]
    lines: dict[Key, list[str]]


@pytest.fixture(**tools(bcc("tcpaccept"), bpftrace("tcpaccept"), book("soaccept")))
def accepts(
    request: Any, two_hosts: tuple[Host, Host], tmp_path_factory: pytest.TempPathFactory
) -> Accepts:
    left, right = two_hosts
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(End.start("nb-client", left))
        servers = [stack.enter_context(End.start("nb-server", right)) for _ in range(2)]
        (one, port), (two, other) = (server.listen("ipv4", backlog=BACKLOG) for server in servers)
        servers[1].tell("accept", id=100, listener=two, null=False)
        wait_until(lambda: accepting(servers[1].pid), what="a call to accept")
        peer, run = stack.enter_context(watched(request.param, tmp_path_factory, "soaccept"))
        client.connect("ipv4", right.ipv4, other)
        early = accepted(servers[1], servers[1].answer())
        for _ in range(4):
            client.connect("ipv4", right.ipv4, port)
        asked = ({"four": four, "null": null} for four in (True, False) for null in (True, False))
        made = {}
        for number, words in enumerate(asked, 101):
            told = servers[0].ask("accept", id=number, listener=one, **words)
            made[accepted(servers[0], told)] = not words["null"]
            last = told["remote"][1]
        peer.wait_for(lambda: f" {last} " in peer.text)
        run.wait_for(lambda events: {early, *made} <= set(map(accept_of, events)))
    lines = {(row[0], *row[2:4]): row for row in peer_tools.accepts(peer)}
    events = {accept_of(event): event for event in run.events}
    return Accepts(request.param, early, made, events, lines)


def accepted(server: End, told: Json) -> Key:
    return strings((server.pid, *told["remote"]))


def accept_of(event: Json) -> Key:
    return strings(tuple(event[name] for name in ("pid", "raddr", "rport")))


def test_soaccept_sees_what_its_peers_see(accepts: Accepts) -> None:
    for key, asked in accepts.made.items():
        assert accepts.events[key]["comm"] == "nb-server"
        if asked or accepts.tool.name != "soaccept.bt":
            assert accepts.lines[key][1] == "nb-server"


def test_soaccept_sees_calls_that_do_not_ask_for_the_address(
    accepts: Accepts, record: Record
) -> None:
    """The book's script reads the address from the caller's memory, which gave none."""
    silent = [key for key, asked in accepts.made.items() if not asked]
    assert len(silent) == 2 and set(silent) <= set(accepts.events)
    unseen = [key for key in silent if key not in accepts.lines]
    if accepts.tool.name == "soaccept.bt":
        at_fault(accepts.tool, unseen == silent, list(accepts.lines.values()), record)
    else:
        assert not unseen


def test_soaccept_sees_the_call_that_waited_when_it_began(accepts: Accepts, record: Record) -> None:
    assert accepts.events[accepts.early]["result"] == "OK"
    line = accepts.lines.get(accepts.early)
    at_fault(accepts.tool, line is None, line, record)


def test_soaccept_shows_the_queue_of_the_listener(accepts: Accepts, record: Record) -> None:
    events = [accepts.events[key] for key in accepts.made]
    ours = [f"{event['queue']}/{event['queue_max']}" for event in events]
    assert ours == [f"{queue}/{BACKLOG}" for queue in (3, 2, 1, 0)]
    theirs = [" ".join(accepts.lines.get(key, [])[6:]) for key in accepts.made]
    at_fault(accepts.tool, theirs != ours, theirs, record)
