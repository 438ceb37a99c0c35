"""skbdrop: headers that are elsewhere or cannot be read, and frees that lose nothing.

The truth is what this test put into the frames that it sent, what the programs of a session read,
and the kernel's counters.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import frames
import pytest
from compared import compares
from harness import Json, attended, start, wait_until
from topology import Host, cgroup

from netbpf.kernel.btf import Btf

REASONS = "reason" in (Btf().parameters("__traceiter_kfree_skb") or ())
NUMBER = 23

pytestmark = pytest.mark.skipif(not REASONS, reason="needs a kernel that gives reasons: 5.17")


@pytest.fixture
def receiving(two_hosts: tuple[Host, Host]) -> Iterator[tuple[Host, Host]]:
    """Two hosts, the second of which also takes what is for another machine, and drops it."""
    left, right = two_hosts
    right.run("ip", "link", "set", right.device, "promisc", "on")
    yield left, right
    right.run("ip", "link", "set", right.device, "promisc", "off")


def foreign(run: Any) -> list[Json]:
    """Events of packets for another machine."""
    return [event for event in run.events if event["reason"] == "OTHERHOST"]


def described(event: Json) -> tuple[object, ...]:
    return tuple(
        event[name] for name in ("family", "proto", "saddr", "sport", "daddr", "dport", "len")
    )


# --- headers --------------------------------------------------------------------------------------

FOUR = ("ipv4", "10.80.7.1", "10.80.7.2")
SIX = ("ipv6", "fd00:80::1", "fd00:80::2")


def expected(
    ends: tuple[str, str, str], proto: str, ports: tuple[object, object], size: int
) -> tuple[object, ...]:
    family, source, target = ends
    return (family, proto, source, ports[0], target, ports[1], size)


def cases() -> list[tuple[bytes, tuple[object, ...]]]:
    """Frames, and what must be reported of each: made by the same hand."""
    datagram = frames.udp(4001, 4002, 40)
    looks_like_ports = struct.pack("!HHHH", 1, 2, 3, 4) + bytes(32)
    no = (None, None)
    four = [
        (frames.ipv4(datagram), "udp", (4001, 4002)),
        (frames.ipv4(datagram, more=True), "udp", (4001, 4002)),
        (frames.ipv4(looks_like_ports, offset=48), "udp", no),
        (frames.ipv4(looks_like_ports, offset=48, more=True), "udp", no),
        (frames.ipv4(looks_like_ports, proto=1), "icmp", no),
        (frames.ipv4(b"\x0f\xa1"), "udp", no),  # too short for its ports
    ]
    chain = b"".join(map(frames.extension, (60, 43, 60, 60, 60, 17)))
    six = [
        (frames.ipv6(datagram), "udp", (4001, 4002)),
        (frames.ipv6(frames.authentication(17) + datagram, 51), "udp", (4001, 4002)),
        (frames.ipv6(chain + datagram, 0), "udp", (4001, 4002)),
        (frames.ipv6(frames.extension(17, 3) + datagram, 60), "udp", (4001, 4002)),
        (frames.ipv6(frames.fragment6(17, 0, True) + datagram, 44), "udp", (4001, 4002)),
        # Behind a later fragment's header stands data, whatever the header's next one would be.
        (frames.ipv6(frames.fragment6(17, 48, False) + looks_like_ports, 44), "udp", no),
        (frames.ipv6(frames.fragment6(60, 48, False) + looks_like_ports, 44), "protocol 60", no),
    ]
    return [
        *((frames.link(0x0800, p), expected(FOUR, proto, ends, len(p))) for p, proto, ends in four),
        *((frames.link(0x86DD, p), expected(SIX, proto, ends, len(p))) for p, proto, ends in six),
    ]


def test_each_header_is_read_where_it_is(netbpf: Any, receiving: tuple[Host, Host]) -> None:
    left, right = receiving
    sent: list[bytes] = []
    wanted: Counter[tuple[object, ...]] = Counter()
    for number, (frame, values) in enumerate(cases(), 1):
        sent += [frame] * number
        wanted[values] += number
    with netbpf(
        "skbdrop", "--netns", right.inode, "--reason", "NO_SOCKET,OTHERHOST", "--events"
    ) as run:
        frames.send(left, sent)
    assert Counter(map(described, foreign(run))) == wanted
    assert {event["dev"] for event in foreign(run)} == {right.device}


@compares("skbdrop", "unread", shape="summary")
@pytest.mark.parametrize("port", [4001, 4002])  # the source's and the destination's
def test_filter_of_ports_takes_the_second_of_two_and_no_later_fragment(
    netbpf: Any, receiving: tuple[Host, Host], port: int
) -> None:
    left, right = receiving
    with netbpf(
        "skbdrop", "--netns", right.inode, "--port", f"1,{port}", "--dev", f"lo,{right.device}"
    ) as run:
        frames.send(left, [frame for frame, _ in cases()])
    # Two are of IPv4 and five of IPv6; one is too short for ports, which is counted.
    assert sum(row["count"] for row in run.rows) == 7
    assert run.summary["totals"]["unread"] == 1


def test_what_lies_in_page_fragments_has_no_addresses_of_another_packet(
    tmp_path: Path, receiving: tuple[Host, Host]
) -> None:
    left, right = receiving
    datagram = frames.link(0x0800, frames.ipv4(frames.udp(4001, 4002, 400)))
    other = frames.link(0x0800, frames.ipv4(frames.udp(1111, 2222, 40)))
    runs = {}
    for words in ((), ("--port", "4002"), ("-4",), ("-6",)):
        directory = tmp_path / f"run{len(runs)}"
        directory.mkdir()
        runs[words] = start(directory, "skbdrop", "--netns", right.inode, "--events", *words)
    with contextlib.ExitStack() as stack:
        for run in runs.values():
            stack.enter_context(attended(run))
        frames.send(left, [other] * 300)  # they leave their headers in the allocator's memory
        frames.send_from_ring(left, [datagram] * NUMBER)
    everything = Counter(map(described, foreign(runs[()])))
    assert everything == {
        expected(FOUR, "udp", (1111, 2222), 68): 300,
        (None, "ip", None, None, None, None, 428): NUMBER,
    }
    assert {row["example"] for row in runs[()].rows if row["proto"] == "ip"} == {None}
    # A filter that cannot judge them counts them.
    for words, kept in ((("--port", "4002"), 0), (("-4",), 300), (("-6",), 0)):
        summary = runs[words].summary
        assert (words, len(foreign(runs[words]))) == (words, kept)
        assert (words, summary["totals"]["unread"]) == (words, NUMBER)
        assert any(f"{NUMBER} packets" in note and "filter" in note for note in summary["notes"])
    assert runs[()].summary["totals"]["unread"] == 0


def test_vlan_tag_in_the_bytes_is_read_past(netbpf: Any, two_hosts: tuple[Host, Host]) -> None:
    left, _ = two_hosts
    body = frames.ipv4(frames.udp(4001, 4002, 40))
    tagged = frames.link(0x8100, struct.pack("!HH", 42, 0x0800) + body)
    # Dropped on the way out, before anything has taken the tag off.
    hook = f"type filter hook egress device {left.device} priority 0; drop;"
    rules = f"table netdev t {{\nchain c {{ {hook} }}\n}}\n"
    with netbpf("skbdrop", "--netns", left.inode, "--events") as run:
        left.run("nft", "-f", "-", input=rules)
        try:
            with contextlib.suppress(OSError):
                frames.send(left, [tagged])
        finally:
            left.run("nft", "delete", "table", "netdev", "t")
    (event,) = run.events
    assert described(event) == expected(FOUR, "udp", (4001, 4002), len(body))


# --- frees that lose nothing ----------------------------------------------------------------------


def sessions(host: Host, protocol: int, number: int) -> None:
    """Sessions whose bytes all arrive, the server's after the client has closed its half."""
    with host.socket(socket.AF_INET, socket.SOCK_STREAM, protocol) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(number)
        for _ in range(number):
            client = host.socket(socket.AF_INET, socket.SOCK_STREAM, protocol)
            client.connect(listener.getsockname())
            server, _ = listener.accept()
            client.sendall(b"c" * 5000)
            client.shutdown(socket.SHUT_WR)
            assert len(read_all(server)) == 5000
            # In CLOSE_WAIT: each of these is acknowledged while the socket is in that state.
            for _ in range(3):
                server.sendall(b"s" * 100)
                assert len(client.recv(100, socket.MSG_WAITALL)) == 100
                time.sleep(0.06)  # longer than an ACK is delayed
            server.close()
            assert client.recv(1) == b""
            client.close()


def read_all(server: socket.socket) -> bytes:
    found = b""
    while part := server.recv(65536):
        found += part
    return found


PROTOCOLS = {"tcp": socket.IPPROTO_TCP, "mptcp": 262}


@pytest.mark.parametrize("name", PROTOCOLS)
def test_clean_sessions_show_nothing_and_count_what_is_hidden(
    netbpf: Any, one_host: Host, name: str
) -> None:
    if name == "mptcp" and not Path("/proc/sys/net/mptcp").exists():
        pytest.skip("needs a kernel with CONFIG_MPTCP")
    number = 4
    with netbpf("skbdrop", "--netns", one_host.inode) as run:
        sessions(one_host, PROTOCOLS[name], number)
    assert run.rows == []
    # Each ACK in CLOSE_WAIT; MPTCP sends one less often.
    assert run.summary["totals"]["hidden"] >= (3 if name == "tcp" else 1) * number


@compares("skbdrop", "harmless")
def test_keepalive_probes_are_hidden_as_often_as_they_were_sent(
    tmp_path: Path, one_host: Host
) -> None:
    runs = []
    for words in ((), ("--all",)):
        directory = tmp_path / f"run{len(words)}"
        directory.mkdir()
        runs.append(start(directory, "skbdrop", "--netns", one_host.inode, "--events", *words))
    with one_host.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        with attended(runs[0]), attended(runs[1]):
            before = one_host.snmp()["TcpExtTCPKeepAlive"]
            client = one_host.socket(socket.AF_INET, socket.SOCK_STREAM)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 1)
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1)
            client.connect(listener.getsockname())
            server, _ = listener.accept()
            wait_until(
                lambda: one_host.snmp()["TcpExtTCPKeepAlive"] >= before + 2, what="two probes"
            )
            client.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 0)
            probes = one_host.snmp()["TcpExtTCPKeepAlive"] - before
            client.close()
            assert server.recv(1) == b""
            server.close()
    default, everything = runs
    assert default.events == [] and default.summary["totals"]["hidden"] >= probes
    seen = [event for event in everything.events if "SEQUENCE" in event["reason"]]
    assert len(seen) == probes
    assert {event["harmless"] for event in everything.events} == {"yes"}


REPAIR, REPAIR_QUEUE, QUEUE_SEQ, SEND_QUEUE = 19, 20, 21, 2  # linux/tcp.h


def next_sequence(one: socket.socket) -> int:
    """Return the sequence number of the next byte that the socket will send."""
    one.setsockopt(socket.IPPROTO_TCP, REPAIR, 1)
    one.setsockopt(socket.IPPROTO_TCP, REPAIR_QUEUE, SEND_QUEUE)
    found = one.getsockopt(socket.IPPROTO_TCP, QUEUE_SEQ)
    one.setsockopt(socket.IPPROTO_TCP, REPAIR, -1)  # without a window probe
    return found & 0xFFFFFFFF


@pytest.mark.parametrize(("size", "hidden"), [(1, True), (2, False)])
def test_data_that_came_twice_is_shown_unless_it_is_a_probe(
    netbpf: Any, one_host: Host, size: int, hidden: bool
) -> None:
    with (
        one_host.socket(socket.AF_INET, socket.SOCK_STREAM) as listener,
        one_host.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP) as raw,
        netbpf("skbdrop", "--netns", one_host.inode) as run,
    ):
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        client = one_host.socket(socket.AF_INET, socket.SOCK_STREAM)
        client.connect(listener.getsockname())
        server, _ = listener.accept()
        client.sendall(b"abcd")
        assert server.recv(10) == b"abcd"
        ends = client.getsockname()[1], server.getsockname()[1]
        numbers = next_sequence(client) - size & 0xFFFFFFFF, next_sequence(server)
        again = struct.pack("!HHIIBBHHH", *ends, *numbers, 0x50, 0x10, 512, 0, 0) + b"abcd"[-size:]
        pseudo = socket.inet_aton("127.0.0.1") * 2 + struct.pack("!HH", 6, len(again))
        total = frames.checksum(pseudo + again + bytes(len(again) % 2))
        raw.sendto(again[:16] + struct.pack("!H", total) + again[18:], ("127.0.0.1", 0))
        client.close()
        assert server.recv(1) == b""
        server.close()
    shown = [(row["reason"], row["count"]) for row in run.rows]
    assert shown == ([] if hidden else [("TCP_OLD_DATA", 1)])
    assert run.summary["totals"]["hidden"] >= hidden


def refused_third_packet(host: Host, port: int) -> contextlib.AbstractContextManager[Any]:
    """Drop bare ACKs to a port: a handshake stays unfinished, and a reset still comes through."""
    return host.dropping(f"tcp dport {port} tcp flags & (syn|fin|rst|ack) == ack")


@pytest.mark.parametrize(
    ("way", "kind"), [("request", "rawtp"), ("fast-open", "rawtp"), ("fast-open", "tp")]
)
def test_reset_that_was_accepted_is_hidden(
    netbpf: Any, one_host: Host, way: str, kind: str
) -> None:
    fast = way == "fast-open"
    one_host.sysctl(net__ipv4__tcp_fastopen=0x603)  # without a cookie
    with one_host.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.bind(("127.0.0.1", 0))
        if fast:
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN, 5)
        listener.listen()
        address = listener.getsockname()
        with netbpf("skbdrop", "--netns", one_host.inode, "--probe", f"reset={kind}") as run:
            before = one_host.snmp()
            with refused_third_packet(one_host, address[1]) as dropped:
                for _ in range(NUMBER):
                    client = one_host.socket(socket.AF_INET, socket.SOCK_STREAM)
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    if fast:
                        client.sendto(b"data", socket.MSG_FASTOPEN, address)
                    else:
                        client.connect(address)
                    client.close()
                refused = dropped.count()
            after = one_host.snmp()
    # The kernel's own count of what resets ended: children of Fast Open, or requests.
    ended = (
        after["TcpEstabResets"] + after["TcpAttemptFails"]
        - before["TcpEstabResets"] - before["TcpAttemptFails"]
    )  # fmt: skip
    assert ended >= NUMBER
    if fast:
        rise = after["TcpExtTCPFastOpenPassive"] - before["TcpExtTCPFastOpenPassive"]
        assert rise == NUMBER
    # A reset that was not accepted is shown: it was answered with a challenge, which the client, as
    # it had no socket any more, answered with another one.
    challenges = after["TcpExtTCPChallengeACK"] - before["TcpExtTCPChallengeACK"]
    shown: Counter[str] = Counter()
    for row in run.rows:
        shown[row["reason"]] += row["count"]
    wanted = {"NETFILTER_DROP": refused, "TCP_FASTOPEN": challenges, "NO_SOCKET": challenges}
    assert shown == {reason: number for reason, number in wanted.items() if number}
    assert refused >= NUMBER
    if "TCP_LISTEN_OVERFLOW" in reasons() or fast:
        assert run.summary["totals"]["hidden"] >= NUMBER


def test_reset_behind_the_one_that_was_accepted_is_shown(netbpf: Any, one_host: Host) -> None:
    processors = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(processors)})  # what a reset ended is remembered by processor
    try:
        with (
            one_host.socket(socket.AF_INET, socket.SOCK_STREAM) as listener,
            one_host.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP) as raw,
            netbpf("skbdrop", "--netns", one_host.inode) as run,
        ):
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            client = one_host.socket(socket.AF_INET, socket.SOCK_STREAM)
            client.connect(listener.getsockname())
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            ends = client.getsockname()[1], listener.getsockname()[1]
            client.close()
            # The same once more, with a wrong checksum: TCP never looks at it.
            late = struct.pack("!HHIIBBHHH", *ends, 1, 0, 0x50, 4, 0, 0xBAD, 0)
            raw.sendto(late, ("127.0.0.1", 0))
    finally:
        os.sched_setaffinity(0, processors)
    assert [(row["reason"], row["count"]) for row in run.rows] == [("TCP_CSUM", 1)]
    assert run.summary["counters"]["Tcp.InCsumErrors"] == 1


def reasons() -> str:
    return Path("/sys/kernel/btf/vmlinux").read_bytes().decode("latin-1")


@pytest.mark.skipif(
    "TCP_LISTEN_OVERFLOW" not in reasons(),
    reason="needs a kernel that gives a full accept queue its own reason",
)
@pytest.mark.parametrize(
    ("family", "address"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")]
)
def test_ack_that_a_deferred_accept_waits_behind_is_hidden(
    netbpf: Any, one_host: Host, family: int, address: str
) -> None:
    with one_host.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 30)
        listener.bind((address, 0))
        listener.listen(NUMBER)
        with netbpf("skbdrop", "--netns", one_host.inode) as run:
            before = one_host.snmp()["TcpExtTCPDeferAcceptDrop"]
            for _ in range(5):
                client = one_host.socket(family, socket.SOCK_STREAM)
                client.connect(listener.getsockname())
                client.sendall(b"x")
                server, _ = listener.accept()
                assert server.recv(1) == b"x"
                client.close()
                server.close()
            deferred = one_host.snmp()["TcpExtTCPDeferAcceptDrop"] - before
    assert deferred == 5
    assert run.rows == [] and run.summary["totals"]["hidden"] >= deferred


# --- drops that free no buffer --------------------------------------------------------------------


def test_full_netlink_socket_is_named_with_what_it_lost(netbpf: Any, one_host: Host) -> None:
    with one_host.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as monitor:
        monitor.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2304)
        monitor.bind((0, 1))  # RTMGRP_LINK
        inode = os.fstat(monitor.fileno()).st_ino
        with netbpf("skbdrop", "--netns", one_host.inode) as run:
            for number in range(NUMBER):
                one_host.run("ip", "link", "set", "lo", "mtu", 60000 + number)
            run.stop()
        lost = netlink_drops(one_host, inode)
    assert lost > 0
    assert run.summary["counters"][f"Netlink.{inode}.drops"] == lost
    (note,) = [note for note in run.summary["notes"] if f"Netlink.{inode}" in note]
    assert f"+{lost}," in note and "receive buffer" in note


def netlink_drops(host: Host, inode: int) -> int:
    for line in host.run("cat", "/proc/self/net/netlink").splitlines()[1:]:
        *_, drops, number = line.split()
        if int(number) == inode:
            return int(drops)
    raise AssertionError(f"no netlink socket {inode}")


def test_full_raw_socket_is_in_rows_or_named_with_what_it_lost(netbpf: Any, one_host: Host) -> None:
    size = 1000
    with (
        one_host.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP) as raw,
        one_host.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver,
        one_host.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
    ):
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2304)
        receiver.bind(("127.0.0.1", 0))
        inode = os.fstat(raw.fileno()).st_ino
        with netbpf("skbdrop", "--netns", one_host.inode) as run:
            for _ in range(NUMBER):
                sender.sendto(bytes(size), receiver.getsockname())
                assert len(receiver.recv(2 * size)) == size
            run.stop()
        kept = 0
        raw.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while raw.recv(2 * size):
                kept += 1
    lost = NUMBER - kept
    assert lost > 0
    assert run.summary["counters"][f"Raw.{inode}.drops"] == lost
    assert any(f"Raw.{inode}.drops +{lost}" in note for note in run.summary["notes"])


def test_full_packet_socket_is_named_with_what_it_lost(netbpf: Any, one_host: Host) -> None:
    with (
        one_host.socket(socket.AF_PACKET, socket.SOCK_RAW) as capture,
        one_host.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver,
        one_host.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
    ):
        capture.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2304)
        capture.bind(("lo", 3))  # ETH_P_ALL: each packet on its way out, and again on its way in
        receiver.bind(("127.0.0.1", 0))
        inode = os.fstat(capture.fileno()).st_ino
        with netbpf("skbdrop", "--netns", one_host.inode) as run:
            for _ in range(NUMBER):
                sender.sendto(bytes(1000), receiver.getsockname())
                assert len(receiver.recv(2000)) == 1000
            run.stop()
        # PACKET_STATISTICS: what came, what had no room.
        came, lost = struct.unpack("II", capture.getsockopt(263, 6, 8))
    assert came == 2 * NUMBER and lost > 0
    assert run.summary["counters"][f"Packet.{inode}.drops"] == lost
    assert any(f"Packet.{inode}.drops +{lost}" in note for note in run.summary["notes"])
    assert 0 < sum(row["count"] for row in run.rows) <= lost


# --- whose, and what is counted -------------------------------------------------------------------

NOBODY = 65534
SLOW_READER = """
import os, socket, sys
open(sys.argv[1] + "/cgroup.procs", "w").write("0")
open("/proc/self/comm", "w").write("nb-slow")
os.setuid(int(sys.argv[2]))
receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2304)
receiver.bind(("127.0.0.1", 0))
print(receiver.getsockname()[1], flush=True)
sys.stdin.read()
"""


@compares("skbdrop", "comm", "socket", "uid", "cgroup")
@compares("skbdrop", "socket", shape="rows")
@compares("skbdrop", "container", "pid", "uid", "comm", "owner", "cgroup", shape="--by")
@pytest.mark.skipif(
    "rx_sk" not in (Btf().parameters("__traceiter_kfree_skb") or ()),
    reason="needs a kernel that gives the socket: 6.11",
)
def test_owner_of_a_full_buffer_has_all_its_columns(netbpf: Any, one_host: Host) -> None:
    identity = "5eed" * 16  # of a container: 64 hexadecimal digits
    keys = "container,pid,uid,comm,owner,cgroup"
    with cgroup(f"docker-{identity}.scope") as path, slow_reader(one_host, path) as (pid, port):
        options = ("--netns", one_host.inode, "--port", f"1,{port}")
        with (
            netbpf("skbdrop", *options, "--events", "-u", NOBODY) as run,
            netbpf("skbdrop", *options, "--by", keys) as keyed,
        ):
            before = one_host.snmp()["UdpRcvbufErrors"]
            with one_host.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                for _ in range(NUMBER):
                    sender.sendto(bytes(700), ("127.0.0.1", port))
                mine = sender.getsockname()[1]
            lost = one_host.snmp()["UdpRcvbufErrors"] - before
        ident = path.stat().st_ino
    assert len(run.events) == lost > 0
    for event in run.events:
        assert (event["pid"], event["uid"], event["cgroup"]) == (pid, NOBODY, ident)
        assert (event["comm"], event["owner"]) == ("nb-slow", "snapshot")
        assert (event["socket"], event["harmless"]) == ("yes", "no")
        assert described(event) == (
            "ipv4", "udp", "127.0.0.1", mine, "127.0.0.1", port, 700 + 28,
        )  # fmt: skip
        assert (event["reason"], event["dev"]) == ("SOCKET_RCVBUFF", "lo")
    (row,) = run.rows
    assert (row["count"], row["bytes"], row["socket"]) == (lost, lost * 728, "yes")
    assert (row["dev"], row["netns"], row["harmless"]) == ("lo", one_host.inode, "no")
    (row,) = keyed.rows
    owner = tuple(row[name] for name in keys.split(","))
    assert owner == (identity, pid, NOBODY, "nb-slow", "snapshot", ident)
    assert (row["count"], row["bytes"]) == (lost, lost * 728)


@contextlib.contextmanager
def slow_reader(host: Host, group: Path) -> Iterator[tuple[int, int]]:
    """Run a process of user nobody that reads nothing from its socket; yield its pid and port."""
    words = host.inside("/usr/bin/env", sys.executable, "-c", SLOW_READER, group, NOBODY)
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin and process.stdout
        yield process.pid, int(process.stdout.readline())
        process.stdin.close()


def test_two_rows_in_two_intervals_add_up(netbpf: Any, receiving: tuple[Host, Host]) -> None:
    left, right = receiving
    four, six = (
        frames.link(0x0800, frames.ipv4(frames.udp(1, 2, 10))),
        frames.link(0x86DD, frames.ipv6(frames.udp(1, 2, 20))),
    )
    with netbpf("skbdrop", "0.3", "--netns", right.inode, "--reason", "OTHERHOST") as run:
        for number in (1, 2):
            frames.send(left, [four] * 3 + [six] * 5)
            wait_until(
                lambda: sum(row["count"] for row in run.rows) >= 8 * number,  # noqa: B023
                what="an interval",
            )
    assert sum(row["count"] for row in run.rows) == 2 * 8
    assert sum(row["bytes"] for row in run.rows) == 2 * (3 * 38 + 5 * 68)
