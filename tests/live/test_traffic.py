"""The known traffic is what it says: checked against the kernel's own counters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest
import traffic
from crowd import QUICK_ENDS
from topology import Host
from traffic import ENDS, FAMILIES, Peer, Plan

Pairs = list[tuple[Peer, Peer]]


@pytest.fixture(scope="module")
def pairs(two_hosts: tuple[Host, Host]) -> Iterator[Pairs]:
    left, right = two_hosts
    with traffic.peers() as start:
        found = [(start(f"nb-client-{i}", left), start(f"nb-server-{i}", right)) for i in range(2)]
        for _, server in found:
            for family in FAMILIES:
                server.listen(family)
        yield found


def test_plans_mix_every_family_end_and_size() -> None:
    plans = traffic.plans(1009)
    assert {(plan.family, plan.end) for plan in plans} == {(f, e) for f in FAMILIES for e in ENDS}
    for end in ("client-fin", "server-reset"):
        assert {plan.up for plan in plans if plan.end == end} == set(traffic.SIZES)
        assert {plan.down for plan in plans if plan.end == end} == set(traffic.SIZES)


def test_kernel_counts_the_sessions_that_were_made(
    two_hosts: tuple[Host, Host], pairs: Pairs
) -> None:
    left, right = two_hosts
    before = left.snmp(), right.snmp()
    plans = traffic.plans(211)
    sessions = traffic.play(plans, pairs, right)
    rise = [{n: a[n] - b[n] for n in a} for a, b in zip((left.snmp(), right.snmp()), before)]
    ends = Counter(plan.end for plan in plans)
    attempts = ends["refused"] + ends["timeout"]
    resets = sum(ends[end] for end in ENDS if end.endswith(("reset", "unread")))

    assert len(sessions) == len(plans)
    assert rise[0]["TcpActiveOpens"] == len(plans)
    assert rise[0]["TcpAttemptFails"] == attempts
    assert rise[1]["TcpPassiveOpens"] == len(plans) - attempts
    assert rise[0]["TcpEstabResets"] == rise[1]["TcpEstabResets"] == resets
    for side, name in enumerate(("client", "server")):
        assert rise[side]["TcpExtTCPAbortOnData"] == ends[f"{name}-reset"]
        assert rise[side]["TcpExtTCPAbortOnClose"] == ends[f"{name}-unread"]
    assert rise[0]["TcpExtTCPAbortOnTimeout"] == ends["timeout"]


def test_lines_of_sessions_are_all_different(two_hosts: tuple[Host, Host], pairs: Pairs) -> None:
    sessions = traffic.play(traffic.plans(101, QUICK_ENDS), pairs, two_hosts[1])
    found = traffic.lines(sessions)
    failed = sum(session.server is None for session in sessions)
    assert len(found) == sum(found.values()) == 2 * (101 - failed) + failed


@pytest.mark.parametrize("family", FAMILIES)
def test_kernel_counts_the_bytes_that_were_asked_for(pairs: Pairs, family: str) -> None:
    client, server = pairs[0]
    session = traffic.connect(client, server, family)
    orders = ((client, 65537, 100003), (server, 100003, 65537))
    for peer, send, receive in orders:
        peer.tell("transfer", id=session.id, send=send, receive=receive)
    sides = [peer.answer() for peer, *_ in orders]
    session.end("client-fin")
    # The kernel counts the SYN that the client sent.
    assert sides[0] == {"acked": 65537 + 1, "received": 100003}
    assert sides[1] == {"acked": 100003, "received": 65537}


def test_session_that_does_not_end_as_planned_is_noticed(pairs: Pairs) -> None:
    session = traffic.connect(*pairs[0])
    traffic.transfer(session, Plan("ipv4", "server-unread", 1234, 0))
    with pytest.raises(AssertionError, match="saw ECONNRESET"):
        session.end("server-fin")


def test_processes_have_the_names_and_users_that_were_asked_for(
    two_hosts: tuple[Host, Host],
) -> None:
    with traffic.peers() as start:
        peer = start("nb-somebody", two_hosts[0], uid=65534)
        child = peer.fork("nb-child")
        try:
            for process in (peer, child):
                with open(f"/proc/{process.pid}/status") as file:
                    status = dict(line.rstrip("\n").split(":\t", 1) for line in file)
                assert status["Name"] == process.comm
                assert status["Uid"].split() == ["65534"] * 4
        finally:
            child.stop()
