"""Retransmissions, as netbpf's tcpretrans and its peers tell them."""

from __future__ import annotations

import contextlib
import os
import signal
from collections import Counter
from typing import Any, NamedTuple

import peer_tools
import pytest
import test_tcpretrans as retransmissions
import traffic
from harness import Json, Run, wait_until
from peer_tools import Record, Tool, at_fault, bcc, book, bpftrace, tools, watched
from test_tcpretrans import Pair
from topology import Host

SYNS, TAILS = 7, 5
BLACK_HOLE = traffic.DROPPED_PORT
LAST = BLACK_HOLE + 1


class Again(NamedTuple):
    """Retransmissions, as netbpf and a peer told them: lines are those of `peer_tools.again`.

    The client was stopped when its SYNs to the BLACK_HOLE were sent again. `tail` are the ends of a
    session with TAILS tail loss probes, `port` that of a listener whose SYN-ACKs were sent again.
    """

    tool: Tool
    client: int
    tail: tuple[str, str]
    port: int
    events: list[Json]
    lines: list[tuple[str, ...]]


@pytest.fixture(**tools(bcc("tcpretrans", "-l"), bpftrace("tcpretrans")))
def again(
    request: Any, two_hosts: tuple[Host, Host], tmp_path_factory: pytest.TempPathFactory
) -> Again:
    left, right = two_hosts
    with contextlib.ExitStack() as stack:
        new = stack.enter_context(traffic.peers())
        pair = Pair(left, right, new("nb-client", left), new("nb-server", right))
        pair.server.listen("ipv4")
        port = pair.server.listen("mapped")
        peer, run = stack.enter_context(watched(request.param, tmp_path_factory, "tcpretrans"))
        syns_are_lost(pair, SYNS, BLACK_HOLE)
        unfinished(pair, run, port)
        tail = tail_losses(pair)
        lossy(pair)
        syns_are_lost(pair, 1, LAST)
        peer.wait_for(lambda: f"{right.ipv4}:{LAST} " in peer.text)
        run.wait_for(lambda events: LAST in {event["rport"] for event in events})
    ours = {left.ipv4, right.ipv4}
    lines = [
        one
        for one in peer_tools.again(peer.text)
        if {one[1].split(":")[0], one[3].split(":")[0]} == ours
    ]
    events = retransmissions.ours(run.events, left, right)
    return Again(request.param, pair.client.pid, tail, port, events, lines)


def syns_are_lost(pair: Pair, number: int, port: int) -> None:
    """Let connects begin, stop the client, and wait until its SYNs have been sent again."""
    with pair.right.dropping(f"tcp dport {port}") as drops:
        idents = pair.sockets(number, port=port)
        os.kill(pair.client.pid, signal.SIGSTOP)
        try:
            assert drops.count() == number, "the test itself failed: SYNs were sent again already"
            wait_until(lambda: drops.count() >= 2 * number, what="retransmissions")
        finally:
            os.kill(pair.client.pid, signal.SIGCONT)
        pair.close(idents)


def unfinished(pair: Pair, run: Run, port: int) -> None:
    """Let handshakes miss their last packet until the SYN-ACKs have been sent again."""
    with pair.right.dropping(f"tcp dport {port} tcp flags & (syn | ack) == ack"):
        idents = pair.sockets(2, "mapped", port)
        run.wait_for(lambda events: [event["lport"] for event in events].count(port) >= 2)
    pair.close(idents)


def tail_losses(pair: Pair) -> tuple[str, str]:
    """Lose the last segment again and again; return the session's ends."""
    session = traffic.connect(pair.client, pair.server)
    session.transfer(up=10_007)
    with pair.lossy(session, 2):
        for _ in range(TAILS):
            session.transfer(up=1000)  # it is dropped, its retransmission is not
            session.transfer(up=100)  # before the next probe something else must be acked
    session.end()
    return "{}:{}".format(*session.local), "{}:{}".format(*session.remote)


def lossy(pair: Pair) -> None:
    session = traffic.connect(pair.client, pair.server)
    session.transfer(up=100_003)
    with pair.lossy(session, 7):
        session.transfer(up=300_007)
    session.end()


def both_ends(event: Json) -> tuple[str, str]:
    return f"{event['laddr']}:{event['lport']}", f"{event['raddr']}:{event['rport']}"


def test_tcpretrans_sees_the_retransmissions_that_its_peers_see(again: Again) -> None:
    kinds = {event["kind"] for event in again.events}
    assert {"SYN", "SYNACK", "TLP", "FAST"} <= kinds, "the test itself failed"
    # bpftrace's probe is below the timer and above tail loss probes.
    unseen = {"SYNACK", "TLP"} if again.tool.script else {"SYNACK"}
    told = [event for event in again.events if event["kind"] not in unseen]
    wanted = Counter((*both_ends(event), event["state"]) for event in told)
    assert Counter((one[1], one[3], one[4]) for one in again.lines if one[2] != "L") == wanted


def test_tcpretrans_tells_a_tail_loss_probe_once(again: Again, record: Record) -> None:
    told = [event["kind"] for event in again.events if both_ends(event) == again.tail]
    assert told == ["TLP"] * TAILS
    lines = [line for line in again.lines if (line[1], line[3]) == again.tail]
    at_fault(again.tool, len(lines) != TAILS, lines, record)


def test_tcpretrans_names_the_owner_while_it_is_stopped(again: Again, record: Record) -> None:
    """Peers name whoever is on the CPU when the timer fires: not a process that is stopped."""
    syns = [event for event in again.events if event["rport"] == BLACK_HOLE]
    assert len(syns) >= SYNS
    assert {(e["pid"], e["comm"], e["owner"]) for e in syns} == {
        (again.client, "nb-client", "exact")
    }
    lines = [line for line in again.lines if line[3].endswith(f":{BLACK_HOLE}")]
    assert len(lines) == len(syns)
    wrong = str(again.client) not in {line[0] for line in lines}
    at_fault(again.tool, wrong, lines, record)


def test_tcpretrans_tells_of_syn_acks(again: Again, record: Record) -> None:
    told = [event["kind"] for event in again.events if event["lport"] == again.port]
    assert told == ["SYNACK"] * 2
    lines = [line for line in again.lines if line[1].endswith(f":{again.port}")]
    at_fault(again.tool, len(lines) != 2, lines, record)


@pytest.mark.parametrize("tool", [book("tcpretrans")], ids=str)
def test_tcpretrans_shows_the_remote_port(
    tool: Tool,
    two_hosts: tuple[Host, Host],
    tmp_path_factory: pytest.TempPathFactory,
    record: Record,
) -> None:
    """The book's script swaps its bytes in place, which does nothing in bpftrace 0.17."""
    left, right = two_hosts
    with contextlib.ExitStack() as stack:
        new = stack.enter_context(traffic.peers())
        pair = Pair(left, right, new("nb-client", left), new("nb-server", right))
        peer, run = stack.enter_context(watched(tool, tmp_path_factory, "tcpretrans"))
        syns_are_lost(pair, 1, BLACK_HOLE)
        peer.wait_for(lambda: f" {right.ipv4}:" in peer.text)
        run.wait_for(lambda events: retransmissions.ours(events, left, right))
    events = retransmissions.ours(run.events, left, right)
    assert {event["rport"] for event in events} == {BLACK_HOLE}
    ends = {line[3] for line in peer_tools.again(peer.text)}
    at_fault(tool, f"{right.ipv4}:{BLACK_HOLE}" not in ends, ends, record)
