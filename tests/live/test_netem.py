"""The tools tell the truth about a network that loses, delays and reorders: netem plays it.

What netem does to which packet is chance. So nothing here counts what was expected: what a tool
says must agree with the kernel's counters of the same namespace, and with the programs' own clocks.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest
import topology
import traffic
from ends import Attempt, Done, End
from harness import SLOW, TIMEOUT, Json, wait_until
from test_soconnect import event_of, near
from test_tcpnagle import SMALL, TCP, Pair, check, long_holds, settings
from test_tcpretrans import counted, ours, segments
from topology import Host
from traffic import Peer, Session

ONE_WAY = 0.05  # s
ROUNDS = 10
ENOUGH = 30  # retransmissions
MANY = 40  # transfers: with 10 % loss, not one of which would lose nothing


@pytest.fixture(scope="module", autouse=True)
def netem(two_hosts: tuple[Host, Host]) -> None:
    """Make sure of it, or say why there is nothing to be tested."""
    left = two_hosts[0]
    if shutil.which("modprobe"):  # a container may have none
        subprocess.run(["modprobe", "-q", "sch_netem"], check=False)
    try:
        with disturbed(left, "delay", "1ms"):
            pass
    except (AssertionError, FileNotFoundError) as error:
        pytest.skip(f"needs a kernel with CONFIG_NET_SCH_NETEM, as in `make vm`: {error}")


@contextlib.contextmanager
def disturbed(host: Host, *how: str, device: str = "") -> Iterator[None]:
    """Let netem work on what leaves a host, in the block."""
    place = ["dev", device or host.device, "root"]
    host.run("tc", "qdisc", "replace", *place, "netem", *how)
    try:
        yield
    finally:
        host.run("tc", "qdisc", "del", *place)


def lost(host: Host) -> int:
    """Return how many packets netem has dropped."""
    shown = host.run("tc", "-s", "-j", "qdisc", "show", "dev", host.device)
    return sum(one["drops"] for one in json.loads(shown) if one["kind"] == "netem")


@contextlib.contextmanager
def far_apart(left: Host, right: Host) -> Iterator[None]:
    """Put a delay on each way: a round trip then takes twice ONE_WAY."""
    how = ("delay", f"{ONE_WAY * 1000:g}ms")
    with disturbed(left, *how), disturbed(right, *how):
        yield


# --- tcpretrans -----------------------------------------------------------------------------------


@contextlib.contextmanager
def talkers(left: Host, right: Host) -> Iterator[tuple[Peer, Peer]]:
    with traffic.peers() as new:
        client, server = new("nb-client", left), new("nb-server", right)
        for family in ("ipv4", "ipv6"):
            server.listen(family)
        yield client, server


@pytest.fixture(scope="module")
def pair(two_hosts: tuple[Host, Host]) -> Iterator[tuple[Peer, Peer]]:
    with talkers(*two_hosts) as found:
        yield found


def by_whom(events: list[Json]) -> set[tuple[Any, ...]]:
    return {(event["pid"], event["comm"], event["owner"]) for event in events}


def ends_of(event: Json) -> tuple[Any, ...]:
    return (event["laddr"], event["lport"]), (event["raddr"], event["rport"])


def timer(rise: dict[str, int]) -> int:
    """What the timer sent, and what was sent again as a consequence."""
    return rise["TcpExtTCPTimeouts"] + rise["TcpExtTCPSlowStartRetrans"]


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_random_loss_adds_up_to_the_kernels_counters(
    netbpf: Any, two_hosts: tuple[Host, Host], pair: tuple[Peer, Peer], family: str
) -> None:
    left, right = two_hosts
    with contextlib.ExitStack() as stack:
        run = stack.enter_context(netbpf("tcpretrans", "--netns", left.inode))
        rise = stack.enter_context(counted(left))
        session = traffic.connect(*pair, family)
        with disturbed(left, "loss", "10%"), disturbed(right, "loss", "2%", "delay", "3ms"):
            before = left.snmp()["TcpRetransSegs"]
            for _ in range(MANY):
                session.transfer(up=60_013)
                if left.snmp()["TcpRetransSegs"] - before >= ENOUGH:
                    break
            dropped = lost(left)
        session.end()
    events = run.events
    assert dropped > 0, "the test itself failed: nothing was lost"
    assert segments(events) == rise["TcpRetransSegs"] == run.summary["totals"]["in_namespace"]
    assert segments(events) >= ENOUGH
    assert segments(events, "FAST") == rise["TcpExtTCPFastRetrans"]
    assert segments(events, "RTO") == timer(rise)
    assert segments(events, "TLP") <= rise["TcpExtTCPLossProbes"]
    assert by_whom(events) == {(session.client.pid, "nb-client", "exact")}
    assert {ends_of(event) for event in events} == {(session.local, session.remote)}
    assert {event["family"] for event in events} == {family}
    assert run.summary["complete"] is True


def test_delay_alone_gives_no_line(
    netbpf: Any, two_hosts: tuple[Host, Host], pair: tuple[Peer, Peer]
) -> None:
    left, right = two_hosts
    with netbpf("tcpretrans") as run, counted(left) as rise, far_apart(left, right):
        session = traffic.connect(*pair)
        session.transfer(up=300_007, down=100_003)
        session.end()
    assert rise["TcpRetransSegs"] == 0
    assert ours(run.events, left, right) == []


def test_acknowledgements_that_come_too_late_make_retransmissions_that_were_not_needed(
    netbpf: Any, two_hosts: tuple[Host, Host], pair: tuple[Peer, Peer]
) -> None:
    left, right = two_hosts
    with netbpf("tcpretrans", "--netns", left.inode) as run, counted(left) as rise:
        session = traffic.connect(*pair)
        session.transfer(up=10_007)
        # Longer than the retransmission timer: 200 ms for a round trip of next to nothing.
        with disturbed(right, "delay", "600ms"):
            session.transfer(up=30_011)
            session.end()
    assert segments(run.events) == rise["TcpRetransSegs"] > 0
    assert segments(run.events, "RTO") == timer(rise) > 0
    assert segments(run.events, "FAST") == rise["TcpExtTCPFastRetrans"]
    # The receiver had all of it, and says so of what comes a second time.
    assert 0 < rise["TcpExtTCPDSACKRecv"] <= segments(run.events)
    assert {ends_of(event) for event in run.events} == {(session.local, session.remote)}


@contextlib.contextmanager
def routed() -> Iterator[tuple[Host, Host, Host]]:
    """Two hosts with a router between them.

    A sender does not send again what it still has itself, and to TCP what waits on a veth is with
    the sender. What a router holds is not.
    """
    with contextlib.ExitStack() as stack:
        first, middle, last = (stack.enter_context(topology.namespace()) for _ in range(3))
        left, right = Host(first, "eth0", "10.92.1.1"), Host(last, "eth0", "10.92.2.1")
        router = Host(middle, "right")
        for host, name in ((left, "left"), (right, "right")):
            words = ["type", "veth", "peer", "name", name, "netns", middle]
            host.run("ip", "link", "add", host.device, *words)
            gateway = host.ipv4[:-1] + "2"
            for where, device, addr in ((host, "eth0", host.ipv4), (router, name, gateway)):
                where.run("ip", "address", "add", f"{addr}/24", "dev", device)
                where.run("ip", "link", "set", device, "up")
            host.run("ip", "route", "add", "default", "via", gateway)
        router.sysctl(net__ipv4__ip_forward=1)
        yield left, router, right


def test_retransmissions_under_reordering_are_lines_although_nothing_was_lost(netbpf: Any) -> None:
    with contextlib.ExitStack() as stack:
        left, router, right = stack.enter_context(routed())
        run = stack.enter_context(netbpf("tcpretrans", "--netns", left.inode))
        rise, far = stack.enter_context(counted(left)), stack.enter_context(counted(right))
        session = traffic.connect(*stack.enter_context(talkers(left, right)))
        session.transfer(up=100_003)
        how = ("delay", "20ms", "reorder", "30%", "limit", "10000")
        with disturbed(router, *how):
            reorder(session, left, right)
            assert lost(router) == 0
        session.end()
    assert far["TcpExtTCPOFOQueue"] > 0, "the test itself failed: all came in order"
    assert segments(run.events) == rise["TcpRetransSegs"] > 0
    assert segments(run.events, "FAST") == rise["TcpExtTCPFastRetrans"] > 0
    assert segments(run.events, "RTO") == timer(rise)
    assert segments(run.events, "TLP") <= rise["TcpExtTCPLossProbes"]
    # As nothing was lost, each came a second time; one acknowledgement may tell that of several.
    told = rise["TcpExtTCPDSACKRecv"] + rise["TcpExtTCPDSACKOfoRecv"]
    assert 0 < told <= segments(run.events)
    assert {ends_of(event) for event in run.events} == {(session.local, session.remote)}


def reorder(session: Session, left: Host, right: Host) -> None:
    """Transfer until a sender believed in loss because of the order, and was told of its error."""
    wanted = [
        (right, "TcpExtTCPOFOQueue"),
        (left, "TcpExtTCPFastRetrans"),
        (left, "TcpExtTCPDSACKRecv"),
    ]
    before = [host.snmp()[name] for host, name in wanted]
    for _ in range(MANY):
        session.transfer(up=200_003)
        if all(host.snmp()[name] > old for (host, name), old in zip(wanted, before)):
            return
    raise AssertionError("the test itself failed: nothing came in another order and twice")


# --- soconnect ------------------------------------------------------------------------------------


@contextlib.contextmanager
def connectors(left: Host, right: Host, number: int) -> Iterator[tuple[list[End], int]]:
    """Yield that many clients, and a port where connections of both families are established."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(End.start("nb-server", right))
        clients = [stack.enter_context(End.start("nb-client", left)) for _ in range(number)]
        yield clients, server.listen("ipv6", backlog=4096)[1]


def test_handshakes_over_a_long_way_take_a_round_trip(
    netbpf: Any, two_hosts: tuple[Host, Host]
) -> None:
    left, right = two_hosts
    with connectors(left, right, 1) as ((client,), port), far_apart(left, right):
        with netbpf("soconnect", "-p", client.pid) as run:
            done = [
                client.connect(family, addr, number, wait=wait)
                for family, addr in (("ipv4", right.ipv4), ("ipv6", right.ipv6))
                for wait in (True, False)
                for number in (port, traffic.REFUSED_PORT)
            ]
            run.wait_for(len(done))
    for one in done:
        event = event_of(run.events, one)
        assert Attempt.of(event) == one.line
        taken = one.over - one.begin
        assert 2 * ONE_WAY * 1e6 <= event["handshake_us"] <= taken * 1e6
        assert near(event["handshake_us"], taken), (event, taken)
        assert event["retransmits"] == 0
        if not one.line.isasync:
            assert near(event["syscall_us"], taken), (event, taken)
        else:
            assert event["syscall_us"] <= (one.returned - one.begin) * 1e6


def test_handshakes_whose_syns_are_lost_take_as_long_as_the_program_waited(
    netbpf: Any, two_hosts: tuple[Host, Host]
) -> None:
    left, right = two_hosts
    with contextlib.ExitStack() as stack:
        clients, port = stack.enter_context(connectors(left, right, 8))
        pids = ",".join(str(client.pid) for client in clients)
        run = stack.enter_context(netbpf("soconnect", "-p", pids))
        rise = stack.enter_context(counted(left))
        done: list[Done] = []
        for _ in range(MANY):
            dropped, made = through_loss(left, clients, right.ipv4, port)
            done += made
            if dropped:
                break
        run.wait_for(len(done))
    assert dropped, "the test itself failed: nothing was lost"
    found = [event_of(run.events, one) for one in done]
    assert len(found) == len(run.events)
    for one, event in zip(done, found):
        taken = one.over - one.begin
        assert Attempt.of(event) == one.line
        assert event["handshake_us"] <= event["syscall_us"] <= taken * 1e6
        # Those that lost nothing are many at once: a program may then see its answer late.
        if event["retransmits"]:
            assert near(event["handshake_us"], taken), (event, taken)
            assert near(event["syscall_us"], taken), (event, taken)
        # The first retransmission of a SYN comes after a second.
        assert event["retransmits"] <= taken < 1 + 2 * event["retransmits"], (event, taken)
    assert 0 < sum(event["retransmits"] for event in found) == rise["TcpExtTCPSynRetrans"]


def through_loss(left: Host, clients: list[End], addr: str, port: int) -> tuple[int, list[Done]]:
    """Let all connect at once while SYNs get lost, once each; return how many were."""
    opens = left.snmp()["TcpActiveOpens"]
    with disturbed(left, "loss", "50%"):
        for client in clients:
            client.ask("open", id=1, family="ipv4")
            client.tell("connect", id=1, family="ipv4", addr=addr, port=port)
        wait_until(lambda: left.snmp()["TcpActiveOpens"] - opens == len(clients), what="SYNs")
    answers = [client.answer() for client in clients]
    again = [answer for answer in answers if answer["end"] - answer["begin"] >= 1]
    return len(again), [
        as_seen(client, answer, addr, port) for client, answer in zip(clients, answers)
    ]


def as_seen(client: End, answer: Json, addr: str, port: int) -> Done:
    line = Attempt(client.pid, "tcp", "ipv4", addr, port, answer["errno"] or None, False)
    return Done(1, line, tuple(answer["local"]), answer["begin"], answer["end"], answer["end"])


# --- tcpnagle -------------------------------------------------------------------------------------


@pytest.fixture
def far(two_hosts: tuple[Host, Host]) -> Iterator[Pair]:
    with far_apart(*two_hosts), contextlib.closing(Pair(*two_hosts)) as made:
        yield made


def write_write(far: Pair) -> float:
    """Return for how long the second write was held: what it was under way without the way."""
    # The first one is to be acknowledged as soon as it arrives.
    far.server.setsockopt(TCP, socket.TCP_QUICKACK, 1)
    far.client.sendall(SMALL)
    far.client.sendall(SMALL)
    begin = time.monotonic()
    held = far.receive(2 * len(SMALL)) - begin - ONE_WAY
    wait_until(lambda: not far.unacknowledged(), what="the acknowledgement")
    return held


def test_nagle_holds_for_a_round_trip(netbpf: Any, two_hosts: tuple[Host, Host], far: Pair) -> None:
    with netbpf("tcpnagle", "--netns", two_hosts[0].inode) as run:
        arranged = [write_write(far) for _ in range(ROUNDS)]
        run.stop()
    for held in arranged:
        assert near(2 * ONE_WAY * 1e6, held), f"the test itself failed: {arranged}"
    check(run, "nagle", arranged)
    (histogram,) = [one for one in run.histograms if one["key"] == {"reason": "nagle"}]
    assert near(histogram["sum"] / ROUNDS, 2 * ONE_WAY), histogram
    assert settings(run) == {"ON": (2 * ROUNDS, ROUNDS)}


def test_time_on_the_way_is_not_held(netbpf: Any, two_hosts: tuple[Host, Host], far: Pair) -> None:
    with netbpf("tcpnagle", "--netns", two_hosts[0].inode) as run:
        # Alone, small data leaves at once; with TCP_NODELAY also behind other data.
        far.client.sendall(SMALL)
        far.receive(len(SMALL))
        wait_until(lambda: not far.unacknowledged(), TIMEOUT, "the acknowledgement")
        far.set(socket.TCP_NODELAY, 1)
        for _ in range(4):
            far.client.sendall(SMALL)
        far.receive(4 * len(SMALL))
        run.stop()
    assert run.histograms == []
    assert settings(run) == {"ON": (1, 0), "OFF": (4, 0)}


def test_congestion_window_holds_until_the_last_byte_leaves(
    netbpf: Any, two_hosts: tuple[Host, Host], far: Pair
) -> None:
    size = 60_000  # more than the first ten segments, and than the twenty of the next round trip
    with netbpf("tcpnagle", "--netns", two_hosts[0].inode) as run:
        far.client.sendall(b"x" * size)
        begin = time.monotonic()
        arranged = far.receive(size) - begin - ONE_WAY
        run.stop()
    assert 4 * ONE_WAY <= arranged + 0.002 * SLOW, f"the test itself failed: {arranged}"
    assert long_holds(run) == {"cwnd": 1}
    check(run, "cwnd", [arranged])
