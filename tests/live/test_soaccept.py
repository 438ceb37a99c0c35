"""soaccept tells the truth about connections that this test accepted itself."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import calls
import harness
import pytest
from alternatives import Case, events, sessions
from compared import compares
from ends import End
from harness import ATTEMPTS, Json, accepting, netbpf_once, wait_until
from topology import Host

from netbpf.kernel.btf import Btf

BACKLOG = 7


class Accepted(NamedTuple):
    """What soaccept must say about a connection, as far as that is certain."""

    pid: int
    fd: int | None
    family: str | None
    proto: str | None
    laddr: str | None
    lport: int | None
    raddr: str | None
    rport: int | None
    errno: str | None

    @classmethod
    def of(cls, event: Json) -> Accepted:
        """Return the same facts of an event."""
        return cls(*(event[name] for name in cls._fields))


class Seen(NamedTuple):
    """An accept as the program saw it: the line for it, and monotonic times."""

    line: Accepted
    begin: float
    end: float


@pytest.fixture(scope="module")
def hosts(two_hosts: tuple[Host, Host]) -> tuple[Host, Host]:
    return two_hosts


@pytest.fixture
def client(hosts: tuple[Host, Host]) -> Iterator[End]:
    with End.start("nb-client", hosts[0]) as end:
        yield end


@pytest.fixture
def server(hosts: tuple[Host, Host]) -> Iterator[End]:
    with End.start("nb-server", hosts[1]) as end:
        yield end


def ours(events: list[Json], *ends: End) -> list[Json]:
    return [event for event in events if event["pid"] in {end.pid for end in ends}]


def lines(events: list[Json]) -> Counter[Accepted]:
    return Counter(map(Accepted.of, events))


idents = iter(range(100, 1 << 20))


def accept(server: End, listener: int, family: str = "ipv4", **words: Any) -> Seen:
    """Accept and return what the line for it must say; `family` as it must be called."""
    return seen(server, server.ask("accept", id=next(idents), listener=listener, **words), family)


def seen(server: End, told: Json, family: str) -> Seen:
    local, remote = ([x.replace("::ffff:", ""), p] for x, p in (told["local"], told["remote"]))
    line = Accepted(server.pid, told["fd"], family, "tcp", *local, *remote, None)
    return Seen(line, told["begin"], told["end"])


def failing(server: End, listener: int, **words: Any) -> str:
    return str(server.ask("accept", id=next(idents), listener=listener, **words)["errno"])


# --- what was accepted ----------------------------------------------------------------------------


@compares("soaccept", "comm", "result", "lport", "listener", "uid", "netns")
def test_every_accept_is_one_line_with_the_sockets_own_addresses(
    netbpf, hosts, client, server
) -> None:
    right = hosts[1]
    four, four_port = server.listen("ipv4")
    both, both_port = server.listen("ipv6")
    cases = [
        ("ipv4", right.ipv4, four, four_port, "ipv4"),
        ("ipv6", right.ipv6, both, both_port, "ipv6"),
        ("ipv4", right.ipv4, both, both_port, "ipv4"),  # a dual-stack listener
        ("ipv6", f"::ffff:{right.ipv4}", four, four_port, "ipv4"),
    ]
    with netbpf("soaccept") as run:
        done = []
        for family, addr, listener, port, shown in cases:
            for is_four in (False, True):
                for null in (True, False):
                    client.connect(family, addr, port)
                    done.append(accept(server, listener, shown, four=is_four, null=null))
        run.wait_for(lambda events: len(ours(events, server)) >= len(done))
    found = ours(run.events, server)
    assert lines(found) == Counter(one.line for one in done)
    for event in found:
        assert event["comm"] == "nb-server" and event["uid"] == 0
        assert event["netns"] == right.inode and event["result"] == "OK"
        assert event["listener"] == ("0.0.0.0" if event["lport"] == four_port else "::")
    assert ours(run.events, client) == []
    assert run.summary["complete"] is True


@compares("soaccept", "fd", "family", "proto", "laddr", "queue", "queue_max")
def test_unix_sockets_are_named_by_their_path(netbpf, server, tmp_path: Path) -> None:
    path, abstract = str(tmp_path / "a listener"), f"@nb-soaccept-{server.pid}"
    longest = f"{tmp_path}/".ljust(107, "x")  # with the NUL, all of sun_path
    fds = []
    with netbpf("soaccept", "-p", server.pid) as run:
        for name, kind in ((path, "stream"), (abstract, "seqpacket"), (longest, "stream")):
            listener, _ = server.listen("unix", name, kind=kind, backlog=3)
            server.connect("unix", name, kind=kind)
            server.connect("unix", name, kind=kind)
            fds.append(server.ask("accept", id=next(idents), listener=listener)["fd"])
        run.wait_for(3)
    names = [path, abstract, longest]
    assert [(e["laddr"], e["listener"]) for e in run.events] == [(name, name) for name in names]
    assert [e["proto"] for e in run.events] == ["stream", "seqpacket", "stream"]
    assert [e["fd"] for e in run.events] == fds
    for event in run.events:
        assert (event["family"], event["raddr"], event["rport"]) == ("unix", None, None)
        assert (event["queue"], event["queue_max"]) == (1, 3)


@compares("soaccept", "raddr", "rport")
def test_many_are_all_told_and_none_twice(netbpf, hosts, client, server) -> None:
    threads, number = 8, 61
    listener, port = server.listen("ipv4", backlog=1024)
    words = {"family": "ipv4", "addr": hosts[1].ipv4, "port": port}
    for _ in range(ATTEMPTS):
        with netbpf("soaccept", "-p", server.pid, "--buffer", "4m") as run:
            client.tell("burst", number=number, threads=threads, **words)
            made = server.ask("accept_many", listener=listener, number=number * threads)["found"]
            client.answer()
        if not run.summary["lost"]["probe_missed"]:
            break
    assert Counter((e["fd"], e["rport"]) for e in run.events) == Counter(map(tuple, made))
    assert all(e["wait_us"] is not None and e["raddr"] == hosts[0].ipv4 for e in run.events)
    assert run.summary["complete"] is True


# --- queue and wait -------------------------------------------------------------------------------


def test_queue_is_the_listeners_after_the_accept(netbpf, hosts, client, server) -> None:
    listener, port = server.listen("ipv4", backlog=BACKLOG)
    with netbpf("soaccept", "-p", server.pid) as run:
        for _ in range(5):
            client.connect("ipv4", hosts[1].ipv4, port)
        for _ in range(5):
            accept(server, listener)
        run.wait_for(5)
    assert [(e["queue"], e["queue_max"]) for e in run.events] == [
        (n, BACKLOG) for n in (4, 3, 2, 1, 0)
    ]


@compares("soaccept", "wait_us")
def test_wait_is_from_established_to_accepted(netbpf, hosts, client, server) -> None:
    listener, port = server.listen("ipv6")
    imposed = (0.0, 0.1, 0.35)
    with netbpf("soaccept", "-p", server.pid) as run:
        calls = []
        for pause in imposed:
            made = client.connect("ipv4", hosts[1].ipv4, port)
            time.sleep(pause)  # this is the time that is measured
            calls.append((made, accept(server, listener)))
        run.wait_for(len(imposed))
    for event, (made, taken), pause in zip(run.events, calls, imposed):
        # It was established in the call of connect, and ended in that of accept.
        assert pause * 1e6 <= event["wait_us"] <= (taken.end - made.begin) * 1e6


@compares("soaccept", "pid")
def test_a_program_that_waits_for_connections_keeps_none_waiting(
    netbpf, hosts, client, server
) -> None:
    listener, port = server.listen("ipv4")
    with netbpf("soaccept", "-p", server.pid) as run:
        server.tell("accept", id=1, listener=listener)
        wait_until(lambda: accepting(server.pid), what="a call to accept")
        made = client.connect("ipv4", hosts[1].ipv4, port)
        taken = seen(server, server.answer(), "ipv4")
        run.wait_for(1)
    (event,) = run.events
    assert lines(run.events) == Counter([taken.line])
    assert event["wait_us"] <= (taken.end - made.begin) * 1e6
    assert (event["queue"], event["queue_max"]) == (0, 128)


def test_calls_that_wait_at_once_all_return(netbpf, hosts, client, server) -> None:
    threads, each = 8, 16
    listener, port = server.listen("ipv4")
    words = {"family": "ipv4", "addr": hosts[1].ipv4, "port": port}
    for _ in range(ATTEMPTS):
        with netbpf("soaccept", "-p", server.pid) as run:
            # More than there are places for kretprobes: two per CPU, ten at least.
            server.tell("accept_many", listener=listener, number=1, threads=threads * each)
            wait_until(lambda: accepting(server.pid) == threads * each, what="all to accept")
            client.ask("burst", number=each, threads=threads, **words)
            taken = server.answer()["found"]
        if not run.summary["lost"]["probe_missed"]:
            break
    assert Counter(event["rport"] for event in run.events) == Counter(port for _, port in taken)
    assert run.summary["complete"] is True


def test_a_call_that_began_before_the_start_is_told_without_its_queue(
    netbpf, hosts, client, server
) -> None:
    listener, port = server.listen("ipv4")
    server.tell("accept", id=1, listener=listener)
    wait_until(lambda: accepting(server.pid), what="a call to accept")
    with netbpf("soaccept", "-p", server.pid) as run:
        client.connect("ipv4", hosts[1].ipv4, port)
        taken = seen(server, server.answer(), "ipv4")
        run.wait_for(1)
    (event,) = run.events
    assert lines(run.events) == Counter([taken.line])
    assert event["wait_us"] is not None
    assert (event["queue"], event["queue_max"], event["listener"]) == (None, None, None)


def test_a_connection_older_than_the_tool_has_no_wait(netbpf, hosts, client, server) -> None:
    listener, port = server.listen("ipv4")
    client.connect("ipv4", hosts[1].ipv4, port)
    with netbpf("soaccept", "-p", server.pid) as run:
        accept(server, listener)
        run.wait_for(1)
    assert run.events[0]["wait_us"] is None and run.events[0]["queue"] == 0


# --- io_uring -------------------------------------------------------------------------------------

KINDS = ["rawtp", "tp"]
with_requests = pytest.mark.skipif(
    "req" not in (Btf().parameters("__traceiter_io_uring_complete") or ()),
    reason="needs a kernel that tells which request of io_uring has ended: 5.18",
)


@pytest.fixture(scope="module")
def caller() -> Iterator[calls.Caller]:
    with calls.callers() as start:
        yield start()


@compares("soaccept", "errno")
@compares("soaccept", "would_block", "interrupted", "restarted", shape="summary")
@with_requests
@pytest.mark.parametrize("kind", KINDS)
def test_what_io_uring_accepts_is_told_with_all_that_the_kernel_tells(
    netbpf, caller, kind: str
) -> None:
    calls.needs_ring(caller)
    with netbpf("soaccept", "-p", caller.pid, "--probe", f"ring={kind}") as run:
        caller.tell("ring_accepts", 1, int(socket.AF_INET), f"127.0.0.{1 + KINDS.index(kind)}")
        accepted = caller.answer()["accepted"]
        caller.answer()
        run.wait_for(len(accepted))
    wanted = []
    for how, fd, port in accepted:
        if how == "EINVAL":
            wanted.append((how, None, None, None, False))
        elif how == "direct":  # in a table of the ring's own: the socket is not looked for
            wanted.append((None, None, None, 0, False))
        else:
            wanted.append((None, fd, port, None if how == "multishot" else 0, True))
    assert wanted == [
        (e["errno"], e["fd"], None if e["errno"] else e["rport"], e["queue"], bool(e["wait_us"]))
        for e in run.events
    ]
    assert {event["comm"] for event in run.events} == {caller.comm}
    totals = {"would_block": 0, "interrupted": 1, "restarted": 0}  # the last one is canceled
    assert run.summary["totals"] == totals
    assert run.summary["complete"] is True


@with_requests
def test_unix_connections_that_io_uring_accepts_one_by_one(netbpf, caller) -> None:
    calls.needs_ring(caller)
    with netbpf("soaccept", "-p", caller.pid) as run:
        caller.tell("ring_accepts", 1, int(socket.AF_UNIX), "nb-soaccept-ring")
        accepted = caller.answer()["accepted"]
        caller.answer()
        run.wait_for(4)
    fds = [fd for how, fd, _ in accepted if how in ("once", "later")]
    found = [(event["errno"], event["fd"], event["laddr"]) for event in run.events]
    assert found[:2] == [(None, fd, "@nb-soaccept-ring") for fd in fds]
    assert found[2:] == [("EINVAL", None, None), (None, None, "@nb-soaccept-ring")]


# --- errors ---------------------------------------------------------------------------------------


def test_errors_are_lines_and_eagain_is_counted(netbpf, hosts, client, server) -> None:
    listener, port = server.listen("ipv4", backlog=BACKLOG)
    server.ask("open", id=5, family="ipv4")  # does not listen
    with (
        netbpf("soaccept", "-p", server.pid) as run,
        netbpf("soaccept", "--errors", "-p", server.pid) as errors,
    ):
        client.connect("ipv4", hosts[1].ipv4, port)
        client.connect("ipv4", hosts[1].ipv4, port)
        assert failing(server, listener, limit=True) == "EMFILE"
        assert failing(server, listener, limit=True, four=True) == "EMFILE"
        done = [accept(server, listener), accept(server, listener)]
        assert [failing(server, listener, wait=False) for _ in range(3)] == ["EAGAIN"] * 3
        assert failing(server, 5) == "EINVAL"
        run.wait_for(5)
        errors.wait_for(3)
    found = run.events
    names = ["EMFILE", "EMFILE", None, None, "EINVAL"]
    assert [e["errno"] for e in found] == names
    assert lines(found[2:4]) == Counter(one.line for one in done)
    full = found[0]
    assert (full["laddr"], full["lport"], full["raddr"], full["fd"]) == (
        "0.0.0.0",
        port,
        None,
        None,
    )
    assert full["result"] == "Too many open files" and full["queue"] == 2
    assert full["family"] == "ipv4" and full["proto"] == "tcp"
    assert [e["errno"] for e in errors.events] == ["EMFILE", "EMFILE", "EINVAL"]
    assert run.summary["totals"]["would_block"] == 3


def test_a_descriptor_that_is_no_socket_is_a_line(netbpf) -> None:
    script = "import ctypes; ctypes.CDLL(None).accept(0, None, None)"
    with netbpf("soaccept", "--comm", "nb-nosocket") as run:
        subprocess.run(
            ["bash", "-c", 'exec -a nb-nosocket "$0" "$@"', "/usr/bin/env", "python3", "-c",
             f"open('/proc/self/comm', 'w').write('nb-nosocket'); {script}"],
            stdin=subprocess.DEVNULL, check=True,
        )  # fmt: skip
        run.wait_for(1)
    (event,) = run.events
    assert (event["errno"], event["family"], event["listener"]) == ("ENOTSOCK", None, None)


# --- filters --------------------------------------------------------------------------------------

FILTERS: dict[str, tuple[Callable[[Any, Any, Any], list[Any]], Callable[[Json], bool]]] = {
    "pid": (lambda s, h, p: ["-p", s.pid], lambda e: e["comm"] == "nb-server"),
    "comm": (lambda s, h, p: ["--comm", "nb-oth*"], lambda e: e["comm"] == "nb-other"),
    "netns": (lambda s, h, p: ["--netns", h[0].namespace], lambda e: e["comm"] == "nb-other"),
    "ipv4": (lambda s, h, p: ["-4"], lambda e: e["family"] == "ipv4"),
    "ipv6": (lambda s, h, p: ["-6"], lambda e: e["family"] == "ipv6"),
    "lport": (
        lambda s, h, p: ["-L", p],
        lambda e: e["comm"] == "nb-server" and e["proto"] == "tcp",
    ),
    "rport": (lambda s, h, p: ["-D", 21000], lambda e: e["rport"] == 21000),
    "raddr": (lambda s, h, p: ["--raddr", h[1].ipv4], lambda e: e["raddr"] == "10.91.0.2"),
    "laddr": (lambda s, h, p: ["--laddr", h[1].ipv6], lambda e: e["laddr"] == "fd00:91::2"),
    "tcp": (lambda s, h, p: ["--tcp"], lambda e: e["proto"] == "tcp"),
    "proto tcp": (lambda s, h, p: ["--proto", "tcp"], lambda e: e["proto"] == "tcp"),
    "proto unix": (lambda s, h, p: ["--proto", "unix"], lambda e: e["family"] == "unix"),
    "proto both": (lambda s, h, p: ["--proto", "unix,tcp"], lambda e: True),
    "errors": (lambda s, h, p: ["--errors"], lambda e: False),
    "no uid": (lambda s, h, p: ["--uid", "nobody"], lambda e: False),
}


def test_filters_let_through_what_they_say_and_nothing_else(
    hosts, client, server, tmp_path: Path
) -> None:
    left, right = hosts
    listener, port = server.listen("ipv6")
    path = f"@nb-filters-{server.pid}"
    unix, _ = server.listen("unix", path)
    with contextlib.ExitStack() as stack:
        other = stack.enter_context(End.start("nb-other", left))
        others, other_port = other.listen("ipv4")
        runs = {}
        for name, words in {**{n: w for n, (w, _) in FILTERS.items()}, "all": None}.items():
            directory = tmp_path / name
            directory.mkdir()
            options = words(server, hosts, port) if words else []
            runs[name] = harness.start(directory, "soaccept", *options)
        for run in runs.values():
            stack.enter_context(harness.attended(run))
        client.connect("ipv4", right.ipv4, port)
        client.connect("ipv6", right.ipv6, port)
        client.connect("ipv4", right.ipv4, port, bind=("", 21000))
        server.connect("ipv4", left.ipv4, other_port)
        server.connect("unix", path)
        for family in ("ipv4", "ipv6", "ipv4"):
            accept(server, listener, family)
        accept(other, others)
        server.ask("accept", id=next(idents), listener=unix)
        runs["all"].wait_for(lambda events: len(ours(events, server, other)) >= 5)
        whole = ours(runs["all"].events, server, other)
        for name, (_, wanted) in FILTERS.items():
            left_over = len([e for e in whole if wanted(e)])
            runs[name].wait_for(lambda events, n=left_over: len(ours(events, server, other)) >= n)
    assert len(whole) == 5
    for name, (_, wanted) in FILTERS.items():
        found = ours(runs[name].events, server, other)
        assert lines(found) == lines([e for e in whole if wanted(e)]), name


# --- the summary per listener ---------------------------------------------------------------------


@compares(
    "soaccept",
    "listener",
    "lport",
    "comm",
    "accepts",
    "errors",
    "p50_us",
    "queue",
    "queue_max",
    "top_error",
    shape="--summary",
)
def test_summary_has_a_row_per_listener(netbpf, hosts, client, server) -> None:
    one, one_port = server.listen("ipv4", backlog=BACKLOG)
    two, two_port = server.listen("ipv6", backlog=128)
    with netbpf("soaccept", "--summary", "-p", server.pid) as run:
        for _ in range(5):
            client.connect("ipv4", hosts[1].ipv4, one_port)
        client.connect("ipv6", hosts[1].ipv6, two_port)
        assert failing(server, one, limit=True) == "EMFILE"
        for _ in range(5):
            accept(server, one)
        accept(server, two, "ipv6")
        failing(server, two, wait=False)
    rows = {row["lport"]: row for row in run.rows}
    assert set(rows) == {one_port, two_port}
    first, second = rows[one_port], rows[two_port]
    assert (first["accepts"], first["errors"], first["top_error"]) == (5, 1, "EMFILE")
    assert (first["queue"], first["queue_max"], first["listener"]) == (5, BACKLOG, "0.0.0.0")
    assert (second["accepts"], second["errors"], second["queue"]) == (1, 0, 0)
    assert (second["queue_max"], second["listener"]) == (128, "::")
    assert 0 < first["p50_us"] <= first["p99_us"]
    assert first["comm"] == "nb-server" and run.events == []
    assert run.summary["totals"]["would_block"] == 1


# --- text and others ------------------------------------------------------------------------------


def test_text_is_that_of_the_book(netbpf, hosts, client, server) -> None:
    listener, port = server.listen("ipv4")
    with netbpf("soaccept", "-p", server.pid, json_lines=False) as run:
        made = client.connect("ipv4", hosts[1].ipv4, port)
        accept(server, listener)
        failing(server, listener, limit=True, wait=False)
        wait_until(lambda: run.stdout.count("\n") >= 3, what="two lines")
    heading, *rest = run.stdout.splitlines()
    assert heading.split() == ["PID", "PROCESS", "FAM", "ADDRESS", "PORT", "RESULT"]
    words = [line.split(maxsplit=5) for line in rest]
    assert words[0] == [str(server.pid), "nb-server", "ipv4", *map(str, made.local), "Success"]
    assert words[1][2:] == ["ipv4", "-", "-", "Too many open files"]
    assert all(len(line) <= 80 for line in run.stdout.splitlines())


@pytest.mark.parametrize("words", [["--open"], ["--lport", "x"], ["--errors", "--errors=1"]])
def test_nonsense_is_a_usage_error(words: list[str]) -> None:
    done = netbpf_once("soaccept", *words)
    assert done.returncode == 2 and "netbpf: error:" in done.stderr
    assert "Traceback" not in done.stderr


# --- whatever the kind of probe ------------------------------------------------------------------


ALTERNATIVES = Case(lambda s: ("-p", s.server.pid), sessions, events)
