"""The owner of a socket is the process that holds it now, not the one that once accepted it.

The truth is /proc: whose table of descriptors has the socket, by its inode number.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import TIMEOUT, kill, wait_until
from topology import Host

SERVER = Path(__file__).parent / "programs" / "fork_server.py"
LINGER_0 = struct.pack("ii", 1, 0)
CHILDREN = ("fork", "inetd", "older")
HOWS = (*CHILDREN, "exit", "pass")


class Served:
    """A connection to a server that gave it to another process."""

    def __init__(
        self, host: Host, process: subprocess.Popen[bytes], address: str, how: str
    ) -> None:
        self.process, self.address = process, address
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self.port = int(self._line())
        self.client = host.socket(family, socket.SOCK_STREAM)
        self.client.settimeout(TIMEOUT)
        self.client.connect((address, self.port))
        found = json.loads(self._line())
        self.parent, self.server = found["parent"], found["server"]
        if how == "exit":
            process.wait(TIMEOUT)
        wait_until(lambda: self.holders() == {self.server}, what="the holder, by /proc")

    def _line(self) -> bytes:
        assert self.process.stdout
        ready, _, _ = select.select([self.process.stdout], [], [], TIMEOUT)
        assert ready, "the server is silent"
        return self.process.stdout.readline()

    def holders(self) -> set[int]:
        """Return who of the server's processes has a connected socket, by /proc."""
        found = set()
        for pid in (self.parent, self.server):
            with contextlib.suppress(FileNotFoundError):
                tables = Path(f"/proc/{pid}/net")
                rows = [
                    line.split()
                    for name in ("tcp", "tcp6")
                    for line in (tables / name).read_text().splitlines()[1:]
                ]
                port = f"{self.port:04X}"
                inodes = {row[9] for row in rows if row[1].endswith(port) and row[3] == "01"}
                links = [os.readlink(fd) for fd in Path(f"/proc/{pid}/fd").iterdir()]
                if any(f"socket:[{inode}]" in links for inode in inodes):
                    found.add(pid)
        return found


@contextlib.contextmanager
def served(host: Host, how: str, address: str = "127.0.0.1") -> Iterator[Served]:
    line = host.inside(sys.executable, "-I", "-S", SERVER, address, how)
    process = subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
    try:
        found = Served(host, process, address, how)
        yield found
        found.client.close()
    finally:
        assert process.stdin
        process.stdin.close()
        try:
            process.wait(TIMEOUT)
        finally:
            kill(process)


def owners(found: list[Any], port: int) -> set[tuple[int | None, str]]:
    return {(event["pid"], event["owner"]) for event in found if event["lport"] == port}


def right(case: Served, how: str) -> tuple[int | None, str]:
    """Return pid and owner: a child is found, a process that is no relative is not."""
    return (case.server, "exact") if how in CHILDREN else (None, "unknown")


@pytest.mark.parametrize("how", HOWS)
def test_retransmissions_belong_to_the_process_that_holds_the_socket(
    netbpf: Any, one_host: Host, how: str
) -> None:
    with netbpf("tcpretrans", "--netns", one_host.namespace) as run, served(one_host, how) as case:
        with one_host.dropping(f"tcp sport {case.port} meta length > 1000"):
            case.client.sendall(b"x")
            run.wait_for(lambda events: owners(events, case.port))
        wait_until(lambda: len(case.client.recv(1 << 20)) > 0)
    assert owners(run.events, case.port) == {right(case, how)}


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("how", HOWS)
def test_session_that_the_peer_resets_belongs_to_the_process_that_holds_it(
    netbpf: Any, one_host: Host, how: str, address: str
) -> None:
    with (
        netbpf("tcplife", "--netns", one_host.namespace) as run,
        served(one_host, how, address) as case,
    ):
        case.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_0)
        case.client.close()
        run.wait_for(lambda events: owners(events, case.port))
    assert owners(run.events, case.port) == {right(case, how)}


@pytest.mark.parametrize("how", HOWS)
def test_open_session_is_listed_with_the_process_that_holds_it(
    netbpf: Any, one_host: Host, how: str
) -> None:
    with (
        served(one_host, "fork") as other,
        netbpf("tcplife", "--open", "--netns", one_host.namespace) as run,
    ):
        with served(one_host, how) as case:
            run.stop()
            found = {(row["pid"], row["owner"]) for row in run.rows if row["lport"] == case.port}
            before = {(row["pid"], row["owner"]) for row in run.rows if row["lport"] == other.port}
    how_known = "exact" if how in CHILDREN else "snapshot"
    assert found == {(case.server, how_known)}
    assert before == {(other.server, "snapshot")}


def test_drop_belongs_to_the_process_that_writes(netbpf: Any, one_host: Host) -> None:
    with netbpf("skbdrop", "--events", "--netns", one_host.namespace) as run:
        with served(one_host, "fork") as case:
            with one_host.dropping(f"tcp sport {case.port} meta length > 1000"):
                case.client.sendall(b"x")
                wait_until(lambda: [e for e in run.events if e["sport"] == case.port])
            wait_until(lambda: len(case.client.recv(1 << 20)) > 0)
    found = [event for event in run.events if event["sport"] == case.port]
    assert {event["pid"] for event in found if event["pid"]} <= {case.server}


OUTPUT = """table inet owned {{
chain outgoing {{
type filter hook output priority 0; tcp sport {} meta length > 1000 counter drop
}}
}}
"""


@pytest.mark.parametrize("how", [how for how in HOWS if how != "exit"])
def test_refused_output_belongs_to_the_process_that_holds_the_socket(
    netbpf: Any, one_host: Host, how: str
) -> None:
    """A packet that the output hook drops still has its socket, whoever accepted the connection."""
    with (
        netbpf("skbdrop", "--events", "--netns", one_host.namespace) as run,
        served(one_host, how) as case,
    ):
        one_host.run("nft", "-f", "-", input=OUTPUT.format(case.port))
        case.client.sendall(b"x")
        run.wait_for(lambda events: [e for e in events if e["sport"] == case.port])
        one_host.run("nft", "delete", "table", "inet", "owned")
        wait_until(lambda: len(case.client.recv(1 << 20)) > 0)
    found = {(event["pid"], event["owner"]) for event in run.events if event["sport"] == case.port}
    # A drop without an owner makes the tool look at all file tables again, for those that follow.
    assert found - {(case.server, "snapshot")} == {right(case, how)}


def closed_early(host: Host, how: str) -> tuple[str, int]:
    """Close a socket that close() ends at once; return what ends the session, and its port."""
    with contextlib.ExitStack() as stack:
        listener, client = (
            stack.enter_context(host.socket(socket.AF_INET, socket.SOCK_STREAM)) for _ in range(2)
        )
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        if how == "no answer":
            stack.enter_context(host.dropping(f"tcp dport {listener.getsockname()[1]}"))
            client.setblocking(False)
            with pytest.raises(BlockingIOError):
                client.connect(listener.getsockname())
            return "aborted", client.getsockname()[1]
        client.connect(listener.getsockname())
        server = stack.enter_context(listener.accept()[0])
        client.shutdown(socket.SHUT_WR)
        assert server.recv(1) == b""
        if how == "unread":
            server.sendall(b"x")
            wait_until(lambda: select.select([client], [], [], 0)[0])
        else:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_0)
        port = client.getsockname()[1]
        client.close()
    return "rst-local", port


@pytest.mark.parametrize("how", ["no answer", "unread", "linger"])
def test_session_that_close_ends_at_once_belongs_to_the_process_that_closes(
    netbpf: Any, one_host: Host, how: str
) -> None:
    """This process is the one that connects and closes; no other one ever has the socket."""
    words = ("tcplife", "--netns", one_host.namespace)
    with netbpf(*words) as everything, netbpf(*words, "-p", os.getpid()) as own:
        end, port = closed_early(one_host, how)
        for run in (everything, own):
            run.wait_for(lambda events: owners(events, port))
    for run in (everything, own):
        (event,) = [event for event in run.events if event["lport"] == port]
        assert (event["pid"], event["owner"], event["close"]) == (os.getpid(), "exact", end)


def test_sessions_from_other_local_ports_take_no_room(netbpf: Any, one_host: Host) -> None:
    """Local ports are chosen after SYN_SENT: -L has to let go of those that it excludes."""
    room = 256
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(one_host.socket(socket.AF_INET, socket.SOCK_STREAM))
        listener.bind(("127.0.0.1", 0))
        listener.listen(2 * room)
        words = ("-L", listener.getsockname()[1], "--map-entries", room)
        words = ("--netns", one_host.namespace, *words)
        run = stack.enter_context(netbpf("tcpretrans", *words))
        for _ in range(room + 100):
            client = stack.enter_context(one_host.socket(socket.AF_INET, socket.SOCK_STREAM))
            client.connect(listener.getsockname())
        run.stop()
    assert run.summary["lost"]["map_full"] == 0 and run.summary["complete"]
