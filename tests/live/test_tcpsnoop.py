"""tcpsnoop shows each TCP segment that a packet socket captures, with the process that has it."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import signal
import socket
import struct
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import frames
import pytest
import topology
import traffic
from alternatives import Case, events, sessions
from captures import Capture, Captured, capture
from compared import compares
from harness import Json, Run, netbpf_once, seconds, stopped, wait_until
from topology import Host

UID = 1003
TCP = socket.IPPROTO_TCP
FACTS = [name for name in Captured._fields if name != "device"]
SYN, ACK, FIN = "S", "A", "F"


def facts(event: Json) -> Captured:
    return Captured(event["dev"], *(event[name] for name in FACTS))


def opens(event: Json) -> bool:
    return SYN in event["flags"] and ACK not in event["flags"]


class Pair:
    """A client on the left host, a server on the right one, and captures at both devices."""

    def __init__(self, start: Any, hosts: tuple[Host, Host], captures: list[Capture]) -> None:
        self.left, self.right = hosts
        self.client = start("nb-client", self.left, uid=UID)
        self.server = start("nb-server", self.right)
        self.captures = captures
        self.only = ("-i", f"{self.left.device},{self.right.device}")
        for family in traffic.FAMILIES[:3]:
            self.server.listen(family)

    def captured(self) -> list[Captured]:
        return [segment for one in self.captures for segment in one.until_quiet()]

    def seen(self, run: Run) -> list[Captured]:
        """Return what was captured, when the run has shown as much."""
        found = self.captured()
        run.wait_for(len(found))
        return found

    def connect_at_the_third_attempt(self) -> None:
        port = self.server.listen("mapped-client")  # a listener whose connections nobody accepts
        with self.right.dropping("tcp flags & syn != 0") as drops:
            self.client.tell(
                "connect", id=next(traffic.ids), family="ipv4", addr=self.right.ipv4, port=port
            )
            wait_until(lambda: drops.count() >= 2, what="two drops")
        self.client.answer()


@pytest.fixture
def pair(two_hosts: tuple[Host, Host]) -> Iterator[Pair]:
    with contextlib.ExitStack() as stack:
        captures = [stack.enter_context(capture(host)) for host in two_hosts]
        yield Pair(stack.enter_context(traffic.peers()), two_hosts, captures)


def all_kinds(pair: Pair) -> None:
    """Make sessions of each family with each kind of end, of sizes that differ."""
    for family in traffic.FAMILIES[:3]:
        for number, end in enumerate(("client-fin", "server-fin", "server-reset", "client-half")):
            session = traffic.connect(pair.client, pair.server, family)
            session.transfer(up=1234 + number, down=100_003 + number)
            if end == "client-half":
                session.half_close()
            session.end(end)


# --- each segment ---------------------------------------------------------------------------------


@compares(
    "tcpsnoop", "time", "family", "laddr", "lport", "dir", "raddr", "rport", "len", "flags", "segs",
    "seq", "ack", "win", "dev", "netns",
)  # fmt: skip
def test_each_captured_segment_is_a_line(netbpf: Any, pair: Pair) -> None:
    with netbpf("tcpsnoop", *pair.only) as run:
        begin = time.time()
        all_kinds(pair)
        wanted = pair.seen(run)
        end = time.time()
    assert Counter(map(facts, run.events)) == Counter(wanted)
    assert max(segment.segs for segment in wanted) > 1
    places = {host.device: host.inode for host in (pair.left, pair.right)}
    for event in run.events:
        assert begin <= seconds(event["time"]) <= end
        assert event["family"] == ("ipv6" if ":" in event["laddr"] else "ipv4")
        assert event["netns"] == places[event["dev"]]
    assert not any(run.summary["lost"].values()) and run.summary["totals"]["unread"] == 0


@compares("tcpsnoop", "pid", "comm", "owner", "uid", "cgroup")
def test_each_segment_has_the_owner_of_its_socket(netbpf: Any, pair: Pair) -> None:
    with netbpf("tcpsnoop", *pair.only) as run:
        all_kinds(pair)
        pair.seen(run)
    groups = {peer.pid: topology.cgroup_of(peer.pid) for peer in (pair.client, pair.server)}
    before: dict[Any, list[Json]] = {}
    for event in run.events:
        peer, uid = (pair.client, UID) if event["dev"] == pair.left.device else (pair.server, 0)
        assert (event["pid"], event["comm"], event["uid"]) == (peer.pid, peer.comm, uid), event
        assert event["cgroup"] == groups[peer.pid]
        session = (event["laddr"], event["lport"], event["raddr"], event["rport"])
        before.setdefault(session, []).append(event)
    for lines in before.values():
        if lines[0]["dev"] == pair.left.device:
            assert {line["owner"] for line in lines} == {"exact"}
        else:
            # The handshake is the listener's; who gets the connection is known after accept().
            assert [line["owner"] for line in lines[:3]] == ["listener"] * 3
            assert lines[-1]["owner"] == "exact"
            assert [line["dir"] for line in lines[:3]] == ["rx", "tx", "rx"]


def test_counts_are_those_of_the_kernel(netbpf: Any, pair: Pair) -> None:
    before = [host.snmp() for host in (pair.left, pair.right)]
    with netbpf("tcpsnoop", *pair.only) as run:
        all_kinds(pair)
        pair.seen(run)
    for host, old in zip((pair.left, pair.right), before):
        rise = {name: value - old[name] for name, value in host.snmp().items() if name in old}
        mine = [event for event in run.events if event["dev"] == host.device]
        received = [event for event in mine if event["dir"] == "rx"]
        sent = [event for event in mine if event["dir"] == "tx"]
        assert len(received) == rise["TcpInSegs"] > 0
        again = sum(event["retrans"] or 0 for event in sent)
        assert sum(event["segs"] for event in sent) - again == rise["TcpOutSegs"] > 0
        assert sum(event["flags"].count("R") for event in sent) == rise["TcpOutRsts"]


def test_sessions_that_exist_at_the_start_have_their_owner(netbpf: Any, pair: Pair) -> None:
    old = [traffic.connect(pair.client, pair.server, family) for family in ("ipv4", "ipv6")]
    for session in old:
        session.transfer(up=17, down=23)
    pair.captured()
    with netbpf("tcpsnoop", *pair.only) as run:
        for session in old:
            session.transfer(up=1234, down=4099)
        for session in old:
            session.end()
        wanted = pair.seen(run)
    assert Counter(map(facts, run.events)) == Counter(wanted)
    for event in run.events:
        peer = pair.client if event["dev"] == pair.left.device else pair.server
        assert (event["pid"], event["comm"]) == (peer.pid, peer.comm), event
    assert {event["owner"] for event in run.events if event["len"]} == {"snapshot"}


def test_a_refused_connection_has_no_owner_where_nobody_listens(netbpf: Any, pair: Pair) -> None:
    with netbpf("tcpsnoop", *pair.only) as run:
        plan = traffic.Plan("ipv4", "refused", 0, 0)
        traffic.failed(traffic.attempt(pair.client, pair.right, plan))
        pair.seen(run)
    seen = Counter((event["dev"], event["dir"], event["flags"], event["pid"], event["owner"])
                   for event in run.events)  # fmt: skip
    left, right = pair.left.device, pair.right.device
    assert seen == Counter({
        (left, "tx", "S", pair.client.pid, "exact"): 1,
        (right, "rx", "S", None, "unknown"): 1,
        (right, "tx", "RA", None, "unknown"): 1,
        (left, "rx", "RA", pair.client.pid, "exact"): 1,
    })  # fmt: skip


def test_translated_addresses_hide_the_owner_of_what_is_received_only(
    netbpf: Any, two_hosts: tuple[Host, Host]
) -> None:
    left, right = two_hosts
    chain = "type nat hook output priority -100\ntcp dport 9 dnat to 10.91.0.2"
    with contextlib.ExitStack() as stack:
        taken = stack.enter_context(capture(left))
        run = stack.enter_context(netbpf("tcpsnoop", "-i", left.device))
        server = stack.enter_context(listener(right, 0))
        port = server.getsockname()[1]
        rules = f"table ip netbpf-nat {{\nchain out {{\n{chain}:{port}\n}}\n}}\n"
        left.run("nft", "-f", "-", input=rules)
        stack.callback(left.run, "nft", "delete", "table", "ip", "netbpf-nat")
        with left.socket(socket.AF_INET, socket.SOCK_STREAM) as client:
            client.connect((right.ipv4, 9))
            server.accept()[0].close()
            client.recv(1)
        wanted = taken.until_quiet()
        run.wait_for(len(wanted))
    assert Counter(map(facts, run.events)) == Counter(wanted)
    assert {event["rport"] for event in run.events} == {port}  # the capture is of the device, too
    seen = {(event["dir"], event["pid"], event["owner"]) for event in run.events}
    assert seen == {("tx", os.getpid(), "exact"), ("rx", None, "unknown")}


@pytest.mark.parametrize("listeners", [1, 2])
def test_listeners_of_one_port_do_not_own_what_nobody_has_accepted(
    netbpf: Any, two_hosts: tuple[Host, Host], listeners: int
) -> None:
    left, right = two_hosts
    with contextlib.ExitStack() as stack:
        taken = stack.enter_context(capture(right))
        run = stack.enter_context(netbpf("tcpsnoop", "-i", right.device))
        port = 0
        for _ in range(listeners):
            port = stack.enter_context(listener(right, port)).getsockname()[1]
        client = stack.enter_context(left.socket(socket.AF_INET, socket.SOCK_STREAM))
        client.connect((right.ipv4, port))
        client.send(bytes(17))
        run.wait_for(len(taken.until_quiet()))
        lines = run.events
    owner = (os.getpid(), "listener") if listeners == 1 else (None, "unknown")
    assert {(event["lport"], event["pid"], event["owner"]) for event in lines} == {(port, *owner)}
    assert [event["flags"] for event in lines] == ["S", "SA", "A", "PA", "A"]


def listener(host: Host, port: int) -> socket.socket:
    made = host.socket(socket.AF_INET, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    made.bind((host.ipv4, port))
    made.listen()
    return made


def test_loopback_shows_each_segment_at_both_ends(netbpf: Any, one_host: Host) -> None:
    with traffic.peers() as start, netbpf("tcpsnoop", "--netns", one_host.inode) as run:
        client, server = start("nb-client", one_host), start("nb-server", one_host)
        server.listen("ipv6")
        before = one_host.snmp()
        session = traffic.connect(client, server, "ipv6")
        session.transfer(up=1234, down=4099)
        session.end()
        rise = one_host.snmp()["TcpInSegs"] - before["TcpInSegs"]
        run.wait_for(2 * rise)
    assert len(run.events) == 2 * rise
    for event in run.events:
        mine = client if (event["laddr"], event["lport"]) == session.local else server
        assert (event["pid"], event["dev"]) == (mine.pid, "lo")
    sent = Counter((e["seq"], e["flags"], e["len"]) for e in run.events if e["dir"] == "tx")
    received = Counter((e["seq"], e["flags"], e["len"]) for e in run.events if e["dir"] == "rx")
    assert sent == received


# --- what is sent again ---------------------------------------------------------------------------


@compares("tcpsnoop", "retrans")
@pytest.mark.parametrize("flag", ["syn", "psh", "fin"])
def test_retransmissions_are_those_that_the_kernel_counts(
    netbpf: Any, two_hosts: tuple[Host, Host], flag: str
) -> None:
    left, right = two_hosts
    before = left.snmp()["TcpRetransSegs"]
    with contextlib.ExitStack() as stack:
        taken = stack.enter_context(capture(left))
        run = stack.enter_context(netbpf("tcpsnoop", "-i", left.device, "--dir", "tx"))
        server = stack.enter_context(right.socket(socket.AF_INET, socket.SOCK_STREAM))
        server.bind((right.ipv4, 0))
        server.listen()
        client = stack.enter_context(left.socket(socket.AF_INET, socket.SOCK_STREAM))
        client.setblocking(False)
        with right.dropping(f"tcp flags & {flag} != 0") as drops:
            client.connect_ex(server.getsockname())
            if flag != "syn":
                accepted, _ = server.accept()
            if flag == "psh":
                client.send(bytes(7001))
            elif flag == "fin":
                client.shutdown(socket.SHUT_WR)
            wait_until(lambda: drops.count() >= 2, what="two drops")
        if flag == "syn":
            accepted, _ = server.accept()
        stack.enter_context(accepted)
        if flag != "fin":
            client.setblocking(True)
            client.sendall(bytes(1234))
            client.shutdown(socket.SHUT_WR)
        while accepted.recv(65536):
            pass
        accepted.close()
        client.close()
        wanted = [segment for segment in taken.until_quiet() if segment.dir == "tx"]
        run.wait_for(len(wanted))
    assert Counter(map(facts, run.events)) == Counter(wanted)
    rise = left.snmp()["TcpRetransSegs"] - before
    assert sum(event["retrans"] for event in run.events) == rise >= 2
    reached = 0
    for event in run.events:  # in the order in which they were sent
        length = event["len"] + event["flags"].count("S") + event["flags"].count("F")
        old = length and reached and event["seq"] + length <= reached
        assert event["retrans"] == (event["segs"] if old else 0), event
        reached = max(reached, event["seq"] + length)


def test_it_is_unknown_of_received_segments_and_requests(netbpf: Any, pair: Pair) -> None:
    with netbpf("tcpsnoop", *pair.only) as run:
        all_kinds(pair)
        pair.seen(run)
    for event in run.events:
        unknown = event["dir"] == "rx" or event["flags"] == "SA"
        assert (event["retrans"] is None) == unknown, event


# --- tables ---------------------------------------------------------------------------------------

KEYS = (
    "pid,comm,dir", "raddr/16,dir", "laddr,lport,family", "raddr,rport", "flags", "dev,netns",
    "uid,cgroup,owner", "container",
)  # fmt: skip


def sums_by(lines: Sequence[Json], names: Sequence[str]) -> dict[tuple[Any, ...], tuple[int, ...]]:
    """Return the sums of segs, bytes and retrans of lines, by their values of `names`."""
    found: dict[tuple[Any, ...], list[int]] = {}
    for line in lines:
        sums = found.setdefault(tuple(part(line, name) for name in names), [0, 0, 0])
        for at, value in enumerate((line["segs"], line["len"], line["retrans"] or 0)):
            sums[at] += value
    return {key: tuple(sums) for key, sums in found.items()}


def part(line: Json, name: str) -> Any:
    name, slash, length = name.partition("/")
    if not slash:
        return line[name]
    return str(ipaddress.ip_network(f"{line[name]}/{length}", strict=False))


def sums_of(rows: Sequence[Json], names: Sequence[str]) -> dict[tuple[Any, ...], tuple[int, ...]]:
    names = [name.partition("/")[0] for name in names]
    found = {tuple(row[name] for name in names): (row["segs"], row["bytes"], row["retrans"])
             for row in rows}  # fmt: skip
    assert len(found) == len(rows)
    return found


@compares(
    "tcpsnoop", "pid", "comm", "dir", "owner", "family", "laddr", "lport", "raddr", "rport",
    "flags", "dev", "uid", "netns", "cgroup", "segs", "bytes", "retrans", shape="--by",
)  # fmt: skip
def test_rows_by_each_key_are_the_lines_added_up(netbpf: Any, pair: Pair) -> None:
    with contextlib.ExitStack() as stack:
        lines = stack.enter_context(netbpf("tcpsnoop", *pair.only))
        runs = {
            keys: stack.enter_context(netbpf("tcpsnoop", *pair.only, "--by", keys)) for keys in KEYS
        }
        pair.connect_at_the_third_attempt()
        all_kinds(pair)
        wanted = pair.seen(lines)
    assert Counter(map(facts, lines.events)) == Counter(wanted)
    for keys, run in runs.items():
        names = keys.split(",")
        assert run.events == []
        assert sums_of(run.rows, names) == sums_by(lines.events, names), keys
        totals = [sum(values) for values in zip(*sums_of(run.rows, names).values())]
        assert totals[:2] == [sum(s.segs for s in wanted), sum(s.len for s in wanted)]
        assert totals[2] > 0
        used = {name.partition("/")[0] for name in names}
        every = {name.partition("/")[0] for one in KEYS for name in one.split(",")}
        assert {row[name] for row in run.rows for name in every - used} == {None}


@compares("tcpsnoop", "pid", "comm", "dir", "segs", "bytes", "retrans", shape="--summary")
def test_summary_has_a_row_per_process_and_direction(netbpf: Any, pair: Pair) -> None:
    before = pair.left.snmp()["TcpRetransSegs"]
    with netbpf("tcpsnoop", *pair.only, "--summary") as run:
        pair.connect_at_the_third_attempt()
        all_kinds(pair)
        wanted = pair.captured()
    again = pair.left.snmp()["TcpRetransSegs"] - before
    sums: dict[tuple[Any, ...], list[int]] = {}
    for one in wanted:
        peer = pair.client if one.device == pair.left.device else pair.server
        of = sums.setdefault((peer.pid, peer.comm, one.dir), [0, 0, 0])
        of[0] += one.segs
        of[1] += one.len
    sums[pair.client.pid, pair.client.comm, "tx"][2] = again
    assert again >= 2
    found = sums_of(run.rows, ("pid", "comm", "dir"))
    assert found == {key: tuple(value) for key, value in sums.items()}
    assert [row["segs"] for row in run.rows] == sorted((s[0] for s in sums.values()), reverse=True)


def test_intervals_add_up_and_top_shows_the_first_rows(netbpf: Any, pair: Pair) -> None:
    with contextlib.ExitStack() as stack:
        run = stack.enter_context(netbpf("tcpsnoop", *pair.only, "0.2"))
        top = stack.enter_context(netbpf("tcpsnoop", *pair.only, "--by", "lport", "--top", 1))
        for times in (1, 2, 3):
            all_kinds(pair)
            stamps = lambda: {row["time"] for row in run.rows}  # noqa: E731
            wait_until(lambda: len(stamps()) >= times, what="the end of an interval")  # noqa: B023
        wanted = pair.captured()
    assert run.events == []
    assert sum(row["segs"] for row in run.rows) == sum(one.segs for one in wanted)
    assert sum(row["bytes"] for row in run.rows) == sum(one.len for one in wanted)
    most = Counter()  # type: ignore[var-annotated]
    for one in wanted:
        most[one.lport] += one.segs
    (row,) = top.rows
    assert row["segs"] == most.most_common(1)[0][1]


def test_segments_without_room_in_the_table_are_lost_and_counted(netbpf: Any, pair: Pair) -> None:
    words = ("--by", "flags", "--map-entries", 1, "--fail-on-loss")
    with netbpf("tcpsnoop", *pair.only, *words, returncode=3) as run:
        all_kinds(pair)
        wanted = pair.captured()
    (row,) = run.rows
    other = sum(1 for one in wanted if one.flags != row["flags"])
    assert row["segs"] == sum(one.segs for one in wanted if one.flags == row["flags"])
    assert run.summary["lost"]["map_full"] == other > 0


# --- headers --------------------------------------------------------------------------------------


def segment(size: int, sport: int = 4001) -> bytes:
    head = struct.pack("!HHIIBBHHH", sport, 4002, 4_000_000_007, 23, 5 << 4, 0x18, 1009, 0, 0)
    return head + bytes(size)


def test_headers_are_read_behind_tags_and_other_headers_and_without_padding(
    netbpf: Any, two_hosts: tuple[Host, Host]
) -> None:
    left, right = two_hosts
    four, six = frames.ipv4(segment(3), TCP), frames.ipv6(segment(5), TCP)
    tag = struct.pack("!HH", 7, 0x0800)
    sent = [
        *[frames.link(0x0800, frames.ipv4(segment(0), TCP) + bytes(6))] * 2,  # a frame of 60 bytes
        *[frames.link(0x8100, tag + four)] * 3,
        *[frames.link(0x86DD, six)] * 5,
        *[frames.link(0x86DD, frames.ipv6(frames.extension(6) + segment(7), 0))] * 7,
        *[frames.link(0x0800, frames.ipv4(bytes(64), TCP, offset=64))] * 11,  # a later fragment
        *[frames.link(0x0800, frames.ipv4(frames.udp(4001, 4002, 30)))] * 13,
    ]
    wanted = {("ipv4", 0): 2, ("ipv4", 3): 3, ("ipv6", 5): 5, ("ipv6", 7): 7}
    for host, way, ports in ((left, "tx", (4001, 4002)), (right, "rx", (4002, 4001))):
        with netbpf("tcpsnoop", "-i", host.device) as run:
            frames.send(left, sent)
            run.wait_for(17)
        assert Counter((e["family"], e["len"]) for e in run.events) == wanted
        for event in run.events:
            assert (event["lport"], event["rport"], event["dir"]) == (*ports, way)
            assert (event["seq"], event["ack"], event["win"]) == (4_000_000_007, 23, 1009)
            assert (event["flags"], event["segs"], event["pid"]) == ("PA", 1, None)


@compares("tcpsnoop", "unread", shape="summary")
def test_headers_in_page_fragments_are_counted_and_not_guessed(
    netbpf: Any, two_hosts: tuple[Host, Host]
) -> None:
    left, right = two_hosts
    frame = frames.link(0x0800, frames.ipv4(segment(400), TCP))
    with netbpf("tcpsnoop", "-i", right.device) as run:
        frames.send(left, [frame] * 5)
        frames.send_from_ring(left, [frame] * 23)
        run.wait_for(5)
    assert len(run.events) == 5
    assert run.summary["totals"]["unread"] == 23


# --- filters --------------------------------------------------------------------------------------


def filters(pair: Pair, port: int) -> list[tuple[Sequence[object], Any]]:
    """Return (options, which segments pass), of sessions of two families."""
    left, right, client, server = pair.left, pair.right, pair.client, pair.server
    at_left = lambda one: one.device == left.device  # noqa: E731
    nothing = lambda one: False  # noqa: E731
    return [
        (("-p", client.pid), at_left),
        (("-p", server.pid), lambda one: not at_left(one)),
        (("-p", os.getpid()), nothing),
        (("--comm", "nb-c*"), at_left),
        (("--comm", "nb-x*"), nothing),
        (("-u", UID), at_left),
        (("--cgroup", topology.own_cgroup(client.pid)), lambda one: True),
        (("--netns", left.inode), at_left),
        (("--netns", right.inode), lambda one: not at_left(one)),
        (("-4",), lambda one: ":" not in one.laddr),
        (("-6",), lambda one: ":" in one.laddr),
        (("-L", port), lambda one: one.lport == port),
        (("-D", port), lambda one: one.rport == port),
        (("--laddr", left.ipv4), lambda one: one.laddr == left.ipv4),
        (("--raddr", "fd00:91::1"), lambda one: one.raddr == "fd00:91::1"),
        (("-i", right.device), lambda one: not at_left(one)),
        (("--dir", "tx"), lambda one: one.dir == "tx"),
        (("--dir", "rx"), lambda one: one.dir == "rx"),
        (("--flags", "s,FA,R"), lambda one: "S" in one.flags or "F" in one.flags),
        (("--flags", "SA"), lambda one: one.flags == "SA"),
        (("--flags", "U"), nothing),
        (("--flags", "P", "--dir", "rx", "-p", server.pid, "-4", "-L", port),
         lambda one: "P" in one.flags and one.dir == "rx" and one.lport == port),
        (("-D", port, "-p", client.pid, "--dir", "rx"),
         lambda one: one.rport == port and one.dir == "rx"),
    ]  # fmt: skip


@pytest.mark.parametrize("number", range(23))
def test_filters_pass_what_they_name_and_nothing_else(netbpf: Any, pair: Pair, number: int) -> None:
    words, passes = filters(pair, pair.server.listeners["ipv4"][1])[number]
    # The devices must exist where -i names them, so none are named where a namespace is.
    where = () if words[0] in ("-i", "--netns") else pair.only
    with netbpf("tcpsnoop", *where, *words) as run:
        for family in ("ipv4", "ipv6"):
            session = traffic.connect(pair.client, pair.server, family)
            session.transfer(up=1234, down=4099)
            session.end()
        wanted = [one for one in pair.captured() if passes(one)]
        run.wait_for(len(wanted))
    assert Counter(map(facts, run.events)) == Counter(wanted), words


# --- losses, and the end --------------------------------------------------------------------------


def test_each_line_is_shown_or_lost_while_the_reader_is_stopped(netbpf: Any, pair: Pair) -> None:
    words = ("--buffer", "4k", "--fail-on-loss")
    with netbpf("tcpsnoop", *pair.only, *words, returncode=3) as run:
        with stopped(run):
            all_kinds(pair)
            wanted = pair.captured()
    lost = run.summary["lost"]
    assert lost["ring_full"] > 0
    assert len(run.events) + lost["ring_full"] + lost["unwritten"] == len(wanted)


def test_connections_without_room_are_counted_and_have_no_owner(netbpf: Any, pair: Pair) -> None:
    words = ("--map-entries", 4, "--fail-on-loss", "--netns", pair.left.inode)
    with netbpf("tcpsnoop", *words, returncode=3) as run:
        held = [traffic.connect(pair.client, pair.server) for _ in range(7)]
        wanted = [one for one in pair.captured() if one.device == pair.left.device]
        for session in held:
            session.end("server-reset")
    assert Counter(map(facts, run.events)) >= Counter(wanted)
    assert run.summary["lost"]["map_full"] >= 3
    assert {event["pid"] for event in run.events} == {pair.client.pid, None}


def test_it_ends_after_so_many_events_and_after_a_time(netbpf: Any, pair: Pair) -> None:
    with netbpf("tcpsnoop", *pair.only, "-n", 7) as run:
        all_kinds(pair)
        assert run.wait_end() == 0
    assert len(run.events) == 7
    done = netbpf_once("tcpsnoop", "-d", "0.2", *pair.only)
    assert done.returncode == 0 and "nothing matched" in done.stderr
    with netbpf("tcpsnoop", *pair.only) as run:
        assert run.stop(signal.SIGINT) == 0


ALTERNATIVES = Case(lambda stage: ("--netns", stage.left.inode), sessions, events)
