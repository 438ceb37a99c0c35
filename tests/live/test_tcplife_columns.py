"""tcplife's columns of the owner and of the round trip, its list of open sessions, and its maps.

Truth: what TCP_INFO returned to the program just before the end, and what this test gave the
program's process: its user, namespace and cgroup.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
from pathlib import Path
from typing import Any

import pytest
import topology
from compared import compares
from topology import Host

RESET = struct.pack("ii", 1, 0)  # struct linger: close() sends a RST
NOBODY = 65534
TCPI_RTT = 68  # the place of tcpi_rtt in struct tcp_info, us


def listen(host: Host, backlog: int = 64) -> socket.socket:
    listener = host.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.bind((host.ipv4, 0))
    listener.listen(backlog)
    return listener


def connect(stack: contextlib.ExitStack, host: Host, listener: socket.socket) -> socket.socket:
    sock = stack.enter_context(host.socket(socket.AF_INET, socket.SOCK_STREAM))
    sock.connect(listener.getsockname())
    return sock


def round_trip(sock: socket.socket) -> int:
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
    return int(struct.unpack_from("=I", info, TCPI_RTT)[0])


@compares("tcplife", "srtt_us")
def test_round_trip_is_what_tcp_info_has(netbpf: Any, two_hosts: tuple[Host, Host]) -> None:
    left, right = two_hosts
    found = []
    with listen(right) as listener, netbpf("tcplife", "--netns", left.inode) as run:
        for size in (1, 100_000):
            with left.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
                sock.connect(listener.getsockname())
                with listener.accept()[0] as server:
                    sock.sendall(b"u" * size)
                    while size:
                        size -= len(server.recv(65536))
                    server.sendall(b"d")
                    assert sock.recv(1) == b"d"
                    # The RST is the end: no acknowledgement changes the time any more.
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                    found.append(round_trip(sock))
                    sock.close()
        run.wait_for(2)
    assert [event["srtt_us"] for event in run.events] == found


@compares("tcplife", "pid", "comm", "uid", "netns", "cgroup")
def test_owner_has_its_user_namespace_and_cgroup(netbpf: Any, two_hosts: tuple[Host, Host]) -> None:
    left, right = two_hosts
    with listen(right) as listener, netbpf("tcplife", "-D", listener.getsockname()[1]) as run:
        with topology.cgroup("inner") as group:
            child = os.fork()
            if not child:
                with left.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
                    (group / "cgroup.procs").write_text(str(os.getpid()))
                    Path("/proc/self/comm").write_text("nb-columns")
                    os.setresuid(NOBODY, NOBODY, NOBODY)
                    sock.connect(listener.getsockname())
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
            run.wait_for(1)
            inode = group.stat().st_ino
    (event,) = run.events
    assert (event["pid"], event["comm"], event["uid"]) == (child, "nb-columns", NOBODY)
    assert (event["netns"], event["cgroup"]) == (left.inode, inode)


@compares("tcplife", "open", shape="summary")
def test_open_counts_a_session_once_that_two_descriptors_have(
    netbpf: Any, two_hosts: tuple[Host, Host]
) -> None:
    left, right = two_hosts
    with contextlib.ExitStack() as stack, listen(right) as listener:
        one, other = (connect(stack, left, listener) for _ in range(2))
        stack.enter_context(one.dup())
        child = os.fork()  # one process more has all three descriptors
        if not child:
            signal.pause()
        try:
            with netbpf("tcplife", "--open", "--netns", left.inode) as run:
                run.stop()
        finally:
            os.kill(child, 9)
            os.waitpid(child, 0)
        ports = sorted(sock.getsockname()[1] for sock in (one, other))
    assert sorted(row["lport"] for row in run.rows) == ports
    assert run.summary["open"] == 2


@pytest.mark.parametrize("room, number", [(3, 5), (5, 5)])
def test_each_session_without_room_counts_once(
    netbpf: Any, two_hosts: tuple[Host, Host], room: int, number: int
) -> None:
    """The maps of sessions and of owners: all come from connect(), and fill both alike."""
    left, right = two_hosts
    with contextlib.ExitStack() as stack, listen(right) as listener:
        with netbpf("tcplife", "--netns", left.inode, "--map-entries", room) as run:
            socks = [connect(stack, left, listener) for _ in range(number)]
            for sock in socks:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                sock.close()
            run.wait_for(number)
    known = [event for event in run.events if event["duration_us"] is not None]
    assert len(run.events) == number and len(known) == min(room, number)
    assert run.summary["lost"]["map_full"] == number - len(known)
    assert run.summary["complete"] is (number <= room)


def test_owners_without_room_are_counted(netbpf: Any, two_hosts: tuple[Host, Host]) -> None:
    """Sockets that exist at the start fill the map of owners alone: no session is followed."""
    left, right = two_hosts
    with contextlib.ExitStack() as stack, listen(right) as listener:
        socks = [connect(stack, left, listener) for _ in range(5)]
        with netbpf("tcplife", "--netns", left.inode, "--map-entries", 3) as run:
            run.stop()
        del socks
    assert run.summary["lost"]["map_full"] == 2


def test_sessions_without_room_are_counted(netbpf: Any, two_hosts: tuple[Host, Host]) -> None:
    """Sessions that are never accepted have no owner, and fill the map of sessions alone."""
    left, right = two_hosts
    with contextlib.ExitStack() as stack, listen(right) as listener:
        with netbpf("tcplife", "--netns", right.inode, "--map-entries", 3) as run:
            for _ in range(5):
                connect(stack, left, listener)
            listener.close()
            run.wait_for(5)
    assert sum(event["duration_us"] is None for event in run.events) == 2
    assert run.summary["lost"]["map_full"] == 2


def test_second_item_of_a_list_of_ports_counts(netbpf: Any, two_hosts: tuple[Host, Host]) -> None:
    left, right = two_hosts
    with contextlib.ExitStack() as stack:
        first, second, third = (stack.enter_context(listen(right)) for _ in range(3))
        ports = [listener.getsockname()[1] for listener in (first, second, third)]
        local = f"{ports[0]},{ports[1]}"
        with netbpf("tcplife", "-L", local) as lports, netbpf("tcplife", "-D", local) as rports:
            for listener in (first, second, third):
                connect(stack, left, listener).close()
                listener.accept()[0].close()
            lports.wait_for(2)
            rports.wait_for(2)
    assert [event["lport"] for event in lports.events] == ports[:2]
    assert [event["rport"] for event in rports.events] == ports[:2]


def test_listeners_take_no_room(netbpf: Any, two_hosts: tuple[Host, Host]) -> None:
    """A filter of remote ports excludes no listener, which has none."""
    left, right = two_hosts
    with contextlib.ExitStack() as stack, listen(right) as listener:
        for _ in range(5):
            stack.enter_context(listen(left))
        port = listener.getsockname()[1]
        socks = [connect(stack, left, listener) for _ in range(2)]
        with netbpf("tcplife", "-D", port, "--map-entries", 3) as run:
            socks.append(connect(stack, left, listener))
            for sock in socks:
                sock.close()
            run.wait_for(3)
    assert [event["owner"] for event in run.events] == ["exact"] * 3
    assert run.summary["lost"]["map_full"] == 0 and run.summary["complete"] is True
