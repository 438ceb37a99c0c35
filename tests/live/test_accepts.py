"""What soaccept must show where a connection's way to accept(2) is not the usual one.

The truth is what client and server saw: their own clocks around each call, and each call's result.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from compared import compares
from ends import End
from harness import SLOW, accepting, wait_until
from test_connects import cgroup_of
from topology import Host

ACCEPTS = {"x86_64": [43, 288]}.get(os.uname().machine, [202, 242])
ROUNDS = 40


@pytest.fixture(scope="module")
def hosts(two_hosts: tuple[Host, Host]) -> tuple[Host, Host]:
    for host in two_hosts:
        host.sysctl(net__ipv4__tcp_fastopen=3)
    return two_hosts


@pytest.fixture
def server(hosts: tuple[Host, Host]) -> Iterator[End]:
    with End.start("nb-server", hosts[1]) as end:
        yield end


@pytest.fixture
def client(hosts: tuple[Host, Host]) -> Iterator[End]:
    with End.start("nb-client", hosts[0]) as end:
        yield end


# --- Fast Open ----------------------------------------------------------------------------------


def with_cookie(client: End, server: End, right: Host) -> tuple[int, int]:
    """Return a listener's id and port, of which the client has the cookie."""
    listener, port = server.listen("ipv4", fastopen=64)
    client.ask("open", id="first", family="ipv4")
    client.ask("send", id="first", number=1, addr=right.ipv4, port=port, answer=False)
    server.ask("accept", id="first", listener=listener)
    return listener, port


@pytest.mark.parametrize("held", [False, True], ids=["established", "in-syn-recv"])
def test_the_wait_with_fast_open_begins_at_the_syn(netbpf, hosts, client, server, held) -> None:
    right = hosts[1]
    listener, port = with_cookie(client, server, right)
    # Without the client's ACK the child stays in SYN_RECV; the SYN passes.
    rule = f"tcp dport {port} tcp flags & (syn | ack) == ack"
    rules = [rule] if held else ["tcp dport 1"]
    with netbpf("soaccept", "-p", server.pid) as run, right.dropping(*rules):
        passive = right.snmp()["TcpExtTCPFastOpenPassive"]
        client.ask("open", id=1, family="ipv4")
        sent = client.ask("send", id=1, number=9, addr=right.ipv4, port=port, answer=False)
        assert right.snmp()["TcpExtTCPFastOpenPassive"] == passive + 1
        time.sleep(0.15)  # this is the time that is measured
        taken = server.ask("accept", id=1, listener=listener)
        run.wait_for(1)
    (event,) = run.events
    assert (taken["begin"] - sent["sent"]) * 1e6 <= event["wait_us"]
    assert event["wait_us"] <= (taken["end"] - sent["begin"]) * 1e6


def test_no_connection_gets_the_time_of_another(netbpf, hosts, client, server) -> None:
    # Accepted in SYN_RECV, established later: what is kept under an address goes with the socket.
    right = hosts[1]
    listener, port = with_cookie(client, server, right)
    bounds = {}
    rule = f"tcp dport {port} tcp flags & (syn | ack) == ack"
    with netbpf("soaccept", "-p", server.pid, "-L", port) as run:
        for number in range(ROUNDS):
            client.ask("open", id=1, family="ipv4")
            with right.dropping(*[rule] * (number % 2)):
                sent = client.ask(
                    "send", id=1, number=9, addr=right.ipv4, port=port, answer=False
                )  # fmt: skip
                taken = server.ask("accept", id=1, listener=listener)
            server.ask("reply", id=1)  # by now the third packet has come
            bounds[sent["local"][1]] = (taken["end"] - sent["begin"]) * 1e6
            client.ask("close", id=1)
            server.ask("close", id=1)
        run.wait_for(ROUNDS)
    assert len(run.events) == ROUNDS
    for event in run.events:
        assert 0 < event["wait_us"] <= bounds[event["rport"]]


# --- calls whose begin nobody sees, and interrupted ones ----------------------------------------


def test_calls_that_seccomp_refuses_have_their_listener(netbpf, hosts, client, server) -> None:
    right = hosts[1]
    listener, port = server.listen("ipv4", backlog=7)
    client.connect("ipv4", right.ipv4, port)
    server.ask("forbid", calls=ACCEPTS)
    words = ("--netns", right.namespace, "-p", server.pid)
    with (
        netbpf("soaccept", "-L", f"1,{port}", *words) as run,
        netbpf("soaccept", "-L", 1, *words) as other,
        netbpf("soaccept", "--netns", hosts[0].namespace, "-p", server.pid) as elsewhere,
    ):
        for four in (False, True):
            refused = server.ask("accept", id=1, listener=listener, four=four)
            assert refused["errno"] == "EPERM"
        run.wait_for(2)
    for event in run.events:
        assert (event["lport"], event["listener"], event["proto"]) == (port, "0.0.0.0", "tcp")
        assert (event["errno"], event["netns"], event["fd"]) == ("EPERM", right.inode, None)
        assert (event["queue"], event["queue_max"]) == (1, 7)  # by the one connect
    assert other.events == elsewhere.events == []


def test_what_is_no_socket_has_the_namespace_of_the_caller(netbpf, hosts, client) -> None:
    left, right = hosts
    with (
        netbpf("soaccept", "-p", client.pid, "--netns", left.namespace) as run,
        netbpf("soaccept", "-p", client.pid, "--netns", right.namespace) as other,
    ):
        assert client.ask("accept_fd", fd=0)["errno"] == "ENOTSOCK"
        assert client.ask("accept_fd", fd=999)["errno"] == "EBADF"
        run.wait_for(2)
    assert [(e["errno"], e["netns"]) for e in run.events] == [
        ("ENOTSOCK", left.inode), ("EBADF", left.inode)
    ]  # fmt: skip
    assert other.events == []


@pytest.mark.parametrize("how", ["handler", "stopped", "eintr"])
def test_a_call_that_a_signal_interrupts_is_no_error(netbpf, hosts, client, server, how) -> None:
    listener, port = server.listen("ipv4")
    words = {} if how == "stopped" else {"interrupt": 0.2, "restart": how == "handler"}
    with netbpf("soaccept", "-p", server.pid) as run:
        server.tell("accept", id=1, listener=listener, **words)
        wait_until(lambda: accepting(server.pid), what="a call to accept")
        if how == "stopped":
            os.kill(server.pid, signal.SIGSTOP)
            time.sleep(0.1)
            os.kill(server.pid, signal.SIGCONT)
        time.sleep(0.3)  # past the alarm
        if how != "eintr":
            client.connect("ipv4", hosts[1].ipv4, port)
        seen = server.answer()
        if how == "eintr":  # the next call is none that begins again
            server.ask("accept", id=1, listener=listener, wait=False)
        else:
            run.wait_for(1)
    assert seen["errno"] == ("EINTR" if how == "eintr" else "")
    assert [e["errno"] for e in run.events] == ([] if how == "eintr" else [None])
    assert run.summary["totals"] == {
        "would_block": how == "eintr", "interrupted": how == "eintr", "restarted": how != "eintr"
    }  # fmt: skip


def test_a_program_that_is_killed_in_accept_was_not_interrupted(netbpf, hosts) -> None:
    with netbpf("soaccept", "--comm", "nb-killed") as run:
        with contextlib.suppress(AssertionError), End.start("nb-killed", hosts[1]) as killed:
            listener, _ = killed.listen("ipv4")
            killed.tell("accept", id=1, listener=listener)
            wait_until(lambda: accepting(killed.pid), what="a call to accept")
            os.kill(killed.pid, signal.SIGKILL)
            killed.process.wait()
    assert run.events == []
    assert run.summary["totals"] == {"would_block": 0, "interrupted": 0, "restarted": 0}


# --- filters and maps ---------------------------------------------------------------------------


def test_what_was_not_asked_for_takes_no_room(netbpf, hosts, client, server) -> None:
    right, number = hosts[1], 400
    listener, port = server.listen("ipv4")
    _, other_port = server.listen("ipv4", backlog=4096)
    with netbpf("soaccept", "-L", port, "--netns", right.namespace, "--map-entries", 256) as run:
        made = client.connect("ipv4", right.ipv4, port)
        client.ask("crowd", number=number, family="ipv4", addr=right.ipv4, port=other_port)
        wait_until(lambda: queued(right, other_port) == number, what="all to be established")
        taken = server.ask("accept", id=1, listener=listener)
        run.wait_for(1)
    (event,) = run.events
    assert (taken["begin"] - made.over) * 1e6 <= event["wait_us"]
    assert event["wait_us"] <= (taken["end"] - made.begin) * 1e6
    assert run.summary["complete"] is True


def test_connections_that_find_no_room_are_lost_and_those_accepted_give_it_back(
    netbpf, hosts, client, server
) -> None:
    # Room for 64: of 100 in the queue the first ones have a wait, and accepted ones stay open.
    right, room, number = hosts[1], 64, 100
    listener, port = server.listen("ipv4", backlog=4096)
    with netbpf("soaccept", "-L", port, "-p", server.pid, "--map-entries", room) as run:
        client.ask("crowd", number=number, family="ipv4", addr=right.ipv4, port=port)
        wait_until(lambda: queued(right, port) == number, what="all to be established")
        for index in range(number):
            server.ask("accept", id=f"first {index}", listener=listener)
        for index in range(room):
            client.connect("ipv4", right.ipv4, port)
            server.ask("accept", id=f"second {index}", listener=listener)
        run.wait_for(number + room)
    known = [event["wait_us"] is not None for event in run.events]
    assert known == [True] * room + [False] * (number - room) + [True] * room
    assert run.summary["lost"]["map_full"] == number - room
    assert run.summary["complete"] is False


def test_what_an_address_excludes_takes_no_room(netbpf, hosts, client, server) -> None:
    # The other end's address is there at the end of the handshake only.
    right, number = hosts[1], 100
    listener, port = server.listen("ipv4", backlog=4096)
    words = ("-L", port, "--raddr", "192.0.2.0/24", "--map-entries", 64)
    with netbpf("soaccept", *words) as run:
        client.ask("crowd", number=number, family="ipv4", addr=right.ipv4, port=port)
        wait_until(lambda: queued(right, port) == number, what="all to be established")
        server.ask("accept", id=1, listener=listener)
    assert run.events == []
    assert run.summary["lost"]["map_full"] == 0 and run.summary["complete"] is True


def test_calls_that_find_no_room_are_lost(netbpf, hosts, client, server) -> None:
    # Five threads wait in accept; of two it is known on which listener.
    right, threads = hosts[1], 5
    listener, port = server.listen("ipv4", backlog=7)
    with netbpf("soaccept", "-p", server.pid, "--map-entries", 2) as run:
        server.tell("accept_many", listener=listener, number=1, threads=threads)
        wait_until(lambda: accepting(server.pid) == threads, what="all to wait")
        for index in range(threads):
            client.connect("ipv4", right.ipv4, port)
            run.wait_for(index + 1)
        server.answer()
    assert sorted(event["queue_max"] or 0 for event in run.events) == [0, 0, 0, 7, 7]
    assert run.summary["lost"]["map_full"] == threads - 2
    assert run.summary["complete"] is False


def queued(host: Host, port: int) -> int:
    return int(host.run("ss", "-tlnH", "sport", "=", port).split()[1])


# --- what else a line has -----------------------------------------------------------------------


def test_who_accepts_is_there_with_user_and_cgroup(netbpf, hosts, client) -> None:
    right = hosts[1]
    nobody = ["setpriv", "--reuid=65534", "--clear-groups"]
    with netbpf("soaccept", "-u", "1,65534", "--netns", right.namespace) as run:
        with End.start("nb-nobody", right, nobody) as server:
            listener, port = server.listen("ipv4")
            cgroup, pid = cgroup_of(server.pid), server.pid
            made = client.connect("ipv4", right.ipv4, port)
            taken = server.ask("accept", id=1, listener=listener)
            run.wait_for(1)
    (event,) = run.events
    assert (event["pid"], event["uid"], event["fd"]) == (pid, 65534, taken["fd"])
    assert (event["laddr"], event["raddr"]) == (right.ipv4, made.local[0])
    if cgroup:
        assert event["cgroup"] == cgroup


def test_two_listeners_in_each_of_two_intervals(netbpf, hosts, client, server) -> None:
    right = hosts[1]
    ends = [server.listen("ipv4", backlog=backlog) for backlog in (5, 9)]
    with netbpf("soaccept", "--summary", "-p", server.pid, "1") as run:
        for number in (2, 3):
            before = len({row["time"] for row in run.rows})
            for listener, port in ends:
                for _ in range(number):
                    client.connect("ipv4", right.ipv4, port)
                for _ in range(number):
                    server.ask("accept", id=1, listener=listener)
            wait_until(lambda n=before: len({row["time"] for row in run.rows}) > n, what="rows")
    for backlog, (_, port) in zip((5, 9), ends):
        rows = [row for row in run.rows if row["lport"] == port]
        assert sum(row["accepts"] for row in rows) == 5 and len(rows) >= 2
        assert {row["queue_max"] for row in rows} == {backlog}
        assert max(row["queue"] for row in rows) <= 2
        assert all(row["p50_us"] <= row["p99_us"] < 1e6 * SLOW for row in rows)


def test_errors_in_the_summary_are_those_of_whole_rows(netbpf, hosts, client, server) -> None:
    right = hosts[1]
    (bad, bad_port), (good, good_port) = (server.listen("ipv4") for _ in range(2))
    with netbpf("soaccept", "--summary", "--errors", "-p", server.pid) as run:
        for listener, port in ((bad, bad_port), (good, good_port)):
            for number in range(2):  # each stays open, so that no lower descriptor is free
                client.connect("ipv4", right.ipv4, port)
                server.ask("accept", id=f"{port} {number}", listener=listener)
        client.connect("ipv4", right.ipv4, bad_port)
        assert server.ask("accept", id=1, listener=bad, limit=True)["errno"] == "EMFILE"
    (row,) = run.rows
    assert (row["lport"], row["accepts"], row["errors"]) == (bad_port, 2, 1)
    assert row["top_error"] == "EMFILE"


def test_descriptor_0_is_no_error(netbpf, hosts, client) -> None:
    right = hosts[1]
    program = """
import os, socket, sys
listener = socket.socket()
listener.bind((sys.argv[1], 0))
listener.listen(1)
os.close(0)
print(listener.getsockname()[1], flush=True)
accepted = listener.accept()[0]
print(accepted.fileno(), flush=True)
"""
    line = right.inside(sys.executable, "-I", "-S", "-c", program, right.ipv4)
    with (
        netbpf("soaccept", "--netns", right.namespace) as run,
        netbpf("soaccept", "--netns", right.namespace, "--errors") as errors,
        subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as server,
    ):
        assert server.stdout
        client.connect("ipv4", right.ipv4, int(server.stdout.readline()))
        assert server.stdout.readline() == b"0\n"
        run.wait_for(1)
    (event,) = run.events
    assert (event["pid"], event["fd"], event["result"]) == (server.pid, 0, "OK")
    assert errors.events == []


@compares("soaccept", "p99_us", "pid", "proto", "netns", shape="--summary")
def test_percentiles_are_those_of_the_waits_that_were_imposed(
    netbpf, hosts, client, server
) -> None:
    right, number = hosts[1], 5
    listener, port = server.listen("ipv4")
    with netbpf("soaccept", "--summary", "-p", server.pid) as run:
        made = [client.connect("ipv4", right.ipv4, port) for _ in range(number)]
        taken = []
        for _ in made:
            taken.append(server.ask("accept", id=1, listener=listener))
            time.sleep(0.05)  # the waits differ by this: a rank too high or low is noticed
    (row,) = run.rows
    assert (row["lport"], row["pid"], row["comm"]) == (port, server.pid, "nb-server")
    assert (row["netns"], row["proto"], row["errors"]) == (right.inode, "tcp", 0)
    for name, rank in (("p50_us", 2), ("p99_us", 4)):
        low = (taken[rank]["begin"] - made[rank].over) * 1e6
        assert low <= row[name] <= (taken[rank]["end"] - made[rank].begin) * 1e6
