"""soconnect tells the truth about attempts that this test made itself."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import harness
import pytest
import topology
from alternatives import Case, events, sessions
from compared import compares
from ends import Attempt, Done, End
from harness import SLOW, TIMEOUT, Json, netbpf_once, wait_until
from topology import Host

REFUSED, DROPPED = 9, 10
NOWHERE, NOWHERE6 = "203.0.113.1", "2001:db8::1"  # no route leads there
UNREACHABLE = "198.51.100.1"  # a route says so
SHORT_WAIT = 500  # ms: the first retransmission, after 1 s, finds the time used up


@pytest.fixture(scope="module")
def hosts(two_hosts: tuple[Host, Host]) -> tuple[Host, Host]:
    left, right = two_hosts
    left.run("ip", "route", "add", "unreachable", f"{UNREACHABLE}/32")
    return left, right


@pytest.fixture(scope="module")
def server(hosts: tuple[Host, Host]) -> Iterator[End]:
    with End.start("nb-server", hosts[1]) as end:
        yield end


@pytest.fixture(scope="module")
def port(server: End) -> int:
    """A port where connections to IPv4 and IPv6 are established, and nobody accepts."""
    return server.listen("ipv6", backlog=4096)[1]


@pytest.fixture
def client(hosts: tuple[Host, Host]) -> Iterator[End]:
    with End.start("nb-client", hosts[0]) as end:
        yield end


def ours(events: list[Json], *ends: End) -> list[Json]:
    return [event for event in events if event["pid"] in {end.pid for end in ends}]


def lines(events: list[Json]) -> Counter[Attempt]:
    return Counter(map(Attempt.of, events))


def event_of(events: list[Json], done: Done) -> Json:
    # By the port: a socket that could not connect has lost its address.
    (event,) = [e for e in events if e["lport"] == done.local[1]]
    return event


def near(micros: int, seconds: float) -> bool:
    """Within 2 ms and 5 %."""
    return abs(micros - seconds * 1e6) <= 2000 * SLOW + 0.05 * seconds * 1e6


def many(client: End, right: Host, port: int) -> list[Done]:
    """All that can come of TCP, over all families, waited for and not."""
    done = []
    for family, addr in (
        ("ipv4", right.ipv4),
        ("ipv6", right.ipv6),
        ("ipv6", f"::ffff:{right.ipv4}"),
    ):
        for wait in (True, False):
            done += [client.connect(family, addr, p, wait=wait) for p in (port, REFUSED)]
    for wait in (True, False):
        done += [
            client.connect("ipv4", NOWHERE, port, wait=wait),
            client.connect("ipv6", NOWHERE6, port, wait=wait),
            client.connect("ipv4", UNREACHABLE, port, wait=wait),
        ]
    return done


# --- what comes of an attempt -----------------------------------------------------------------


@compares("soconnect", "comm", "latency_us")
def test_every_attempt_is_one_line_whatever_comes_of_it(netbpf, hosts, client, port) -> None:
    with netbpf("soconnect") as run:
        done = many(client, hosts[1], port)
        run.wait_for(lambda events: len(ours(events, client)) >= len(done))
    found = ours(run.events, client)
    assert lines(found) == Counter(one.line for one in done)
    errors = {one.line.errno for one in done}
    assert errors == {None, "ECONNREFUSED", "ENETUNREACH", "EHOSTUNREACH"}
    for one in done:
        if one.line.errno in (None, "ECONNREFUSED"):
            event = event_of(found, one)
            assert 0 < event["handshake_us"] <= (one.over - one.begin) * 1e6
            assert 0 < event["syscall_us"] <= (one.returned - one.begin) * 1e6
            assert event["latency_us"] == event["handshake_us"]
            assert event["retransmits"] == 0
    for event in found:
        assert event["comm"] == "nb-client" and event["owner"] == "exact" and event["uid"] == 0
        assert event["netns"] == hosts[0].inode
        if event["errno"] and event["errno"] != "ECONNREFUSED":
            assert event["handshake_us"] is None  # no SYN was sent
            # Such a call may take less than a microsecond.
            longest = max(d.returned - d.begin for d in done if d.line == Attempt.of(event))
            assert 0 <= event["latency_us"] == event["syscall_us"] <= longest * 1e6
    assert {e["result"] for e in found} == {
        "OK", "Connection refused", "Network unreachable", "No route to host"
    }  # fmt: skip
    assert run.summary["complete"] is True


@compares("soconnect", "pid")
def test_strace_agrees_on_every_call(netbpf, hosts, port, tmp_path: Path) -> None:
    log = tmp_path / "strace"
    strace = ["strace", "-f", "-e", "trace=connect", "-o", log]
    with netbpf("soconnect", "--udp", "--unix") as run:
        with End.start("nb-traced", hosts[0], strace) as client:
            done = many(client, hosts[1], port)
            done.append(client.connect("ipv4", hosts[1].ipv4, 53, kind="dgram"))
            done.append(client.connect("unix", "/nowhere", kind="stream"))
            run.wait_for(lambda events: len(ours(events, client)) >= len(done))
        pid = client.pid
    found = Counter(
        (e["raddr"], e["rport"], "EINPROGRESS" if e["async"] else e["errno"])
        for e in run.events
        if e["pid"] == pid
    )
    assert found == Counter(traced(log, pid))
    assert sum(found.values()) == len(done)


def traced(log: Path, pid: int) -> Iterator[tuple[str, int | None, str | None]]:
    for line in log.read_text().splitlines():
        if not line.startswith(str(pid)) or "connect(" not in line:
            continue
        addr = re.search(
            r'inet_addr\("([^"]+)"|inet_pton\(AF_INET6, "([^"]+)"|sun_path="([^"]+)"', line
        )
        port = re.search(r"htons\((\d+)\)", line)
        result = re.search(r"\) = (?:0|-1 (\w+))", line)
        assert addr and result, line
        name = next(filter(None, addr.groups())).replace("::ffff:", "")
        yield name, int(port[1]) if port else None, result[1]


@compares("soconnect", "errno")
def test_local_ports_used_up_is_told_apart_from_an_address_that_is_in_use(netbpf, server) -> None:
    with topology.two_hosts() as (left, right), End.start("nb-few-ports", left) as client:
        left.sysctl(net__ipv4__ip_local_port_range="32000 32001")
        with End.start("nb-far", right) as far, netbpf("soconnect", "--udp") as run:
            port = far.listen("ipv4")[1]
            done = [client.connect("ipv4", right.ipv4, port) for _ in range(3)]
            bound = (left.ipv4, 31000)
            done += [client.connect("ipv4", right.ipv4, port, bind=bound) for _ in range(2)]
            datagrams = [client.connect("ipv4", right.ipv4, 53, kind="dgram") for _ in range(3)]
            run.wait_for(lambda events: len(ours(events, client)) >= 8)
    found = ours(run.events, client)
    assert lines(found) == Counter(one.line for one in (*done, *datagrams))
    assert [one.line.errno for one in done] == [None, None, "EADDRNOTAVAIL", None, "EADDRNOTAVAIL"]
    assert [one.line.errno for one in datagrams] == [None, None, "EAGAIN"]
    results = Counter(e["result"] for e in found)
    assert results == {"OK": 5, "Local ports used up": 2, "Address unavailable": 1}
    assert all(e["handshake_us"] is None for e in found if e["errno"])


@compares("soconnect", "raddr", "rport", "proto")
def test_wrong_calls_are_lines_too(netbpf, hosts, client, port) -> None:
    with netbpf("soconnect") as run:
        client.ask("open", id=1, family="ipv4")
        words = {"addr": hosts[1].ipv4, "port": port}
        wrong = [
            client.ask("raw", id=1, family="ipv4", length=7, **words)["errno"],
            client.ask("raw", id=1, family="ipv6", addr=hosts[1].ipv6, port=port, length=28)[
                "errno"
            ],
            client.ask("raw", id=1, family="ipv4", length=16, fd=999, **words)["errno"],
        ]
        run.wait_for(lambda events: len(ours(events, client)) >= 3)
    assert wrong == ["EINVAL", "EAFNOSUPPORT", "EBADF"]
    found = ours(run.events, client)
    assert [(e["errno"], e["proto"]) for e in found] == [
        ("EINVAL", "tcp"), ("EAFNOSUPPORT", "tcp"), ("EBADF", None)
    ]  # fmt: skip
    assert found[2]["raddr"] == hosts[1].ipv4 and found[2]["rport"] == port
    assert {e["netns"] for e in found} == {hosts[0].inode}


@compares("soconnect", "family")
@compares("soconnect", "repeated", shape="summary")
def test_calls_on_a_socket_that_connects_already_are_counted_and_no_lines(
    netbpf, hosts, client, port
) -> None:
    with netbpf("soconnect", "-p", client.pid) as run:
        one = client.connect("ipv4", hosts[1].ipv4, port, wait=False)
        words = {"id": one.id, "family": "ipv4", "addr": hosts[1].ipv4, "port": port}
        again = [client.ask("connect", **words)["errno"] for _ in range(2)]
        last = client.connect("ipv4", hosts[1].ipv4, REFUSED)
        run.wait_for(2)
    assert again == ["", "EISCONN"]  # the first one fetches the result
    assert lines(run.events) == Counter([one.line, last.line])
    assert run.summary["totals"]["repeated"] == 2


def test_udp_and_unix_only_when_asked_for(netbpf, hosts, client, server, port, tmp_path) -> None:
    right, path = hosts[1], str(tmp_path / "listener")
    here = f"@nb-soconnect-{client.pid}"
    listener, _ = client.listen("unix", path, kind="seqpacket", backlog=0)
    client.listen("unix", here, kind="dgram", backlog=-1)

    def attempts() -> list[Done]:
        done = [
            client.connect("ipv4", right.ipv4, 53, kind="dgram"),
            client.connect("ipv6", right.ipv6, 53, kind="dgram"),
            client.connect("ipv4", NOWHERE, 53, kind="dgram"),
            client.connect("unix", path, kind="seqpacket"),
            client.connect("unix", path, kind="seqpacket", wait=False),  # backlog 0 is one
            client.connect("unix", here, kind="dgram"),
            client.connect("unix", f"{path}-missing"),
            client.connect("ipv4", right.ipv4, port),
        ]
        client.ask("accept", id=0, listener=listener)  # for the next time
        return done

    with netbpf("soconnect", "--udp", "--unix", "-p", client.pid) as run:
        done = attempts()
        run.wait_for(len(done))
    assert lines(run.events) == Counter(one.line for one in done)
    assert [one.line.errno for one in done] == [
        None, None, "ENETUNREACH", None, "EAGAIN", None, "ENOENT", None
    ]  # fmt: skip
    full = [e["result"] for e in run.events if e["errno"] == "EAGAIN"]
    assert full == ["Backlog is full"]
    assert all(e["handshake_us"] is None for e in run.events if e["proto"] != "tcp")
    for option, protos in {
        ("--udp",): {"tcp", "udp"},
        ("--unix",): {"tcp", "unix"},
        ("--proto", "udp"): {"udp"},
        ("--proto", "unix"): {"unix"},
        ("--proto", "unix,tcp"): {"tcp", "unix"},
        ("--proto", "udp", "--unix"): {"udp", "unix"},
    }.items():
        with netbpf("soconnect", *option, "-p", client.pid) as run:
            done = [
                one for one in attempts()
                if {one.line.proto, one.line.family} & protos
            ]  # fmt: skip
            run.wait_for(len(done))
        assert lines(run.events) == Counter(one.line for one in done)


# --- times ------------------------------------------------------------------------------------


def slowed(client: End, right: Host, port: int, wait: bool) -> Done:
    """Connect while the first SYN is lost: the second one comes a second later."""
    with right.dropping(f"tcp dport {port}") as drops:
        ident = 7000 + wait
        client.ask("open", id=ident, family="ipv4", wait=wait)
        client.tell("connect", id=ident, family="ipv4", addr=right.ipv4, port=port)
        wait_until(drops.count, what="a SYN to be dropped")
        drops.end()
        seen = client.answer()
        last = seen if wait else client.ask("finish", id=ident)
    assert (seen["errno"], last["errno"]) == ("" if wait else "EINPROGRESS", "")
    line = Attempt(client.pid, "tcp", "ipv4", right.ipv4, port, None, not wait)
    return Done(ident, line, tuple(last["local"]), seen["begin"], seen["end"], last["end"])


@compares("soconnect", "syscall_us", "handshake_us", "retransmits")
@pytest.mark.parametrize("wait", [True, False], ids=["blocking", "non-blocking"])
def test_a_handshake_that_is_held_up_takes_as_long_as_it_was_held_up(
    netbpf, hosts, client, port, wait
) -> None:
    with netbpf("soconnect", "-p", client.pid) as run:
        one = slowed(client, hosts[1], port, wait)
        run.wait_for(1)
    (event,) = run.events
    assert Attempt.of(event) == one.line
    taken = one.over - one.begin
    assert taken > 1
    assert near(event["handshake_us"], taken), (event, taken)
    assert event["retransmits"] == 1
    if wait:
        assert near(event["syscall_us"], taken)
    else:
        assert event["syscall_us"] <= (one.returned - one.begin) * 1e6
    assert run.summary["counters"]["TcpExt.TCPSynRetrans"] >= 0


@compares("soconnect", "result")
@pytest.mark.parametrize("wait", [True, False], ids=["blocking", "non-blocking"])
def test_a_timeout_is_told_when_the_kernel_gives_up(netbpf, wait) -> None:
    with topology.two_hosts() as (left, right), End.start("nb-patient", left) as client:
        left.sysctl(net__ipv4__tcp_syn_retries=1)
        with (
            right.dropping(f"tcp dport {DROPPED}") as drops,
            netbpf("soconnect", "--failed") as run,
        ):
            one = client.connect("ipv4", right.ipv4, DROPPED, wait=wait)
            run.wait_for(lambda events: ours(events, client))
            dropped = drops.count()
        counted = left.snmp()["TcpExtTCPSynRetrans"]
    (event,) = ours(run.events, client)
    assert Attempt.of(event) == one.line
    assert event["errno"] == "ETIMEDOUT" and event["result"] == "Connection timed out"
    assert near(event["handshake_us"], one.over - one.begin)
    assert event["handshake_us"] > 1_900_000
    assert event["retransmits"] == counted == dropped - 1 > 0
    assert event["lport"] > 0


@compares("soconnect", "async")
def test_an_attempt_that_the_program_gives_up_is_told(netbpf, hosts, client) -> None:
    right = hosts[1]
    with right.dropping(f"tcp dport {DROPPED}"), netbpf("soconnect", "-p", client.pid) as run:
        one = client.connect("ipv4", right.ipv4, DROPPED, wait=False, finish=False)
        client.ask("close", id=one.id)
        run.wait_for(1)
    (event,) = run.events
    assert event["result"] == "SYN unanswered, closed by the program" and event["errno"] is None
    assert event["async"] is True and event["rport"] == DROPPED


def test_a_call_that_a_signal_interrupts_and_the_kernel_resumes_is_one(
    netbpf, hosts, client, port
) -> None:
    right = hosts[1]
    with netbpf("soconnect", "-p", client.pid) as run, right.dropping(f"tcp dport {port}") as drops:
        client.ask("open", id=1, family="ipv4")
        client.tell(
            "raw", id=1, family="ipv4", addr=right.ipv4, port=port, length=16, interrupt=0.2
        )
        wait_until(drops.count, what="a SYN to be dropped")
        drops.end()
        seen = client.answer()
        run.wait_for(1)
    (event,) = run.events
    assert seen["errno"] == "" and event["errno"] is None
    assert event["async"] is False
    assert near(event["syscall_us"], seen["end"] - seen["begin"])


@compares("soconnect", "lport")
def test_many_at_once_are_all_told_and_none_twice(netbpf, hosts, client, port) -> None:
    threads, number = 8, 61
    with netbpf("soconnect", "-p", client.pid, "--buffer", "4m") as run:
        words = {"family": "ipv4", "addr": hosts[1].ipv4, "port": port}
        made = client.ask("burst", number=number, threads=threads, **words)["found"]
        run.wait_for(number * threads)
    found = Counter((e["lport"], e["errno"] or "", e["async"]) for e in run.events)
    assert found == Counter(map(tuple, made))
    assert {e["result"] for e in run.events} == {"OK"}
    assert run.summary["complete"] is True


# --- attempts that have not ended -------------------------------------------------------------


@compares("soconnect", "open", shape="summary")
def test_attempts_still_open_are_listed_with_their_age(netbpf, hosts, client, port) -> None:
    right = hosts[1]
    with right.dropping(f"tcp dport {DROPPED}"):
        with netbpf("soconnect", "-p", client.pid) as run:
            old = client.connect("ipv4", right.ipv4, DROPPED, wait=False, finish=False)
            client.tell("connect", **blocking(client, right))
            wait_until(lambda: syn_sent(hosts[0]) >= 2, what="two sockets in SYN_SENT")
            listed = time.monotonic()
        for row in run.rows:
            assert row["result"] is None and row["errno"] is None
            assert (row["raddr"], row["rport"]) == (right.ipv4, DROPPED)
            assert row["handshake_us"] == row["latency_us"]
        (first,) = [row for row in run.rows if row["lport"] == old.local[1]]
        assert first["async"] is True
        assert (
            (listed - old.returned) * 1e6
            <= first["handshake_us"]
            <= (time.monotonic() - old.begin) * 1e6
        )
        (second,) = [row for row in run.rows if row is not first]
        assert second["async"] is False and second["syscall_us"] is None
        assert run.events == [] and run.summary["open"] == 2
    client.answer()


def blocking(client: End, right: Host) -> Json:
    client.ask("open", id=50, family="ipv4", user_timeout=SHORT_WAIT)
    return {"id": 50, "family": "ipv4", "addr": right.ipv4, "port": DROPPED}


def syn_sent(host: Host) -> int:
    return len(host.run("ss", "-tnH", "state", "syn-sent").splitlines())


@compares("soconnect", "owner")
def test_an_attempt_older_than_the_tool_has_its_owner_but_no_time(
    netbpf, hosts, client, port
) -> None:
    right = hosts[1]
    with right.dropping(f"tcp dport {port}") as drops:
        one = client.connect("ipv4", right.ipv4, port, wait=False, finish=False)
        with netbpf("soconnect", "-p", client.pid) as run:
            drops.end()
            assert client.ask("finish", id=one.id)["errno"] == ""
            run.wait_for(1, timeout=4 * TIMEOUT)
    (event,) = run.events
    assert event["owner"] == "snapshot" and event["comm"] == "nb-client"
    assert event["handshake_us"] is None and event["syscall_us"] is None and event["async"] is None
    assert event["result"] == "OK" and event["retransmits"] >= 1


# --- filters ----------------------------------------------------------------------------------


@contextlib.contextmanager
def other(hosts: tuple[Host, Host]) -> Iterator[End]:
    with End.start("nb-other", hosts[1]) as end:
        yield end


FILTERS: dict[str, tuple[Callable[[Any, Any, int], list[Any]], Callable[[Json], bool]]] = {
    "pid": (lambda c, h, p: ["-p", c.pid], lambda e: e["comm"] == "nb-client"),
    "comm": (lambda c, h, p: ["--comm", "nb-oth*"], lambda e: e["comm"] == "nb-other"),
    "netns": (lambda c, h, p: ["--netns", h[1].namespace], lambda e: e["comm"] == "nb-other"),
    "ipv4": (lambda c, h, p: ["-4"], lambda e: e["family"] == "ipv4"),
    "ipv6": (lambda c, h, p: ["-6"], lambda e: e["family"] == "ipv6"),
    "rport": (lambda c, h, p: ["-D", REFUSED], lambda e: e["rport"] == REFUSED),
    "raddr": (lambda c, h, p: ["--raddr", "203.0.113.0/24"], lambda e: e["raddr"] == NOWHERE),
    "laddr": (lambda c, h, p: ["--laddr", h[0].ipv6], lambda e: e["laddr"] == "fd00:91::1"),
    "lport": (lambda c, h, p: ["-L", 21000], lambda e: e["lport"] == 21000),
    "failed": (lambda c, h, p: ["--failed"], lambda e: e["result"] != "OK"),
    "min-ms": (lambda c, h, p: ["--min-ms", "5000"], lambda e: False),
    "no uid": (lambda c, h, p: ["--uid", "nobody"], lambda e: False),
}


def test_filters_let_through_what_they_say_and_nothing_else(
    hosts, client, port, tmp_path: Path
) -> None:
    with contextlib.ExitStack() as stack:
        stranger = stack.enter_context(other(hosts))
        runs = {}
        for name, (words, _) in FILTERS.items():
            directory = tmp_path / name
            directory.mkdir()
            runs[name] = harness.start(directory, "soconnect", *words(client, hosts, port))
        everything = tmp_path / "all"
        everything.mkdir()
        runs["all"] = harness.start(everything, "soconnect")
        for run in runs.values():
            stack.enter_context(harness.attended(run))
        done = many(client, hosts[1], port)
        done.append(client.connect("ipv4", hosts[1].ipv4, port, bind=("", 21000)))
        done += many(stranger, hosts[0], port)
        both = (client, stranger)
        runs["all"].wait_for(lambda events: len(ours(events, *both)) >= len(done))
        whole = ours(runs["all"].events, *both)
        for name, (_, wanted) in FILTERS.items():
            left = len([e for e in whole if wanted(e)])
            runs[name].wait_for(lambda events, left=left: len(ours(events, *both)) >= left)
    assert lines(whole) == Counter(one.line for one in done)
    for name, (_, wanted) in FILTERS.items():
        found = ours(runs[name].events, *both)
        assert lines(found) == lines([e for e in whole if wanted(e)]), name
        here = [e for e in runs[name].events if e["netns"] in (hosts[0].inode, hosts[1].inode)]
        assert all(wanted(e) for e in here), name  # others may connect on this machine


def test_min_ms_shows_what_is_slow(netbpf, hosts, client, port) -> None:
    with netbpf("soconnect", "--min-ms", "900", "-p", client.pid) as run:
        client.connect("ipv4", hosts[1].ipv4, port)
        one = slowed(client, hosts[1], port, True)
        run.wait_for(1)
    assert lines(run.events) == Counter([one.line])


# --- the summary per destination --------------------------------------------------------------


@compares(
    "soconnect",
    "attempts",
    "failures",
    "pending",
    "p50_us",
    "p99_us",
    "top_error",
    shape="--summary",
)
def test_summary_has_a_row_per_destination(netbpf, hosts, client, port) -> None:
    right = hosts[1]
    words = ("-p", client.pid)
    with right.dropping(f"tcp dport {DROPPED}"):
        with netbpf("soconnect", *words) as single, netbpf("soconnect", "--summary", *words) as run:
            for _ in range(23):
                client.connect("ipv4", right.ipv4, port)
            for _ in range(7):
                client.connect("ipv4", right.ipv4, REFUSED)
            client.connect("ipv4", right.ipv4, DROPPED, wait=False, finish=False)
            single.wait_for(30)
    rows = {row["rport"]: row for row in run.rows}
    assert set(rows) == {port, REFUSED, DROPPED}
    taken = sorted(e["latency_us"] for e in single.events if not e["errno"])
    good = rows[port]
    assert (good["attempts"], good["failures"], good["pending"]) == (23, 0, 0)
    # Two programs on one tracepoint: their clocks are read one after the other.
    near = 200 * SLOW
    assert abs(good["p50_us"] - taken[11]) < near and abs(good["p99_us"] - taken[22]) < near
    bad = rows[REFUSED]
    assert (bad["attempts"], bad["failures"], bad["top_error"]) == (7, 7, "ECONNREFUSED")
    assert bad["p50_us"] is None and bad["p99_us"] is None
    assert (rows[DROPPED]["attempts"], rows[DROPPED]["pending"]) == (0, 1)
    assert run.events == [] and run.summary["events"] == 30


@compares("soconnect", "rport", shape="--summary")
def test_summary_with_failed_keeps_whole_rows(netbpf, hosts, client, port) -> None:
    with netbpf("soconnect", "--summary", "--failed", "-p", client.pid) as run:
        client.connect("ipv4", hosts[1].ipv4, port)
        client.connect("ipv4", hosts[1].ipv4, REFUSED)
    assert [(row["rport"], row["attempts"]) for row in run.rows] == [(REFUSED, 1)]


# --- text and others --------------------------------------------------------------------------


def test_text_is_that_of_the_book(netbpf, hosts, client, port) -> None:
    with netbpf("soconnect", "-p", client.pid, json_lines=False) as run:
        client.connect("ipv4", hosts[1].ipv4, port)
        client.connect("ipv4", hosts[1].ipv4, REFUSED)
        wait_until(lambda: run.stdout.count("\n") >= 3, what="two lines")
    heading, *rest = run.stdout.splitlines()
    assert heading.split() == ["PID", "PROCESS", "FAM", "ADDRESS", "PORT", "LAT(us)", "RESULT"]
    words = [line.split(maxsplit=6) for line in rest]
    common = [str(client.pid), "nb-client", "ipv4", hosts[1].ipv4]
    assert [w[:4] for w in words] == [common, common]
    assert [(w[4], w[6]) for w in words] == [
        (str(port), "Success"), (str(REFUSED), "Connection refused")
    ]  # fmt: skip
    assert all(len(line) <= 80 for line in run.stdout.splitlines())


def test_connections_through_io_uring_are_seen(netbpf) -> None:
    program = Path(__file__).parent / "programs" / "socket_calls.py"
    with netbpf("soconnect", "--comm", "nb-ring") as run:
        done = subprocess.run(
            [sys.executable, program, "nb-ring", str(TIMEOUT)],
            input="ring 1\n", capture_output=True, text=True, timeout=2 * TIMEOUT, check=True,
        )  # fmt: skip
        if "io_uring is not allowed" in done.stdout:
            pytest.skip("needs io_uring, and sysctl kernel.io_uring_disabled=0")
        assert '"error"' not in done.stdout, done.stdout
        run.wait_for(1)
    (event,) = run.events
    assert event["result"] == "OK" and event["syscall_us"] is None and event["async"] is None
    assert event["handshake_us"] > 0 and event["owner"] == "exact"


def test_ends_in_order_on_a_signal_with_an_attempt_open(netbpf, hosts, client) -> None:
    with hosts[1].dropping(f"tcp dport {DROPPED}"):
        with netbpf("soconnect", "-p", client.pid) as run:
            client.connect("ipv4", hosts[1].ipv4, DROPPED, wait=False, finish=False)
            assert run.stop(signal.SIGTERM) == 0
    assert run.summary["open"] == 1 and run.summary["stopped_by"] == "SIGTERM"


@pytest.mark.parametrize("words", [["--min-ms", "-1"], ["--min-ms", "x"], ["--port", "1"]])
def test_nonsense_is_a_usage_error(words: list[str]) -> None:
    done = netbpf_once("soconnect", *words)
    assert done.returncode == 2 and "netbpf: error:" in done.stderr
    assert "Traceback" not in done.stderr


# --- whatever the kind of probe ------------------------------------------------------------------


ALTERNATIVES = Case(lambda s: ("-p", s.client.pid), sessions, events)
