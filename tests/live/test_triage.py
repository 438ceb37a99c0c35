"""netbpf triage finds what is wrong, tells one cause once, and finds nothing on a healthy machine.

Truth: each test makes the incident itself, in network namespaces of its own, and knows who is hit.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import harness
import pytest
import resolver
from harness import Json, Run, netbpf_once, validator, wait_until
from servers import NGINX, serving
from topology import Host, cgroup, must, own_cgroup

PROGRAMS = ("nginx", "wrk", "redis-server", "redis-benchmark", "iperf3", "dnsmasq", "dpkg-deb")
MISSING = [name for name in PROGRAMS if not shutil.which(name)]
ME = os.getpid()
CLOSED = 4  # a port that no process listens on
SOCKETS = 7
LINGER_0 = struct.pack("ii", 1, 0)  # close() sends a reset


@contextlib.contextmanager
def triage(directory: Path, inode: int, *words: object) -> Iterator[Run]:
    """Run `netbpf triage` on a network namespace within the block."""
    given = ("--json", "--netns", inode, *words)
    run = harness.start(directory, "triage", *given, json_lines=False)
    with harness.attended(run, json_lines=False):
        yield run
    for line in run.lines:
        validator("triage").validate(line)


def findings(run: Run) -> dict[str, Json]:
    """The findings by name; every name once."""
    found = [line for line in run.lines if line["type"] == "finding"]
    assert len({line["finding"] for line in found}) == len(found), found
    return {line["finding"]: line for line in found}


def bad(run: Run) -> dict[str, Json]:
    return {name: one for name, one in findings(run).items() if one["severity"] != "note"}


def connecting(host: Host, address: str, port: int) -> socket.socket:
    """Return a socket that has begun to connect, and does not wait."""
    client = host.socket(socket.AF_INET, socket.SOCK_STREAM)
    client.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        client.connect((address, port))
    return client


@contextlib.contextmanager
def listener(host: Host, backlog: int = 128, address: str = "") -> Iterator[socket.socket]:
    with host.socket(socket.AF_INET, socket.SOCK_STREAM) as server:
        server.bind((address or host.ipv4, 0))
        server.listen(backlog)
        server.settimeout(10)
        yield server


def pairs(host: Host, server: socket.socket, number: int) -> list[tuple[socket.socket, ...]]:
    """Return connected pairs (client, accepted) on one host."""
    made = []
    for _ in range(number):
        client = host.socket(socket.AF_INET, socket.SOCK_STREAM)
        client.connect(server.getsockname())
        made.append((client, server.accept()[0]))
    return made


def close_all(made: list[Any]) -> None:
    for one in made:
        for end in one if isinstance(one, tuple) else (one,):
            end.close()


# --- connections ---------------------------------------------------------------------------------


def test_backend_that_refuses(one_host: Host, tmp_path: Path) -> None:
    with triage(tmp_path, one_host.inode) as run:
        for _ in range(SOCKETS):
            with one_host.socket(socket.AF_INET, socket.SOCK_STREAM) as client:
                with pytest.raises(ConnectionRefusedError):
                    client.connect(("127.0.0.1", CLOSED))
    (found,) = bad(run).values()
    assert (found["finding"], found["severity"]) == ("backend-refuses", "critical")
    assert found["who"][0]["pid"] == ME and found["who"][0]["count"] == SOCKETS
    assert f"{SOCKETS} of {SOCKETS} attempts" in found["evidence"][0]
    assert found["sentence"].startswith(f"127.0.0.1:{CLOSED} refuses connections of ")
    assert found["since"]


def test_fallback_to_another_address_is_a_note(one_host: Host, tmp_path: Path) -> None:
    # As programs do that try ::1 before 127.0.0.1.
    with listener(one_host) as server, triage(tmp_path, one_host.inode) as run:
        port = server.getsockname()[1]
        with one_host.socket(socket.AF_INET6, socket.SOCK_STREAM) as client:
            with pytest.raises(ConnectionRefusedError):
                client.connect(("::1", port))
        close_all(pairs(one_host, server, 1))
    assert bad(run) == {}
    assert findings(run)["backend-refuses"]["severity"] == "note"


def test_backend_that_does_not_answer(two_hosts: tuple[Host, Host], tmp_path: Path) -> None:
    left, right = two_hosts
    with right.dropping(f"tcp dport {CLOSED}") as drops, triage(tmp_path, left.inode) as run:
        clients = [connecting(left, right.ipv4, CLOSED) for _ in range(SOCKETS)]
        wait_until(lambda: drops.count() >= 2 * SOCKETS, what="SYNs to be sent again")
        close_all(clients)
    (found,) = bad(run).values()
    assert (found["finding"], found["severity"]) == ("backend-does-not-answer", "critical")
    assert found["who"][0]["pid"] == ME
    assert any(fact.startswith("also: SYNs to") for fact in found["evidence"])


def test_attempt_that_has_not_ended(two_hosts: tuple[Host, Host], tmp_path: Path) -> None:
    left, right = two_hosts
    with right.dropping(f"tcp dport {CLOSED}") as drops:
        with triage(tmp_path, left.inode) as run:
            client = connecting(left, right.ipv4, CLOSED)
            wait_until(lambda: drops.count() >= 3, what="SYNs to be sent again")
        client.close()
    (found,) = bad(run).values()
    assert found["finding"] == "backend-does-not-answer"
    assert "no answer yet" not in found["sentence"] and "1 of 1 attempt" in found["evidence"][0]


def test_backend_without_a_route(one_host: Host, tmp_path: Path) -> None:
    with triage(tmp_path, one_host.inode) as run:
        for _ in range(SOCKETS):
            with one_host.socket(socket.AF_INET, socket.SOCK_STREAM) as client:
                with pytest.raises(OSError, match="unreachable"):
                    client.connect(("192.0.2.4", 443))
    (found,) = bad(run).values()
    assert (found["finding"], found["severity"]) == ("backend-unreachable", "critical")
    assert "192.0.2.4:443 is unreachable for" in found["sentence"]
    assert found["command"] == "ip route get 192.0.2.4"


def test_backend_behind_a_firewall_that_rejects(
    two_hosts: tuple[Host, Host], tmp_path: Path
) -> None:
    left, right = two_hosts
    chain = f"chain c {{\ntype filter hook input priority 0\ntcp dport {CLOSED} reject\n}}"
    right.run("nft", "-f", "-", input=f"table inet rejects {{\n{chain}\n}}\n")
    try:
        with triage(tmp_path, left.inode) as run:
            for _ in range(SOCKETS):
                with left.socket(socket.AF_INET, socket.SOCK_STREAM) as client:
                    # ICMP port unreachable, which connect(2) turns into this error.
                    with pytest.raises(ConnectionRefusedError):
                        client.connect((right.ipv4, CLOSED))
    finally:
        right.run("nft", "delete", "table", "inet", "rejects")
    (found,) = bad(run).values()
    assert found["finding"] == "backend-refuses"
    assert "A firewall that rejects" in found["meaning"]


def test_local_ports_are_used_up(one_host: Host, tmp_path: Path) -> None:
    usual = one_host.run("sysctl", "-n", "net.ipv4.ip_local_port_range").split()
    with listener(one_host) as server, triage(tmp_path, one_host.inode) as run:
        one_host.sysctl(net__ipv4__ip_local_port_range="40000 40010")
        try:
            made = pairs(one_host, server, 11)
            with one_host.socket(socket.AF_INET, socket.SOCK_STREAM) as client:
                with pytest.raises(OSError, match="assign requested"):
                    client.connect(server.getsockname())
            close_all(made)
        finally:
            one_host.sysctl(net__ipv4__ip_local_port_range=" ".join(usual))
    (found,) = bad(run).values()
    assert found["finding"] == "local-ports-used-up"
    assert "1 of 12 attempts" in found["evidence"][0]


# --- listeners -----------------------------------------------------------------------------------


def test_accept_queue_overflows_and_its_effects_are_one_finding(
    one_host: Host, tmp_path: Path
) -> None:
    with listener(one_host, backlog=2) as server, triage(tmp_path, one_host.inode) as run:
        clients = [connecting(one_host, *server.getsockname()) for _ in range(9)]
        wait_until(
            lambda: one_host.snmp()["TcpExtTCPSynRetrans"] >= 6, what="SYNs to be sent again"
        )
        close_all(clients)
    (found,) = bad(run).values()
    assert (found["finding"], found["severity"]) == ("accept-queue-overflow", "critical")
    assert found["who"][0]["pid"] == ME
    assert "3 connections waited for accept(2); the limit is 2" in found["evidence"][1]
    assert len([fact for fact in found["evidence"] if fact.startswith("also: ")]) >= 1


def test_several_full_listeners_of_one_process_are_one_finding(
    one_host: Host, tmp_path: Path
) -> None:
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(listener(one_host, 1)) for _ in range(3)]
        with triage(tmp_path, one_host.inode) as run:
            clients = [connecting(one_host, *server.getsockname())
                       for server in servers for _ in range(5)]  # fmt: skip
            wait_until(
                lambda: one_host.snmp()["TcpExtTCPSynRetrans"] >= 9, what="SYNs to be sent again"
            )
            close_all(clients)
    (found,) = bad(run).values()
    assert found["finding"] == "accept-queue-overflow"
    (same,) = [fact for fact in found["evidence"] if fact.startswith("the same for ")]
    assert same.count(":") == 2


def test_syn_flood(two_hosts: tuple[Host, Host], tmp_path: Path) -> None:
    left, right = two_hosts
    right.sysctl(net__core__somaxconn=16)
    # Answers to the senders, which do not exist, go nowhere.
    must("ip", "-n", right.namespace, "route", "add", "198.18.0.0/15", "via", left.ipv4)
    rule = "type filter hook prerouting priority 0\nip daddr 198.18.0.0/15 drop"
    left.run("nft", "-f", "-", input=f"table ip silent {{\nchain c {{\n{rule}\n}}\n}}\n")
    with listener(right, backlog=16) as server, triage(tmp_path, right.inode) as run:
        port = server.getsockname()[1]
        with left.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
            for number in range(211):
                source = f"198.18.{number % 5}.{number + 1}"
                raw.sendto(syn_packet(source, right.ipv4, port), (right.ipv4, 0))
        wait_until(lambda: right.snmp()["TcpExtSyncookiesSent"] >= 100, what="SYN cookies")
        sent = right.snmp()["TcpExtSyncookiesSent"]
    (found,) = bad(run).values()
    assert found["severity"] == "critical"
    assert "flood" in found["sentence"]
    counted = [fact for fact in found["evidence"] if f"{sent} SYN cookies sent" in fact]
    assert counted, found
    if found["finding"] == "syn-cookies":  # a kernel on which no tool sees whose SYNs they are
        assert counted[0].startswith(f"{sent} SYN cookies sent, 0 SYNs dropped, and 0 connections")
    else:
        assert found["finding"] == "syn-queue" and found["who"][0]["pid"] == ME


def syn_packet(source: str, destination: str, port: int) -> bytes:
    """Return an IPv4 packet with a SYN; the kernel fills in the checksum of the IP header."""
    ends = socket.inet_aton(source) + socket.inet_aton(destination)
    ip = struct.pack("!BBHHHBBH", 0x45, 0, 40, 0, 0, 64, socket.IPPROTO_TCP, 0) + ends
    tcp = struct.pack("!HHIIBBHHH", 1009, port, 23, 0, 5 << 4, 2, 1024, 0, 0)
    words = struct.unpack("!16H", ends + struct.pack("!HH", socket.IPPROTO_TCP, 20) + tcp)
    total = sum(words)
    total = (total & 0xFFFF) + (total >> 16)
    return ip + tcp[:16] + struct.pack("!HH", ~(total + (total >> 16)) & 0xFFFF, 0)


def test_slow_accepts(one_host: Host, tmp_path: Path) -> None:
    with listener(one_host) as server, triage(tmp_path, one_host.inode) as run:
        clients = [connecting(one_host, *server.getsockname()) for _ in range(SOCKETS)]
        time.sleep(0.15)  # the incident: nobody accepts
        close_all([server.accept()[0] for _ in range(SOCKETS)])
        close_all(clients)
    (found,) = bad(run).values()
    assert found["finding"] == "slow-accepts"
    assert f"{SOCKETS} of {SOCKETS} connections waited longer" in found["evidence"][0]
    assert found["who"][0]["pid"] == ME


# --- sessions ------------------------------------------------------------------------------------


def test_close_wait_piles_up(one_host: Host, tmp_path: Path) -> None:
    with listener(one_host) as server:
        made = pairs(one_host, server, SOCKETS)
        for client, _ in made:
            client.close()
        time.sleep(2.1)  # the incident: nobody closes
        with triage(tmp_path, one_host.inode) as run:
            pass
        close_all(made)
    (found,) = bad(run).values()
    assert found["finding"] == "close-wait"
    assert found["evidence"][0].startswith(f"{SOCKETS} connections in CLOSE_WAIT")
    assert f"{SOCKETS} of them accepted on port" in found["evidence"][1]
    assert found["who"][0]["pid"] == ME


def test_process_that_does_not_read(one_host: Host, tmp_path: Path) -> None:
    with listener(one_host) as server:
        made = pairs(one_host, server, 1)
        client = made[0][0]
        client.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                client.send(bytes(65536))
        time.sleep(2.1)
        with triage(tmp_path, one_host.inode) as run:
            pass
        close_all(made)
    (found,) = bad(run).values()
    assert found["finding"] == "does-not-read"
    assert found["who"][0]["pid"] == ME


def test_remote_end_that_does_not_read(two_hosts: tuple[Host, Host], tmp_path: Path) -> None:
    left, right = two_hosts
    with listener(right) as server, left.socket(socket.AF_INET, socket.SOCK_STREAM) as client:
        client.connect(server.getsockname())
        accepted, _ = server.accept()
        client.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                client.send(bytes(65536))
        time.sleep(2.1)
        with triage(tmp_path, left.inode) as run:
            pass
        port = server.getsockname()[1]
        accepted.close()
    (found,) = bad(run).values()
    assert found["finding"] == "peer-does-not-read"
    assert found["sentence"].startswith(f"{right.ipv4}:{port} does not take what ")
    assert found["who"][0]["pid"] == ME


def test_time_wait_reaches_its_limit(one_host: Host, tmp_path: Path) -> None:
    usual = one_host.run("sysctl", "-n", "net.ipv4.tcp_max_tw_buckets").strip()
    one_host.sysctl(net__ipv4__tcp_max_tw_buckets=3)
    try:
        with listener(one_host) as server, triage(tmp_path, one_host.inode) as run:
            for pair in pairs(one_host, server, 23):
                close_all([pair])
    finally:
        one_host.sysctl(net__ipv4__tcp_max_tw_buckets=usual)
    cut = one_host.snmp()["TcpExtTCPTimeWaitOverflow"]
    (found,) = bad(run).values()
    assert found["finding"] == "time-wait"
    assert found["evidence"][1].startswith(f"{cut} connections closed without TIME_WAIT")


def test_sessions_that_are_reset(one_host: Host, tmp_path: Path) -> None:
    with listener(one_host) as server, triage(tmp_path, one_host.inode) as run:
        for client, accepted in pairs(one_host, server, 11):
            accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_0)
            accepted.close()
            with pytest.raises(ConnectionResetError):
                client.recv(1)
            client.close()
    (found,) = bad(run).values()  # of both ends, the one that resets is reported
    assert found["finding"] == "resets"
    assert found["sentence"].endswith("are reset by this end"), found
    assert found["who"][0]["pid"] == ME
    assert "11 of 11 sessions" in found["evidence"][0]


def test_resets_that_come_from_another_machine(
    two_hosts: tuple[Host, Host], tmp_path: Path
) -> None:
    left, right = two_hosts
    with listener(right) as server, triage(tmp_path, left.inode) as run:
        port = server.getsockname()[1]
        for _ in range(11):
            with left.socket(socket.AF_INET, socket.SOCK_STREAM) as client:
                client.connect(server.getsockname())
                accepted, _ = server.accept()
                accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_0)
                accepted.close()
                with pytest.raises(ConnectionResetError):
                    client.recv(1)
    (found,) = bad(run).values()
    assert found["sentence"].endswith("are reset by the remote end"), found
    assert f"11 of them to {right.ipv4}:{port}" in found["evidence"]


# --- packets -------------------------------------------------------------------------------------


def test_firewall_that_drops(two_hosts: tuple[Host, Host], tmp_path: Path) -> None:
    left, right = two_hosts
    with right.dropping("udp dport 53") as drops, triage(tmp_path, right.inode) as run:
        with left.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            for _ in range(23):
                client.sendto(b"?", (right.ipv4, 53))
        wait_until(lambda: drops.count() == 23, what="the firewall")
    (found,) = bad(run).values()
    assert found["finding"] == "drops"
    assert "NETFILTER_DROP" in found["sentence"] and found["sentence"].startswith("23 packets")


def test_datagrams_that_nobody_reads(one_host: Host, tmp_path: Path) -> None:
    with one_host.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        server.bind(("127.0.0.1", 0))
        with one_host.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            with triage(tmp_path, one_host.inode) as run:
                for _ in range(101):
                    client.sendto(bytes(512), server.getsockname())
                lost = one_host.snmp()["UdpRcvbufErrors"]
    assert lost >= 10
    found = bad(run)
    assert f"{lost} packets lost (Udp.RcvbufErrors)" in found["receive-buffer-full"]["evidence"]


def test_path_with_a_smaller_mtu(two_hosts: tuple[Host, Host], tmp_path: Path) -> None:
    left, right = two_hosts
    too_big = struct.pack("!BBHI", 2, 0, 0, 1280) + bytes(48)  # as a router sends it
    with triage(tmp_path, right.inode) as run:
        with left.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as router:
            for _ in range(3):
                router.sendto(too_big, (right.ipv6, 0))
        wait_until(lambda: counted(right, "Icmp6InPktTooBigs") == 3, what="the messages")
    (found,) = bad(run).values()
    assert found["finding"] == "mtu"
    assert found["evidence"] == ["Icmp6.InPktTooBigs 3"]


def counted(host: Host, name: str) -> int:
    """A counter of IPv6."""
    lines = host.run("cat", "/proc/self/net/snmp6").splitlines()
    return sum(int(line.split()[1]) for line in lines if line.split()[0] == name)


def test_raw_socket_that_nobody_reads(one_host: Host, tmp_path: Path) -> None:
    echo = struct.pack("!BBHI", 8, 0, 0xF7FF, 0) + bytes(504)
    with one_host.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2304)
        inode = os.fstat(raw.fileno()).st_ino
        with triage(tmp_path, one_host.inode) as run:
            for _ in range(101):
                raw.sendto(echo, ("127.0.0.1", 0))
            table = one_host.run("cat", "/proc/self/net/raw").splitlines()
            (line,) = [one.split() for one in table[1:] if one.split()[9] == str(inode)]
    lost = int(line[-1])
    assert lost >= 10
    found = bad(run)["receive-buffer-full"]
    assert found["evidence"][0] == f"{lost} packets lost (Raw.{inode}.drops)"
    assert f"raw socket {inode}" in found["sentence"]


def test_source_address_that_has_another_way_back(
    two_hosts: tuple[Host, Host], tmp_path: Path
) -> None:
    left, right = two_hosts
    right.sysctl(net__ipv4__conf__all__rp_filter=1)
    must("ip", "-n", left.namespace, "address", "add", "198.51.100.1/32", "dev", "lo")
    with triage(tmp_path, right.inode) as run:
        with left.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.bind(("198.51.100.1", 0))
            for _ in range(23):
                client.sendto(b"?", (right.ipv4, 53))
        wait_until(lambda: right.snmp()["TcpExtIPReversePathFilter"] == 23, what="the filter")
    (found,) = bad(run).values()
    assert found["finding"] == "drops"
    assert found["sentence"].startswith("23 packets dropped ")
    assert "IP_RPFILTER" in found["sentence"]


def test_datagrams_with_a_wrong_checksum(two_hosts: tuple[Host, Host], tmp_path: Path) -> None:
    left, right = two_hosts
    with right.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind((right.ipv4, 0))
        wrong = struct.pack("!HHHH", 4, server.getsockname()[1], 16, 0x0BAD) + bytes(8)
        with triage(tmp_path, right.inode) as run:
            with left.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP) as raw:
                for _ in range(23):
                    raw.sendto(wrong, (right.ipv4, 0))
            server.settimeout(0.2)
            with pytest.raises(TimeoutError):  # reading checks the last checksums
                server.recv(100)
            assert right.snmp()["UdpInCsumErrors"] == 23
    (found,) = bad(run).values()
    assert found["finding"] == "drops"
    assert found["sentence"].startswith("23 packets dropped ")
    assert "UDP_CSUM" in found["sentence"]


def test_lost_ends_of_what_is_sent(two_hosts: tuple[Host, Host], tmp_path: Path) -> None:
    left, right = two_hosts
    with listener(right) as server, triage(tmp_path, left.inode) as run:
        clients = [left.socket(socket.AF_INET, socket.SOCK_STREAM) for _ in range(SOCKETS)]
        for client in clients:
            client.connect(server.getsockname())
        with right.dropping(f"tcp dport {server.getsockname()[1]}") as drops:
            for client in clients:
                client.sendall(b"?")
            wait_until(lambda: drops.count() >= 4 * SOCKETS, what="data to be sent again")
        close_all(clients)
    (found,) = bad(run).values()
    assert found["finding"] == "data-retransmissions"
    assert f", to {right.ipv4}, most of " in found["sentence"]
    assert found["who"][0]["pid"] == ME
    assert any("a tail loss probe" in fact for fact in found["evidence"])


def test_data_is_lost_on_the_way_to_all_peers(two_hosts: tuple[Host, Host], tmp_path: Path) -> None:
    left, right = two_hosts
    others = [f"10.91.0.{number}" for number in (3, 5, 7)]
    for address in others:
        must("ip", "-n", right.namespace, "address", "add", f"{address}/24", "dev", right.device)
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(listener(right, address=one)) for one in others]
        run = stack.enter_context(triage(tmp_path, left.inode))
        clients = []
        for server in servers * 3:
            client = left.socket(socket.AF_INET, socket.SOCK_STREAM)
            client.connect(server.getsockname())
            clients.append(client)
        with right.dropping("meta l4proto tcp") as drops:
            for client in clients:
                client.sendall(b"?")
            wait_until(lambda: drops.count() >= 4 * len(clients), what="data to be sent again")
        close_all(clients)
        run.stop()
    (found,) = bad(run).values()
    assert found["finding"] == "data-retransmissions"
    assert ", to 3 peers, most of " in found["sentence"]


def test_device_that_flaps(two_hosts: tuple[Host, Host], tmp_path: Path) -> None:
    left, right = two_hosts
    with triage(tmp_path, left.inode) as run:
        for state in ("down", "up", "down", "up"):
            must("ip", "-n", right.namespace, "link", "set", right.device, state)
            carrier = "NO-CARRIER" if state == "down" else "LOWER_UP"
            show = ("ip", "-n", left.namespace, "link", "show", left.device)
            wait_until(lambda: carrier in must(*show), what=carrier)  # noqa: B023
    (found,) = bad(run).values()
    assert found["finding"] == "device-flaps"
    assert found["sentence"].startswith(f"The device {left.device} loses its carrier")
    assert found["evidence"] == ["its carrier came or went 4 times"]


def test_device_that_is_unplugged_once(two_hosts: tuple[Host, Host], tmp_path: Path) -> None:
    left, right = two_hosts
    with triage(tmp_path, left.inode) as run:
        for state in ("down", "up"):
            must("ip", "-n", right.namespace, "link", "set", right.device, state)
    assert bad(run) == {}


# --- lookups -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def names() -> Iterator[resolver.Namespace]:
    with resolver.namespace() as namespace:
        yield namespace


LOOK_UP = """import socket, sys
for name in sys.argv[1:]:
    try:
        socket.getaddrinfo(name, 80)
    except OSError:
        pass
"""


def test_slow_lookups(names: resolver.Namespace, tmp_path: Path) -> None:
    inode = os.stat(f"/run/netns/{names.name}").st_ino
    with triage(tmp_path, inode) as run:
        names.run([sys.executable, "-c", LOOK_UP, "slow-1100.test", "one.test"])
    (found,) = bad(run).values()
    assert found["finding"] == "slow-lookups"
    assert found["sentence"].startswith("Looking up slow-1100.test is slow for ")
    assert found["command"] == "netbpf gethostlatency --host slow-1100.test"


def test_failing_lookups(names: resolver.Namespace, tmp_path: Path) -> None:
    inode = os.stat(f"/run/netns/{names.name}").st_ino
    with triage(tmp_path, inode) as run:
        names.run([sys.executable, "-c", LOOK_UP, *["fail.test"] * 3, *["no-such.test"] * 3])
    kinds = {line["severity"]: line["sentence"] for line in run.lines if line["type"] == "finding"}
    assert {line["finding"] for line in run.lines[:-1]} == {"failing-lookups"}
    assert "fail.test" in kinds["warning"] and "no-such.test" in kinds["note"]


def test_name_that_is_looked_up_again_and_again(names: resolver.Namespace, tmp_path: Path) -> None:
    inode = os.stat(f"/run/netns/{names.name}").st_ino
    with triage(tmp_path, inode) as run:
        names.run([sys.executable, "-c", LOOK_UP, *["one.test"] * 1009, "two.test"])
    (found,) = findings(run).values()
    assert (found["finding"], found["severity"]) == ("repeated-lookups", "note")
    assert "looks up one.test again and again" in found["sentence"]
    assert found["evidence"][0].startswith("1009 lookups, ")


# --- all together --------------------------------------------------------------------------------


def healthy(host: Host, server: socket.socket) -> None:
    """Connections, data in both directions, idle ones, a refused one that is not retried."""
    for client, accepted in pairs(host, server, 23):
        for one, other in ((client, accepted), (accepted, client)):
            one.sendall(bytes(1009))
            assert len(other.recv(1009, socket.MSG_WAITALL)) == 1009
        client.close()
        accepted.close()


def test_healthy_traffic_yields_nothing(one_host: Host, tmp_path: Path) -> None:
    with listener(one_host) as server, triage(tmp_path, one_host.inode) as run:
        for _ in range(5):
            healthy(one_host, server)
        idle = pairs(one_host, server, 3)
        time.sleep(0.2)
        close_all(idle)
    assert findings(run) == {}
    end = run.lines[-1]
    assert end["type"] == "summary" and end["findings"] == 0 and end["complete"], end
    assert {"soconnect", "tcplife", "skbdrop"} <= set(end["tools"])


PACKAGE = """set -e
mkdir -p $1/package/DEBIAN $1/package/usr/share $1/root/var/lib/dpkg/info
cp -r /usr/share/doc/dpkg $1/package/usr/share/
printf '%s\\n' 'Package: busy' 'Version: 1' 'Architecture: all' 'Maintainer: x <x@example.org>' \
  'Description: a package' > $1/package/DEBIAN/control
dpkg-deb --build $1/package $1/busy.deb
: > $1/root/var/lib/dpkg/status
dpkg --root=$1/root --log=/dev/null --install $1/busy.deb
test -d $1/root/usr/share/dpkg
"""  # builds a package and installs it below a directory of its own


@pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)}: scripts/setup.sh test")
def test_busy_servers_yield_nothing(one_host: Host, tmp_path: Path) -> None:
    (tmp_path / "nginx.conf").write_text(NGINX.format(dir=tmp_path))
    redis = ("redis-server", "--port", 6379, "--bind", "127.0.0.1", "--save", "", "--dir", tmp_path)
    dns = ("dnsmasq", "--keep-in-foreground", "--no-resolv", "--no-hosts", "--user=root",
           "--bind-interfaces", "--listen-address=127.0.0.1", "--conf-file=/dev/null",
           "--pid-file=", "--address=/busy.test/192.0.2.1")  # fmt: skip
    (tmp_path / "resolv.conf").write_text("nameserver 127.0.0.1\n")
    looked_up = [f"{number}.busy.test" for number in range(211)]
    mount = f"mount --bind {tmp_path}/resolv.conf /etc/resolv.conf"
    look_up = f"{mount} && {shlex.join([sys.executable, '-c', LOOK_UP, *looked_up])}"
    loads = (
        ("unshare", "--mount", "sh", "-c", look_up),
        ("sh", "-c", PACKAGE, "sh", tmp_path),
        ("wrk", "-t1", "-c7", "-d3s", "http://127.0.0.1:8080/"),
        ("wrk", "-t1", "-c7", "-d3s", "-H", "Connection: close", "http://127.0.0.1:8080/"),
        ("redis-benchmark", "-p", 6379, "-c", 5, "-n", 50_000, "-t", "set,get", "-q"),
        ("iperf3", "-c", "127.0.0.1", "-p", 5201, "-t", 3),
    )
    with contextlib.ExitStack() as stack:
        nginx = ("nginx", "-c", tmp_path / "nginx.conf", "-p", tmp_path)
        for port, words in ((8080, nginx), (6379, redis), (53, dns), (5201, ("iperf3", "-s"))):
            stack.enter_context(serving(one_host, port, *words))
        run = stack.enter_context(triage(tmp_path, one_host.inode))
        busy = [subprocess.Popen(one_host.inside(*words), stdout=subprocess.DEVNULL)
                for words in loads]  # fmt: skip
        assert [one.wait(60) for one in busy] == [0] * len(busy)
        run.stop()  # while the servers run
    assert bad(run) == {}, [line for line in run.lines if line["type"] == "finding"]


def test_three_incidents_at_once(one_host: Host, tmp_path: Path) -> None:
    with listener(one_host, 2) as full, listener(one_host) as leak:
        leaked = pairs(one_host, leak, SOCKETS)
        for client, _ in leaked:
            client.close()
        time.sleep(2.1)
        with triage(tmp_path, one_host.inode) as run:
            clients = [connecting(one_host, *full.getsockname()) for _ in range(9)]
            with one_host.socket(socket.AF_INET, socket.SOCK_STREAM) as client:
                with pytest.raises(ConnectionRefusedError):
                    client.connect(("127.0.0.1", CLOSED))
            wait_until(
                lambda: one_host.snmp()["TcpExtTCPSynRetrans"] >= 6, what="SYNs to be sent again"
            )
            close_all(clients)
        close_all(leaked)
    found = bad(run)
    assert set(found) == {"accept-queue-overflow", "backend-refuses", "close-wait"}
    severities = [line["severity"] for line in run.lines if line["type"] == "finding"]
    assert severities == sorted(severities, key=("critical", "warning", "note").index)


REFUSED = f"""import socket, sys
open(sys.argv[1] + "/cgroup.procs", "w").write("0")
for _ in range({SOCKETS}):
    with socket.socket() as client:
        client.connect_ex(("127.0.0.1", {CLOSED}))
open(sys.argv[2] + "/cgroup.procs", "w").write("0")
"""


def test_incident_in_a_container_names_it(one_host: Host, tmp_path: Path) -> None:
    ident = "7fed" * 16
    with cgroup("system.slice", f"docker-{ident}.scope") as inside:
        with triage(tmp_path, one_host.inode) as run:
            outside = own_cgroup(ME)
            one_host.run(sys.executable, "-c", REFUSED, inside, outside)
    (found,) = bad(run).values()
    assert found["finding"] == "backend-refuses"
    assert found["who"][0]["count"] == SOCKETS
    assert found["who"][0]["container"] == ident


def test_every_command_of_a_finding_works(one_host: Host, tmp_path: Path) -> None:
    with triage(tmp_path, one_host.inode) as run:
        for _ in range(SOCKETS):
            with one_host.socket(socket.AF_INET, socket.SOCK_STREAM) as client:
                client.connect_ex(("127.0.0.1", CLOSED))
    (found,) = bad(run).values()
    words = shlex.split(found["command"])
    assert words[0] == "netbpf"
    done = netbpf_once(*words[1:], "-d", "0.1")
    assert done.returncode == 0, done.stderr


def test_text_fits_80_columns_and_says_what_was_looked_at(one_host: Host) -> None:
    done = netbpf_once("triage", "-d", "0.5", "--netns", one_host.inode)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Nothing stands out.\n")
    assert "Looked at for " in done.stdout and "Cost: " in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_closed_pipe_and_stop(tmp_path: Path) -> None:
    run = harness.start(tmp_path, "triage", json_lines=False)
    try:
        run.wait_ready()
        assert run.stop() == 0
    finally:
        harness.kill(run.process)
    assert "Looked at for" in run.stdout
    line = shlex.join(harness.command("triage", "-d", "0.3", "--json"))
    done = subprocess.run(f"{line} | head -0", shell=True, capture_output=True, timeout=60,
                          cwd=harness.SOURCE_TREE, check=False)  # fmt: skip
    assert b"Traceback" not in done.stderr


def test_json_lines_are_objects(one_host: Host) -> None:
    done = netbpf_once("triage", "-d", "0.3", "--netns", one_host.inode, "--json")
    assert [json.loads(line)["tool"] for line in done.stdout.splitlines()] == ["triage"]
