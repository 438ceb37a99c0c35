"""Who did it, when, and where: programs of an ordinary user, in a cgroup and a namespace of theirs.

The truth is the program's own pid, the user and the cgroup that this test put it into (the cgroup's
id is the inode number of its directory), the inode number of the namespace, and the wall clock read
before and after. Another program does the same beside it, as root and elsewhere.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import NamedTuple

import pytest
import topology
import traffic
from compared import compares
from ends import End
from harness import Json, seconds, wait_until
from topology import Host

NOBODY = 65534
DROPPED = 10


class Stranger(NamedTuple):
    """A process of an ordinary user, and its cgroup's id."""

    end: End
    cgroup: int


@contextlib.contextmanager
def stranger(host: Host) -> Iterator[Stranger]:
    script = 'echo $$ > "$0/cgroup.procs"; exec "$@"'
    user = ["setpriv", f"--reuid={NOBODY}", "--clear-groups"]
    with topology.cgroup("inner") as cgroup:
        with End.start("nb-stranger", host, ["sh", "-c", script, cgroup, *user]) as end:
            yield Stranger(end, cgroup.stat().st_ino)


@pytest.fixture(scope="module")
def hosts(two_hosts: tuple[Host, Host]) -> tuple[Host, Host]:
    return two_hosts


def check(event: Json, who: Stranger, host: Host, begin: float, end: float) -> None:
    assert (event["pid"], event["comm"], event["uid"]) == (who.end.pid, "nb-stranger", NOBODY)
    assert (event["netns"], event["cgroup"]) == (host.inode, who.cgroup)
    assert begin - 0.002 <= seconds(event["time"]) <= end + 0.002


@compares("soconnect", "time", "laddr", "uid", "netns", "cgroup")
def test_who_connects(netbpf, hosts) -> None:
    left, right = hosts
    with stranger(left) as who, End.start("nb-server", right) as server:
        _, port = server.listen("ipv4")
        with netbpf("soconnect", "-D", port) as run:
            begin = time.time()
            done = who.end.connect("ipv4", right.ipv4, port)
            end = time.time()
            with End.start("nb-root", right) as root:
                other = root.connect("ipv4", right.ipv4, port)
                run.wait_for(2)
                pid = root.pid
    first, second = run.events
    check(first, who, left, begin, end)
    assert (first["laddr"], first["lport"]) == done.local
    assert (second["pid"], second["uid"], second["netns"]) == (pid, 0, right.inode)
    assert (second["laddr"], second["lport"]) == other.local
    assert second["cgroup"] != who.cgroup


@compares("soaccept", "time", "uid", "netns", "cgroup")
def test_who_accepts(netbpf, hosts) -> None:
    left, right = hosts
    with stranger(right) as who, End.start("nb-client", left) as client:
        listener, port = who.end.listen("ipv4")
        with netbpf("soaccept", "-L", port) as run:
            client.connect("ipv4", right.ipv4, port)
            begin = time.time()
            who.end.ask("accept", id=1, listener=listener)
            end = time.time()
            run.wait_for(1)
    (event,) = run.events
    check(event, who, right, begin, end)


@compares("tcpretrans", "time", "uid", "cgroup")
def test_who_retransmits(netbpf, hosts) -> None:
    # The time between: when the second SYN is not there yet, and when it has been dropped.
    left, right = hosts
    with stranger(left) as who, right.dropping(f"tcp dport {DROPPED}") as drops:
        with netbpf("tcpretrans", "-D", DROPPED, "--netns", left.inode) as run:
            begin = now = time.time()
            who.end.connect("ipv4", right.ipv4, DROPPED, wait=False, finish=False)
            while drops.count() < 2:
                begin, now = now, time.time()
            end = time.time()
            run.wait_for(1)
    check(run.events[0], who, left, begin, end)


def test_an_owner_that_found_no_room_has_neither_user_nor_name(netbpf, hosts) -> None:
    # Room for one owner: of two sockets that retransmit, one has an owner.
    left, right = hosts
    words = ("-D", DROPPED, "--netns", left.inode, "--map-entries", 1)
    with stranger(left) as who, right.dropping(f"tcp dport {DROPPED}"):
        with netbpf("tcpretrans", *words) as run:
            for _ in range(2):
                who.end.connect("ipv4", right.ipv4, DROPPED, wait=False, finish=False)
            run.wait_for(2)
    known = [event for event in run.events[:2] if event["owner"] == "exact"]
    (unknown,) = [event for event in run.events[:2] if event["owner"] == "unknown"]
    assert [(event["pid"], event["uid"]) for event in known] == [(who.end.pid, NOBODY)]
    assert (unknown["pid"], unknown["comm"], unknown["uid"]) == (None, None, None)
    assert unknown["cgroup"] == 0 and run.summary["lost"]["map_full"] == 1


@compares("tcpretrans", "in_namespace", shape="summary")
@compares("tcpretrans", "family", "raddr", "netns", shape="--flows")
@pytest.mark.parametrize("family", ["ipv4", "ipv6", "mapped-client"])
def test_each_namespace_has_its_own_retransmissions(netbpf, hosts, family) -> None:
    """Both hosts send SYNs again; the counters that stand beside them are of one."""
    left, right = hosts
    with contextlib.ExitStack() as stack:
        drops = [stack.enter_context(h.dropping(f"tcp dport {DROPPED}")) for h in hosts]
        ends = [stack.enter_context(End.start("nb-client", host)) for host in hosts]
        everywhere = stack.enter_context(netbpf("tcpretrans", "-c", "-D", DROPPED))
        one = stack.enter_context(netbpf("tcpretrans", "-c", "--netns", left.inode))
        before = left.snmp()["TcpRetransSegs"]
        for end, number, target in zip(ends, (1, 2), (right, left)):
            stack_family, addr = traffic.address(target, family)
            for _ in range(number):
                end.connect(stack_family, addr, DROPPED, wait=False, finish=False)
        wait_until(lambda: drops[0].count() >= 4 and drops[1].count() >= 2, what="SYNs again")
        least = left.snmp()["TcpRetransSegs"] - before
        for run in (one, everywhere):
            run.stop()
        most = left.snmp()["TcpRetransSegs"] - before
    counted = one.summary["totals"]["in_namespace"]
    assert 1 <= least <= counted <= most
    assert counted == one.summary["counters"]["Tcp.RetransSegs"]
    ends_of = {(row["netns"], row["family"], row["raddr"], row["rport"]) for row in one.rows}
    shown = "ipv6" if family == "ipv6" else "ipv4"
    plain = {host: traffic.plain((traffic.address(host, family)[1], 0))[0] for host in hosts}
    assert ends_of == {(left.inode, shown, plain[right], DROPPED)}
    namespaces = (left.inode, right.inode)
    found = [(r["netns"], r["raddr"]) for r in everywhere.rows if r["netns"] in namespaces]
    assert sorted(found) == sorted(
        [(left.inode, plain[right]), (right.inode, plain[left]), (right.inode, plain[left])]
    )
