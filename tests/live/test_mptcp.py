"""MPTCP sockets are shown as the TCP sockets that carry them: their owners, queues and waits.

Since Go 1.24 every listener of a program written in Go is one, with plain TCP clients mostly.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from topology import Host

MPTCP = 262  # IPPROTO_MPTCP
PROTOCOLS = {"mptcp": MPTCP, "tcp": socket.IPPROTO_TCP}

pytestmark = pytest.mark.skipif(
    not Path("/proc/sys/net/mptcp").exists(), reason="needs a kernel with CONFIG_MPTCP"
)


@contextlib.contextmanager
def listening(host: Host, backlog: int) -> Iterator[socket.socket]:
    with host.socket(socket.AF_INET, socket.SOCK_STREAM, MPTCP) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(backlog)
        yield listener


def connected(host: Host, listener: socket.socket, protocol: str) -> socket.socket:
    client = host.socket(socket.AF_INET, socket.SOCK_STREAM, PROTOCOLS[protocol])
    client.settimeout(10)
    client.connect(listener.getsockname())
    return client


def us() -> tuple[int, str]:
    return os.getpid(), Path("/proc/self/comm").read_text().strip()


def test_listener_of_before_has_its_owner_and_its_drops(netbpf: Any, one_host: Host) -> None:
    with listening(one_host, 3) as listener, contextlib.ExitStack() as clients:
        for _ in range(4):
            clients.enter_context(connected(one_host, listener, "tcp"))
        with netbpf("tcpsynbl", "--netns", one_host.inode) as run:
            # Nothing but what it drops tells of it: no handshake is completed any more.
            late = clients.enter_context(one_host.socket(socket.AF_INET, socket.SOCK_STREAM))
            late.setblocking(False)
            assert late.connect_ex(listener.getsockname()) == errno.EINPROGRESS
            late.close()
            port = listener.getsockname()[1]
            run.stop()
    (row,) = run.rows
    assert (row["pid"], row["comm"], row["owner"]) == (*us(), "snapshot")
    assert (row["lport"], row["handshakes"], row["dropped"]) == (port, 0, 1)
    assert (row["accept_queue"], row["accept_limit"]) == (4, 3)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_accept_has_wait_queue_and_the_sockets_own_protocol(
    netbpf: Any, one_host: Host, protocol: str
) -> None:
    with listening(one_host, 5) as listener, contextlib.ExitStack() as stack:
        with (
            netbpf("soaccept", "-p", os.getpid()) as run,
            netbpf("soaccept", "-p", os.getpid(), "--tcp") as tcp,
        ):
            ports = []
            for _ in range(3):
                client = stack.enter_context(connected(one_host, listener, protocol))
                ports.append(client.getsockname()[1])
            for _ in range(3):
                stack.enter_context(listener.accept()[0])
            run.wait_for(3)
            tcp.wait_for(3)
    assert [event["rport"] for event in run.events] == ports
    assert {event["proto"] for event in run.events} == {protocol}
    queues = [(event["queue"], event["queue_max"]) for event in run.events]
    assert queues == [(2, 5), (1, 5), (0, 5)]
    assert all(event["wait_us"] > 0 for event in run.events)
    assert [event["rport"] for event in tcp.events] == ports


@pytest.mark.parametrize("opened", ["before", "during"])
def test_session_has_the_owner_of_both_ends(netbpf: Any, one_host: Host, opened: str) -> None:
    with listening(one_host, 5) as listener, contextlib.ExitStack() as stack:
        sockets: list[socket.socket] = []

        def session() -> None:
            sockets.append(stack.enter_context(connected(one_host, listener, "mptcp")))
            sockets.append(stack.enter_context(listener.accept()[0]))
            sockets[0].sendall(b"x" * 1000)
            assert len(sockets[1].recv(1000, socket.MSG_WAITALL)) == 1000

        if opened == "before":
            session()
        with netbpf("tcplife", "--open", "--netns", one_host.inode) as run:
            if opened == "during":
                session()
            run.stop()
        port = sockets[0].getsockname()[1]
    found = [row for row in run.rows if port in (row["lport"], row["rport"])]
    owner = "snapshot" if opened == "before" else "exact"
    assert sorted(row["lport"] == port for row in found) == [False, True]
    assert {(row["pid"], row["comm"], row["owner"]) for row in found} == {(*us(), owner)}
