"""superping has each echo request once, with the times that the sockets themselves tell."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Callable

import pytest
import topology
from alternatives import Case, Stage, events
from compared import compares
from crowd import CONTAINER, NOBODY
from harness import Json, Run, seconds, stopped, wait_until
from pings import IP_LENGTH, NAMES, PAYLOAD, V4, V6, Pinger, address, echo, icmp, program
from topology import Host, cgroup_of

ERRORS = {  # type, code and 4 bytes of the messages that end a request
    V4: {"unreachable": (3, 1, 0), "too-big": (3, 4, 1500), "time-exceeded": (11, 0, 0),
         "bad-header": (12, 0, 0)},
    V6: {"unreachable": (1, 3, 0), "too-big": (2, 0, 1500), "time-exceeded": (3, 0, 0),
         "bad-header": (4, 1, 0)},
}  # fmt: skip
OTHERS = {V4: (5, 14, 17), V6: (137, 201)}  # types that end none: redirects and others
TTL = 61


@pytest.fixture
def pinger() -> Iterator[Callable[..., Pinger]]:
    made: list[Pinger] = []

    def new(host: Host, *words: Any, **more: Any) -> Pinger:
        host.sysctl(net__ipv4__ping_group_range="0 2147483647")
        made.append(Pinger(host, *words, **more))
        return made[-1]

    yield new
    for one in made:
        one.close()


@contextlib.contextmanager
def silent(host: Host) -> Iterator[None]:
    """Let a host not reply within the block."""
    host.sysctl(net__ipv4__icmp_echo_ignore_all=1, net__ipv6__icmp__echo_ignore_all=1)
    try:
        yield
    finally:
        host.sysctl(net__ipv4__icmp_echo_ignore_all=0, net__ipv6__icmp__echo_ignore_all=0)


@contextlib.contextmanager
def spaced(host: Host, length: int) -> Iterator[None]:
    """Let packets of a length leave a host one after the other, 10 ms apart, with another TTL."""
    qdisc = ("dev", host.device, "root")
    rate = f"{(length + 14) * 8 * 100}bit"
    limits = ("rate", rate, "burst", length + 20, "limit", 100000)
    hops = f"net__ipv6__conf__{host.device}__hop_limit"
    host.run("tc", "qdisc", "add", *qdisc, "tbf", *limits)
    host.sysctl(net__ipv4__ip_default_ttl=TTL, **{hops: TTL})
    try:
        yield
    finally:
        host.sysctl(net__ipv4__ip_default_ttl=64, **{hops: 64})
        host.run("tc", "qdisc", "delete", *qdisc)


@contextlib.contextmanager
def ruled(host: Host, rules: str) -> Iterator[None]:
    """Let a host have rules of nftables within the block."""
    host.run("nft", "-f", "-", input=f"table ip nb-ping {{\n{rules}\n}}\n")
    try:
        yield
    finally:
        host.run("nft", "delete", "table", "ip", "nb-ping")


def us() -> tuple[int, str]:
    return os.getpid(), Path("/proc/self/comm").read_text().strip()


def within(value: int | None, low: int, high: int) -> bool:
    """Whether a time in us is in a range in ns."""
    return value is not None and max(0, low) // 1000 <= value <= high // 1000 + 1


def by_seq(found: Sequence[Json]) -> dict[int, Json]:
    """Return the lines by the number of the request; each has one."""
    lines = {line["seq"]: line for line in found}
    assert len(lines) == len(found)
    return lines


@pytest.fixture
def lines(netbpf: Any, two_hosts: tuple[Host, Host]) -> Callable[..., Any]:
    """Run the tool in the namespace of the left host."""
    return lambda *words, **more: netbpf("superping", "--netns", two_hosts[0].inode, *words, **more)


KINDS = [(V4, "raw"), (V4, "dgram"), (V6, "raw"), (V6, "dgram")]
every_kind = pytest.mark.parametrize(
    "family, kind", KINDS, ids=("raw4", "dgram4", "raw6", "dgram6")
)
both_families = pytest.mark.parametrize("family", (V4, V6), ids=("ipv4", "ipv6"))


# --- replies --------------------------------------------------------------------------------------


@compares(
    "superping", "time", "pid", "comm", "owner", "family", "laddr", "raddr", "ident", "seq", "len",
    "ttl", "rtt_us", "wait_us", "result", "from_addr", "dev", "uid", "netns", "cgroup",
)  # fmt: skip
@every_kind
def test_each_request_has_a_line_with_the_times_of_its_socket(
    lines: Any, two_hosts: tuple[Host, Host], pinger: Any, family: int, kind: str
) -> None:
    left, right = two_hosts
    target = address(right, family)
    length = IP_LENGTH[family] + 8 + PAYLOAD
    one = pinger(left, family, kind)
    with spaced(right, length), lines() as run:
        sent = {seq: one.send(target, seq) for seq in range(1, 24)}
        got = {}
        for number in range(23):
            answer = one.receive(0.017 if number == 22 else 0)
            got[answer.seq] = answer
        run.wait_for(23)
        after = time.time()
    found = by_seq(run.events)
    assert sorted(found) == sorted(got) == list(range(1, 24))
    pid, comm = us()
    for seq, event in found.items():
        request, answer = sent[seq], got[seq]
        assert answer.before / 1e9 - 1e-6 <= seconds(event["time"]) <= after
        assert (event["pid"], event["comm"], event["owner"]) == (pid, comm, "exact")
        assert (event["uid"], event["cgroup"]) == (os.getuid(), cgroup_of(pid))
        assert (event["family"], event["laddr"]) == (NAMES[family], address(left, family))
        assert (event["raddr"], event["from_addr"]) == (target, target)
        assert (event["ident"], event["len"], event["ttl"]) == (one.ident, length, TTL)
        assert (event["result"], event["age_us"]) == ("reply", None)
        assert (event["dev"], event["netns"]) == (left.device, left.inode)
        assert within(event["rtt_us"], answer.received - request.after,
                      answer.readable - request.before), event  # fmt: skip
        assert within(event["wait_us"], answer.before - answer.readable,
                      answer.after - answer.received), event  # fmt: skip
    assert max(event["rtt_us"] for event in run.events) >= 200_000
    assert max(event["wait_us"] for event in run.events) >= 17_000
    counters = run.summary["counters"]
    group = ("Icmp.OutEchos", "Icmp.InEchoReps", "Icmp6.OutEchos", "Icmp6.InEchoReplies")
    counted = [counters[name] for name in group]
    assert counted == ([23, 23, 0, 0] if family == V4 else [0, 0, 23, 23])
    assert not any(run.summary["lost"].values()) and run.summary["open"] == 0


@both_families
def test_requests_over_loopback(netbpf: Any, one_host: Host, pinger: Any, family: int) -> None:
    one = pinger(one_host, family)
    with netbpf("superping", "--netns", one_host.inode) as run:
        one.ping(address(one_host, family), 7)
        run.wait_for(7)
    assert sorted(by_seq(run.events)) == list(range(1, 8))
    for event in run.events:
        assert (event["result"], event["dev"], event["laddr"]) == ("reply", "lo", event["raddr"])
        assert event["rtt_us"] is not None and event["wait_us"] is not None


@both_families
def test_requests_and_replies_in_fragments(
    lines: Any, two_hosts: tuple[Host, Host], pinger: Any, family: int
) -> None:
    left, right = two_hosts
    one = pinger(left, family)
    with lines() as run:
        for seq, payload in ((1, 4001), (2, 13), (3, 20011)):
            sent = one.send(address(right, family), seq, payload)
            answer = one.receive()
            run.wait_for(seq)
            event = by_seq(run.events)[seq]
            assert event["len"] == (IP_LENGTH[family] + 8 + 13 if seq == 2 else None)
            assert event["result"] == "reply"
            assert within(event["rtt_us"], 0, answer.readable - sent.before)
            assert within(event["wait_us"], 0, answer.after - sent.before)


def test_equal_numbers_in_two_namespaces(
    netbpf: Any, two_hosts: tuple[Host, Host], pinger: Any
) -> None:
    """Both hosts ping the same address of their own with the same numbers, one reads later."""
    early, late = (pinger(host) for host in two_hosts)
    with netbpf("superping", "--raddr", "127.0.0.9") as run:
        for seq in range(1, 8):
            early.send("127.0.0.9", seq)
            late.send("127.0.0.9", seq)
            late.receive(0.011)
            early.receive()
        run.wait_for(14)
    for host, least in zip(two_hosts, (0, 11_000)):
        found = by_seq([event for event in run.events if event["netns"] == host.inode])
        assert sorted(found) == list(range(1, 8))
        assert all(event["wait_us"] >= least for event in found.values())


def test_number_that_is_used_again_is_another_request(
    lines: Any, two_hosts: tuple[Host, Host], pinger: Any
) -> None:
    left, right = two_hosts
    one = pinger(left)
    with lines() as run:
        with silent(right):
            for _ in range(5):
                one.send(right.ipv4, 1)
        one.send(right.ipv4, 1)
        one.receive()
        run.wait_for(6)
    assert Counter(event["result"] for event in run.events) == {"lost": 5, "reply": 1}


def test_only_the_first_reply_counts(lines: Any, two_hosts: tuple[Host, Host], pinger: Any) -> None:
    left, right = two_hosts
    one, other = pinger(left), pinger(right)
    with lines() as run:
        one.send(right.ipv4, 1)
        one.receive()
        for _ in range(3):
            other.sock.sendto(echo(V4, one.ident, 1, reply=True), (left.ipv4, 0))
            one.receive()
        one.ping(right.ipv4, 1, first=2)
        run.wait_for(2)
    assert [event["seq"] for event in run.events] == [1, 2]


# --- errors ---------------------------------------------------------------------------------------


def quoted(family: int, one: Pinger, seq: int, left: Host, right: Host, kind: int = -1) -> bytes:
    """Return the beginning of a request as an error quotes it; `kind` is another message."""
    message = echo(family, one.ident, seq, 0)
    if kind >= 0:
        message = bytes((kind,)) + message[1:]
    source, target = (socket.inet_pton(family, address(host, family)) for host in (left, right))
    if family == V4:
        return struct.pack("!BBHHHBBH", 0x45, 0, 28, 1, 0, 64, 1, 0) + source + target + message
    return struct.pack("!IHBB", 6 << 28, 8, 58, 64) + source + target + message


@compares("superping", "result", "from_addr", "rtt_us", "wait_us", "ttl")
@both_families
def test_each_kind_of_error_ends_a_request(
    lines: Any, two_hosts: tuple[Host, Host], pinger: Any, family: int
) -> None:
    left, right = two_hosts
    one, router = pinger(left, family), pinger(right, family)
    to = (address(left, family), 0)
    times = {}
    with silent(right), lines() as run:
        for seq, (word, (kind, code, rest)) in enumerate(ERRORS[family].items(), start=1):
            sent = one.send(address(right, family), seq)
            # Messages of other kinds, about another request, and about something else end nothing.
            quote = quoted(family, one, seq, left, right)
            for other in OTHERS[family]:
                router.sock.sendto(icmp(family, other, 0, bytes(4) + quote), to)
            for wrong in (quoted(family, one, seq + 1, left, right),
                          quoted(family, one, seq, right, left),
                          quoted(family, one, seq, left, right, kind=13)):  # fmt: skip
                router.sock.sendto(icmp(family, kind, code, struct.pack("!I", rest) + wrong), to)
            before = time.time_ns()
            router.sock.sendto(icmp(family, kind, code, struct.pack("!I", rest) + quote), to)
            for _ in range(4):  # the last of them is the one
                got = one.receive(kind=kind)
            times[word] = (before - sent.after, got.readable - sent.before, got.after - before)
            run.wait_for(seq)
    assert [event["result"] for event in run.events] == list(ERRORS[family])
    for event in run.events:
        least, most, whole = times[event["result"]]
        assert within(event["rtt_us"], least, most + whole)
        assert within(event["wait_us"], 0, whole)
        assert (event["from_addr"], event["ttl"]) == (address(right, family), 64)
        assert (event["raddr"], event["pid"]) == (address(right, family), os.getpid())


@both_families
def test_errors_that_are_read_from_the_error_queue(
    lines: Any, two_hosts: tuple[Host, Host], pinger: Any, family: int
) -> None:
    left, right = two_hosts
    one, router = pinger(left, family, "dgram"), pinger(right, family)
    level, option = (socket.IPPROTO_IP, 11) if family == V4 else (socket.IPPROTO_IPV6, 25)
    one.sock.setsockopt(level, option, 1)  # IP_RECVERR
    kind, code, rest = ERRORS[family]["unreachable"]
    with silent(right), lines() as run:
        for seq in range(1, 8):
            one.send(address(right, family), seq)
            error = icmp(family, kind, code, bytes(4) + quoted(family, one, seq, left, right))
            router.sock.sendto(error, (address(left, family), 0))
            wait_until(lambda: read_error(one), what="an error")
            run.wait_for(seq)
    assert sorted(by_seq(run.events)) == list(range(1, 8))
    for event in run.events:
        assert (event["result"], event["pid"]) == ("unreachable", os.getpid())
        assert event["wait_us"] is not None


def read_error(one: Pinger) -> bytes:
    """Return what waits in the error queue."""
    try:
        return one.sock.recvmsg(4096, 1024, socket.MSG_ERRQUEUE | socket.MSG_DONTWAIT)[0]
    except BlockingIOError:
        return b""


@both_families
def test_host_that_is_not_there(
    lines: Any, two_hosts: tuple[Host, Host], pinger: Any, family: int
) -> None:
    """The neighbour does not answer: no device gets the request, and this machine says so."""
    left, _ = two_hosts
    absent = "10.91.0.77" if family == V4 else "fd00:91::77"
    name = f"net__ipv{4 if family == V4 else 6}__neigh__{left.device}"
    left.sysctl(**{f"{name}__mcast_solicit": 1, f"{name}__retrans_time_ms": 50})
    one = pinger(left, family)
    with lines() as run:
        one.send(absent, 1)
        one.receive(kind=ERRORS[family]["unreachable"][0])
        run.wait_for(1)
    (event,) = run.events
    assert (event["result"], event["raddr"]) == ("unreachable", absent)
    assert event["from_addr"] == address(left, family)
    assert (event["rtt_us"], event["dev"], event["pid"]) == (None, None, os.getpid())
    assert event["wait_us"] is not None


# --- no answer ------------------------------------------------------------------------------------


@compares("superping", "age_us", "time", "pid", "comm", "owner", "result", "uid", "cgroup")
@every_kind
def test_requests_without_an_answer_are_lost_when_the_socket_is_closed(
    lines: Any, two_hosts: tuple[Host, Host], pinger: Any, family: int, kind: str
) -> None:
    left, right = two_hosts
    one = pinger(left, family, kind)
    with silent(right), lines() as run:
        sent = {seq: one.send(address(right, family), seq) for seq in range(1, 24)}
        begin = time.time_ns()
        one.close()
        run.wait_for(23)
        end = time.time_ns()
    assert sorted(by_seq(run.events)) == list(range(1, 24))
    pid, comm = us()
    for event in run.events:
        request = sent[event["seq"]]
        assert (event["result"], event["rtt_us"], event["wait_us"]) == ("lost", None, None)
        assert (event["from_addr"], event["ttl"]) == (None, None)
        assert within(event["age_us"], begin - request.after, end - request.before)
        assert begin / 1e9 <= seconds(event["time"]) <= end / 1e9
        assert (event["pid"], event["comm"], event["owner"]) == (pid, comm, "exact")
        assert (event["uid"], event["cgroup"]) == (os.getuid(), cgroup_of(pid))


def test_requests_of_a_process_that_is_killed_are_lost(
    lines: Any, two_hosts: tuple[Host, Host]
) -> None:
    left, right = two_hosts
    with silent(right), lines() as run:
        with program(left, "nb-ping-killed", uid=NOBODY) as ping:
            ping.do("send", right.ipv4, 4711, 1, 7)
            assert not run.events
        run.wait_for(7)
    assert sorted(by_seq(run.events)) == list(range(1, 8))
    for event in run.events:
        assert (event["result"], event["pid"], event["uid"]) == ("lost", ping.pid, NOBODY)
        assert event["comm"] == "nb-ping-killed"


def test_requests_are_given_up_after_the_timeout(
    lines: Any, two_hosts: tuple[Host, Host], pinger: Any
) -> None:
    left, right = two_hosts
    one, other = pinger(left), pinger(right)
    with lines("--timeout", "0.3") as run:
        with silent(right):
            one.send(right.ipv4, 1)
            run.wait_for(1)
        one.send(right.ipv4, 2)  # its reply is never read
        run.wait_for(2)
        other.sock.sendto(echo(V4, one.ident, 1, reply=True), (left.ipv4, 0))  # too late
        one.receive()
        one.receive()
    lost, unread = run.events
    assert (lost["seq"], lost["result"]) == (1, "lost")
    assert 300_000 <= lost["age_us"] < 10_000_000
    assert (unread["seq"], unread["result"]) == (2, "reply")
    assert (unread["wait_us"], unread["age_us"]) == (None, None) and unread["rtt_us"] < 300_000


@compares("superping", "open", shape="summary")
def test_requests_that_wait_are_listed(
    lines: Any, two_hosts: tuple[Host, Host], pinger: Any
) -> None:
    left, right = two_hosts
    one = pinger(left)
    with lines() as run:
        one.send(right.ipv4, 1)  # has a reply that is not read
        with silent(right):
            sent = {seq: one.send(right.ipv4, seq) for seq in range(2, 8)}
        before = time.time_ns()
    after = time.time_ns()
    assert run.events == [] and run.summary["open"] == 7
    found = by_seq(run.rows)
    assert sorted(found) == list(range(1, 8))
    first = found.pop(1)
    assert (first["result"], first["wait_us"], first["pid"]) == ("reply", None, os.getpid())
    for seq, row in found.items():
        assert (row["result"], row["pid"]) == ("waiting", os.getpid())
        assert within(row["age_us"], before - sent[seq].after, after - sent[seq].before)


def test_requests_that_the_firewall_drops(
    lines: Any, two_hosts: tuple[Host, Host], pinger: Any
) -> None:
    left, right = two_hosts
    one = pinger(left)
    rule = "chain out { type filter hook output priority 0; icmp type echo-request drop; }"
    with lines() as run:
        with ruled(left, rule):
            for seq in range(1, 8):
                with pytest.raises(PermissionError):
                    one.send(right.ipv4, seq)
        one.ping(right.ipv4, 5, first=8)
        one.close()
        run.wait_for(12)
    found = by_seq(run.events)
    for seq in range(1, 8):
        assert found[seq]["result"] == "dropped"
        assert (found[seq]["rtt_us"], found[seq]["dev"]) == (None, None)
        assert found[seq]["pid"] == os.getpid()
    assert {found[seq]["result"] for seq in range(8, 13)} == {"reply"}


def test_requests_that_the_queue_of_the_device_drops(
    lines: Any, two_hosts: tuple[Host, Host], pinger: Any
) -> None:
    left, right = two_hosts
    one = pinger(left)
    qdisc = ("dev", left.device, "root")
    # One byte less than a packet fits.
    limits = ("tbf", "rate", "1mbit", "burst", 2000, "limit", IP_LENGTH[V4] + 8 + PAYLOAD + 13)
    left.run("tc", "qdisc", "add", *qdisc, *limits)
    try:
        with lines() as run:
            for seq in range(1, 8):
                with contextlib.suppress(OSError):
                    one.send(right.ipv4, seq)
            one.close()
            run.wait_for(7)
    finally:
        left.run("tc", "qdisc", "delete", *qdisc)
    assert sorted(by_seq(run.events)) == list(range(1, 8))
    assert {(event["result"], event["dev"]) for event in run.events} == {("dropped", left.device)}


def test_requests_of_others_are_not_shown(
    netbpf: Any, two_hosts: tuple[Host, Host], pinger: Any
) -> None:
    """A raw socket gets a copy of each request that comes, and drops it when it is closed."""
    left, right = two_hosts
    one, other, back = pinger(left), pinger(right), pinger(right)
    with netbpf("superping", "--netns", right.inode) as run:
        one.ping(right.ipv4, 7)
        other.close()
        back.ping(left.ipv4, 1)
        run.wait_for(1)
    assert [(event["raddr"], event["result"]) for event in run.events] == [(left.ipv4, "reply")]
    assert run.summary["open"] == 0


def test_request_that_is_dropped_after_the_driver_had_it_is_lost(
    lines: Any, two_hosts: tuple[Host, Host], pinger: Any
) -> None:
    """Here the other side of a veth pair frees it: a driver frees a packet when it is sent."""
    left, right = two_hosts
    one = pinger(left)
    hook = f'type filter hook ingress device "{right.device}" priority 0'
    right.run("nft", "-f", "-", input=f"table netdev nb {{ chain in {{ {hook}; drop; }}\n}}\n")
    try:
        with lines() as run:
            for seq in range(1, 8):
                one.send(right.ipv4, seq)
            one.close()
            run.wait_for(7)
    finally:
        right.run("nft", "delete", "table", "netdev", "nb")
    assert sorted(by_seq(run.events)) == list(range(1, 8))
    assert {event["result"] for event in run.events} == {"lost"}


# --- who ------------------------------------------------------------------------------------------


def test_process_that_only_looks_on_is_not_the_owner(
    lines: Any, two_hosts: tuple[Host, Host], pinger: Any
) -> None:
    """Each raw socket gets a copy of each reply."""
    left, right = two_hosts
    one = pinger(left)
    with program(left, "nb-ping-other") as other, lines() as run:
        for seq in range(1, 8):
            one.send(right.ipv4, seq)
        other.do("read", 7)
        assert run.events == []
        one.close()
        run.wait_for(7)
    for event in run.events:
        assert (event["pid"], event["result"], event["wait_us"]) == (os.getpid(), "reply", None)


def test_process_may_read_from_another_socket(
    lines: Any, two_hosts: tuple[Host, Host], pinger: Any
) -> None:
    left, right = two_hosts
    sender, reader = pinger(left), pinger(left)
    with lines() as run:
        for seq in range(1, 8):
            sender.send(right.ipv4, seq)
            reader.receive(0.003)
        run.wait_for(7)
    assert sorted(by_seq(run.events)) == list(range(1, 8))
    assert all(event["wait_us"] >= 3000 for event in run.events)


def test_filters(netbpf: Any, two_hosts: tuple[Host, Host]) -> None:
    """Each shows what matches, and nothing else, of requests with and without a reply."""
    left, right = two_hosts
    with contextlib.ExitStack() as stack:
        cgroup = stack.enter_context(topology.cgroup(f"docker-{CONTAINER}.scope"))
        root = stack.enter_context(program(left, "nb-ping-root"))
        nobody = stack.enter_context(program(left, "nb-ping-nobody", NOBODY, cgroup))
        far = stack.enter_context(program(right, "nb-ping-far"))
        who: dict[tuple[object, ...], Callable[[tuple[int, str, bool]], bool]] = {
            ("-p", root.pid): lambda told: told[0] == root.pid,
            ("-p", f"{root.pid},{far.pid}"): lambda told: told[0] in (root.pid, far.pid),
            ("--comm", "nb-ping-n*"): lambda told: told[0] == nobody.pid,
            ("--uid", NOBODY): lambda told: told[0] == nobody.pid,
            ("--cgroup", cgroup): lambda told: told[0] == nobody.pid,
            ("--container", CONTAINER[:12]): lambda told: told[0] == nobody.pid,
            ("--netns", right.inode): lambda told: told[0] == far.pid,
            ("-4",): lambda told: ":" not in told[1],
            ("-6",): lambda told: ":" in told[1],
            ("--raddr", f"{right.ipv6}/128"): lambda told: told[1] == right.ipv6,
            ("--raddr", f"{right.ipv4}/32"): lambda told: told[1] == right.ipv4,
            ("--laddr", f"{right.ipv4}/32"): lambda told: told[1] == left.ipv4,
            ("--laddr", "fd00:91::/64"): lambda told: ":" in told[1],
            ("--lost",): lambda told: not told[2],
            ("--min-ms", 200): lambda told: not told[2],
        }
        every = (
            "-4",
            "--netns",
            left.inode,
            "-p",
            root.pid,
            "--comm",
            "nb*",
            "--uid",
            0,
            "--raddr",
            "10.91.0.0/16",
            "--laddr",
            "10.91.0.0/16",
            "--lost",
            "--min-ms",
            1,
        )
        runs = [stack.enter_context(netbpf("superping", *words)) for words in who]
        all_of_them = stack.enter_context(netbpf("superping", *every))
        told = Counter[tuple[int, str, bool]]()
        first = 1
        for replies in (True, False):
            with contextlib.nullcontext() if replies else silent_both(left, right):
                for ping, host in ((root, right), (nobody, right), (far, left)):
                    for target, number in ((host.ipv4, 5), (host.ipv6, 7)):
                        word = "ping" if replies else "send"
                        ping.do(word, target, ping.pid % 65536, first, number)
                        told[ping.pid, target, replies] += number
            first += 100
        old = time.monotonic() + 0.2
        wait_until(lambda: time.monotonic() > old, what="the requests to be as old as --min-ms")
        for ping in (root, nobody, far):
            ping.process.kill()
        for passes, run in zip(who.values(), runs):
            number = sum(n for one, n in told.items() if passes(one))
            run.wait_for(lambda found, number=number: len(of_ours(found, told)) >= number)
        all_of_them.wait_for(5)
    for (words, passes), run in zip(who.items(), runs):
        wanted = Counter({one: number for one, number in told.items() if passes(one)})
        assert 0 < wanted.total() < told.total()
        assert of_ours(run.events, told) == list_of(wanted), words
    assert of_ours(all_of_them.events, told) == [(root.pid, right.ipv4, False)] * 5


def of_ours(found: Sequence[Json], told: Counter[Any]) -> list[tuple[int, str, bool]]:
    """Return lines as (pid, address, reply); other pings of the machine are left out."""
    pids = {pid for pid, _, _ in told}
    return sorted((event["pid"], event["raddr"], event["result"] == "reply")
                  for event in found if event["pid"] in pids)  # fmt: skip


def list_of(wanted: Counter[Any]) -> list[Any]:
    return sorted(wanted.elements())


@contextlib.contextmanager
def silent_both(left: Host, right: Host) -> Iterator[None]:
    with silent(left), silent(right):
        yield


# --- rows and distributions -----------------------------------------------------------------------


def traffic_of_all_kinds(left: Host, right: Host, pinger: Any) -> tuple[Pinger, Pinger]:
    """Send 23 requests with a reply, 5 that an error ends, 3 that are lost and 2 that wait."""
    one, waits = pinger(left), pinger(left, ident=17)
    one.ping(right.ipv4, 11)
    one.ping(left.ipv4, 12, first=20)
    router = pinger(right)
    kind, code, _ = ERRORS[V4]["unreachable"]
    with silent(right):
        for seq in range(40, 45):
            one.send(right.ipv4, seq)
            error = icmp(V4, kind, code, bytes(4) + quoted(V4, one, seq, left, right))
            router.sock.sendto(error, (left.ipv4, 0))
            one.receive(kind=kind)
        for seq in range(50, 53):
            one.send(right.ipv4, seq)
        waits.send(right.ipv4, 1)
        waits.send(right.ipv4, 2)
    one.close()
    return one, waits


@compares(
    "superping", "raddr", "requests", "replies", "errors", "lost", "waiting", "p50_us", "p99_us",
    shape="--summary",
)  # fmt: skip
def test_summary_adds_up_the_requests_of_each_destination(
    lines: Any, two_hosts: tuple[Host, Host], pinger: Any
) -> None:
    left, right = two_hosts
    with lines() as plain, lines("--summary") as run, lines("--by", "result,laddr") as other:
        traffic_of_all_kinds(left, right, pinger)
        plain.wait_for(31)
    rows = {row["raddr"]: row for row in run.rows}
    assert list(rows) == [right.ipv4, left.ipv4]
    counts = ("requests", "replies", "errors", "lost", "waiting")
    assert [rows[right.ipv4][name] for name in counts] == [19, 11, 5, 3, 2]
    assert [rows[left.ipv4][name] for name in counts] == [12, 12, 0, 0, 0]
    for target, row in rows.items():
        times = sorted(event["rtt_us"] for event in plain.events
                       if event["raddr"] == target and event["result"] == "reply")  # fmt: skip
        # Each run has its own probes, which run one after the other.
        assert row["p50_us"] == pytest.approx(times[len(times) // 2], rel=0.5, abs=500)
        assert row["p99_us"] == pytest.approx(times[-1], rel=0.5, abs=500)
    by_result = Counter({row["result"]: row["requests"] for row in other.rows})
    assert by_result == {"reply": 23, "unreachable": 5, "lost": 3, "waiting": 0}
    assert by_result.total() == sum(row["requests"] for row in run.rows)
    assert {row["laddr"] for row in other.rows} == {left.ipv4}


@pytest.mark.parametrize("column", ("rtt_us", "wait_us", "age_us"))
def test_distributions_are_those_of_the_lines(
    lines: Any, two_hosts: tuple[Host, Host], pinger: Any, column: str
) -> None:
    left, right = two_hosts
    with lines() as plain, lines("--histogram", column, "--by", "raddr") as run:
        traffic_of_all_kinds(left, right, pinger)
        plain.wait_for(31)
    for target in (left.ipv4, right.ipv4):
        values = [event[column] for event in plain.events
                  if event["raddr"] == target and event[column] is not None]  # fmt: skip
        found = [one for one in run.histograms if one["key"]["raddr"] == target]
        assert sum(one["count"] for one in found) == len(values)
        # Each run has its own probes, which run one after the other.
        assert sum(one["sum"] for one in found) == pytest.approx(sum(values), rel=0.5, abs=5000)


# --- other ways of packets ------------------------------------------------------------------------


@pytest.mark.parametrize("group", ("224.0.0.1", "10.91.0.255", "ff02::1"))
def test_group_is_answered_by_another_address(
    lines: Any, two_hosts: tuple[Host, Host], pinger: Any, group: str
) -> None:
    left, right = two_hosts
    family = V6 if ":" in group else V4
    right.sysctl(net__ipv4__icmp_echo_ignore_broadcasts=0)
    one = pinger(left, family)
    if family == V4:
        one.sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        one.sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 0)
        one.sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, left.device.encode())
    else:
        (link,) = json.loads(left.run("ip", "-j", "link", "show", left.device))
        one.sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, link["ifindex"])
        one.sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_LOOP, 0)
    with lines() as run:
        for seq in range(1, 8):
            one.send(group, seq)
            one.receive()
        run.wait_for(7)
    assert sorted(by_seq(run.events)) == list(range(1, 8))
    for event in run.events:
        assert (event["raddr"], event["result"]) == (group, "reply")
        assert event["from_addr"] not in (group, left.ipv4, None)
        assert event["rtt_us"] is not None and event["wait_us"] is not None


def test_reply_that_a_device_of_another_namespace_receives(
    netbpf: Any, two_hosts: tuple[Host, Host], one_host: Host, pinger: Any
) -> None:
    """A macvlan device passes packets on that the device below it has received."""
    left, right = two_hosts
    upper = Host(one_host.namespace, f"mv{os.getpid():x}", "10.91.0.3")
    left.run("ip", "link", "add", "link", left.device, "name", upper.device, "type", "macvlan",
             "mode", "private")  # fmt: skip
    try:
        left.run("ip", "link", "set", upper.device, "netns", upper.namespace)
        upper.run("ip", "address", "add", "10.91.0.3/24", "dev", upper.device)
        upper.run("ip", "link", "set", upper.device, "up")
        one = pinger(upper)
        with netbpf("superping", "--netns", upper.inode) as run:
            sent = one.send(right.ipv4, 1)
            answer = one.receive()
            run.wait_for(1)
    finally:
        upper.run("ip", "link", "delete", upper.device)
    (event,) = run.events
    assert (event["result"], event["laddr"], event["dev"]) == ("reply", "10.91.0.3", upper.device)
    assert within(event["rtt_us"], answer.received - sent.after, answer.readable - sent.before)
    assert within(event["wait_us"], answer.before - answer.readable, answer.after - answer.received)


@contextlib.contextmanager
def bridged(middle: Host) -> Iterator[tuple[Host, Host]]:
    """Connect two namespaces by a bridge in the namespace of `middle`, as containers are."""
    with topology.namespace() as first, topology.namespace() as second:
        middle.run("ip", "link", "add", "nbb", "type", "bridge")
        ends = (Host(first, "nbp1", "10.92.0.1"), Host(second, "nbp2", "10.92.0.2"))
        try:
            middle.run("ip", "link", "set", "nbb", "up")
            for end in ends:
                port = f"{end.device}b"
                words = ("peer", "name", end.device, "netns", end.namespace)
                middle.run("ip", "link", "add", port, "type", "veth", *words)
                middle.run("ip", "link", "set", port, "master", "nbb", "up")
                end.run("ip", "address", "add", f"{end.ipv4}/24", "dev", end.device)
                end.run("ip", "link", "set", end.device, "up")
            yield ends
        finally:
            # At once: with its namespace, a port would end later.
            for end in ends:
                middle.run("ip", "link", "delete", f"{end.device}b")
            middle.run("ip", "link", "delete", "nbb")


def test_request_that_passes_several_devices_is_one_line(
    netbpf: Any, one_host: Host, pinger: Any
) -> None:
    with bridged(one_host) as (near, far), netbpf("superping", "--raddr", far.ipv4) as run:
        inode = near.inode
        one = pinger(near)
        # The first one also waits for the neighbour.
        sent = [one.send(far.ipv4, 1), one.send(far.ipv4, 2)]
        got = {answer.seq: answer for answer in (one.receive(), one.receive())}
        one.ping(far.ipv4, 5, first=3)
        run.wait_for(7)
    found = by_seq(run.events)
    assert sorted(found) == list(range(1, 8)) and run.summary["open"] == 0
    for request in sent:
        event, answer = found[request.seq], got[request.seq]
        assert within(event["rtt_us"], 0, answer.readable - request.before)
    for event in run.events:
        assert (event["netns"], event["dev"], event["pid"]) == (inode, "nbp1", os.getpid())
        assert event["result"] == "reply"


@contextlib.contextmanager
def routed(middle: Host) -> Iterator[tuple[Host, Host]]:
    """Connect two namespaces, in networks of their own, by a router in the one of `middle`."""
    with topology.namespace() as first, topology.namespace() as second:
        ends = (Host(first, "nbp1", "10.92.1.1"), Host(second, "nbp2", "10.92.2.1"))
        middle.sysctl(net__ipv4__ip_forward=1)
        try:
            for number, end in enumerate(ends, start=1):
                port, gateway = f"{end.device}b", f"10.92.{number}.254"
                words = ("peer", "name", end.device, "netns", end.namespace)
                middle.run("ip", "link", "add", port, "type", "veth", *words)
                middle.run("ip", "address", "add", f"{gateway}/24", "dev", port)
                middle.run("ip", "link", "set", port, "up")
                end.run("ip", "address", "add", f"{end.ipv4}/24", "dev", end.device)
                end.run("ip", "link", "set", end.device, "up")
                end.run("ip", "route", "add", "default", "via", gateway)
            yield ends
        finally:
            middle.run("ip", "link", "delete", "nbp1b")
            middle.run("ip", "link", "delete", "nbp2b")


def test_requests_that_are_forwarded(netbpf: Any, one_host: Host, pinger: Any) -> None:
    with routed(one_host) as (near, far), contextlib.ExitStack() as stack:
        here = ("--netns", one_host.inode)
        words = ((), ("--forwarded", "--timeout", "0.5"), ("--forwarded", "-p", os.getpid()))
        plain, run, ours = (stack.enter_context(netbpf("superping", *here, *w)) for w in words)
        sender = stack.enter_context(netbpf("superping", "--netns", near.inode))
        one = pinger(near)
        one.ping(far.ipv4, 7)
        sender.wait_for(7)
        run.wait_for(7)
        with silent(far):
            one.send(far.ipv4, 8)
            run.wait_for(8)
    assert plain.events == ours.events == []
    found, whole = by_seq(run.events), by_seq(sender.events)
    assert sorted(found) == list(range(1, 9))
    for seq, event in found.items():
        assert (event["laddr"], event["raddr"], event["dev"]) == (near.ipv4, far.ipv4, "nbp2b")
        assert (event["pid"], event["owner"], event["wait_us"]) == (None, "unknown", None)
        assert event["result"] == ("lost" if seq == 8 else "reply")
        if seq < 8:
            assert event["rtt_us"] <= whole[seq]["rtt_us"] and event["ttl"] == 64
    assert found[8]["age_us"] >= 500_000


def test_destination_that_is_translated(
    lines: Any, two_hosts: tuple[Host, Host], pinger: Any
) -> None:
    """With DNAT the program asks, and is answered by, another address than the packets have."""
    left, right = two_hosts
    hook = "type nat hook output priority -100"
    rule = f"chain out {{ {hook}; ip daddr 192.0.2.7 dnat to {right.ipv4}; }}"
    left.run("ip", "route", "add", "192.0.2.0/24", "via", right.ipv4)
    one = pinger(left)
    try:
        with ruled(left, rule), lines() as run:
            for seq in range(1, 8):
                one.send("192.0.2.7", seq)
                one.receive()
            run.wait_for(7)
    finally:
        left.run("ip", "route", "delete", "192.0.2.0/24")
    assert sorted(by_seq(run.events)) == list(range(1, 8))
    for event in run.events:
        assert (event["result"], event["raddr"]) == ("reply", right.ipv4)
        assert event["rtt_us"] is not None and event["wait_us"] is not None


# --- losses, limits -------------------------------------------------------------------------------


def test_requests_without_room_are_counted(
    lines: Any, two_hosts: tuple[Host, Host], pinger: Any
) -> None:
    left, right = two_hosts
    one = pinger(left)
    with silent(right), lines("--map-entries", 2, "--fail-on-loss", returncode=3) as run:
        for seq in range(1, 24):
            one.send(right.ipv4, seq)
        one.close()
        run.wait_for(2)
    assert len(run.events) + run.summary["lost"]["map_full"] == 23
    assert run.summary["lost"]["map_full"] >= 19


def test_process_of_a_socket_without_room_is_unknown(
    lines: Any, two_hosts: tuple[Host, Host], pinger: Any
) -> None:
    left, right = two_hosts
    first, second, third = (pinger(left, ident=ident) for ident in (17, 19, 23))
    words = ("--map-entries", 2, "--fail-on-loss")
    with lines(*words, returncode=3) as run, lines(*words, "-u", 0, returncode=3) as ours:
        first.ping(right.ipv4, 1)
        second.ping(right.ipv4, 1)
        run.wait_for(2)
        third.send(right.ipv4, 1)
        third.close()
        run.wait_for(3)
    event = run.events[-1]
    assert (event["ident"], event["result"], event["owner"]) == (23, "reply", "unknown")
    assert (event["pid"], event["comm"], event["uid"], event["cgroup"]) == (None, None, None, 0)
    assert [event["ident"] for event in ours.events] == [17, 19]
    assert run.summary["lost"]["map_full"] == ours.summary["lost"]["map_full"] == 1


def test_each_line_is_shown_or_lost_while_the_reader_is_stopped(
    lines: Any, two_hosts: tuple[Host, Host], pinger: Any
) -> None:
    left, right = two_hosts
    one = pinger(left)
    with lines("--buffer", "4k", "--fail-on-loss", returncode=3) as run, stopped(run):
        one.ping(right.ipv4, 101)
    lost = run.summary["lost"]
    assert lost["ring_full"] > 0
    assert len(run.events) + lost["ring_full"] + lost["unwritten"] == 101


def test_it_ends_after_a_number_of_events(
    lines: Any, two_hosts: tuple[Host, Host], pinger: Any
) -> None:
    left, right = two_hosts
    one = pinger(left)
    with lines("-n", 5) as run:
        one.ping(right.ipv4, 7)
        assert run.wait_end() == 0
    assert [event["seq"] for event in run.events] == [1, 2, 3, 4, 5]


def both(stage: Stage, run: Run) -> None:
    for family in (V4, V6):
        one = Pinger(stage.left, family)
        one.ping(address(stage.right, family), 7)
        one.close()


ALTERNATIVES = Case(lambda stage: ("--netns", stage.left.inode), both, events)
