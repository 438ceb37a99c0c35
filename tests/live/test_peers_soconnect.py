"""Attempts to connect, as netbpf's soconnect and its peer tell them."""

from __future__ import annotations

import contextlib
from typing import Any, NamedTuple

import pytest
from ends import Done, End
from harness import Json, wait_until
from peer_tools import Record, Tool, at_fault, book, near, tools, watched
from test_soconnect import REFUSED, UNREACHABLE
from topology import Host

RESULTS = {None: "Success", "ECONNREFUSED": "Connect refused"}


class Attempts(NamedTuple):
    """Attempts, and what was said of them; a peer's lines: [pid, comm, family, addr, port, ...]."""

    tool: Tool
    waited: list[Done]
    late: Done  # nobody waited for this one, whose first SYN was lost
    unreachable: Done
    events: list[Json]
    rows: list[list[str]]

    def event(self, done: Done) -> Json:
        (found,) = [one for one in self.events if (one["raddr"], one["rport"]) == done.line[3:5]]
        return found

    def row(self, done: Done) -> list[str]:
        """Return what the peer said of it: latency (us), then the words of the result."""
        ends = [done.line.raddr, str(done.line.rport)]
        (found,) = [row for row in self.rows if row[3:5] == ends]
        assert found[:2] == [str(done.line.pid), "nb-client"]
        return found[5:]


@pytest.fixture(**tools(book("soconnect")))
def attempts(
    request: Any, two_hosts: tuple[Host, Host], tmp_path_factory: pytest.TempPathFactory
) -> Attempts:
    left, right = two_hosts
    with contextlib.ExitStack() as stack:
        left.run("ip", "route", "add", "unreachable", f"{UNREACHABLE}/32")
        stack.callback(left.run, "ip", "route", "del", "unreachable", f"{UNREACHABLE}/32")
        client = stack.enter_context(End.start("nb-client", left))
        server = stack.enter_context(End.start("nb-server", right))
        port, other = (server.listen("ipv6", backlog=8)[1] for _ in range(2))
        peer, run = stack.enter_context(watched(request.param, tmp_path_factory, "soconnect"))
        waited = [
            client.connect(family, addr, number)
            for family, addr in (("ipv4", right.ipv4), ("ipv6", right.ipv6))
            for number in (port, REFUSED)
        ]
        unreachable = client.connect("ipv4", UNREACHABLE, port)
        with right.dropping(f"tcp dport {other}") as drops:
            late = client.connect("ipv4", right.ipv4, other, wait=False, finish=False)
            wait_until(drops.count, what="the first SYN")
        client.ask("finish", id=late.id)
        peer.wait_for(lambda: f" {other} " in peer.text)
        run.wait_for(lambda events: other in {event["rport"] for event in events})
    events = [event for event in run.events if event["pid"] == client.pid]
    rows = [row for row in peer.rows(6) if row[0] == str(client.pid)]
    return Attempts(request.param, waited, late, unreachable, events, rows)


def test_soconnect_sees_the_attempts_results_and_times_that_its_peer_sees(
    attempts: Attempts,
) -> None:
    assert len(attempts.events) == len(attempts.rows) == len(attempts.waited) + 2
    for done in attempts.waited:
        event, (latency, *result) = attempts.event(done), attempts.row(done)
        assert event["errno"] == done.line.errno
        assert RESULTS[event["errno"]] == " ".join(result)
        assert near(float(latency), event["syscall_us"])


def test_soconnect_tells_what_came_of_an_attempt_that_nobody_waited_for(
    attempts: Attempts, record: Record
) -> None:
    event, (latency, *result) = attempts.event(attempts.late), attempts.row(attempts.late)
    assert (event["errno"], event["async"], event["retransmits"]) == (None, True, 1)
    assert event["latency_us"] > 900_000
    wrong = " ".join(result) == "In progress" and float(latency) < 900_000
    at_fault(attempts.tool, wrong, (latency, *result), record)


def test_soconnect_names_every_error(attempts: Attempts, record: Record) -> None:
    event, (_, *result) = attempts.event(attempts.unreachable), attempts.row(attempts.unreachable)
    assert event["errno"] == "EHOSTUNREACH"
    at_fault(attempts.tool, not result, result, record)
