"""Aliases show the original's columns of known traffic, and the tool's own JSON."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import socket
import threading
from collections.abc import Iterator
from typing import Any

import harness
import pytest
from topology import Host

from netbpf.declare.aliases import all_aliases, find_alias
from netbpf.declare.tool import find_tool

CLOSED = 9
NUMBER = 5
TIME = r"[0-2]\d:[0-5]\d:[0-6]\d"


@contextlib.contextmanager
def server(host: Host, ends: int) -> Iterator[int]:
    """Accept `ends` connections in a thread of this process; yield the port."""
    with host.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(ends)
        kept: list[Any] = []

        def accept() -> None:
            kept.extend(listener.accept() for _ in range(ends))

        thread = threading.Thread(target=accept)
        thread.start()
        yield listener.getsockname()[1]
        thread.join(harness.TIMEOUT)
        assert not thread.is_alive()
        for accepted, _ in kept:
            accepted.close()


def connect(host: Host, port: int, kind: int = socket.SOCK_STREAM) -> tuple[int, bool]:
    """Connect to a port; return the local port, and whether it worked."""
    with host.socket(socket.AF_INET, kind) as client:
        client.bind(("127.0.0.1", 0))
        result = client.connect_ex(("127.0.0.1", port))
        return client.getsockname()[1], result == 0


def rows(run: Any) -> tuple[list[str], list[list[str]]]:
    """Return the headings and the rows of text output, as words."""
    heading, *lines = [line.split() for line in run.stdout.splitlines() if line]
    return heading, lines


def wait_for_lines(run: Any, number: int) -> None:
    harness.wait_until(lambda: run.stdout.count("\n") >= number, what="lines")


def text(netbpf: Any, host: Host, *words: object) -> Any:
    return netbpf(*words, "--netns", host.inode, json_lines=False)


@pytest.fixture
def comm() -> str:
    return open("/proc/self/comm").read().strip()[:12]


def test_tcpconnect_shows_its_columns(netbpf: Any, one_host: Host, comm: str) -> None:
    with server(one_host, NUMBER) as port, text(netbpf, one_host, "tcpconnect", "-w") as wide:
        with text(netbpf, one_host, "tcpconnect", "-U", "-P", f"{port},{CLOSED}") as run:
            ports = [connect(one_host, port)[0] for _ in range(NUMBER)]
            connect(one_host, CLOSED)
            wait_for_lines(run, NUMBER + 2)
            wait_for_lines(wide, NUMBER + 2)
    heading, lines = rows(run)
    assert heading == ["UID", "PID", "COMM", "IP", "SADDR", "DADDR", "DPORT"]
    one = ["0", str(os.getpid()), comm, "4", "127.0.0.1", "127.0.0.1"]
    assert lines == [[*one, str(port)]] * NUMBER + [[*one, str(CLOSED)]]
    heading, lines = rows(wide)
    assert heading[:6] == ["PID", "COMM", "IP", "SADDR", "DADDR", "DPORT"]
    assert "RESULT" in heading and "LPORT" in heading
    for port in ports:
        assert any(str(port) in line for line in lines)


def test_ports_that_tcpconnect_leaves_out(netbpf: Any, one_host: Host) -> None:
    with server(one_host, 1) as port, text(netbpf, one_host, "tcpconnect", "-P", port) as run:
        connect(one_host, CLOSED)
        connect(one_host, port)
        wait_for_lines(run, 2)
    assert [line[-1] for line in rows(run)[1]] == [str(port)]


def test_tcpconnect_counts(netbpf: Any, one_host: Host) -> None:
    with server(one_host, NUMBER) as port, text(netbpf, one_host, "tcpconnect", "-c") as run:
        for _ in range(NUMBER):
            connect(one_host, port)
        connect(one_host, CLOSED)
    heading, lines = rows(run)
    assert heading == ["LADDR", "RADDR", "RPORT", "CONNECTS"]
    ends = ["127.0.0.1", "127.0.0.1"]
    assert lines == [[*ends, str(port), str(NUMBER)], [*ends, str(CLOSED), "1"]]


def test_families_and_protocols_are_counted(netbpf: Any, one_host: Host) -> None:
    comm = open("/proc/self/comm").read().strip()
    with (
        text(netbpf, one_host, "sofamily", "-p", os.getpid()) as families,
        text(netbpf, one_host, "soprotocol", "-p", os.getpid()) as protocols,
        server(one_host, NUMBER) as port,
    ):
        for _ in range(NUMBER):
            connect(one_host, port)
        for _ in range(2):
            connect(one_host, 53, socket.SOCK_DGRAM)
    found = [rows(families), rows(protocols)]
    assert found[0][0] == ["COMM", "FAM", "OP", "CALLS"]
    assert found[1][0] == ["COMM", "PROTO", "OP", "CALLS"]
    lines = [[line for line in lines if line[0] == comm] for _, lines in found]
    number = str(NUMBER)
    assert sorted(lines[0]) == [
        [comm, "ipv4", "accept", number], [comm, "ipv4", "connect", str(NUMBER + 2)]
    ]  # fmt: skip
    assert sorted(lines[1]) == [
        [comm, "tcp4", "accept", number], [comm, "tcp4", "connect", number],
        [comm, "udp4", "connect", "2"],
    ]  # fmt: skip


def test_socketio_counts_messages_and_bytes(netbpf: Any, one_host: Host) -> None:
    with server(one_host, 1) as port, text(netbpf, one_host, "socketio") as run:
        with one_host.socket(socket.AF_INET, socket.SOCK_STREAM) as client:
            client.connect(("127.0.0.1", port))
            for _ in range(NUMBER):
                client.sendall(bytes(2048))
    heading, lines = rows(run)
    assert heading == ["COMM", "PID", "OP", "PROTO", "RPORT", "CALLS", "KB"]
    comm = open("/proc/self/comm").read().strip()
    sent = [comm, str(os.getpid()), "send", "tcp4", str(port), str(NUMBER), f"{NUMBER * 2}.00"]
    assert sent in lines
    assert {line[2] for line in lines if line[0] == comm} <= {"send", "recv"}


@contextlib.contextmanager
def listening(host: Host, family: int, address: Any) -> Iterator[Any]:
    """Yield the address of a socket that connections wait at."""
    with host.socket(family, socket.SOCK_STREAM) as listener:
        listener.bind(address)
        listener.listen(NUMBER)
        yield listener


def test_every_family_is_counted_also_by_accepts_that_ask_for_no_address(
    netbpf: Any, one_host: Host
) -> None:
    comm = open("/proc/self/comm").read().strip()
    libc = ctypes.CDLL(None, use_errno=True)
    families = {
        "ipv4": (socket.AF_INET, ("127.0.0.1", 0), 2, "tcp4"),
        "ipv6": (socket.AF_INET6, ("::1", 0), 3, "tcp6"),
        "unix": (socket.AF_UNIX, f"\0netbpf-{os.getpid()}", NUMBER, "unix"),
    }
    with (
        text(netbpf, one_host, "sofamily", "-p", os.getpid()) as by_family,
        text(netbpf, one_host, "soprotocol", "-p", os.getpid()) as by_protocol,
    ):
        for family, address, times, _ in families.values():
            with listening(one_host, family, address) as listener:
                for _ in range(times):
                    with one_host.socket(family, socket.SOCK_STREAM) as client:
                        client.connect(listener.getsockname())
                        os.close(libc.accept(listener.fileno(), None, None))
    lines = [rows(run)[1] for run in (by_family, by_protocol)]
    wanted = [
        [comm, word, op, str(times)]
        for family, (_, _, times, proto) in families.items()
        for op in ("accept", "connect")
        for word in (family, proto)
    ]
    ours = [line for part in lines for line in part if line[0] == comm]
    assert sorted(ours) == sorted(wanted)


def test_soconnlat_shows_a_distribution_with_the_functions_that_connected(
    netbpf: Any, one_host: Host
) -> None:
    comm = open("/proc/self/comm").read().strip()
    with server(one_host, NUMBER) as port, text(netbpf, one_host, "soconnlat") as run:
        for _ in range(NUMBER):
            connect(one_host, port)
    key, *lines = [line for line in run.stdout.splitlines() if line]
    assert key == f"comm={comm}"
    assert re.match(r" +connect\+0x[0-9a-f]+ \(.*libc", lines[0]), run.stdout
    counts = re.findall(r" : (\d+) +\|", run.stdout)
    assert sum(map(int, counts)) == NUMBER


@pytest.mark.parametrize("name", ["tcpconnect-tp", "tcpaccept-tp"])
def test_variants_of_the_book_show_the_time_and_the_ends(
    name: str, netbpf: Any, one_host: Host, comm: str
) -> None:
    ends = ["127.0.0.1", "127.0.0.1"]
    with server(one_host, NUMBER) as port, text(netbpf, one_host, name) as run:
        ports = [str(connect(one_host, port)[0]) for _ in range(NUMBER)]
        connect(one_host, 53, socket.SOCK_DGRAM)
        wait_for_lines(run, NUMBER + 1)
    heading, lines = rows(run)
    if name == "tcpconnect-tp":
        assert heading == ["TIME", "PID", "COMM", "IP", "SADDR", "DADDR", "DPORT"]
        wanted = [[str(os.getpid()), comm, "4", *ends, str(port)]] * NUMBER
    else:
        assert heading == ["TIME", "IP", "RADDR", "RPORT", "LADDR", "LPORT", "RESULT"]
        wanted = [["4", ends[0], own, ends[1], str(port), "Success"] for own in ports]
    assert [line[1:] for line in lines] == wanted
    assert all(re.fullmatch(TIME, line[0]) for line in lines)


def test_tcpconnlat_shows_the_latency_and_only_slow_ones(netbpf: Any, one_host: Host) -> None:
    with server(one_host, NUMBER) as port, text(netbpf, one_host, "tcpconnlat") as run:
        with text(netbpf, one_host, "tcpconnlat", "60000") as slow:
            for _ in range(NUMBER):
                connect(one_host, port)
            wait_for_lines(run, NUMBER + 1)
    heading, lines = rows(run)
    assert heading == ["PID", "COMM", "IP", "SADDR", "DADDR", "DPORT", "LAT(ms)"]
    assert len(lines) == NUMBER
    assert all(0 < float(line[-1]) < 1000 * harness.SLOW for line in lines)
    assert rows(slow)[1] == []


def test_tcpaccept_shows_accepted_connections_of_tcp(
    netbpf: Any, one_host: Host, comm: str, tmp_path: Any
) -> None:
    path = str(tmp_path / "unix")
    with server(one_host, NUMBER) as port, text(netbpf, one_host, "tcpaccept", "-P", port) as run:
        with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
            listener.bind(path)
            listener.listen()
            client.connect(path)
            listener.accept()[0].close()  # no TCP: no line
        ports = [connect(one_host, port)[0] for _ in range(NUMBER)]
        wait_for_lines(run, NUMBER + 1)
    heading, lines = rows(run)
    assert heading == ["PID", "COMM", "IP", "RADDR", "RPORT", "LADDR", "LPORT", "RESULT"]
    one = [str(os.getpid()), comm, "4", "127.0.0.1"]
    assert lines == [[*one, str(p), "127.0.0.1", str(port), "Success"] for p in ports]


def test_udpconnect_shows_udp_only(netbpf: Any, one_host: Host) -> None:
    comm = open("/proc/self/comm").read().strip()
    with server(one_host, 1) as port, text(netbpf, one_host, "udpconnect") as run:
        connect(one_host, port)
        for _ in range(NUMBER):
            connect(one_host, 53, socket.SOCK_DGRAM)
        wait_for_lines(run, NUMBER + 1)
    heading, lines = rows(run)
    assert heading == ["TIME", "PID", "COMM", "IP", "RADDR", "RPORT"]
    assert len(lines) == NUMBER
    for stamp, *line in lines:
        assert re.fullmatch(TIME, stamp)
        assert line == [str(os.getpid()), comm, "4", "127.0.0.1", "53"]


def test_tcpdrop_shows_dropped_segments_of_tcp_and_their_stacks(
    netbpf: Any, one_host: Host
) -> None:
    with text(netbpf, one_host, "tcpdrop") as run:
        with one_host.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"x", ("127.0.0.1", CLOSED))  # dropped, but no TCP
        ports = [connect(one_host, CLOSED)[0] for _ in range(NUMBER)]
        wait_for_lines(run, NUMBER + 1)
    heading, *lines = run.stdout.splitlines()
    assert heading.split() == ["TIME", "PID", "IP", "SADDR:SPORT", "DADDR:DPORT", "REASON"]
    for port, line in zip(ports, lines):
        stamp, _, version, source, target, _ = line.split()
        assert re.fullmatch(TIME, stamp) and version == "4"
        assert (source, target) == (f"127.0.0.1:{port}", f"127.0.0.1:{CLOSED}")
    (count,) = re.findall(r"tcp_v4_rcv\+\S+ +tcp +lo +(\d+)", run.stdout)
    assert int(count) == NUMBER
    assert re.search(r"\n +ip_local_deliver_finish\+", run.stdout)
    assert "udp" not in run.stdout


def test_tcptracer_shows_each_step_of_a_connection_once(
    netbpf: Any, one_host: Host, comm: str
) -> None:
    with text(netbpf, one_host, "tcptracer") as run:
        with server(one_host, NUMBER) as port:
            connect(one_host, CLOSED)  # never established: no line
            ports = [str(connect(one_host, port)[0]) for _ in range(NUMBER)]
        wait_for_lines(run, 4 * NUMBER + 1)
    heading, lines = rows(run)
    assert heading == ["T", "PID", "COMM", "IP", "SADDR", "DADDR", "SPORT", "DPORT"]
    one = [str(os.getpid()), comm, "4", "127.0.0.1", "127.0.0.1"]
    wanted = [
        [letter, *one, *ends]
        for own in ports
        for letters, ends in (("CX", (own, str(port))), ("AX", (str(port), own)))
        for letter in letters
    ]
    assert sorted(lines) == sorted(wanted)


@pytest.mark.parametrize("name", [alias.name for alias in all_aliases()])
def test_json_is_that_of_the_tool(name: str, netbpf: Any, one_host: Host) -> None:
    tool = find_alias(name).tool_name
    with server(one_host, 1) as port, netbpf(name, "--netns", one_host.inode) as run:
        run.tool = tool  # whose schema the lines have
        connect(one_host, port)
        connect(one_host, CLOSED)
        connect(one_host, 53, socket.SOCK_DGRAM)
        alias = find_alias(name)
        option = find_tool(tool).event_option
        shown = not option or f"--{option}" in alias.args
        if find_tool(tool).event and alias.columns and shown and "--summary" not in alias.args:
            run.wait_for(1)
    if not find_alias(name).columns and tool != "qdisclat":  # lo has no queue
        assert run.histograms
    assert {line["tool"] for line in run.lines} == {tool}
    schemas = [harness.netbpf_once("schema", one).stdout for one in (name, tool)]
    assert schemas[0] == schemas[1]


def test_csv_has_the_columns_of_the_tool(one_host: Host) -> None:
    for name, tool in (("tcpconnect", "soconnect"), ("tcpconnlat", "soconnect")):
        words = ("-o", "csv", "--netns", one_host.inode, "-d", "0.1")
        heads = [harness.netbpf_once(one, *words).stdout.splitlines() for one in (name, tool)]
        assert heads[0] == heads[1] and len(heads[0]) == 1
