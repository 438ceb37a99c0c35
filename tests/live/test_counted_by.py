"""--by of tools that count in the kernel: distributions and listeners by the keys asked for."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import topology
from compared import compares
from harness import Run, netbpf_once
from packets import datagrams
from test_tcpnagle import SMALL, Pair, hold_by_cork
from test_tcpsynbl import Clients, listening, overflow, port_of
from topology import Host

CONTAINER = "5eed" * 16  # a container id: 64 hexadecimal digits


def by_key(run: Run, *names: str) -> Counter[tuple[Any, ...]]:
    """Return how many values the histograms have by these keys."""
    found: Counter[tuple[Any, ...]] = Counter()
    for histogram in run.histograms:
        assert set(names) <= set(histogram["key"])
        found[tuple(histogram["key"][name] for name in names)] += histogram["count"]
    return found


# --- netsize --------------------------------------------------------------------------------------


@compares("netsize", "cpu", "dev", "netns", "point", shape="histogram")
def test_packets_by_the_cpu_that_sends_them(netbpf: Any, two_hosts: tuple[Host, Host]) -> None:
    left, right = two_hosts
    cpus = sorted(os.sched_getaffinity(0))[:2]
    sent: dict[int, int] = {}
    args = ("netsize", "-i", left.device, "--by")
    with (
        netbpf(*args, "cpu") as run,
        netbpf(*args, "netns") as places,
        netbpf(*args, "cpu,dev,netns") as whole,
        datagrams(left, right) as pair,
    ):
        try:
            for cpu, times in zip(cpus, (3, 5)):
                os.sched_setaffinity(0, {cpu})
                sent[cpu] = len(pair.send((7, 99) * times))
        finally:
            os.sched_setaffinity(0, set(range(os.cpu_count() or 1)))
    stack = {cpu: n for (cpu, point), n in by_key(run, "cpu", "point").items()
             if point == "stack_send"}  # fmt: skip
    assert stack == sent
    assert all(set(h["key"]) == {"cpu", "point"} for h in run.histograms)
    total = sum(sent.values())
    assert by_key(places, "netns", "point")[left.inode, "stack_send"] == total
    of_all = by_key(whole, "cpu", "dev", "netns", "point")
    for cpu, number in sent.items():
        assert of_all[cpu, left.device, left.inode, "stack_send"] == number


@pytest.fixture
def two_queues(one_host: Host) -> Iterator[Host]:
    """A host whose device nbq0 sends to nbq1 in two queues, each with a discipline of its own."""
    topology.must("ip", "-n", one_host.namespace, "link", "add", "nbq0", "numtxqueues", 2,
                  "numrxqueues", 2, "type", "veth", "peer", "name", "nbq1",
                  "numtxqueues", 2, "numrxqueues", 2)  # fmt: skip
    for device, address in (("nbq0", "10.92.0.1/24"), ("nbq1", "10.93.0.1/24")):
        one_host.run("sysctl", "-qw", f"net.ipv6.conf.{device}.disable_ipv6=1")  # sends by itself
        topology.must("ip", "-n", one_host.namespace, "addr", "add", address, "dev", device)
        topology.must("ip", "-n", one_host.namespace, "link", "set", device, "up")
    one_host.run("tc", "qdisc", "replace", "dev", "nbq0", "root", "handle", "1:", "mq")
    for queue in (1, 2):
        one_host.run("tc", "qdisc", "replace", "dev", "nbq0", "parent", f"1:{queue}", "pfifo")
    one_host.run("ip", "neigh", "add", "10.92.0.9", "lladdr", "02:00:00:00:00:09", "dev", "nbq0",
                 "nud", "permanent")  # fmt: skip
    yield one_host
    topology.must("ip", "-n", one_host.namespace, "link", "del", "nbq0")


@compares("netsize", "queue", shape="histogram")
@pytest.mark.parametrize("words", [("--by", "dev,queue"), ("--queues",)], ids=["by", "queues"])
def test_packets_by_the_queue_that_the_discipline_of_each_queue_counted(
    netbpf: Any, two_queues: Host, words: tuple[str, ...]
) -> None:
    with netbpf("netsize", "-i", "nbq0,nbq1", *words) as run:
        before = packets_of_queues(two_queues)
        for _ in range(24):  # flows, which hash to queues
            with two_queues.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                sender.sendto(b"x", ("10.92.0.9", 9))
        after = packets_of_queues(two_queues)
    sent = {queue: after[queue] - before[queue] for queue in after}
    assert sum(sent.values()) >= 24 and all(sent.values())
    found = by_key(run, "dev", "queue", "point")
    assert {queue: found["nbq0", queue, "stack_send"] for queue in sent} == sent
    # veth does not record the queue in which it receives: nobody knows it.
    assert {q for dev, q, point in found if dev == "nbq1" and point.endswith("recv")} == {None}
    assert found["nbq1", None, "stack_recv"] == sum(sent.values())


def packets_of_queues(host: Host) -> dict[int, int]:
    """Return {queue: packets} that the disciplines of nbq0 counted."""
    shown = json.loads(host.run("tc", "-s", "-j", "qdisc", "show", "dev", "nbq0"))
    return {
        int(one["parent"].rpartition(":")[2], 16) - 1: one["packets"]
        for one in shown
        if one["kind"] == "pfifo"
    }


# --- tcpnagle -------------------------------------------------------------------------------------


@compares("tcpnagle", "comm", "pid", "uid", "cgroup", "netns", "reason", shape="histogram")
@compares("tcpnagle", "family", "laddr", "lport", "raddr", "rport", shape="histogram")
def test_held_data_by_process_and_address(netbpf: Any, one_host: Host) -> None:
    lists = ("comm,pid,uid", "netns,cgroup", "laddr,lport,raddr,rport", "family,raddr/8", "reason")
    known = [keys for keys in lists if keys != "reason"]
    with contextlib.ExitStack() as stack:
        pairs = [
            stack.enter_context(contextlib.closing(Pair(one_host, one_host, family)))
            for family in ("ipv4", "ipv4", "ipv6")
        ]
        args = ("tcpnagle", "--netns", one_host.inode, "--by")
        runs = {keys: stack.enter_context(netbpf(*args, keys)) for keys in known}
        for times, pair in zip((1, 2, 3), pairs):
            for _ in range(times):
                hold_by_cork(pair, 0.01)
        ends = [(*pair.client.getsockname()[:2], *pair.client.getpeername()[:2]) for pair in pairs]
        for run in runs.values():
            run.stop()
    comm = Path("/proc/self/comm").read_text().rstrip("\n")
    group = own_cgroup()
    assert by_key(runs["comm,pid,uid"], "comm", "pid", "uid", "reason") == {
        (comm, os.getpid(), os.getuid(), "cork"): 6
    }
    assert by_key(runs["netns,cgroup"], "netns", "cgroup") == {(one_host.inode, group): 6}
    found = by_key(runs["laddr,lport,raddr,rport"], "laddr", "lport", "raddr", "rport")
    assert found == dict(zip(ends, (1, 2, 3)))
    assert by_key(runs["family,raddr/8"], "family", "raddr") == {
        ("ipv4", "127.0.0.0/8"): 3, ("ipv6", "::/8"): 3
    }  # fmt: skip
    assert SMALL


def own_cgroup() -> int:
    """Return the id of this process's cgroup, the inode of its directory."""
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    (path,) = [line.split(":", 2)[2] for line in lines if line.startswith("0:")]
    return os.stat(f"{topology.cgroup2_mount()}{path}").st_ino


def test_what_finds_no_room_by_key_is_counted(netbpf: Any, one_host: Host) -> None:
    with contextlib.ExitStack() as stack:
        pairs = [stack.enter_context(contextlib.closing(Pair(one_host, one_host))) for _ in "123"]
        args = ("tcpnagle", "--netns", one_host.inode, "--map-entries", 2, "--by", "lport")
        run = stack.enter_context(netbpf(*args))
        for pair in pairs:
            hold_by_cork(pair, 0.01)
        run.stop()
    seen = sum(h["count"] for h in run.histograms)
    assert seen == 2 and run.summary["lost"]["map_full"] == 1


# --- tcpsynbl -------------------------------------------------------------------------------------


@compares("tcpsynbl", "comm", "pid", "owner", "netns", "laddr", "lport", shape="--by")
@compares("tcpsynbl", "handshakes", "accept_queue", "accept_max", "accept_limit", shape="--by")
def test_listeners_added_up(netbpf: Any, one_host: Host) -> None:
    lists = ("comm,pid,owner", "netns", "laddr,lport", "laddr/8")
    with contextlib.ExitStack() as stack:
        clients = stack.enter_context(contextlib.closing(Clients(one_host)))
        one = stack.enter_context(listening(one_host, 5, "127.0.0.1"))
        two = stack.enter_context(listening(one_host, 7, "127.0.0.2"))
        six = stack.enter_context(listening(one_host, 9, "::1"))
        args = ("tcpsynbl", "--netns", one_host.inode, "--by")
        runs = {keys: stack.enter_context(netbpf(*args, keys)) for keys in lists}
        clients.connect(port_of(one), 2)
        clients.connect(port_of(two), 3, "127.0.0.2")
        clients.connect(port_of(six), 4, "::1")
        ports = [port_of(listener) for listener in (one, two, six)]
        for run in runs.values():
            run.stop()
    comm = Path("/proc/self/comm").read_text().rstrip("\n")

    def rows(by: str, *names: str) -> dict[tuple[Any, ...], tuple[int, ...]]:
        values = ("handshakes", "accept_queue", "accept_max", "accept_limit")
        return {
            tuple(row[name] for name in names): tuple(row[name] for name in values)
            for row in runs[by].rows
        }

    assert all(run.histograms == [] for run in runs.values())
    owner = (comm, os.getpid(), "snapshot")
    assert rows("comm,pid,owner", "comm", "pid", "owner") == {owner: (9, 9, 4, 9)}
    assert rows("netns", "netns", "comm") == {(one_host.inode, None): (9, 9, 4, 9)}
    assert rows("laddr,lport", "laddr", "lport") == {
        ("127.0.0.1", ports[0]): (2, 2, 2, 5),
        ("127.0.0.2", ports[1]): (3, 3, 3, 7),
        ("::1", ports[2]): (4, 4, 4, 9),
    }
    assert rows("laddr/8", "laddr") == {
        ("127.0.0.0/8",): (5, 5, 3, 7), ("::/8",): (4, 4, 4, 9)
    }  # fmt: skip


@compares("tcpsynbl", "dropped", "dropped_total", "syn_queue", "syn_max", "syns", "cookies",
          shape="--by")  # fmt: skip
def test_losses_of_listeners_added_up(netbpf: Any, one_host: Host) -> None:
    with contextlib.ExitStack() as stack:
        clients = stack.enter_context(contextlib.closing(Clients(one_host)))
        listeners = [stack.enter_context(listening(one_host, 3)) for _ in "12"]
        args = ("tcpsynbl", "--netns", one_host.inode)
        single = stack.enter_context(netbpf(*args))
        run = stack.enter_context(netbpf(*args, "--by", "comm"))
        for more, listener in zip((2, 3), listeners):
            overflow(clients, port_of(listener), 3, more)
        single.stop()
        run.stop()
    (row,) = run.rows
    for name in ("dropped", "dropped_total"):
        assert row[name] == 5
    for name in ("syn_queue", "syns", "cookies"):
        values = [one[name] for one in single.rows if one[name] is not None]
        assert row[name] == (sum(values) if values else None)
    assert row["syn_max"] == max(one["syn_max"] for one in single.rows)


def test_keys_that_a_tool_cannot_tell_are_usage_errors() -> None:
    for tool, key in (("netsize", "comm"), ("tcpsynbl", "raddr"), ("tcpnagle", "dev")):
        done = netbpf_once(tool, "--by", key)
        assert done.returncode == 2 and f"'{key}' is not a key" in done.stderr
        assert "hint: --by: a row for each value of these: " in done.stderr
