"""sockstat --by: rows by any key are the calls that the programs wrote down."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

import calls
import pytest
import topology
from calls import Caller, Row, difference, shown
from compared import compares
from harness import Run
from topology import Host, cgroup_of

from netbpf.declare.tool import find_tool

CONTAINER = "5eed" * 16  # a container id: 64 hexadecimal digits
NOBODY = 65534


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[Caller, Caller]]:
    """Two processes; the second has another user and is in a container."""
    with topology.cgroup(f"docker-{CONTAINER}.scope") as cgroup, calls.callers() as start:
        yield start("nb-by-one"), start("nb-by-two", uid=NOBODY, cgroup=cgroup)


def all_null(run: Run, *names: str) -> bool:
    """Return whether the keys that are not in `names` are null."""
    others = set(find_tool("sockstat").keyed.keys) - set(names)
    return all(row[other] is None for row in run.rows for other in others)


@compares("sockstat", "comm", "pid", "uid", "container", "op", "proto", "calls", shape="--by")
@compares("sockstat", "errors", "would_block", "bytes", "top_error", "cgroup", shape="--by")
def test_rows_by_process_and_call(netbpf: Any, pair: tuple[Caller, Caller]) -> None:
    inode = cgroup_of(pair[1].pid)
    known = {
        "comm": ("nb-by-one", "nb-by-two"),
        "pid": (pair[0].pid, pair[1].pid),
        "uid": (0, NOBODY),
        "container": (None, CONTAINER),
        "cgroup": (cgroup_of(pair[0].pid), inode),
    }
    with contextlib.ExitStack() as stack:
        lists = {**{name: f"{name},op,proto" for name in known}, "op": "op", "proto": "proto"}
        runs = {
            name: stack.enter_context(netbpf("sockstat", "--comm", "nb-by-*", "--by", by))
            for name, by in lists.items()
        }
        told = [played(one, times) for one, times in zip(pair, (2, 3))]
    for name, values in known.items():
        run = runs[name]
        wanted: calls.Rows = {}
        failed: dict[Any, Any] = {}
        for value, one in zip(values, told):
            wanted.update({(value, *key): row for key, row in one.rows.items()})
            failed.update({(value, *key): errors for key, errors in one.errors.items()})
        assert not difference(strings(shown(run.rows, name, "op", "proto")), strings(wanted))
        assert all_null(run, name, "op", "proto")
        for row in run.rows:
            errors = failed.get((row[name], row["op"], row["proto"]))
            assert (
                errors[row["top_error"]] == max(errors.values())
                if errors
                else (row["top_error"] is None)
            )
    for index, name in enumerate(("op", "proto")):
        sums: calls.Rows = {}
        for one in told:
            for key, row in one.rows.items():
                sums[key[index],] = sums.get((key[index],), Row()) + row
        assert not difference(shown(runs[name].rows, name), sums)


def played(one: Caller, times: int) -> calls.Told:
    """Have scenes played that any user may play; return what was done."""
    found = calls.Told({}, {})
    for scene in ("tcp4", "tcp6", "udp4", "unix", "errors", "failures"):
        told = one.go(scene, times)
        for key, row in told.rows.items():
            found.rows[key] = found.rows.get(key, Row()) + row
        for key, errors in told.errors.items():
            found.errors.setdefault(key, Counter()).update(errors)
    return found


def strings(rows: calls.Rows) -> dict[tuple[str, ...], Row]:
    """Return the rows with keys that can be sorted."""
    return {tuple(map(str, key)): row for key, row in rows.items()}


TALK = """
import socket
for host, times in {plan!r}:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    server, client = (socket.socket(family, socket.SOCK_DGRAM) for _ in range(2))
    server.bind((host, 0))
    client.connect(server.getsockname()[:2])
    for _ in range(times):
        client.send(b"x" * 7)
    print(client.getsockname()[1], server.getsockname()[1], flush=True)
one, two = socket.socketpair()
for _ in range(11):
    one.send(b"y")
"""


@compares("sockstat", "laddr", "lport", "raddr", "rport", "netns", "family", shape="--by")
def test_rows_by_address(netbpf: Any, one_host: Host) -> None:
    plan = [("127.0.1.1", 2), ("127.0.2.9", 3), ("127.64.0.1", 5), ("::1", 4)]
    command = one_host.inside(sys.executable, "-I", "-S", "-c", TALK.format(plan=plan))
    lists = ("raddr,rport,lport", "raddr/24,laddr/8", "raddr/10", "raddr/0", "family", "netns")
    # Other tools ask each namespace for its counters, through netlink.
    args = ("sockstat", "--netns", one_host.inode, "--op", "send", "--proto", "udp,unix", "--by")
    with contextlib.ExitStack() as stack:
        runs = {by: stack.enter_context(netbpf(*args, by)) for by in lists}
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    ports = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]

    def found(by: str) -> dict[tuple[Any, ...], int]:
        names = [part.partition("/")[0] for part in by.split(",")]
        assert all_null(runs[by], *names)
        return {tuple(row[name] for name in names): row["calls"] for row in runs[by].rows}

    hosts_of = {(host, there, here): times for (host, times), (here, there) in zip(plan, ports)}
    assert found("raddr,rport,lport") == {**hosts_of, (None, None, None): 11}
    assert found("raddr/24,laddr/8") == {
        ("127.0.1.0/24", "127.0.0.0/8"): 2, ("127.0.2.0/24", "127.0.0.0/8"): 3,
        ("127.64.0.0/24", "127.0.0.0/8"): 5, ("::/24", "::/8"): 4, (None, None): 11,
    }  # fmt: skip
    assert found("raddr/10") == {
        ("127.0.0.0/10",): 5, ("127.64.0.0/10",): 5, ("::/10",): 4, (None,): 11
    }  # fmt: skip
    assert found("raddr/0") == {("0.0.0.0/0",): 10, ("::/0",): 4, (None,): 11}
    assert found("family") == {("ipv4",): 10, ("ipv6",): 4, ("unix",): 11}
    assert found("netns") == {(one_host.inode,): 25}


@compares("sockstat", "restarted", shape="--by")
def test_restarts_by_key(netbpf: Any, pair: tuple[Caller, Caller]) -> None:
    with netbpf("sockstat", "-p", pair[0].pid, "--by", "comm,op") as run:
        pair[0].go("interrupted", 1, "recv", "restart", 5)
    assert {(row["comm"], row["op"]): row["restarted"] for row in run.rows if row["restarted"]} == {
        ("nb-by-one", "recv"): 5
    }


@pytest.mark.parametrize("interval", [(), ("0.3",)], ids=["at-the-end", "intervals"])
def test_filters_of_calls_and_order(
    netbpf: Any, pair: tuple[Caller, Caller], interval: tuple[str, ...]
) -> None:
    words = ("--comm", "nb-by-*", "--op", "send,recv", "--proto", "tcp,unix")
    with (
        netbpf("sockstat", *words, "--by", "op,proto", *interval) as run,
        netbpf("sockstat", *words, "--by", "proto", "--sort", "bytes", "--top", 1) as first,
    ):
        told = pair[0].go("everything", 4).rows
    wanted = {
        key: row for key, row in told.items()
        if key[0] in ("send", "recv") and key[1] in ("tcp4", "tcp6", "unix")
    }  # fmt: skip
    assert not difference(shown(run.rows), wanted)
    if not interval:
        order = [row["calls"] for row in run.rows]
        assert order == sorted(order, reverse=True)
    (row,) = first.rows
    moved = {p: sum(r.bytes for (_, q), r in wanted.items() if p == q) for _, p in wanted}
    assert row["bytes"] == max(moved.values()) == moved[row["proto"]]


def test_what_finds_no_room_is_counted(netbpf: Any) -> None:
    with netbpf("sockstat", "--map-entries", 2, "--by", "rport", "--op", "send",
                "-p", os.getpid()) as run:  # fmt: skip
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for port in range(9000, 9020):
                sender.connect(("127.0.0.1", port))
                with contextlib.suppress(ConnectionRefusedError):
                    sender.send(b"x")
    seen = sum(row["calls"] for row in run.rows)
    assert len(run.rows) == 8 and seen + run.summary["lost"]["map_full"] == 20
