"""qdisclat measures the waits that a queue's rate dictates, and counts what tc counts.

A tbf that lets one datagram pass per STEP sends the k-th of a burst k steps after the first. How
long each one waited is known within bounds: from the test's own clock before and after its send,
from the rate, and from the receiver's time stamp.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import struct
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import topology
import traffic
from alternatives import Case, Stage, plain
from bpf_maps import maps_of
from compared import compares
from harness import Json, Run, netbpf_once, seconds, wait_until
from test_netem import routed, talkers
from topology import Host

COUNT, STEP_MS = 23, 10
LINK, HEADERS = 14, 28  # bytes of Ethernet, of IPv4 and UDP
SIZE = 1000  # bytes from the network header on
FRAME = SIZE + LINK
RATE = FRAME * 8 * 1000 // STEP_MS  # bit/s
SPARE = 86  # bytes that a burst may have more than one frame
SPARE_MS = SPARE * STEP_MS / FRAME
PORT = 7007
SO_TIMESTAMPNS = 35  # include/uapi/asm-generic/socket.h
STEPS = ("tbf", "rate", RATE, "burst", FRAME + SPARE, "limit")
AMPLE = 100_000  # bytes: more than a burst
# Little more than a segment: nothing passes that tc counts as several packets.
CUT = 1540  # bytes, with the link header
CUTTING = ("tbf", "rate", "80mbit", "burst", CUT, "limit", 1_000_000)
NEVER = ("tbf", "rate", "8bit", "burst", FRAME + SPARE, "limit", AMPLE)


def disciplines(host: Host, device: str = "") -> list[Json]:
    """Return what tc shows of the disciplines of a device."""
    shown = host.run("tc", "-s", "-j", "qdisc", "show", "dev", device or host.device)
    return [dict(one) for one in json.loads(shown)]


def root(host: Host) -> Json:
    """Return what tc shows of the root discipline of the host's device."""
    (found,) = (one for one in disciplines(host) if one.get("root"))
    return found


@contextlib.contextmanager
def queueing(host: Host, *words: object, device: str = "") -> Iterator[None]:
    """Let the host's device have this root discipline within the block."""
    place = ["dev", device or host.device, "root"]
    host.run("tc", "qdisc", "replace", *place, *words)
    try:
        yield
    finally:
        host.run("tc", "qdisc", "del", *place)


class Sent(NamedTuple):
    """A datagram: its source port, when it was sent (ns, before and after), when it arrived."""

    port: int
    before: int
    after: int
    arrived: int

    def longest(self) -> float:
        """Return the upper bound of the wait in us."""
        return (self.arrived - self.before) / 1000


class Burst:
    """Sends datagrams of SIZE bytes from a port each, to a socket that notes when they arrive."""

    def __init__(self, source: Host, target: Host, number: int = COUNT) -> None:
        self._receiver = target.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._receiver.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        self._receiver.bind((target.ipv4, PORT))
        self._receiver.settimeout(10)
        self._senders = [source.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(number)]
        for sender in self._senders:
            sender.connect((target.ipv4, PORT))
        self._times: dict[int, tuple[int, int]] = {}

    def send(self, first: int = 0, last: int | None = None) -> None:
        """Send one datagram from each port, as fast as possible, or only from some of them."""
        payload = bytes(SIZE - HEADERS)
        for sender in self._senders[first:last]:
            before = time.clock_gettime_ns(time.CLOCK_REALTIME)
            sender.send(payload)
            after = time.clock_gettime_ns(time.CLOCK_REALTIME)
            self._times[sender.getsockname()[1]] = (before, after)

    def received(self, number: int = 0) -> list[Sent]:
        """Wait for that many datagrams, by default all; return them in order."""
        found = []
        while len(found) < (number or len(self._senders)):
            _, extra, _, (_, port) = self._receiver.recvmsg(65536, 256)
            ((_, _, stamp),) = extra
            sec, ns = struct.unpack("=qq", stamp)
            found.append(Sent(port, *self._times[port], sec * 10**9 + ns))
        return found

    def close(self) -> None:
        """Close all sockets."""
        for sock in (self._receiver, *self._senders):
            sock.close()


@contextlib.contextmanager
def burst(source: Host, target: Host, number: int = COUNT) -> Iterator[Burst]:
    """Yield sockets for a burst, closed with the block."""
    made = Burst(source, target, number)
    try:
        yield made
    finally:
        made.close()


def shortest(sent: list[Sent]) -> list[float]:
    """Return the lower bound of each wait in us: its turn, not earlier than the rate allows."""
    first = sent[0].before
    turns = [first + (k * STEP_MS - SPARE_MS) * 1e6 for k in range(len(sent))]
    return [max(0.0, (turn - one.after) / 1000) for turn, one in zip(turns, sent)]


def check_buckets(found: Json, sent: list[Sent]) -> None:
    """Compare a distribution with the bounds of each wait."""
    low, high = shortest(sent), [one.longest() for one in sent]
    assert found["count"] == len(sent)
    assert found["count"] == sum(bucket["count"] for bucket in found["buckets"])
    assert sum(low) - len(sent) <= found["sum"] <= sum(high)
    for number in range(24):
        edge = 1 << number
        longer = sum(bucket["count"] for bucket in found["buckets"] if bucket["low"] >= edge)
        least, most = (sum(int(value) >= edge for value in bounds) for bounds in (low, high))
        assert least <= longer <= most, (edge, found["buckets"], low, high)


def in_bucket(value: int, low: float, high: float) -> bool:
    """Return whether `value` is the upper bound of a bucket that a value in low..high may be in."""
    return (1 << int(low).bit_length()) - 1 <= value <= (1 << int(high).bit_length()) - 1


def only(lines: list[Json]) -> Json:
    (line,) = lines
    return line


# --- how long ------------------------------------------------------------------------------------


@compares("qdisclat", "dev", "kind", "handle", "netns", "buckets", "count", "sum", "percentiles",
          shape="histogram")  # fmt: skip
@compares("qdisclat", "dev", "kind", "handle", "netns", "waited", "share", "p50_us", "p99_us",
          "max_us", "qlen_max", shape="rows")  # fmt: skip
def test_waits_are_those_that_the_rate_dictates(netbpf: Any, two_hosts: tuple[Host, Host]) -> None:
    left, right = two_hosts
    with queueing(left, *STEPS, AMPLE), burst(left, right) as datagrams:
        with netbpf("qdisclat", "-i", left.device) as run:
            datagrams.send()
            sent = datagrams.received()
        shown = root(left)
    found, row = only(run.histograms), only(run.rows)
    assert found["key"] == {"dev": left.device, "kind": "tbf", "handle": shown["handle"],
                            "netns": left.inode}  # fmt: skip
    assert {name: row[name] for name in found["key"]} == found["key"]
    assert shown["packets"] == found["count"] == row["waited"] == COUNT
    check_buckets(found, sent)
    low, high = shortest(sent), [one.longest() for one in sent]
    for name, column, rank in (("p50", "p50_us", 12), ("p99", "p99_us", 23)):
        bounds = sorted(low)[rank - 1], sorted(high)[rank - 1]
        assert in_bucket(found["percentiles"][name], *bounds)
        assert in_bucket(row[column], *bounds)
    assert max(low) - 1 <= row["max_us"] <= max(high)
    assert row["share"] == 1 and row["queue"] is None
    # The first one passes; those that were sent before it was the second's turn are then behind it.
    soon = sum(one.after < sent[0].before + (STEP_MS - SPARE_MS) * 1e6 for one in sent)
    assert soon - 1 <= row["qlen_max"] <= COUNT - 1
    assert run.summary["complete"] is True


@compares("qdisclat", "time", "wait_us", "dev", "kind", "handle", "family", "proto", "saddr",
          "sport", "daddr", "dport", "len", "netns")  # fmt: skip
def test_packets_that_wait_long_have_a_line(netbpf: Any, two_hosts: tuple[Host, Host]) -> None:
    left, right = two_hosts
    least = 95
    with queueing(left, *STEPS, AMPLE), burst(left, right) as datagrams:
        begin = time.time()
        with netbpf("qdisclat", "-i", left.device, "--min-ms", least) as run:
            datagrams.send()
            sent = datagrams.received()
            end = time.time()
        handle = root(left)["handle"]
    low = {one.port: bound for one, bound in zip(sent, shortest(sent))}
    high = {one.port: one.longest() for one in sent}
    surely, maybe = ({port for port, us in bounds.items() if us >= least * 1000}
                     for bounds in (low, high))  # fmt: skip
    ports = [event["sport"] for event in run.events]
    assert surely <= set(ports) <= maybe and len(surely) > 3 and len(maybe) < COUNT
    assert ports == [one.port for one in sent if one.port in ports]
    for event in run.events:
        assert begin <= seconds(event["time"]) <= end
        assert max(least * 1000, low[event["sport"]] - 1) <= event["wait_us"]
        assert event["wait_us"] <= high[event["sport"]]
        assert (event["dev"], event["netns"]) == (left.device, left.inode)
        assert (event["kind"], event["handle"]) == ("tbf", handle)
        assert (event["family"], event["proto"], event["len"]) == ("ipv4", "udp", SIZE)
        assert (event["saddr"], event["daddr"], event["dport"]) == (left.ipv4, right.ipv4, PORT)
    assert only(run.histograms)["count"] == COUNT  # those of all packets


def test_every_packet_has_a_line_with_min_ms_0(netbpf: Any, two_hosts: tuple[Host, Host]) -> None:
    left, right = two_hosts
    with queueing(left, *STEPS, AMPLE), burst(left, right, 7) as datagrams:
        with netbpf("qdisclat", "-i", left.device, "--min-ms", 0) as run:
            datagrams.send()
            sent = datagrams.received()
    assert [event["sport"] for event in run.events] == [one.port for one in sent]


# --- what does not wait --------------------------------------------------------------------------


@compares("qdisclat", "dropped", shape="histogram")
@compares("qdisclat", "dropped", "qlen_max", shape="rows")
def test_drops_are_those_that_tc_counts(netbpf: Any, two_hosts: tuple[Host, Host]) -> None:
    left, right = two_hosts
    room = 5
    with queueing(left, *STEPS, room * FRAME), burst(left, right) as datagrams:
        with netbpf("qdisclat", "-i", left.device) as run:
            datagrams.send()
            wait_until(lambda: root(left)["packets"] + root(left)["drops"] == COUNT)
            wait_until(lambda: maps_of(run)["waiting"].entries == 0, what="an empty map")
        shown = root(left)
    found, row = only(run.histograms), only(run.rows)
    assert found["dropped"] == row["dropped"] == shown["drops"] > 0
    assert found["count"] == row["waited"] == shown["packets"]
    assert row["qlen_max"] == room  # it was full
    assert found["unknown"] == found["split"] == found["bypassed"] == 0


@compares("qdisclat", "bypassed", shape="histogram")
@compares("qdisclat", "bypassed", "share", shape="rows")
@pytest.mark.parametrize("kind", ["pfifo_fast", "pfifo", "bfifo", "htb"])
def test_packets_that_find_the_queue_empty(
    netbpf: Any, two_hosts: tuple[Host, Host], kind: str
) -> None:
    left, right = two_hosts
    with queueing(left, kind), burst(left, right) as datagrams:
        with netbpf("qdisclat", "-i", left.device) as run:
            datagrams.send()
            datagrams.received()
        shown = root(left)
    found, row = only(run.histograms), only(run.rows)
    assert (found["key"]["kind"], row["kind"]) == (kind, kind)
    # Each of them passes at once; htb has no bypass, and puts it in and takes it out again.
    wanted = {"count": COUNT, "bypassed": 0} if kind == "htb" else {"count": 0, "bypassed": COUNT}
    assert {name: found[name] for name in wanted} == wanted
    assert (row["waited"], row["bypassed"]) == (wanted["count"], wanted["bypassed"])
    assert row["share"] == (1 if kind == "htb" else 0)
    assert shown["packets"] == COUNT
    if kind != "htb":
        assert found["percentiles"]["p99"] is row["p99_us"] is row["max_us"] is None


@pytest.fixture(scope="module")
def pair(two_hosts: tuple[Host, Host]) -> Iterator[tuple[traffic.Peer, traffic.Peer]]:
    """A client and a server of TCP."""
    left, right = two_hosts
    with traffic.peers() as start:
        client, server = start("nb-client", left), start("nb-server", right)
        server.listen("ipv4")
        server.listen("ipv6")
        yield client, server


@contextlib.contextmanager
def counting(host: Host, rule: str) -> Iterator[Any]:
    """Count the packets that the host sends and that match, before they reach the discipline."""
    chain = f"chain out {{\ntype filter hook postrouting priority 300\n{rule} counter\n}}"
    host.run("nft", "-f", "-", input=f"table inet netbpf-count {{\n{chain}\n}}\n")
    try:
        drops = topology.Drops(host, "netbpf-count")
        yield drops.count
    finally:
        host.run("nft", "delete", "table", "inet", "netbpf-count")


def retransmitted(host: Host) -> int:
    return host.snmp()["TcpRetransSegs"]


@compares("qdisclat", "split", shape="histogram")
@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_pieces_of_large_packets_have_the_wait_of_the_whole(
    netbpf: Any, two_hosts: tuple[Host, Host], pair: Any, family: str
) -> None:
    left, _ = two_hosts
    with queueing(left, *CUTTING), counting(left, f"meta length > {CUT - LINK}") as large:
        again = retransmitted(left)
        with netbpf("qdisclat", "-i", left.device) as run:
            session = traffic.connect(*pair, family)
            session.transfer(up=400_009)
            session.end()
            wait_until(lambda: not root(left)["qlen"], what="an empty queue")
            wait_until(lambda: maps_of(run)["waiting"].entries == 0, what="an empty map")
        shown, cut = root(left), large()
        again = retransmitted(left) - again
    found = only(run.histograms)
    assert found["count"] + found["unknown"] == shown["packets"] > 400_009 // 1500
    assert found["split"] == cut > 0
    assert found["dropped"] == shown["drops"] == 0
    # A retransmission has the sequence number of the piece that still waits: both look the same.
    assert found["unknown"] <= again


def test_pieces_of_forwarded_packets_have_the_wait_of_the_whole(netbpf: Any) -> None:
    with contextlib.ExitStack() as stack:
        left, router, right = stack.enter_context(routed())
        # A router has a packet without its socket. Without IPv6 it sends nothing of its own accord.
        router.sysctl(net__ipv6__conf__all__disable_ipv6=1)
        stack.enter_context(queueing(router, *CUTTING))
        run = stack.enter_context(netbpf("qdisclat", "--netns", router.inode))
        before, again = root(router)["packets"], retransmitted(left)
        session = traffic.connect(*stack.enter_context(talkers(left, right)))
        session.transfer(up=400_009)
        session.end()
        wait_until(lambda: not root(router)["qlen"], what="an empty queue")
        shown, again = root(router), retransmitted(left) - again
    found = only(run.histograms)
    assert found["split"] > 0
    assert found["count"] + found["unknown"] == shown["packets"] - before > 400_009 // 1500
    assert found["dropped"] == shown["drops"] == 0
    assert found["unknown"] <= again


@contextlib.contextmanager
def patient(host: Host) -> Iterator[None]:
    """Let TCP not send again for a long time within the block."""
    network = host.ipv4.rpartition(".")[0] + ".0/24"
    route = ("ip", "route", "change", network, "dev", host.device, "src", host.ipv4)
    host.sysctl(net__ipv4__tcp_early_retrans=0)
    host.run(*route, "rto_min", "30s")
    try:
        yield
    finally:
        host.run(*route)
        host.sysctl(net__ipv4__tcp_early_retrans=3)


def test_a_piece_that_finds_no_room_is_dropped(netbpf: Any, two_hosts: tuple[Host, Host]) -> None:
    """Seven segments come to a closed queue with room for six, in one or several packets."""
    left, right = two_hosts
    with contextlib.ExitStack() as stack:
        stack.enter_context(patient(left))
        server = stack.enter_context(right.socket(socket.AF_INET, socket.SOCK_STREAM))
        server.bind((right.ipv4, 0))
        server.listen()
        client = stack.enter_context(left.socket(socket.AF_INET, socket.SOCK_STREAM))
        client.connect(server.getsockname())
        segment = client.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG)
        room = 6 * (1500 + LINK) + 100
        stack.enter_context(queueing(left, "tbf", "rate", "8bit", "burst", CUT, "limit", room))
        datagrams = stack.enter_context(burst(left, right, 1))
        datagrams.send()  # which takes the tokens of a long time
        datagrams.received()
        run = stack.enter_context(netbpf("qdisclat", "-i", left.device))
        client.send(bytes(7 * segment))
        wait_until(lambda: root(left)["drops"], what="a drop")
        run.stop()
        shown = root(left)
    found = only(run.histograms)
    assert found["split"] > 0
    assert found["dropped"] == shown["drops"] == 1
    assert found["count"] == found["unknown"] == 0


def open_up(host: Host) -> None:
    """Let a queue that was closed (NEVER) pass packets, as soon as the next one comes."""
    host.run("tc", "qdisc", "change", "dev", host.device, "root", *STEPS, AMPLE)


@compares("qdisclat", "unknown", shape="histogram")
def test_packets_from_before_the_start_are_unknown(
    netbpf: Any, two_hosts: tuple[Host, Host]
) -> None:
    left, right = two_hosts
    with queueing(left, *NEVER), burst(left, right, 12) as datagrams:
        datagrams.send(0, -1)
        wait_until(lambda: root(left)["qlen"] == 10)
        with netbpf("qdisclat", "-i", left.device) as run:
            open_up(left)
            datagrams.send(-1)
            datagrams.received()
    found = only(run.histograms)
    assert (found["count"], found["unknown"]) == (1, 10)
    assert run.summary["complete"] is True


def test_packets_that_find_no_room_in_the_map_are_counted(
    netbpf: Any, two_hosts: tuple[Host, Host]
) -> None:
    left, right = two_hosts
    with queueing(left, *NEVER), burst(left, right) as datagrams:
        with netbpf("qdisclat", "-i", left.device, "--map-entries", 7) as run:
            datagrams.send(0, -1)
            wait_until(lambda: root(left)["qlen"] == COUNT - 2)
            open_up(left)
            datagrams.send(-1)
            datagrams.received()
    found = only(run.histograms)
    assert (found["count"], found["unknown"]) == (8, COUNT - 8)  # one had left when they came
    assert run.summary["lost"]["map_full"] == COUNT - 8
    assert run.summary["complete"] is False


# --- what is in the queue ------------------------------------------------------------------------


def content(line: Json) -> tuple[int, int]:
    """Return the packets and bytes in a queue, of a row or of what tc shows."""
    return line["qlen"], line["backlog_bytes" if "backlog_bytes" in line else "backlog"]


@compares("qdisclat", "qlen", "backlog_bytes", shape="rows")
@pytest.mark.parametrize("kind", ["tbf", "pfifo", "htb"])
def test_what_is_in_the_queue_is_what_tc_shows(
    netbpf: Any, two_hosts: tuple[Host, Host], kind: str
) -> None:
    """Packets that came after the last one left are counted, too; afterwards it is empty."""
    left, right = two_hosts
    with contextlib.ExitStack() as stack:
        if kind == "tbf":
            stack.enter_context(queueing(left, *NEVER))
        elif kind == "htb":
            stack.enter_context(queueing(left, "htb", "default", 1))
            place = ("dev", left.device, "parent", "1:", "classid", "1:1")
            left.run("tc", "qdisc", "replace", "dev", left.device, "root", "handle", "1:", "htb",
                     "default", 1)  # fmt: skip
            left.run("tc", "class", "add", *place, "htb", "rate", "8bit", "burst", FRAME + SPARE)
        else:
            stack.enter_context(queueing(left, "pfifo", "limit", 100))
        datagrams = stack.enter_context(burst(left, right))
        with netbpf("qdisclat", "-i", left.device) as run:
            datagrams.send()
            stuck = COUNT - content(root(left))[0]
            wait_until(lambda: root(left)["packets"] + root(left)["qlen"] == COUNT)
        shown = root(left)
    row = only(run.rows)
    assert content(row) == content(shown)
    if kind == "pfifo":
        assert content(row) == (0, 0)
    else:
        assert row["qlen"] == COUNT - stuck >= COUNT - 2
        assert row["backlog_bytes"] == row["qlen"] * FRAME


def test_a_full_queue_is_a_row_until_it_is_removed(
    netbpf: Any, two_hosts: tuple[Host, Host]
) -> None:
    """Also in intervals in which nothing comes or leaves."""
    left, right = two_hosts
    with burst(left, right) as datagrams, netbpf("qdisclat", "-i", left.device, "0.3") as run:

        def of_an_interval(wanted: tuple[int, int], waited: int = 0) -> bool:
            return any((content(row), row["waited"]) == (wanted, waited) for row in run.rows)

        with queueing(left, *NEVER):
            datagrams.send()
            full = content(root(left))
            assert full[0] >= COUNT - 2 and full[1] == full[0] * FRAME
            wait_until(lambda: of_an_interval(full), what="an interval without packets")
        wait_until(lambda: run.rows[-1]["dropped"], what="the drops of the removal")
        number = len(run.rows)
        assert content(run.rows[-1]) == (0, 0)
    assert len(run.rows) == number and sum(row["dropped"] for row in run.rows) == full[0]


def test_a_queue_that_has_drained_is_empty(netbpf: Any, two_hosts: tuple[Host, Host]) -> None:
    left, right = two_hosts
    with queueing(left, *STEPS, AMPLE), burst(left, right, 7) as datagrams:
        with netbpf("qdisclat", "-i", left.device) as run:
            datagrams.send()
            datagrams.received()
        assert content(root(left)) == (0, 0)
    assert content(only(run.rows)) == (0, 0)


# --- queues --------------------------------------------------------------------------------------


@pytest.fixture
def wide_host(two_hosts: tuple[Host, Host]) -> Iterator[Host]:
    """A host with a device of four transmit queues, whose other end is in the other host."""
    left, right = two_hosts
    device = f"q{os.getpid():x}"
    four = ("numtxqueues", 4, "numrxqueues", 4)
    left.run("ip", "link", "add", device, *four, "type", "veth", "peer", "name", "q-peer", *four,
             "netns", right.namespace)  # fmt: skip
    host = Host(left.namespace, device, "10.93.0.1")
    try:
        for one in (host, Host(right.namespace, "q-peer", "10.93.0.2")):
            one.run("ip", "link", "set", one.device, "addrgenmode", "none")
            one.run("ip", "address", "add", f"{one.ipv4}/24", "dev", one.device)
            one.run("ip", "link", "set", one.device, "up")
        (peer,) = json.loads(right.run("ip", "-j", "link", "show", "q-peer"))
        address = peer["address"]
        host.run("ip", "neighbour", "replace", "10.93.0.2", "lladdr", address, "dev", device,
                 "nud", "permanent")  # fmt: skip
        yield host
    finally:
        left.run("ip", "link", "del", device)


@compares("qdisclat", "queue", shape="rows")
@compares("qdisclat", "queue", shape="histogram")
def test_each_queue_of_mq_has_what_tc_counts(
    netbpf: Any, two_hosts: tuple[Host, Host], wide_host: Host
) -> None:
    _, right = two_hosts
    target = Host(right.namespace, "q-peer", "10.93.0.2")
    args = ("qdisclat", "-i", wide_host.device)
    with queueing(wide_host, "mq"), burst(wide_host, target, 61) as datagrams:
        with netbpf(*args) as joined, netbpf(*args, "--queues") as run, \
                netbpf(*args, "--by", "kind,queue") as by:  # fmt: skip
            datagrams.send()
            datagrams.received()
        wanted = {
            int(one["parent"].partition(":")[2], 16) - 1: (one["kind"], one["packets"])
            for one in disciplines(wide_host)
            if one.get("parent") and one["packets"]
        }
    assert len(wanted) > 1 and sum(packets for _, packets in wanted.values()) == 61

    def passed(line: Json) -> int:
        return int(line.get("count", line.get("waited")) + line["bypassed"])

    assert {row["queue"]: (row["kind"], passed(row)) for row in run.rows} == wanted
    assert {row["qlen"] for row in run.rows} == {None}  # pfifo_fast has no lock
    assert {one["key"]["queue"]: (one["key"]["kind"], passed(one)) for one in by.histograms} == (
        wanted
    )
    assert only(joined.rows)["queue"] is None
    assert passed(only(joined.rows)) == passed(only(joined.histograms)) == 61


def test_each_queue_of_mq_has_its_content(
    netbpf: Any, two_hosts: tuple[Host, Host], wide_host: Host
) -> None:
    _, right = two_hosts
    target = Host(right.namespace, "q-peer", "10.93.0.2")
    args = ("qdisclat", "-i", wide_host.device)
    with queueing(wide_host, "mq"), burst(wide_host, target, 61) as datagrams:
        (mq,) = (one["handle"] for one in disciplines(wide_host) if one["kind"] == "mq")
        for queue in range(1, 5):
            wide_host.run("tc", "qdisc", "replace", "dev", wide_host.device, "parent",
                          f"{mq}{queue}", *NEVER)  # fmt: skip
        with netbpf(*args) as joined, netbpf(*args, "--queues") as run:
            datagrams.send()
        wanted = {
            int(one["parent"].partition(":")[2], 16) - 1: content(one)
            for one in disciplines(wide_host)
            if one.get("parent") and one["packets"]
        }
    assert len(wanted) > 1 and max(wanted.values()) > (1, FRAME)
    assert {row["queue"]: content(row) for row in run.rows} == wanted
    assert {content(row) for row in joined.rows} == {(None, None)}


# --- filters -------------------------------------------------------------------------------------


def shown_with(netbpf: Any, two_hosts: tuple[Host, Host], *words: object) -> tuple[int, list[Json]]:
    """Let both hosts send through a discipline; return how many packets, and what is shown."""
    left, right = two_hosts
    with contextlib.ExitStack() as stack:
        for host, kind in ((left, "pfifo"), (right, "bfifo")):
            stack.enter_context(queueing(host, kind))
        there, back = (stack.enter_context(burst(*ends, number))
                       for ends, number in (((left, right), 11), ((right, left), 7)))  # fmt: skip
        with netbpf("qdisclat", *words) as run:
            for one in (there, back):
                one.send()
                one.received()
    return sum(row["waited"] + row["bypassed"] for row in run.rows), run.histograms


@pytest.mark.parametrize("option", ["-i", "--kind", "--netns"])
def test_filters_select_one_of_two_queues(
    netbpf: Any, two_hosts: tuple[Host, Host], option: str
) -> None:
    values = {"-i": [host.device for host in two_hosts], "--kind": ["pfifo", "bfifo"],
              "--netns": [host.inode for host in two_hosts]}  # fmt: skip
    for host, value, number in zip(two_hosts, values[option], (11, 7)):
        # Other programs of the machine have queues of these kinds, but none of these devices.
        more = ("--netns", host.inode) if option == "--kind" else ()
        packets, histograms = shown_with(netbpf, two_hosts, option, value, *more)
        assert packets == number
        assert only(histograms)["key"]["dev"] == host.device


def test_lists_of_devices_and_kinds_select_several(
    netbpf: Any, two_hosts: tuple[Host, Host]
) -> None:
    names = ",".join(host.device for host in two_hosts)
    packets, histograms = shown_with(netbpf, two_hosts, "-i", names, "--kind", "fq,pfifo,bfifo")
    assert packets == 11 + 7
    assert {one["key"]["kind"] for one in histograms} == {"pfifo", "bfifo"}


def test_other_kinds_are_not_shown(netbpf: Any, two_hosts: tuple[Host, Host]) -> None:
    devices = ",".join(host.device for host in two_hosts)
    packets, histograms = shown_with(netbpf, two_hosts, "-i", devices, "--kind", "fq,fq_codel")
    assert (packets, histograms) == (0, [])


def test_device_without_a_queue_is_not_shown(netbpf: Any, two_hosts: tuple[Host, Host]) -> None:
    left, right = two_hosts
    with netbpf("qdisclat", "-i", left.device) as run, burst(left, right) as datagrams:
        datagrams.send()
        datagrams.received()
    assert run.histograms == run.rows == []


def test_kind_that_kernels_no_longer_have_is_named(one_host: Host) -> None:
    words = ("--netns", one_host.inode, "-d", "0.1")
    texts = [netbpf_once(name, *words).stderr for name in ("qdisc-cbq", "qdisc-tbf")]
    assert ["of the kind cbq" in text for text in texts] == [True, False]


@pytest.mark.parametrize("text", ["", "a,", "a b", "0123456789abcdef", "fq;", "\x1b[1m"])
def test_names_that_no_kind_can_have_are_refused(text: str) -> None:
    done = netbpf_once("qdisclat", "--kind", text, "-d", "0.1")
    assert done.returncode == 2
    assert "--kind" in done.stderr and "Traceback" not in done.stderr


# --- kinds that this kernel may not have ---------------------------------------------------------

OTHERS = {
    "fq": (), "fq_codel": (), "codel": (), "cake": (), "sfq": (), "pie": (), "prio": (), "drr": (),
    "red": ("limit", 400_000, "min", 30_000, "max", 90_000, "avpkt", 1000, "burst", 55),
    "cbs": ("idleslope", 98_688, "sendslope", -901_312, "hicredit", 153, "locredit", -1389),
}  # fmt: skip


@contextlib.contextmanager
def queueing_if_offered(host: Host, kind: str, *words: object) -> Iterator[None]:
    """Let the host's device have a discipline, or skip with the kernel's own reason."""
    if shutil.which("modprobe"):  # a container may have none
        subprocess.run(["modprobe", "-q", f"sch_{kind}"], check=False)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(queueing(host, kind, *words))
        except AssertionError as error:
            pytest.skip(f"needs a kernel with sch_{kind}, as in `make vm`: {error}")
        yield


@pytest.mark.parametrize("kind", [kind for kind in OTHERS if kind != "drr"])
def test_packets_of_other_kinds_are_those_that_tc_counts(
    netbpf: Any, two_hosts: tuple[Host, Host], kind: str
) -> None:
    left, right = two_hosts
    with queueing_if_offered(left, kind, *OTHERS[kind]), burst(left, right) as datagrams:
        with netbpf("qdisclat", "-i", left.device, "--kind", kind) as run:
            datagrams.send()
            datagrams.received()
        shown = root(left)
    found = only(run.histograms)
    assert found["key"] == {"dev": left.device, "kind": kind, "handle": shown["handle"],
                            "netns": left.inode}  # fmt: skip
    assert found["count"] + found["bypassed"] == shown["packets"] == COUNT
    assert found["unknown"] == found["dropped"] == 0


def test_netem_delays_each_packet(netbpf: Any, two_hosts: tuple[Host, Host]) -> None:
    left, right = two_hosts
    with queueing_if_offered(left, "netem", "delay", "20ms"), burst(left, right) as datagrams:
        with netbpf("qdisclat", "-i", left.device, "--min-ms", 19.9) as run:
            datagrams.send()
            sent = datagrams.received()
    high = {one.port: one.longest() for one in sent}
    assert {event["sport"] for event in run.events} == set(high)
    assert all(19_900 <= event["wait_us"] <= high[event["sport"]] for event in run.events)
    assert only(run.histograms)["count"] == COUNT


def test_fq_paces_each_packet(netbpf: Any, two_hosts: tuple[Host, Host]) -> None:
    """A flow that may send one frame per STEP: all but the first wait for their turn."""
    left, right = two_hosts
    rate = FRAME * 1000 // STEP_MS  # bytes per second
    words = ("flow_limit", 100, "maxrate", f"{rate * 8}bit", "initial_quantum", FRAME, "quantum",
             FRAME)  # fmt: skip
    with queueing_if_offered(left, "fq", *words), burst(left, right, 1) as datagrams:
        with netbpf("qdisclat", "-i", left.device) as run:
            for _ in range(COUNT):
                datagrams.send()
            datagrams.received(COUNT)
        assert root(left)["packets"] == COUNT
    found = only(run.histograms)
    assert found["count"] + found["bypassed"] == COUNT
    assert found["percentiles"]["p90"] >= 5 * STEP_MS * 1000


# --- alternatives --------------------------------------------------------------------------------


def through_tbf(stage: Stage, run: Run) -> None:
    """Send a burst of which some are dropped, and a TCP session whose packets are cut."""
    with queueing(stage.left, *STEPS, 7 * FRAME), burst(stage.left, stage.right) as datagrams:
        datagrams.send()
        wait_until(lambda: root(stage.left)["packets"] + root(stage.left)["drops"] == COUNT)
        stage.left.run("tc", "qdisc", "change", "dev", stage.left.device, "root", *CUTTING)
        session = traffic.connect(stage.client, stage.server, "ipv4")
        session.transfer(up=100_003)
        session.end("client-fin")
        wait_until(lambda: not root(stage.left)["qlen"], what="an empty queue")


def counts(run: Run, lost: set[str]) -> Counter[Any]:
    """Return events and what is counted beside the distribution."""
    facts = Counter(plain(event, lost) for event in run.events)
    for found in run.histograms:
        numbers = (found["count"], *(found[n] for n in ("bypassed", "dropped", "split", "unknown")))
        facts[tuple(found["key"].values())] += 1
        facts[numbers] += 1
    return facts


ALTERNATIVES = Case(
    lambda stage: ("--netns", stage.left.inode, "--min-ms", "0"), through_tbf, counts
)
