"""nettop's rows are what programs sent and received, and add up to the devices' own counters."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import frames
import pytest
import topology
import traffic
from alternatives import Case, Stage
from compared import compares
from harness import SLOW, Json, Run, wait_until
from topology import Host

WHOLE = 1000 * SLOW  # an INTERVAL that only the end of the run ends
LINK = 14
UDP_HEADERS = LINK + 20 + 8
TCP_HEADERS = LINK + 20 + 20 + 12  # with timestamps
SYN_OPTIONS = 8  # more of them in a SYN
SACK = 12  # bytes of an option that a few segments have
UP, DOWN = 4_000_037, 1_234
SUMS = ("tx_bytes", "tx_packets", "rx_bytes", "rx_packets")
# Receives on the socket that it binds, and says for each order how many datagrams it has got.
RECEIVER = """
import os, socket, sys
open("/proc/self/comm", "w").write(sys.argv[2])
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
sock = socket.socket(family, socket.SOCK_DGRAM)
sock.bind((sys.argv[1], 0))
print(sock.getsockname()[1], flush=True)
for line in sys.stdin:
    words = line.split()
    for _ in range(int(words[1])):
        if words[0] == "send":
            sock.sendto(bytes(int(words[2])), (words[3], int(words[4])))
        else:
            sock.recv(65536)
    print("done", flush=True)
"""


class Program:
    """A process with a UDP socket."""

    def __init__(self, host: Host, address: str, comm: str, cgroup: str = "") -> None:
        words = host.inside(sys.executable, "-c", RECEIVER, address, comm)
        if cgroup:
            words = ["sh", "-c", 'echo $$ > "$0/cgroup.procs"; exec "$@"', cgroup, *words]
        streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process: Any = subprocess.Popen(words, **streams)
        self.address, self.comm, self.pid = address, comm, self.process.pid
        self.port = int(self.process.stdout.readline())

    def send(self, to: Program, number: int, size: int) -> None:
        """Send datagrams to another program, which receives them."""
        self._order("send", number, size, to.address, to.port)
        to._order("receive", number)

    def _order(self, *words: object) -> None:
        print(*words, file=self.process.stdin, flush=True)
        assert self.process.stdout.readline() == "done\n"

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


@contextlib.contextmanager
def programs(*places: Sequence[Any]) -> Iterator[list[Program]]:
    """Start a program in each of these (host, address, comm)."""
    with contextlib.ExitStack() as stack:
        made = []
        for place in places:
            made.append(Program(*place))
            stack.callback(made[-1].close)
        yield made


@pytest.fixture
def pair(two_hosts: tuple[Host, Host]) -> Iterator[list[Program]]:
    """Two programs, one on each host, of each address family."""
    left, right = two_hosts
    with programs(
        (left, left.ipv4, "nb-left4"), (right, right.ipv4, "nb-right4"),
        (left, left.ipv6, "nb-left6"), (right, right.ipv6, "nb-right6"),
    ) as made:  # fmt: skip
        yield made


def play(pair: Sequence[Program]) -> None:
    """Send 23 and 17 datagrams over IPv4 and IPv6, and 7 of IPv4 back."""
    left4, right4, left6, right6 = pair
    left4.send(right4, 23, 100)
    left6.send(right6, 17, 1000)
    right4.send(left4, 7, 10)


V4 = {"tx_packets": 23, "tx_bytes": 23 * (UDP_HEADERS + 100),
      "rx_packets": 7, "rx_bytes": 7 * (UDP_HEADERS + 10)}  # fmt: skip
V6 = {"tx_packets": 17, "tx_bytes": 17 * (UDP_HEADERS + 20 + 1000), "rx_packets": 0, "rx_bytes": 0}


def added(*all_sums: Json) -> Json:
    return {name: sum(sums[name] for sums in all_sums) for name in SUMS}


def sums_of(row: Json) -> Json:
    return {name: row[name] for name in SUMS}


def check_payload(row: Json, way: str, payload: int, headers: int = TCP_HEADERS) -> None:
    """Check the bytes behind the headers; now and then a segment has a SACK option."""
    more = row[f"{way}_bytes"] - row[f"{way}_packets"] * headers - payload
    assert more in range(0, 20 * SACK, SACK), (row, payload)


def total(rows: Sequence[Json]) -> Json:
    return added(*rows)


def others(run: Run) -> list[Json]:
    return [row for row in run.rows if row["traffic"] == "other"]


def only(rows: Sequence[Json], **values: object) -> Json:
    found = [row for row in rows if all(row[name] == value for name, value in values.items())]
    assert len(found) == 1, (values, rows)
    return found[0]


def grown(host: Host, before: Json, device: str = "") -> Json:
    after = host.device_counters(device)
    return {name: after[name] - before[name] for name in SUMS}


# --- processes ------------------------------------------------------------------------------------


@compares(
    "nettop", "dev", "netns", "pid", "comm", "uid", "cgroup", "owner", "traffic", "tx_bytes",
    "tx_packets", "rx_bytes", "rx_packets", "bytes", "share", shape="--by",
)  # fmt: skip
def test_a_process_has_the_bytes_that_it_sent_and_received(
    netbpf: Any, two_hosts: tuple[Host, Host]
) -> None:
    left, right = two_hosts
    with traffic.peers() as start:
        client, server = start("nb-client", left, 65533), start("nb-server", right)
        server.listen("ipv4")
        before = [host.device_counters() for host in two_hosts]
        by = "dev,netns,pid,comm,uid,cgroup,owner"
        with netbpf("nettop", WHOLE, "--by", by) as run:
            session = traffic.connect(client, server)
            session.transfer(up=UP, down=DOWN)
        counted = [grown(host, old) for host, old in zip(two_hosts, before)]
        cgroups = [topology.cgroup_of(peer.pid) for peer in (client, server)]
    where = ({"dev": left.device, "netns": left.inode}, {"dev": right.device, "netns": right.inode})
    one = only(run.rows, pid=client.pid, **where[0])
    other = only(run.rows, pid=server.pid, owner="exact", **where[1])
    assert (one["comm"], one["uid"], one["cgroup"]) == ("nb-client", 65533, cgroups[0])
    assert (other["comm"], other["uid"], other["cgroup"]) == ("nb-server", 0, cgroups[1])
    for row in (one, other):
        assert (row["owner"], row["traffic"], row["drops"]) == ("exact", "socket", None)
        assert row["bytes"] == row["tx_bytes"] + row["rx_bytes"]
    # The SYN has more options, and the SYN-ACK is received before the connection is established.
    check_payload(one, "tx", UP + SYN_OPTIONS)
    check_payload(one, "rx", DOWN)
    check_payload(other, "rx", UP)
    # The handshake is the listener's, which is older than the run.
    listener = only(run.rows, pid=server.pid, owner="snapshot", **where[1])
    assert sums_of(listener) == {"tx_packets": 1, "tx_bytes": TCP_HEADERS + SYN_OPTIONS,
                                 "rx_packets": 1, "rx_bytes": TCP_HEADERS}  # fmt: skip
    for row, device, found in zip((one, other), where, counted):
        rows = [each for each in run.rows if each["dev"] == device["dev"]]
        assert total(rows) == found
        assert row["share"] == round(row["bytes"] / (found["tx_bytes"] + found["rx_bytes"]), 4)
        assert sum(each["share"] for each in rows) == pytest.approx(1, abs=0.001)
        assert [each["traffic"] for each in rows] == ["socket"] * (len(rows) - 1) + ["other"]
    assert not any(run.summary["lost"].values())


@pytest.mark.parametrize("late", [False, True])
def test_datagrams_are_of_the_process_that_sends_or_receives(
    netbpf: Any, two_hosts: tuple[Host, Host], late: bool
) -> None:
    """Sockets from before the start, and those that are made later."""
    left, right = two_hosts
    places = ((left, left.ipv4, "nb-left"), (right, right.ipv4, "nb-right"))
    with contextlib.ExitStack() as stack:
        made = [] if late else stack.enter_context(programs(*places))
        with netbpf("nettop", WHOLE) as run:
            one, other = made or stack.enter_context(programs(*places))
            other.send(one, 1, 1)  # a later socket of which nobody knows has no owner yet
            one.send(other, 23, 100)
    row = only(run.rows, pid=one.pid, dev=left.device)
    assert (row["tx_packets"], row["tx_bytes"]) == (23, 23 * (UDP_HEADERS + 100))
    assert row["rx_packets"] == (0 if late else 1)
    row = only(run.rows, pid=other.pid, dev=right.device)
    assert (row["rx_packets"], row["rx_bytes"]) == (23, 23 * (UDP_HEADERS + 100))
    assert (row["tx_packets"], row["tx_bytes"]) == (1, UDP_HEADERS + 1)
    unknown = [r for r in run.rows if r["dev"] == left.device and r["pid"] is None]
    assert [r["rx_packets"] for r in unknown] == ([1] if late else [])


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_what_arrives_while_a_program_holds_its_socket_is_counted(
    netbpf: Any, one_host: Host, family: str
) -> None:
    """Over lo both ends send at once: segments wait until the socket is free."""
    for _ in range(5):
        before, old = one_host.device_counters(), one_host.snmp()
        with traffic.peers() as start:
            client, server = start("nb-client", one_host), start("nb-server", one_host)
            server.listen(family)
            with netbpf("nettop", WHOLE, "--netns", one_host.inode) as run:
                session = traffic.connect(client, server, family)
                session.transfer(up=UP, down=UP)
                counted, new = grown(one_host, before), one_host.snmp()
        if new["TcpRetransSegs"] == old["TcpRetransSegs"]:
            break  # what is sent again is counted again
    merged = new["TcpExtTCPBacklogCoalesce"] - old["TcpExtTCPBacklogCoalesce"]
    headers = TCP_HEADERS - LINK + (20 if family == "ipv6" else 0)
    for peer in (client, server):
        row = only(run.rows, pid=peer.pid)
        check_payload(row, "rx", UP, headers)
    assert total(run.rows) == counted
    # Segments that wait are merged: no other row has the headers of all, nor both SYNs.
    (rest,) = others(run)
    assert rest["rx_packets"] == merged + 2
    check_payload(rest, "rx", 2 * SYN_OPTIONS, headers)


def test_answers_after_a_half_close_are_counted(netbpf: Any, two_hosts: tuple[Host, Host]) -> None:
    left, right = two_hosts
    with traffic.peers() as start:
        client, server = start("nb-client", left), start("nb-server", right)
        server.listen("ipv4")
        with netbpf("nettop", WHOLE, "--pid", client.pid, "--by", "pid") as run:
            session = traffic.connect(client, server)
            session.transfer(up=1)
            session.half_close()
            # All arrives before the client reads: see LIMITS.
            ident = {"id": session.id, "leave": 0, "settle": True}
            server.ask("transfer", send=20_011, receive=0, **ident)
            client.ask("transfer", send=0, receive=20_011, **ident)
    row = only(run.rows, pid=client.pid)
    check_payload(row, "rx", 20_011)


def test_what_close_sends_is_of_the_process(netbpf: Any, two_hosts: tuple[Host, Host]) -> None:
    left, right = two_hosts
    with traffic.peers() as start:
        client, server = start("nb-client", left), start("nb-server", right)
        server.listen("ipv4")
        before = [host.device_counters() for host in two_hosts]
        with netbpf("nettop", WHOLE, "--by", "dev,pid") as run:
            for _ in range(23):
                session = traffic.connect(client, server)
                session.transfer(up=100, down=100)
                session.end("client-fin")
        counted = [grown(host, old) for host, old in zip(two_hosts, before)]
    for peer, host, found in zip((client, server), two_hosts, counted):
        row = only(run.rows, pid=peer.pid, dev=host.device)
        assert row["tx_packets"] == found["tx_packets"]


@compares("nettop", "traffic", shape="--by")
def test_forwarded_packets_and_those_of_the_kernel_are_of_no_process(
    netbpf: Any, two_hosts: tuple[Host, Host]
) -> None:
    left, right = two_hosts
    with topology.namespace() as name:
        end = Host(name, f"ne{os.getpid():x}", "10.92.0.2")
        near = f"nn{os.getpid():x}"
        ip = ("ip", "-n", right.namespace)
        topology.must(*ip, "link", "add", near, "type", "veth", "peer", "name", end.device,
                      "netns", name)  # fmt: skip
        for host, device in ((right, near), (end, end.device)):  # no packets of its own
            host.run("ip", "link", "set", device, "addrgenmode", "none")
        topology.must(*ip, "address", "add", "10.92.0.1/24", "dev", near)
        topology.must(*ip, "link", "set", near, "up")
        end.run("ip", "address", "add", f"{end.ipv4}/24", "dev", end.device)
        end.run("ip", "link", "set", end.device, "up")
        left.run("ip", "route", "add", "10.92.0.0/24", "via", right.ipv4)
        end.run("ip", "route", "add", "10.91.0.0/24", "via", "10.92.0.1")
        right.sysctl(net__ipv4__ip_forward=1, net__ipv4__icmp_ratelimit=0)
        right.sysctl(net__ipv4__icmp_msgs_per_sec=100_000)
        with programs((left, left.ipv4, "nb-left"), (end, end.ipv4, "nb-end")) as (one, far):
            one.send(far, 1, 10)  # the neighbours know each other from here on
            before = right.device_counters(near)
            with netbpf("nettop", WHOLE, "--netns", right.inode) as run:
                one.send(far, 23, 100)
                with left.socket(socket.AF_INET, socket.SOCK_DGRAM) as lost:
                    for _ in range(13):
                        lost.sendto(b"x", (right.ipv4, 9))  # nobody: ICMP errors
            counted = grown(right, before, near)
    row = only(run.rows, dev=near, traffic="forwarded")
    assert sums_of(row) == {"tx_packets": 23, "tx_bytes": 23 * (UDP_HEADERS + 100),
                            "rx_packets": 0, "rx_bytes": 0}  # fmt: skip
    assert row["pid"] is None
    assert total([each for each in run.rows if each["dev"] == near]) == counted
    row = only(run.rows, dev=right.device, traffic="kernel")
    assert (row["tx_packets"], row["tx_bytes"]) == (13, 13 * (LINK + 20 + 8 + 20 + 8 + 1))
    row = only(run.rows, dev=right.device, traffic="other")
    assert row["rx_packets"] == 23 + 13


# --- keys -----------------------------------------------------------------------------------------


@compares(
    "nettop", "dev", "netns", "family", "proto", "laddr", "lport", "raddr", "rport", "queue",
    "tx_bytes", "tx_packets", "rx_bytes", "rx_packets", "bytes", "share", shape="--by",
)  # fmt: skip
def test_each_key_counts_alone(
    netbpf: Any, two_hosts: tuple[Host, Host], pair: list[Program]
) -> None:
    left, right = two_hosts
    keys = ("dev", "netns", "queue", "family", "proto", "laddr", "lport", "raddr", "rport")
    with netbpf("nettop", WHOLE, "--by", ",".join(keys), "--netns", left.inode) as run:
        play(pair)
    left4, right4, left6, right6 = pair
    where = (left.device, left.inode, 0)
    wanted = {
        (*where, "ipv4", "udp", left.ipv4, left4.port, right.ipv4, right4.port): V4,
        (*where, "ipv6", "udp", left.ipv6, left6.port, right.ipv6, right6.port): V6,
    }
    assert {tuple(row[key] for key in keys): sums_of(row) for row in run.rows} == wanted
    for row in run.rows:
        assert row["traffic"] is None and row["bytes"] == row["tx_bytes"] + row["rx_bytes"]
        assert row["share"] == round(row["bytes"] / sum(r["bytes"] for r in run.rows), 4)


KEYS = {
    "dev": {None: added(V4, V6)},
    "family": {"ipv4": V4, "ipv6": V6},
    "proto": {"udp": added(V4, V6)},
    "raddr/16": {"10.91.0.0/16": V4, "fd00::/16": V6},
    "queue": {0: added(V4, V6)},
}


@pytest.mark.parametrize("key", KEYS)
def test_a_key_adds_up_what_it_does_not_tell_apart(
    netbpf: Any, two_hosts: tuple[Host, Host], pair: list[Program], key: str
) -> None:
    left, _ = two_hosts
    with netbpf("nettop", WHOLE, "--by", key, "--netns", left.inode) as run:
        play(pair)
    name = key.partition("/")[0]
    found = {row[name]: sums_of(row) for row in run.rows}
    assert found == ({left.device: KEYS["dev"][None]} if key == "dev" else KEYS[key])
    assert {row[k] for row in run.rows for k in ("pid", "cpu", "lport") if k != name} == {None}


@compares("nettop", "cpu", shape="--by")
def test_packets_are_counted_on_the_cpu_that_handles_them(
    netbpf: Any, two_hosts: tuple[Host, Host], pair: list[Program]
) -> None:
    left, right = two_hosts
    for cpu in sorted(os.sched_getaffinity(0))[:2]:
        for program in pair:
            os.sched_setaffinity(program.pid, {cpu})
        with netbpf("nettop", WHOLE, "--by", "cpu", "--netns", left.inode) as run:
            play(pair)
        assert only(run.rows, cpu=cpu)["tx_packets"] == 23 + 17
        assert total(run.rows) == added(V4, V6)


@compares("nettop", "stack", shape="--by")
@pytest.mark.parametrize("kind", ["rawtp", "tp"])
def test_stacks_show_the_code_that_sends_and_receives(
    netbpf: Any, two_hosts: tuple[Host, Host], pair: list[Program], kind: str
) -> None:
    left, _ = two_hosts
    probe = f"start={kind},received={kind}"
    with netbpf("nettop", WHOLE, "--by", "stack", "--netns", left.inode, "--probe", probe) as run:
        play(pair)
    assert total(run.rows) == added(V4, V6)
    for row in run.rows:
        names = [frame.partition("+")[0] for frame in row["stack"]]
        sends = row["tx_packets"] > 0
        assert ("dev_hard_start_xmit" in names[0]) == sends
        assert ("netif_receive_skb" in names[0]) != sends
        if sends:
            assert "__sys_sendto" in names and {"udp_sendmsg", "udpv6_sendmsg"} & {*names}


def test_words_stand_for_several_keys(
    netbpf: Any, two_hosts: tuple[Host, Host], pair: list[Program]
) -> None:
    left, right = two_hosts
    with netbpf("nettop", WHOLE, "--by", "process,remote", "--netns", left.inode) as run:
        play(pair)
    left4, right4, left6, right6 = pair
    found = {(r["pid"], r["comm"], r["raddr"], r["rport"]): sums_of(r) for r in run.rows}
    assert found == {
        (left4.pid, "nb-left4", right.ipv4, right4.port): V4,
        (left6.pid, "nb-left6", right.ipv6, right6.port): V6,
    }
    assert {row["dev"] for row in run.rows} == {None}


# --- the rest of a device -------------------------------------------------------------------------


@compares("nettop", "drops", shape="--by")
def test_what_a_device_drops_is_in_the_rest(netbpf: Any, two_hosts: tuple[Host, Host]) -> None:
    """Frames of a protocol that nobody has are received, and dropped by the device."""
    left, right = two_hosts
    frame = b"\xff" * 6 + frames.US + b"\x88\xb5" + bytes(50)
    words = ("ip", "-n", right.namespace, "-s", "-j", "link", "show", right.device)
    before = dropped(words)
    with netbpf("nettop", WHOLE, "--netns", right.inode) as run:
        frames.send(left, [frame] * 13)
        wait_until(lambda: dropped(words) - before == 13, what="drops")
    (row,) = run.rows
    assert (row["dev"], row["traffic"], row["drops"]) == (right.device, "other", 13)
    assert (row["rx_packets"], row["rx_bytes"]) == (13, 13 * len(frame))


def dropped(words: Sequence[str]) -> int:
    (link,) = topology.json.loads(topology.must(*words))
    return int(link["stats64"]["rx"]["dropped"])


@pytest.mark.parametrize("by", ["dev,process", "dev,queue", "process", "dev,proto"])
def test_rows_add_up_to_the_counters_of_the_devices(
    netbpf: Any, two_hosts: tuple[Host, Host], pair: list[Program], by: str
) -> None:
    left, right = two_hosts
    with traffic.peers() as start:
        client, server = start("nb-client", left), start("nb-server", right)
        server.listen("ipv4")
        before = left.device_counters()
        with netbpf("nettop", WHOLE, "--by", by, "--netns", left.inode) as run:
            play(pair)
            session = traffic.connect(client, server)
            session.transfer(up=UP, down=DOWN)
            session.end("server-reset")
            traffic.failed(traffic.attempt(client, right, traffic.Plan("ipv4", "refused", 0, 0)))
        counted = grown(left, before)
    assert total(run.rows) == counted
    assert bool(others(run)) == ("process" in by)
    assert [row["traffic"] for row in run.rows][:-1].count("other") == 0  # the last row


# --- filters --------------------------------------------------------------------------------------


def filters(left: Host, pair: Sequence[Program]) -> list[tuple[Sequence[object], bool, bool]]:
    """Return (options, whether IPv4's program passes, whether IPv6's does)."""
    left4, right4, left6, right6 = pair
    return [
        (("-p", left4.pid), True, False),
        (("-p", right4.pid), False, False),
        (("--comm", "nb-left*"), True, True),
        (("--comm", "nb-left6"), False, True),
        (("-u", 0), True, True),
        (("-u", 65533), False, False),
        (("-4",), True, False),
        (("-6",), False, True),
        (("-L", left4.port), True, False),
        (("-L", right4.port), False, False),
        (("-D", right6.port), False, True),
        (("-D", left6.port), False, False),
        (("--laddr", "10.91.0.1/32"), True, False),
        (("--laddr", "10.91.0.2/32"), False, False),
        (("--raddr", "fd00:91::2/128"), False, True),
        (("--raddr", "fd00:91::1/128"), False, False),
        (("-i", left.device), True, True),
        (("-i", "lo"), False, False),
    ]


@pytest.mark.parametrize("number", range(18))
def test_filters_pass_what_they_name_and_nothing_else(
    netbpf: Any, two_hosts: tuple[Host, Host], pair: list[Program], number: int
) -> None:
    left, _ = two_hosts
    words, *passes = filters(left, pair)[number]
    for by in ("process", "family"):
        with netbpf("nettop", WHOLE, "--by", by, "--netns", left.inode, *words) as run:
            play(pair)
        found = {row["comm" if by == "process" else "family"]: sums_of(row) for row in run.rows}
        names = ("nb-left4", "nb-left6") if by == "process" else ("ipv4", "ipv6")
        wanted = {name: sums for name, sums, ok in zip(names, (V4, V6), passes) if ok}
        assert found == wanted, (words, by)


def test_all_filters_at_once(
    netbpf: Any, two_hosts: tuple[Host, Host], pair: list[Program]
) -> None:
    left, right = two_hosts
    left4, right4, *_ = pair
    words = ("-p", left4.pid, "--comm", "nb-left4", "-u", 0, "-4", "-L", left4.port, "-D",
             right4.port, "--laddr", "10.91.0.0/24", "--raddr", "10.91.0.0/24", "-i", left.device,
             "--netns", left.inode, "--cgroup", topology.own_cgroup(left4.pid))  # fmt: skip
    by = ("dev,netns,queue,cpu,pid,comm,uid,cgroup,owner,family,proto,laddr,lport,raddr,rport,"
          "stack")  # fmt: skip
    for keys in (by, "dev"):
        with netbpf("nettop", WHOLE, "--by", keys, *words) as run:
            play(pair)
        assert total(run.rows) == V4


def test_a_filter_leaves_out_the_rest_but_shares_are_of_the_device(
    netbpf: Any, two_hosts: tuple[Host, Host], pair: list[Program]
) -> None:
    left, _ = two_hosts
    with netbpf("nettop", WHOLE, "--comm", "nb-left6", "--netns", left.inode) as run:
        play(pair)
    (row,) = run.rows
    every = added(V4, V6)
    assert row["share"] == round(row["bytes"] / (every["tx_bytes"] + every["rx_bytes"]), 4)


def test_cgroup_and_container_are_filters_and_keys(
    netbpf: Any, two_hosts: tuple[Host, Host], pair: list[Program]
) -> None:
    left, right = two_hosts
    identity = f"{os.getpid():x}".rjust(64, "e")
    path = topology.cgroup2_mount() / f"docker-{identity}.scope"
    path.mkdir()
    try:
        inside = Program(left, left.ipv4, "nb-inside", str(path))
        with contextlib.ExitStack() as stack:
            runs = [
                stack.enter_context(netbpf("nettop", WHOLE, "--netns", left.inode, *words))
                for words in (("--by", "container"), ("--container", identity[:12]),
                              ("--cgroup", path))
            ]  # fmt: skip
            play(pair)
            inside.send(pair[1], 11, 100)
        inside.close()
    finally:
        path.rmdir()
    by, *filtered = runs
    mine = {"tx_packets": 11, "tx_bytes": 11 * (UDP_HEADERS + 100), "rx_packets": 0, "rx_bytes": 0}
    assert {row["container"]: sums_of(row) for row in by.rows} == {
        identity: mine, None: added(V4, V6),
    }  # fmt: skip
    for run in filtered:
        assert [(row["pid"], sums_of(row)) for row in run.rows] == [(inside.pid, mine)]


def test_other_namespace_shows_nothing(netbpf: Any, one_host: Host, pair: list[Program]) -> None:
    for by in ("dev,process", "dev"):
        with netbpf("nettop", WHOLE, "--by", by, "--netns", one_host.inode) as run:
            play(pair)
        assert run.rows == []


# --- rows, intervals, ends ------------------------------------------------------------------------


def test_rows_with_most_bytes_come_first_and_top_limits_them(
    netbpf: Any, two_hosts: tuple[Host, Host], pair: list[Program]
) -> None:
    left, _ = two_hosts
    where = ("nettop", WHOLE, "--netns", left.inode, "--by", "dev,comm")
    with netbpf(*where) as run, netbpf(*where, "--top", 1) as top:
        with netbpf(*where, "--sort", "tx_packets") as packets:
            play(pair)
    assert [row["comm"] for row in run.rows] == ["nb-left6", "nb-left4"]
    assert [row["comm"] for row in packets.rows] == ["nb-left4", "nb-left6"]
    # What is not shown is a part of the rest.
    assert [(row["comm"], row["traffic"]) for row in top.rows] == [
        ("nb-left6", "socket"), (None, "other"),
    ]  # fmt: skip
    assert [sums_of(row) for row in top.rows] == [V6, V4]


def test_intervals_add_up_to_the_whole(
    netbpf: Any, two_hosts: tuple[Host, Host], pair: list[Program]
) -> None:
    left, _ = two_hosts
    with netbpf("nettop", "0.2", "--netns", left.inode) as run:
        for wanted in (1, 2, 3):
            play(pair)
            wait_until(lambda: len({row["time"] for row in run.rows}) >= wanted, what="rows")  # noqa: B023
    assert total(run.rows) == {name: 3 * number for name, number in added(V4, V6).items()}


def test_a_table_comes_every_second(netbpf: Any, two_hosts: Any, pair: list[Program]) -> None:
    with netbpf("nettop") as run:

        def played() -> int:
            play(pair)
            return len({row["time"] for row in run.rows})

        wait_until(lambda: played() >= 2, what="two tables")
    assert run.summary["seconds"] >= 2


def test_rows_without_room_are_lost_and_counted(
    netbpf: Any, two_hosts: tuple[Host, Host], pair: list[Program]
) -> None:
    left, _ = two_hosts
    words = ("--map-entries", 1, "--fail-on-loss", "--by", "dev,family", "--netns", left.inode)
    with netbpf("nettop", WHOLE, *words, returncode=3) as run:
        play(pair)
    assert [(row["family"], row["traffic"]) for row in run.rows] == [
        ("ipv4", None),
        (None, "other"),
    ]
    assert [sums_of(row) for row in run.rows] == [V4, V6]  # still all of the device
    assert run.summary["lost"]["map_full"] == 17


# --- whatever the kind of probe -------------------------------------------------------------------


def both_ways(stage: Stage, run: Run) -> None:
    left, right = stage.left, stage.right
    with programs((left, left.ipv4, "nb-l4"), (right, right.ipv4, "nb-r4"),
                  (left, left.ipv6, "nb-l6"), (right, right.ipv6, "nb-r6")) as made:  # fmt: skip
        for one, other in itertools.permutations(made, 2):
            if (":" in one.address) == (":" in other.address):
                one.send(other, 7, 100)
    traffic.connect(stage.client, stage.server).transfer(up=1)


def facts(run: Run, lost: set[str]) -> Any:
    return sorted(
        (row["comm"], row["family"], row["tx_bytes"], row["rx_bytes"])
        for row in run.rows
        if row["comm"] and row["comm"].startswith("nb-")
    )


ALTERNATIVES = Case(
    lambda s: (WHOLE, "--by", "comm,family", "--netns", s.left.inode), both_ways, facts
)
