"""ipecn shows the marks that the senders set, as often as the kernel itself counted them."""

from __future__ import annotations

import socket
import struct
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import frames
import pytest
import traffic
from alternatives import Case, Stage, rows
from compared import compares
from harness import Json, Run, seconds, stopped, wait_until
from topology import Host

UDP = 17
NOT_ECT, ECT1, ECT0, CE = range(4)
NUMBERS = {NOT_ECT: 11, ECT0: 13, ECT1: 17, CE: 23}
WORDS = {NOT_ECT: "not_ect", ECT0: "ect0", ECT1: "ect1", CE: "ce"}
KERNEL = {NOT_ECT: "NoECT", ECT0: "ECT0", ECT1: "ECT1", CE: "CE"}
DSCP = 0xB8  # the other six bits of the byte
FAMILIES = (socket.AF_INET, socket.AF_INET6)
SEGMENT = 103  # UDP_SEGMENT


def address(host: Host, family: int) -> str:
    return host.ipv4 if family == socket.AF_INET else host.ipv6


class Flow:
    """Datagrams from one host to another; `source` is an address of the sender."""

    def __init__(self, left: Host, right: Host, family: int, source: str = "") -> None:
        self.family = family
        self._receiver = right.socket(family, socket.SOCK_DGRAM)
        self._receiver.bind((address(right, family), 0))
        self._receiver.settimeout(10)
        self._sender = left.socket(family, socket.SOCK_DGRAM)
        self._sender.bind((source or address(left, family), 0))
        self._sender.connect(self._receiver.getsockname())
        self.source = self._sender.getsockname()[:2]
        self.target = self._receiver.getsockname()[:2]

    def send(self, mark: int, number: int, cut: int = 0) -> None:
        """Send packets with a mark: `number` of them, or one that is cut into them (GSO)."""
        if self.family == socket.AF_INET:
            self._sender.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, DSCP | mark)
        else:
            self._sender.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, DSCP | mark)
        if cut:
            words = [(UDP, SEGMENT, struct.pack("=H", cut))]
            self._sender.sendmsg([bytes(cut * number)], words)
        for _ in range(number):
            if not cut:
                self._sender.send(b"x" * 10)
            assert len(self._receiver.recv(65536)) == (cut or 10)

    def send_all(self) -> None:
        for mark, number in NUMBERS.items():
            self.send(mark, number)

    def ends(self) -> tuple[object, ...]:
        return (*self.source, *self.target)

    def close(self) -> None:
        self._sender.close()
        self._receiver.close()


@pytest.fixture
def flows(two_hosts: tuple[Host, Host]) -> Iterator[list[Flow]]:
    made = [Flow(*two_hosts, family) for family in FAMILIES]
    yield made
    for flow in made:
        flow.close()


def kernel_counts(host: Host) -> dict[str, int]:
    """Return what the namespace counted, {"IpExt.InCEPkts": 23}."""
    four = host.snmp()
    lines = host.run("cat", "/proc/self/net/snmp6").splitlines()
    six = {name: int(value) for name, value in map(str.split, lines)}
    found = {f"IpExt.In{word}Pkts": four[f"IpExtIn{word}Pkts"] for word in KERNEL.values()}
    found.update({f"Ip6.In{word}Pkts": six[f"Ip6In{word}Pkts"] for word in KERNEL.values()})
    return found


def grown(before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    return {name: after[name] - before[name] for name in after}


def ends(event: Json) -> tuple[object, ...]:
    return event["saddr"], event["sport"], event["daddr"], event["dport"]


def counted(row: Json) -> dict[int, int]:
    return {mark: row[word] for mark, word in WORDS.items()}


# --- lines ----------------------------------------------------------------------------------------


@compares(
    "ipecn", "time", "mark", "proto", "family", "saddr", "sport", "daddr", "dport", "dev", "netns"
)
def test_each_packet_marked_ce_is_a_line_and_the_kernel_counts_as_many(
    netbpf: Any, two_hosts: tuple[Host, Host], flows: list[Flow]
) -> None:
    left, right = two_hosts
    before = kernel_counts(right)
    with netbpf("ipecn", "--netns", right.inode) as run:
        begin = time.time()
        for flow in flows:
            flow.send_all()
        run.wait_for(2 * NUMBERS[CE])
        end = time.time()
    rise = grown(before, kernel_counts(right))
    four, six = flows
    assert Counter(map(ends, run.events)) == {flow.ends(): NUMBERS[CE] for flow in flows}
    for event in run.events:
        assert begin <= seconds(event["time"]) <= end
        assert event["family"] == ("ipv4" if ends(event) == four.ends() else "ipv6")
        assert (event["mark"], event["proto"], event["segs"]) == ("ce", "udp", 1)
        assert (event["dev"], event["netns"]) == (right.device, right.inode)
    for group in ("IpExt", "Ip6"):
        for mark, word in KERNEL.items():
            name = f"{group}.In{word}Pkts"
            assert run.summary["counters"][name] == rise[name] == NUMBERS[mark], name
    assert not any(run.summary["lost"].values())


def test_all_also_shows_packets_that_may_be_marked(
    netbpf: Any, two_hosts: tuple[Host, Host], flows: list[Flow]
) -> None:
    with netbpf("ipecn", "--all", "--netns", two_hosts[1].inode) as run:
        for flow in flows:
            flow.send_all()
    seen = Counter((event["family"], event["mark"]) for event in run.events)
    wanted = {mark: number for mark, number in NUMBERS.items() if mark != NOT_ECT}
    assert seen == {(family, WORDS[mark]): number for family in ("ipv4", "ipv6")
                    for mark, number in wanted.items()}  # fmt: skip


def test_out_shows_what_a_host_sends_and_not_what_it_receives(
    netbpf: Any, two_hosts: tuple[Host, Host], flows: list[Flow]
) -> None:
    left, right = two_hosts
    back = Flow(right, left, socket.AF_INET)
    with netbpf("ipecn", "--out", "--netns", left.inode) as run:
        for flow in (*flows, back):
            flow.send_all()
    back.close()
    assert Counter(map(ends, run.events)) == {flow.ends(): NUMBERS[CE] for flow in flows}
    assert {(event["dev"], event["mark"]) for event in run.events} == {(left.device, "ce")}
    # Those that it received are in the kernel's counters.
    assert run.summary["counters"]["IpExt.InCEPkts"] == NUMBERS[CE]


@compares("ipecn", "segs")
@pytest.mark.parametrize("family", FAMILIES, ids=("ipv4", "ipv6"))
def test_a_packet_that_stands_for_several_counts_as_these(
    netbpf: Any, two_hosts: tuple[Host, Host], family: int
) -> None:
    """Offloads decide where it is cut: before the device, or never; the kernel's count decides."""
    left, right = two_hosts
    flow = Flow(left, right, family)
    name = "IpExt.InCEPkts" if family == socket.AF_INET else "Ip6.InCEPkts"
    before = kernel_counts(right)
    with netbpf("ipecn", "--netns", right.inode) as run:
        flow.send(CE, 7, cut=1000)
        flow.send(ECT0, 5, cut=1000)
    flow.close()
    rise = grown(before, kernel_counts(right))
    assert sum(event["segs"] for event in run.events) == rise[name] == 7
    assert {event["mark"] for event in run.events} == {"ce"}


def test_tcp_sessions_with_ecn_have_marks_of_both_ends(
    netbpf: Any, two_hosts: tuple[Host, Host]
) -> None:
    left, right = two_hosts
    for host in two_hosts:
        host.sysctl(net__ipv4__tcp_ecn=1)
    before = kernel_counts(right)
    with traffic.peers() as start:
        client, server = start("nb-client", left), start("nb-server", right)
        server.listen("ipv4")
        with netbpf("ipecn", "--all", "--netns", right.inode) as run:
            session = traffic.connect(client, server)
            session.transfer(up=100_003, down=1234)
            session.end()
    for host in two_hosts:
        host.sysctl(net__ipv4__tcp_ecn=2)
    rise = grown(before, kernel_counts(right))
    assert sum(event["segs"] for event in run.events) == rise["IpExt.InECT0Pkts"] > 0
    assert {(e["mark"], e["proto"], e["saddr"]) for e in run.events} == {("ect0", "tcp", left.ipv4)}


# --- headers --------------------------------------------------------------------------------------


def marked(packet: bytes, mark: int) -> bytes:
    """Return an IP packet with a mark in its first bytes."""
    if packet[0] >> 4 == 4:
        return packet[:1] + bytes([DSCP | mark]) + packet[2:]
    return bytes([packet[0] | DSCP >> 4, (DSCP & 0xF) << 4 | mark << 4]) + packet[2:]


def test_marks_are_read_behind_vlan_tags_and_before_other_headers(
    netbpf: Any, two_hosts: tuple[Host, Host]
) -> None:
    left, right = two_hosts
    datagram = frames.udp(4001, 4002, 10)
    four, six = frames.ipv4(datagram), frames.ipv6(datagram)
    tag = struct.pack("!HH", 7, 0x0800)
    later = frames.ipv4(datagram, offset=64)
    sent = [
        *[frames.link(0x8100, tag + marked(four, CE))] * 2,
        *[frames.link(0x88A8, struct.pack("!HH", 7, 0x8100) + tag + marked(four, CE))] * 3,
        *[frames.link(0x86DD, marked(six, CE))] * 5,
        *[frames.link(0x86DD, marked(frames.ipv6(frames.extension(17) + datagram, 0), CE))] * 7,
        *[frames.link(0x0800, marked(later, CE))] * 11,
        *[frames.link(0x0800, marked(four, ECT0))] * 13,
        *[frames.link(0x0806, b"\0\x03" * 14)] * 17,  # no IP: its second byte is none of a mark
    ]
    with netbpf("ipecn", "--netns", right.inode) as run:
        frames.send(left, sent)
        run.wait_for(28)
    seen = Counter((e["family"], e["proto"], e["sport"], e["dport"]) for e in run.events)
    ports = (4001, 4002)
    wanted = {("ipv4", "udp", *ports): 5, ("ipv6", "udp", *ports): 12}
    assert seen == {**wanted, ("ipv4", "udp", None, None): 11}
    # The same bytes are elsewhere in a packet that is sent: behind the link header.
    with netbpf("ipecn", "--out", "--netns", left.inode) as run:
        frames.send(left, sent)
    assert Counter((e["family"], e["proto"], e["sport"], e["dport"]) for e in run.events) == seen


@compares("ipecn", "unread", shape="summary")
def test_a_header_in_page_fragments_is_counted_and_not_guessed(
    netbpf: Any, two_hosts: tuple[Host, Host]
) -> None:
    left, right = two_hosts
    packet = marked(frames.ipv4(frames.udp(4001, 4002, 400)), CE)
    with netbpf("ipecn", "--netns", right.inode) as run:
        frames.send(left, [frames.link(0x0800, packet)] * 5)
        frames.send_from_ring(left, [frames.link(0x0800, packet)] * 23)
        run.wait_for(5)
    assert len(run.events) == 5
    assert run.summary["totals"]["unread"] == 23


# --- tables ---------------------------------------------------------------------------------------


@compares(
    "ipecn", "dev", "saddr", "not_ect", "ect0", "ect1", "ce", "ce_share", "packets", "netns",
    shape="--summary",
)  # fmt: skip
def test_summary_counts_packets_by_mark_and_sender(
    netbpf: Any, two_hosts: tuple[Host, Host], flows: list[Flow]
) -> None:
    left, right = two_hosts
    with netbpf("ipecn", "--summary", "--netns", right.inode) as run:
        for flow in flows:
            flow.send_all()
    assert run.events == []
    assert {row["saddr"] for row in run.rows} == {left.ipv4, left.ipv6}
    assert len(run.rows) == 2
    for row in run.rows:
        assert counted(row) == NUMBERS
        assert row["packets"] == sum(NUMBERS.values())
        assert row["ce_share"] == pytest.approx(23 / (13 + 17 + 23), abs=0.0001)
        assert (row["dev"], row["netns"]) == (right.device, right.inode)


def test_rows_with_most_ce_come_first_and_top_limits_them(netbpf: Any, one_host: Host) -> None:
    sources = {"127.0.0.3": (CE, 5), "127.0.0.4": (CE, 7), "127.0.0.5": (NOT_ECT, 11)}
    words = ("ipecn", "--summary", "--netns", one_host.inode)
    for top in (None, 2):
        with netbpf(*words, *(("--top", top) if top else ())) as run:
            for source, (mark, number) in sources.items():
                flow = Flow(one_host, one_host, socket.AF_INET, source)
                flow.send(mark, number)
                flow.close()
        order = ["127.0.0.4", "127.0.0.3", "127.0.0.5"]
        assert [row["saddr"] for row in run.rows] == order[:top]
    assert [row["ce_share"] for row in run.rows] == [1.0, 1.0]


def test_intervals_add_up_to_the_whole(
    netbpf: Any, two_hosts: tuple[Host, Host], flows: list[Flow]
) -> None:
    with netbpf("ipecn", "0.2", "--netns", two_hosts[1].inode) as run:
        for wanted in (1, 2, 3):
            flows[0].send_all()
            wait_until(lambda: len(stamps(run)) >= wanted, what="the end of an interval")  # noqa: B023
    assert run.events == []  # an INTERVAL is of the table
    total = {mark: sum(row[word] for row in run.rows) for mark, word in WORDS.items()}
    assert total == {mark: 3 * number for mark, number in NUMBERS.items()}


def stamps(run: Run) -> set[str]:
    return {row["time"] for row in run.rows}


@compares(
    "ipecn", "dev", "netns", "family", "proto", "saddr", "sport", "daddr", "dport", "not_ect",
    "ect0", "ect1", "ce", "ce_share", "packets", shape="--by",
)  # fmt: skip
def test_each_key_counts_alone(
    netbpf: Any, two_hosts: tuple[Host, Host], flows: list[Flow]
) -> None:
    left, right = two_hosts
    keys = ("dev", "netns", "family", "proto", "saddr", "sport", "daddr", "dport")
    with netbpf("ipecn", "--by", ",".join(keys), "--netns", right.inode) as run:
        for flow in flows:
            flow.send_all()
    where = (right.device, right.inode)
    wanted = {
        (*where, family, "udp", *flow.ends()) for flow, family in zip(flows, ("ipv4", "ipv6"))
    }
    assert {tuple(row[name] for name in keys) for row in run.rows} == wanted
    for row in run.rows:
        assert counted(row) == NUMBERS and row["packets"] == sum(NUMBERS.values())
        assert row["ce_share"] == pytest.approx(23 / 53, abs=0.0001)


@pytest.mark.parametrize(
    "key, values", [("family", {"ipv4", "ipv6"}), ("saddr/16", {"10.91.0.0/16", "fd00::/16"}),
                    ("proto", {"udp"})],
)  # fmt: skip
def test_a_key_adds_up_what_it_does_not_tell_apart(
    netbpf: Any, two_hosts: tuple[Host, Host], flows: list[Flow], key: str, values: set[str]
) -> None:
    with netbpf("ipecn", "--by", key, "--netns", two_hosts[1].inode) as run:
        for flow in flows:
            flow.send_all()
    name = key.partition("/")[0]
    assert {row[name] for row in run.rows} == values
    assert sum(row["packets"] for row in run.rows) == 2 * sum(NUMBERS.values())
    assert len(run.rows) == len(values)
    assert {row["dev"] for row in run.rows} == {None}


# --- filters --------------------------------------------------------------------------------------


def filters(left: Host, right: Host, flow: Flow) -> list[tuple[Sequence[object], bool, bool]]:
    """Return (options, whether flow passes, whether its counterpart of IPv6 passes)."""
    source, sport, target, dport = flow.ends()
    return [
        (("-4",), True, False),
        (("-6",), False, True),
        (("--raddr", f"{source}/32"), True, False),
        (("--raddr", f"{target}/32"), False, False),
        (("--laddr", f"{target}/32"), True, False),
        (("--laddr", f"{source}/32"), False, False),
        (("--laddr", "fd00:91::/64"), False, True),
        (("-L", dport), True, False),
        (("-L", sport), False, False),
        (("-D", sport), True, False),
        (("-D", dport), False, False),
        (("-i", right.device), True, True),
        (("-i", left.device), False, False),
    ]


@pytest.mark.parametrize("number", range(13))
def test_filters_pass_what_they_name_and_nothing_else(
    netbpf: Any, two_hosts: tuple[Host, Host], flows: list[Flow], number: int
) -> None:
    left, right = two_hosts
    words, *passes = filters(left, right, flows[0])[number]
    # The left host's device must exist where -i names it, so no namespace is chosen there.
    where = () if words[0] == "-i" else ("--netns", right.inode)
    with netbpf("ipecn", *where, *words) as run:
        for flow in flows:
            flow.send(CE, 7)
    wanted = {flow.ends(): 7 for flow, passed in zip(flows, passes) if passed}
    assert Counter(map(ends, run.events)) == wanted, words


def test_local_end_of_a_sent_packet_is_its_source(
    netbpf: Any, two_hosts: tuple[Host, Host], flows: list[Flow]
) -> None:
    left, right = two_hosts
    flow = flows[0]
    ports = ("-L", flow.source[1], "-D", flow.target[1])
    block = ("--laddr", left.ipv4, "--raddr", right.ipv4)
    for words, number in (((*ports, *block), 7), (("-L", flow.target[1]), 0)):
        with netbpf("ipecn", "--out", "--netns", left.inode, *words) as run:
            flow.send(CE, 7)
        assert len(run.events) == number


def test_other_namespace_shows_nothing(
    netbpf: Any, two_hosts: tuple[Host, Host], one_host: Host, flows: list[Flow]
) -> None:
    for words in ((), ("--summary",)):
        with netbpf("ipecn", *words, "--netns", one_host.inode) as run:
            for flow in flows:
                flow.send_all()
        assert run.events == [] and run.rows == []
        assert not any(run.summary["counters"].values())


# --- losses ---------------------------------------------------------------------------------------


def test_packets_of_senders_without_room_are_lost_and_counted(netbpf: Any, one_host: Host) -> None:
    words = ("--summary", "--map-entries", 1, "--fail-on-loss")
    with netbpf("ipecn", *words, "--netns", one_host.inode, returncode=3) as run:
        for source, number in (("127.0.0.3", 5), ("127.0.0.4", 7)):
            flow = Flow(one_host, one_host, socket.AF_INET, source)
            flow.send(CE, number)
            flow.close()
    assert [(row["saddr"], row["ce"]) for row in run.rows] == [("127.0.0.3", 5)]
    assert run.summary["lost"]["map_full"] == 7


def test_each_line_is_shown_or_lost_while_the_reader_is_stopped(
    netbpf: Any, one_host: Host
) -> None:
    words = ("--buffer", "4k", "--fail-on-loss", "--netns", one_host.inode)
    flow = Flow(one_host, one_host, socket.AF_INET)
    with netbpf("ipecn", *words, returncode=3) as run, stopped(run):
        flow.send(CE, 101)
    flow.close()
    lost = run.summary["lost"]
    assert lost["ring_full"] > 0
    assert len(run.events) + lost["ring_full"] + lost["unwritten"] == 101


# --- whatever the kind of probe -------------------------------------------------------------------


def both_ways(stage: Stage, run: Run) -> None:
    for family in FAMILIES:
        for hosts in ((stage.left, stage.right), (stage.right, stage.left)):
            flow = Flow(*hosts, family)
            flow.send_all()
            flow.close()


ALTERNATIVES = Case(lambda s: ("--summary", "--netns", s.right.inode), both_ways, rows)
