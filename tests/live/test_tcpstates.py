"""tcpstates against sessions whose states follow from what both ends did."""

from __future__ import annotations

import ctypes
import socket
import struct
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import traffic
from alternatives import Case, events, sessions
from compared import compares
from topology import Host

# What each end of a session goes through; the client closes first.
CLIENT = ["CLOSE", "SYN_SENT", "ESTABLISHED", "FIN_WAIT1", "FIN_WAIT2", "CLOSE"]
SERVER = ["LISTEN", "SYN_RECV", "ESTABLISHED", "CLOSE_WAIT", "LAST_ACK", "CLOSE"]


@pytest.fixture(scope="module")
def ends() -> Iterator[Any]:
    with traffic.peers() as new:
        yield new


def steps(states: list[str]) -> list[tuple[str, str]]:
    return list(zip(states, states[1:]))


def changes(run: Any, pid: int, port: int) -> list[dict[str, Any]]:
    """Return the changes of the socket that has a port, by its address in the kernel."""
    ours = {e["sock"] for e in run.events if port in (e["lport"], e["rport"]) and e["pid"] == pid}
    return [e for e in run.events if e["sock"] in ours and e["newstate"] != "LISTEN"]


@compares("tcpstates", "time", "pid", "comm", "owner", "family", "laddr", "lport", "raddr", "rport")
@compares("tcpstates", "oldstate", "newstate", "sock", "uid", "netns", "cgroup", "errno")
@pytest.mark.parametrize("family", traffic.FAMILIES[:3])
def test_both_ends_go_through_their_states(
    netbpf: Any, two_hosts: tuple[Host, Host], ends: Any, family: str
) -> None:
    left, right = two_hosts
    client, server = ends("nb-client", left), ends("nb-server", right)
    server.listen(family)
    with netbpf("tcpstates") as run:
        session = traffic.connect(client, server, family)
        session.transfer(up=10, down=10)
        session.end("client-fin")
        port = session.local[1]
        run.wait_for(lambda found: done(found, port))
    for peer, host, states in ((client, left, CLIENT), (server, right, SERVER)):
        found = changes(run, peer.pid, port)
        assert [(e["oldstate"], e["newstate"]) for e in found] == steps(states)
        assert len({e["sock"] for e in found}) == 1
        for event in found:
            assert (event["pid"], event["comm"]) == (peer.pid, peer.comm)
            assert (event["uid"], event["netns"], event["errno"]) == (0, host.inode, None)
            assert event["cgroup"]
            # Not known before the addresses, which older kernels set later.
            if family == "ipv4" or event["rport"] or event["newstate"] != "SYN_RECV":
                assert event["family"] == session.family
            else:
                assert event["family"] is None
            assert run.summary["start"] <= event["time"] <= run.summary["end"]
        whole = found[2]
        ours, theirs = (session.local, session.remote)[:: 1 if peer is client else -1]
        assert (whole["laddr"], whole["lport"]) == ours and (
            whole["raddr"],
            whole["rport"],
        ) == theirs
    owners = [event["owner"] for event in changes(run, server.pid, port)]
    assert owners[0] == "listener" and owners[-1] == "exact"


def done(found: list[Any], port: int) -> bool:
    closed = [e for e in found if e["newstate"] == "CLOSE" and port in (e["lport"], e["rport"])]
    return len(closed) >= 2


@compares("tcpstates", "duration_us")
def test_time_in_a_state_is_what_the_program_waited(netbpf: Any, one_host: Host) -> None:
    with one_host.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        with netbpf("tcpstates", "--netns", one_host.namespace) as run:
            with one_host.socket(socket.AF_INET, socket.SOCK_STREAM) as client:
                client.connect(listener.getsockname())
                begin = time.monotonic()
                port = client.getsockname()[1]
                time.sleep(0.2)
                waited = time.monotonic() - begin
            run.wait_for(lambda found: [e for e in found if e["newstate"] == "FIN_WAIT1"])
    (first,) = [e for e in run.events if e["newstate"] == "SYN_SENT"]
    assert first["duration_us"] is None and first["lport"] is None
    (closed,) = [e for e in run.events if e["newstate"] == "FIN_WAIT1" and e["lport"] == port]
    assert waited * 1e6 <= closed["duration_us"] < (waited + 1) * 1e6


def test_a_refused_connection_has_its_error(netbpf: Any, one_host: Host) -> None:
    with netbpf("tcpstates", "--netns", one_host.namespace) as run:
        with one_host.socket(socket.AF_INET, socket.SOCK_STREAM) as client:
            with pytest.raises(ConnectionRefusedError):
                client.connect(("127.0.0.1", 9))
        run.wait_for(2)
    assert [(e["newstate"], e["errno"]) for e in run.events] == [
        ("SYN_SENT", None), ("CLOSE", "ECONNREFUSED"),
    ]  # fmt: skip


def test_each_filter_shows_its_sockets_and_no_other(netbpf: Any, one_host: Host) -> None:
    with one_host.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with (
            netbpf("tcpstates", "--netns", one_host.namespace, "-L", port) as servers,
            netbpf("tcpstates", "--netns", one_host.namespace, "-D", port) as clients,
            netbpf("tcpstates", "--netns", one_host.namespace, "-p", 1) as nothing,
        ):
            with one_host.socket(socket.AF_INET, socket.SOCK_STREAM) as client:
                client.connect(("127.0.0.1", port))
                accepted = listener.accept()[0]
            accepted.close()
            for run in (servers, clients):
                run.wait_for(lambda found: [e for e in found if e["newstate"] == "CLOSE"])
    assert {e["lport"] for e in servers.events} == {port}
    assert {e["rport"] for e in clients.events} == {port}
    assert [e["newstate"] for e in servers.events] == SERVER[1:]
    assert [e["newstate"] for e in clients.events] == CLIENT[1:]
    assert not nothing.events


def test_local_port_that_connect_chooses_passes_its_filter(netbpf: Any, one_host: Host) -> None:
    one_host.sysctl(net__ipv4__ip_local_port_range="61001 61001")
    try:
        with netbpf("tcpstates", "--netns", one_host.namespace, "-L", 61001) as run:
            with one_host.socket(socket.AF_INET, socket.SOCK_STREAM) as client:
                with pytest.raises(ConnectionRefusedError):
                    client.connect(("127.0.0.1", 9))
            run.wait_for(2)
    finally:
        one_host.sysctl(net__ipv4__ip_local_port_range="32768 60999")
    assert [(e["oldstate"], e["newstate"]) for e in run.events] == [
        ("CLOSE", "SYN_SENT"), ("SYN_SENT", "CLOSE"),
    ]  # fmt: skip
    first, second = run.events
    assert (first["lport"], first["duration_us"]) == (61001, None)
    assert 0 < second["duration_us"] < 1_000_000


def closed_by_the_peer(host: Host, client: socket.socket, accepted: socket.socket) -> None:
    accepted.close()
    assert client.recv(1) == b""
    client.close()


def shut_down_before_it_is_closed(
    host: Host, client: socket.socket, accepted: socket.socket
) -> None:
    client.shutdown(socket.SHUT_WR)
    assert accepted.recv(1) == b""
    accepted.close()
    assert client.recv(1) == b""
    client.close()


def reset(host: Host, client: socket.socket, accepted: socket.socket) -> None:
    accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    accepted.close()
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    client.close()


def disconnected(host: Host, client: socket.socket, accepted: socket.socket) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    unspecified = struct.pack("H14x", socket.AF_UNSPEC)
    assert libc.connect(client.fileno(), unspecified, len(unspecified)) == 0
    accepted.close()
    client.close()


ENDINGS = (closed_by_the_peer, shut_down_before_it_is_closed, reset, disconnected)


@compares("tcpstates", "step")
@pytest.mark.parametrize("end", ENDINGS)
def test_each_step_of_a_connection_is_shown_once(netbpf: Any, one_host: Host, end: Any) -> None:
    """However it ends; a connection that is refused has no step."""
    words = ("--netns", one_host.namespace)
    with one_host.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with (
            netbpf("tcpstates", *words, "--step", "connect,accept,close") as run,
            netbpf("tcpstates", *words, "--step", "accept") as accepts,
            netbpf("tcpstates", *words, "--step", "connect,close", "-L", 60001) as by_port,
            netbpf("tcpstates", *words) as whole,
        ):
            with one_host.socket(socket.AF_INET, socket.SOCK_STREAM) as client:
                with pytest.raises(ConnectionRefusedError):
                    client.connect(("127.0.0.1", 9))
            for number in range(7):
                client = one_host.socket(socket.AF_INET, socket.SOCK_STREAM)
                client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                client.bind(("127.0.0.1", 60001 + number))
                client.connect(("127.0.0.1", port))
                end(one_host, client, listener.accept()[0])
            run.wait_for(4 * 7)
            whole.wait_for(lambda found: sum(e["newstate"] == "CLOSE" for e in found) >= 15)
    steps = Counter((e["step"], e["lport"], e["rport"]) for e in run.events)
    ends = [(60001 + number, port) for number in range(7)]
    assert steps == Counter(
        (step, *pair)
        for a, b in ends
        for step, pair in (("connect", (a, b)), ("close", (a, b)), ("accept", (b, a)),
                           ("close", (b, a)))
    )  # fmt: skip
    assert [e["step"] for e in accepts.events] == ["accept"] * 7
    assert [(e["step"], e["lport"]) for e in by_port.events] == [
        ("connect", 60001), ("close", 60001),
    ]  # fmt: skip
    assert steps == Counter((e["step"], e["lport"], e["rport"]) for e in whole.events if e["step"])
    assert {e["step"] for e in whole.events} == {None, "connect", "accept", "close"}


def test_ends_that_connect_to_each_other_both_have_the_step_connect(
    netbpf: Any, two_hosts: tuple[Host, Host]
) -> None:
    """A socket that connects to itself sends and receives a SYN: SYN_SENT, SYN_RECV."""
    host = two_hosts[0]
    with netbpf("tcpstates", "--netns", host.namespace) as run:
        with host.socket(socket.AF_INET, socket.SOCK_STREAM) as both:
            both.bind(("127.0.0.1", 0))
            both.connect(both.getsockname())
        run.wait_for(lambda found: [e for e in found if e["newstate"] == "CLOSE"])
    assert ("SYN_SENT", "SYN_RECV") in [(e["oldstate"], e["newstate"]) for e in run.events]
    assert [e["step"] for e in run.events if e["step"]] == ["connect", "close"]


@compares("tcpstates", "oldstate", "newstate", "changes", "p50_us", "p99_us", shape="--summary")
def test_summary_counts_the_changes(netbpf: Any, one_host: Host) -> None:
    with one_host.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        with (
            netbpf("tcpstates", "--netns", one_host.namespace, "--summary") as summary,
            netbpf("tcpstates", "--netns", one_host.namespace) as lines,
        ):
            for _ in range(7):
                with one_host.socket(socket.AF_INET, socket.SOCK_STREAM) as client:
                    client.connect(listener.getsockname())
                    listener.accept()[0].close()
            lines.wait_for(lambda found: sum(e["newstate"] == "CLOSE" for e in found) >= 14)
    counted = Counter((e["oldstate"], e["newstate"]) for e in lines.events)
    rows = {(row["oldstate"], row["newstate"]): row for row in summary.rows}
    assert {key: row["changes"] for key, row in rows.items()} == counted
    assert counted["SYN_SENT", "ESTABLISHED"] == 7
    for key, row in rows.items():
        times = sorted(
            e["duration_us"] for e in lines.events
            if (e["oldstate"], e["newstate"]) == key and e["duration_us"] is not None
        )  # fmt: skip
        if times:
            # Two programs, one after the other: their times differ by that.
            assert abs(row["p50_us"] - times[(len(times) - 1) // 2]) <= 100
            assert abs(row["p99_us"] - times[-1]) <= 100
        else:
            assert row["p50_us"] is row["p99_us"] is None


ALTERNATIVES = Case(lambda s: ("-p", f"{s.client.pid},{s.server.pid}"), sessions, events)
