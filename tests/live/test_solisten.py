"""solisten shows each listen(2) of this test; ss and net.core.somaxconn tell what came of it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import time
from collections.abc import Iterator
from typing import Any

import calls
import pytest
from alternatives import Case, events, everything
from compared import compares
from harness import Json, seconds
from topology import Host, cgroup_of

CALLS = 23
LIMIT = 31
LIBC = ctypes.CDLL(None, use_errno=True)


@pytest.fixture
def host(one_host: Host) -> Iterator[Host]:
    """A host whose listeners have a queue of LIMIT connections at most."""
    (before,) = one_host.run("sysctl", "-n", "net.core.somaxconn").split()
    one_host.sysctl(net__core__somaxconn=str(LIMIT))
    yield one_host
    one_host.sysctl(net__core__somaxconn=before)


@pytest.fixture
def start() -> Iterator[Any]:
    with calls.callers() as new:
        yield new


@contextlib.contextmanager
def listening(host: Host, backlog: int, address: Any = ("127.0.0.1", 0), family: int = 0,
              protocol: int = 0) -> Iterator[socket.socket]:  # fmt: skip
    """Yield a socket that listens; no library function in between changes `backlog`."""
    with host.socket(family or socket.AF_INET, socket.SOCK_STREAM, protocol) as listener:
        listener.bind(address)
        assert LIBC.listen(listener.fileno(), backlog) == 0
        yield listener


def limits(host: Host) -> dict[int, int]:
    """Return {port: limit of the accept queue} of the listeners of TCP, as ss shows it."""
    lines = host.run("ss", "-ltnH").splitlines()
    return {int(line.split()[3].rpartition(":")[2]): int(line.split()[2]) for line in lines}


def ours(run: Any) -> list[Json]:
    return [event for event in run.events if event["pid"] == os.getpid()]


@compares("solisten", "time", "pid", "comm", "proto", "backlog", "laddr", "lport", "result",
          "queue_max", "family", "uid", "netns", "cgroup")  # fmt: skip
def test_each_call_has_a_line_with_what_it_asks_for_and_gets(netbpf: Any, host: Host) -> None:
    own = open("/proc/self/comm").read().strip()
    with contextlib.ExitStack() as stack, netbpf("solisten", "--netns", host.inode) as run:
        begin = time.time()
        asked = {}
        for number in range(CALLS):
            listener = stack.enter_context(listening(host, 20 + number))
            asked[listener.getsockname()[1]] = 20 + number
        run.wait_for(CALLS)
        end = time.time()
        shown = limits(host)
    assert [(e["lport"], e["backlog"]) for e in run.events] == list(asked.items())
    assert {e["lport"]: e["queue_max"] for e in run.events} == {p: shown[p] for p in asked}
    assert sorted({e["queue_max"] for e in run.events}) == list(range(20, LIMIT + 1))
    for event in run.events:
        assert begin <= seconds(event["time"]) <= end
        assert (event["pid"], event["comm"], event["uid"]) == (os.getpid(), own, 0)
        assert (event["proto"], event["family"], event["laddr"]) == ("tcp4", "ipv4", "127.0.0.1")
        assert (event["result"], event["errno"], event["netns"]) == ("OK", None, host.inode)
        assert event["cgroup"] == cgroup_of(os.getpid())


def test_each_family_has_its_address(netbpf: Any, host: Host, tmp_path: Any) -> None:
    path = str(tmp_path / "socket")
    cases = [
        (socket.AF_INET6, ("::1", 0), "tcp6", "ipv6", "::1"),
        (socket.AF_INET6, ("::", 0), "tcp6", "ipv6", "::"),
        (socket.AF_INET6, ("::ffff:127.0.0.2", 0), "tcp4", "ipv4", "127.0.0.2"),
        (socket.AF_UNIX, path, "unix", "unix", path),
        (socket.AF_UNIX, f"\0solisten-{os.getpid()}", "unix", "unix", f"@solisten-{os.getpid()}"),
    ]
    wanted = []
    with netbpf("solisten", "--netns", host.inode) as run:
        for family, address, proto, name, shown in cases:
            with listening(host, 7, address, family) as listener:
                port = None if family == socket.AF_UNIX else listener.getsockname()[1]
                wanted.append((proto, name, shown, port, 7))
        with host.socket(socket.AF_INET, socket.SOCK_STREAM) as unbound:
            assert LIBC.listen(unbound.fileno(), 7) == 0  # the kernel chooses a port
            wanted.append(("tcp4", "ipv4", "0.0.0.0", unbound.getsockname()[1], 7))
        run.wait_for(len(wanted))
    found = [(e["proto"], e["family"], e["laddr"], e["lport"], e["queue_max"]) for e in run.events]
    assert found == wanted


def test_a_second_call_changes_the_limit(netbpf: Any, host: Host) -> None:
    with netbpf("solisten", "--netns", host.inode) as run, listening(host, 3) as listener:
        for backlog in (-1, 5, 0):
            assert LIBC.listen(listener.fileno(), backlog) == 0
            assert limits(host)[listener.getsockname()[1]] == (backlog if backlog >= 0 else LIMIT)
    assert [(e["backlog"], e["queue_max"]) for e in run.events] == [
        (3, 3), (-1, LIMIT), (5, 5), (0, 0),
    ]  # fmt: skip


def test_listener_of_mptcp_has_its_limit(netbpf: Any, host: Host) -> None:
    with netbpf("solisten", "--netns", host.inode) as run:
        try:
            with listening(host, 100, protocol=262) as listener:  # IPPROTO_MPTCP
                port = listener.getsockname()[1]
        except OSError as error:
            pytest.skip(f"needs a kernel with MPTCP: {error}")
    (event,) = run.events
    assert (event["proto"], event["lport"], event["queue_max"]) == ("tcp4", port, LIMIT)


@compares("solisten", "errno")
def test_calls_that_fail_have_their_error(netbpf: Any, host: Host) -> None:
    """Those with --errors; a call on what is no socket has no address."""
    own = ("-p", os.getpid())
    with netbpf("solisten", *own) as run, netbpf("solisten", *own, "--errors") as errors:
        with host.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams, listening(host, 2):
            assert LIBC.listen(datagrams.fileno(), 1) == -1
        file = os.open("/dev/null", os.O_RDONLY)
        assert LIBC.listen(file, 1) == LIBC.listen(999_999, 1) == -1
        os.close(file)
        run.wait_for(4)
    failed = [e for e in run.events if e["errno"]]
    assert [(e["proto"], e["errno"], e["queue_max"]) for e in failed] == [
        ("udp4", "ENOTSUP", None), ("other", "ENOTSOCK", None), ("other", "EBADF", None),
    ]  # fmt: skip
    assert [e["result"] for e in failed][0] == os.strerror(95)
    assert [e["family"] for e in failed] == ["ipv4", None, None]
    assert failed[1]["laddr"] is failed[1]["lport"] is None
    assert [e["time"] for e in errors.events] and len(errors.events) == len(failed)


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (("-4",), {"four", "other"}), (("-6",), {"six"}), (("--laddr", "127.0.0.3"), {"other"}),
        (("--laddr", "::1"), {"six"}), (("--proto", "unix"), {"unix"}),
        (("--proto", "tcp4,unix"), {"four", "other", "unix"}), (("-L", "65001"), {"four"}),
        (("-L", "1-65000"), {"six", "other"}), (("-p", "self"), {"four", "six", "other", "unix"}),
        (("-p", "1"), set()), (("--comm", "nobody-*"), set()), (("--errors",), set()),
    ],
)  # fmt: skip
def test_filters_select_calls(
    netbpf: Any, host: Host, tmp_path: Any, words: tuple[str, ...], wanted: set[str]
) -> None:
    names = {"four": ("127.0.0.1", 65001), "six": ("::1", 64001), "other": ("127.0.0.3", 64003)}
    shown = {port: name for name, (_, port) in names.items()}
    words = tuple(str(os.getpid()) if word == "self" else word for word in words)
    with netbpf("solisten", "--netns", host.inode, *words) as run:
        with netbpf("solisten", "--netns", host.inode) as every, contextlib.ExitStack() as stack:
            for name, address in names.items():
                family = socket.AF_INET6 if name == "six" else socket.AF_INET
                stack.enter_context(listening(host, 1, address, family))
            stack.enter_context(listening(host, 1, str(tmp_path / "path"), socket.AF_UNIX))
            every.wait_for(4)
    assert {shown.get(e["lport"], "unix") for e in run.events} == wanted
    assert len(run.events) == len(wanted)


def test_calls_in_other_namespaces_are_left_out(netbpf: Any, host: Host) -> None:
    with netbpf("solisten", "-p", os.getpid(), "--netns", host.inode) as run:
        with socket.create_server(("127.0.0.1", 0)):
            pass
    assert run.events == []


@compares("solisten", "comm", "laddr", "lport", "listens", "errors", "queue_max", "top_error",
          "pid", shape="--summary")  # fmt: skip
def test_summary_counts_the_calls_of_an_address(netbpf: Any, host: Host) -> None:
    own = open("/proc/self/comm").read().strip()
    with netbpf("solisten", "-p", os.getpid(), "--summary") as run:
        with listening(host, 3) as listener, host.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            port = listener.getsockname()[1]
            for backlog in range(5, 11):
                assert LIBC.listen(listener.fileno(), backlog) == 0
            for _ in range(5):
                assert LIBC.listen(udp.fileno(), 1) == -1
    found = [
        (r["comm"], r["laddr"], r["lport"], r["listens"], r["errors"], r["queue_max"],
         r["top_error"], r["pid"]) for r in run.rows
    ]  # fmt: skip
    assert found == [
        (own, "127.0.0.1", port, 7, 0, 10, None, os.getpid()),
        (own, "0.0.0.0", None, 0, 5, None, "ENOTSUP", os.getpid()),
    ]


def test_requests_of_io_uring_have_lines(netbpf: Any, start: Any) -> None:
    """As many as sockstat counts of the same process."""
    caller = start()
    own = ("-p", caller.pid)
    with netbpf("solisten", *own) as run, netbpf("sockstat", *own, "--op", "listen") as counted:
        caller.go("ring", 3)
    (row,) = counted.rows
    assert len(run.events) == row["calls"] == 3
    assert {(e["proto"], e["backlog"], e["queue_max"]) for e in run.events} == {("tcp4", 5, 5)}


ALTERNATIVES = Case(lambda stage: ("-p", stage.caller.pid), everything, events)
