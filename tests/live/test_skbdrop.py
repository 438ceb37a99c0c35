"""skbdrop tells the truth about packets that this test had dropped."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import traffic
from alternatives import Case, Stage, plain
from compared import compares
from harness import Json, Run, attended, kill, netbpf_once, seconds, start, wait_until
from topology import Host

from netbpf.kernel.btf import Btf
from netbpf.kernel.drop_reasons import DropReasons
from netbpf.kernel.inspect import tracefs

CLOSED = 9  # nobody listens there
NUMBER = 23
IPV4_UDP, IPV6_UDP = 20 + 8, 40 + 8
ARGUMENTS = Btf().parameters("__traceiter_kfree_skb") or ()
NO_SOCKET = "NO_SOCKET" if "reason" in ARGUMENTS else None


@pytest.fixture(autouse=True)
def reasons(request: pytest.FixtureRequest) -> None:
    """Skip on kernels without reasons, but for what they can tell, too."""
    if not NO_SOCKET and not request.node.get_closest_marker("any_kernel"):
        pytest.skip("needs a kernel that gives reasons for drops: 5.17")


def udp(host: Host, family: int = socket.AF_INET) -> socket.socket:
    return host.socket(family, socket.SOCK_DGRAM)


def send(source: Host, target: Host, number: int, port: int = CLOSED, size: int = 10) -> int:
    """Send datagrams from one socket, and return its port."""
    with udp(source) as sender:
        for _ in range(number):
            sender.sendto(bytes(size), (target.ipv4, port))
        return int(sender.getsockname()[1])


def only(found: list[Json], **wanted: object) -> list[Json]:
    """Those with these values; others may lose packets, too."""
    return [one for one in found if all(one[name] == value for name, value in wanted.items())]


def total(rows: list[Json], **wanted: object) -> int:
    return sum(row["count"] for row in only(rows, **wanted))


def snmp6(host: Host) -> dict[str, int]:
    lines = host.run("cat", "/proc/self/net/snmp6").splitlines()
    return {name: int(value) for name, value in map(str.split, lines)}


@contextlib.contextmanager
def rise_of(counter: str, read: Callable[[], dict[str, int]]) -> Iterator[list[int]]:
    """Yield a list that has the rise of a counter after the block."""
    rise: list[int] = []
    before = read()[counter]
    yield rise
    rise.append(read()[counter] - before)


# --- reasons --------------------------------------------------------------------------------------


@compares(
    "skbdrop", "owner", "family", "proto", "saddr", "sport", "daddr", "dport", "len", "dev", "netns"
)
@compares("skbdrop", "proto", "dev", "count", "bytes", "netns", "example", shape="rows")
@pytest.mark.any_kernel
def test_datagrams_to_a_closed_port_are_so_many_times_no_socket(
    netbpf: Any, two_hosts: tuple[Host, Host]
) -> None:
    left, right = two_hosts
    with netbpf("skbdrop", "--netns", right.inode, "--events") as run:
        with rise_of("UdpNoPorts", right.snmp) as rise:
            port = send(left, right, NUMBER)
    (row,) = only(run.rows, reason=NO_SOCKET, proto="udp")
    assert row["count"] == NUMBER == rise[0]
    assert row["bytes"] == NUMBER * (10 + IPV4_UDP)
    assert (row["proto"], row["dev"], row["netns"]) == ("udp", right.device, right.inode)
    assert row["example"] == f"{left.ipv4}:{port} > {right.ipv4}:{CLOSED}"
    # The one is part of the other in kernels built with clang or a newer gcc.
    assert row["location"].partition("+0x")[0] in ("__udp4_lib_rcv", "udp_rcv")
    assert run.summary["counters"]["Udp.NoPorts"] == NUMBER
    events = only(run.events, reason=NO_SOCKET, proto="udp")
    assert len(events) == NUMBER
    for event in events:
        assert (event["saddr"], event["sport"]) == (left.ipv4, port)
        assert (event["daddr"], event["dport"]) == (right.ipv4, CLOSED)
        assert (event["family"], event["proto"], event["len"]) == ("ipv4", "udp", 10 + IPV4_UDP)
        assert (event["dev"], event["netns"]) == (right.device, right.inode)
        assert event["location"] == row["location"]
        # There is no socket: nobody owns it, whoever runs when the packet arrives.
        assert (event["pid"], event["comm"], event["owner"]) == (None, None, "unknown")
        assert event["uid"] is None
    if not NO_SOCKET:
        assert {one["meaning"] for one in run.rows} == {None}
        (drop,) = [probe for probe in run.summary["probes"] if probe["name"] == "drop"]
        assert "it has no reason" in drop["rejected"][0]
    assert not any(run.summary["lost"].values())


def test_ipv6_addresses_are_those_of_the_packet(netbpf: Any, two_hosts: tuple[Host, Host]) -> None:
    left, right = two_hosts
    with netbpf("skbdrop", "--netns", right.inode, "-6", "--events") as run:
        with (
            udp(left, socket.AF_INET6) as sender,
            rise_of("Udp6NoPorts", lambda: snmp6(right)) as rise,
        ):
            for _ in range(NUMBER):
                sender.sendto(bytes(10), (right.ipv6, CLOSED))
            port = sender.getsockname()[1]
        send(left, right, 3)  # not for -6
    (row,) = only(run.rows, reason="NO_SOCKET")
    assert row["count"] == NUMBER == rise[0]
    assert row["bytes"] == NUMBER * (10 + IPV6_UDP)
    assert row["example"] == f"[{left.ipv6}]:{port} > [{right.ipv6}]:{CLOSED}"
    ends = {(e["family"], e["saddr"], e["sport"], e["daddr"], e["dport"]) for e in run.events}
    assert ends == {("ipv6", left.ipv6, port, right.ipv6, CLOSED)}


def test_what_a_firewall_drops_is_netfilter_drop(netbpf: Any, two_hosts: tuple[Host, Host]) -> None:
    left, right = two_hosts
    with netbpf("skbdrop", "--netns", right.inode) as run:
        with right.dropping(f"udp dport {CLOSED}") as drops:
            send(left, right, NUMBER)
            dropped = drops.count()
    assert total(run.rows, reason="NETFILTER_DROP", proto="udp") == NUMBER == dropped
    assert only(run.rows, reason="NO_SOCKET") == []


@compares("skbdrop", "reason", "pid")
@compares("skbdrop", "reason", shape="rows")
def test_full_receive_buffer_is_the_rise_of_rcvbuferrors_and_has_the_owner(
    netbpf: Any, two_hosts: tuple[Host, Host]
) -> None:
    left, right = two_hosts
    with udp(right) as receiver:
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        receiver.bind((right.ipv4, 0))
        with netbpf("skbdrop", "--netns", right.inode, "--events") as run:
            with rise_of("UdpRcvbufErrors", right.snmp) as rise:
                send(left, right, 101, receiver.getsockname()[1], 1000)
        kept = 0
        receiver.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while receiver.recv(2000):
                kept += 1
    lost = only(run.events, reason="SOCKET_RCVBUFF")
    assert len(lost) == total(run.rows, reason="SOCKET_RCVBUFF") == rise[0] == 101 - kept > 0
    assert run.summary["counters"]["Udp.RcvbufErrors"] == rise[0]
    # Once it waits for a socket a packet has forgotten its device, but not that device's number.
    assert {event["dev"] for event in lost} == {right.device}
    if "rx_sk" in ARGUMENTS:
        assert {(e["pid"], e["owner"]) for e in lost} == {(os.getpid(), "snapshot")}


@pytest.mark.skipif("rx_sk" not in ARGUMENTS, reason="needs a kernel that tells the socket: 6.11")
def test_owner_of_a_datagram_socket_made_later_is_learnt_after_its_first_drop(
    netbpf: Any, two_hosts: tuple[Host, Host]
) -> None:
    left, right = two_hosts
    with netbpf("skbdrop", "--netns", right.inode, "--events") as run, udp(right) as receiver:
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        receiver.bind((right.ipv4, 0))

        def known() -> bool:
            send(left, right, 11, receiver.getsockname()[1], 1000)
            return any(event["pid"] for event in run.events)

        wait_until(known, what="an owner")
    lost = only(run.events, reason="SOCKET_RCVBUFF")
    assert {event["pid"] for event in lost} == {None, os.getpid()}
    assert lost[0]["pid"] is None and lost[-1]["pid"] == os.getpid()


@pytest.mark.skipif("rx_sk" not in ARGUMENTS, reason="needs a kernel that tells the socket: 6.11")
@pytest.mark.parametrize("kind", ["rawtp", "tp"])
def test_owner_of_a_datagram_socket_that_has_sent_is_known_from_its_first_drop(
    netbpf: Any, two_hosts: tuple[Host, Host], kind: str
) -> None:
    left, right = two_hosts
    options = ("skbdrop", "--netns", right.inode, "--events", "--learn-sends")
    with netbpf(*options, "--probe", f"owner_send={kind}") as run, udp(right) as receiver:
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        receiver.bind((right.ipv4, 0))
        receiver.sendto(b"mine", receiver.getsockname())
        send(left, right, 23, receiver.getsockname()[1], 1000)
        run.wait_for(lambda events: only(events, reason="SOCKET_RCVBUFF"))
    lost = only(run.events, reason="SOCKET_RCVBUFF")
    assert {(event["pid"], event["owner"]) for event in lost} == {(os.getpid(), "exact")}


def test_wrong_checksums_are_told_apart(netbpf: Any, two_hosts: tuple[Host, Host]) -> None:
    left, right = two_hosts
    number = 7
    raw = left.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP)
    with raw, netbpf("skbdrop", "--netns", right.inode, "--port", CLOSED) as run:
        with rise_of("UdpInCsumErrors", right.snmp) as rise:
            for _ in range(number):
                header = struct.pack("!HHHH", 4321, CLOSED, 8 + 10, 0xBAD)
                raw.sendto(header + bytes(10), (right.ipv4, 0))
    (row,) = run.rows
    assert (row["reason"], row["count"], row["proto"]) == ("UDP_CSUM", number, "udp")
    assert row["count"] == rise[0] == run.summary["counters"]["Udp.InCsumErrors"]
    assert row["example"] == f"{left.ipv4}:4321 > {right.ipv4}:{CLOSED}"


def test_clean_http_session_gives_no_line(tmp_path: Path, two_hosts: tuple[Host, Host]) -> None:
    left, right = two_hosts
    (tmp_path / "index.html").write_text("hello\n")
    words = [sys.executable, "-m", "http.server", "8081", "--bind", right.ipv4]
    server = subprocess.Popen(
        right.inside(*words), cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait_until(lambda: ":8081" in right.run("ss", "-tln"), what="the server")
        runs = []
        for host in (left, right):
            directory = tmp_path / host.device
            directory.mkdir()
            runs.append(start(directory, "skbdrop", "--netns", host.inode, "--events"))
        with attended(runs[0]), attended(runs[1]):
            for _ in range(NUMBER):
                page = left.run("curl", "-s", f"http://{right.ipv4}:8081/")
                assert page == "hello\n"
    finally:
        kill(server)
    for run in runs:
        assert run.rows == [] and run.events == []


@compares("skbdrop", "harmless", shape="rows")
@compares("skbdrop", "hidden", shape="summary")
def test_what_loses_nothing_is_hidden_counted_and_shown_on_demand(
    tmp_path: Path, two_hosts: tuple[Host, Host]
) -> None:
    left, right = two_hosts
    number = 5
    port = 20_071  # nobody else's: where the socket is gone, its namespace is not known
    runs = []
    for words in ((), ("--all", "0.1")):
        directory = tmp_path / f"run{len(words)}"
        directory.mkdir()
        runs.append(start(directory, "skbdrop", "--port", port, *words))
    default, everything = runs
    with attended(default), attended(everything):
        with udp(right) as receiver:
            receiver.bind((right.ipv4, port))
            send(left, right, number, port)
        # Nobody has read them: they went with the socket, which the kernel takes its time for.
        wait_until(lambda: everything.rows, what="the end of the socket")
    assert default.rows == []
    assert default.summary["totals"]["hidden"] == number
    assert any(f"{number} frees" in note for note in default.summary["notes"])
    assert total(everything.rows, harmless="yes") == total(everything.rows) == number
    assert everything.summary["totals"]["hidden"] == 0


# --- against the kernel's own trace ---------------------------------------------------------------


@contextlib.contextmanager
def traced() -> Iterator[list[tuple[float, str, str]]]:
    """Yield a list of (wall clock, location, reason) of all drops, as the kernel writes its trace.

    The locations are printed by the kernel (%pS), the times are those of its trace clock.
    """
    found: list[tuple[float, str, str]] = []
    place = Path(tracefs(), "instances", f"netbpf-{os.getpid()}")
    place.mkdir()
    switch = place / "events/skb/kfree_skb/enable"
    try:
        (place / "trace_clock").write_text("mono")
        switch.write_text("1")
        yield found
        ahead = time.time() - time.monotonic()
        switch.write_text("0")
        for line in (place / "trace").read_text().splitlines():
            words = re.search(r" ([0-9.]+): kfree_skb: .*location=([^/]+)/\S+ reason: (\S+)", line)
            if words:
                found.append((float(words[1]) + ahead, words[2], words[3]))
    finally:
        switch.write_text("0")
        place.rmdir()


@compares("skbdrop", "time", "location")
@compares("skbdrop", "location", "meaning", shape="rows")
def test_places_and_times_are_those_of_the_kernels_trace(
    netbpf: Any, two_hosts: tuple[Host, Host]
) -> None:
    left, right = two_hosts
    with (
        traced() as trace,
        netbpf("skbdrop", "--netns", right.inode, "--events", "--explain") as run,
    ):
        with right.dropping(f"udp dport {CLOSED + 1}"):
            for port in (CLOSED, CLOSED + 1, CLOSED):
                send(left, right, 2, port)
                time.sleep(0.1)
    ours = {"NO_SOCKET": CLOSED, "NETFILTER_DROP": CLOSED + 1}
    events = [event for event in run.events if event["reason"] in ours and event["proto"] == "udp"]
    assert [ours[event["reason"]] for event in events] == [9, 9, 10, 10, 9, 9]
    for event in events:
        # Two clocks are set against each other, here and in the tool.
        assert [
            when
            for when, location, reason in trace
            if (location, reason) == (event["location"], event["reason"])
            and abs(when - seconds(event["time"])) < 0.005
        ], (event, trace)
    rows = [row for row in run.rows if row["reason"] in ours and row["proto"] == "udp"]
    assert {(row["reason"], row["count"]) for row in rows} == {
        ("NO_SOCKET", 4), ("NETFILTER_DROP", 2),
    }  # fmt: skip
    for row in rows:
        assert (row["location"], row["reason"]) in {place[1:] for place in trace}
        # What the manual promises: a sentence about that reason.
        words = {"NO_SOCKET": "no socket is bound to that port", "NETFILTER_DROP": "firewall"}
        assert words[row["reason"]] in row["meaning"]
        assert not row["meaning"].endswith("?")


# --- names ----------------------------------------------------------------------------------------


def enumerators(wanted: str) -> dict[int, str]:
    """Read an enum from the kernel's BTF, by our own reading of its format."""
    data = Path("/sys/kernel/btf/vmlinux").read_bytes()
    _, _, _, head, types, size, strings, _ = struct.unpack_from("=HBBIIIII", data)
    at, end, base = head + types, head + types + size, head + strings
    # Bytes that follow the 12 of each kind: a number, or so many per member.
    fixed = {1: 4, 3: 12, 14: 4, 17: 4}
    each = {4: 12, 5: 12, 6: 8, 13: 8, 15: 12, 19: 12}
    while at < end:
        name, info, _ = struct.unpack_from("=III", data, at)
        kind, members = info >> 24 & 31, info & 0xFFFF
        if kind in (6, 19) and text_at(data, base + name) == wanted:
            rows = [
                struct.unpack_from("=Ii", data, at + 12 + i * each[kind]) for i in range(members)
            ]
            return {value: text_at(data, base + word) for word, value in rows}
        at += 12 + fixed.get(kind, 0) + each.get(kind, 0) * members
    return {}


def text_at(data: bytes, at: int) -> str:
    return data[at : data.index(b"\0", at)].decode()


def test_names_are_those_of_the_running_kernels_enum() -> None:
    enum = enumerators("skb_drop_reason")
    assert len(enum) > 50
    reasons = DropReasons(Btf())
    prefix = "SKB_DROP_REASON_"
    for number, name in enum.items():
        if name.startswith(prefix) and name not in (f"{prefix}MAX", f"{prefix}SUBSYS_MASK"):
            assert reasons.name(number) == name[len(prefix) :]
    # One that this kernel does not have stays a number; one of a subsystem says which.
    assert reasons.name(max(enum) + 1) == str(max(enum) + 1)
    for number, name in enumerators("skb_drop_reason_subsys").items():
        if number and not name.endswith("_NUM"):
            subsystem = name[len(f"{prefix}SUBSYS_") :]
            assert reasons.name(number << 16 | 0xFFF0) == f"{subsystem}:{0xFFF0}"


def test_a_reason_can_be_asked_for_by_the_kernels_number(
    netbpf: Any, two_hosts: tuple[Host, Host]
) -> None:
    left, right = two_hosts
    numbers = {name: number for number, name in enumerators("skb_drop_reason").items()}
    number = numbers["SKB_DROP_REASON_NO_SOCKET"]
    with netbpf("skbdrop", "--netns", right.inode, "--reason", number) as run:
        send(left, right, 3)
    assert [(row["reason"], row["count"]) for row in run.rows] == [("NO_SOCKET", 3)]


def test_unknown_reason_is_a_usage_error_with_a_proposal() -> None:
    done = netbpf_once("skbdrop", "--reason", "NO_SOKET", "-d", "1")
    assert done.returncode == 2
    assert "has no reason 'NO_SOKET'" in done.stderr and "NO_SOCKET" in done.stderr


@compares("skbdrop", "stack", shape="rows")
def test_locations_and_stacks_name_functions_and_leave_out_what_frees(
    netbpf: Any, two_hosts: tuple[Host, Host]
) -> None:
    left, right = two_hosts
    with netbpf("skbdrop", "--netns", right.inode, "--stack", "--port", CLOSED) as run:
        send(left, right, NUMBER)
    assert total(run.rows, reason="NO_SOCKET") == NUMBER
    symbols = {line.split()[2] for line in Path("/proc/kallsyms").read_text().splitlines()}
    for row in run.rows:
        names = [frame.partition("+")[0] for frame in row["stack"]]
        assert set(names) <= symbols
        assert row["stack"][0] == row["location"]
        assert not [name for name in names if "kfree_skb" in name or "bpf" in name]
        assert {"ip_local_deliver_finish", "net_rx_action"} <= set(names)


# --- filters, intervals, text ---------------------------------------------------------------------


def test_each_filter_shows_what_it_should_and_nothing_else(
    tmp_path: Path, two_hosts: tuple[Host, Host], one_host: Host
) -> None:
    left, right = two_hosts
    no_socket, firewall = ("NO_SOCKET", 5), ("NETFILTER_DROP", 3)
    cases: list[tuple[tuple[object, ...], set[Any]]] = [
        (("--netns", right.namespace, "-4"), {no_socket, firewall}),
        (("--netns", one_host.namespace), set()),
        (("--reason", "NO_SOCKET", "--dev", right.device), {no_socket}),
        (("--reason", "netfilter_drop", "--dev", right.device), {firewall}),
        (("--reason", "TCP_CSUM", "--dev", right.device), set()),
        (("--dev", left.device), set()),
        (("--dev", right.device, "--port", f"1-{CLOSED}"), {no_socket}),
        (("--dev", right.device, "--port", CLOSED + 1), {firewall}),
        (("--dev", right.device, "-6", "--port", CLOSED), set()),
        (("--dev", right.device, "--proto", "tcp,udp"), {no_socket, firewall}),
        (("--dev", right.device, "--proto", "tcp"), set()),
        (("--dev", right.device, "-p", os.getpid()), set()),  # it has no part in these sockets
    ]
    runs = []
    for number, (words, _) in enumerate(cases):
        directory = tmp_path / str(number)
        directory.mkdir()
        runs.append(start(directory, "skbdrop", *words))
    with contextlib.ExitStack() as stack:
        for run in runs:
            stack.enter_context(attended(run))
        send(left, right, no_socket[1])
        with right.dropping(f"udp dport {CLOSED + 1}"):
            send(left, right, firewall[1], CLOSED + 1)
    for run, (words, wanted) in zip(runs, cases):
        shown = {(row["reason"], row["count"]) for row in run.rows if row["proto"] == "udp"}
        assert shown == wanted, words


def test_intervals_add_up_and_rank(netbpf: Any, two_hosts: tuple[Host, Host]) -> None:
    left, right = two_hosts
    options = ("0.2", "--netns", right.inode, "-4")
    with netbpf("skbdrop", *options) as run, right.dropping(f"udp dport {CLOSED + 1}"):
        for wanted in (1, 2, 3):
            send(left, right, 2, size=1400)  # fewer packets, more bytes
            send(left, right, NUMBER, CLOSED + 1)
            wait_until(lambda: len({row["time"] for row in run.rows}) >= wanted)  # noqa: B023
    assert total(run.rows, reason="NO_SOCKET") == 3 * 2
    assert total(run.rows, reason="NETFILTER_DROP") == 3 * NUMBER
    by_time: dict[str, list[int]] = {}
    for row in run.rows:
        by_time.setdefault(row["time"], []).append(row["count"])
    assert all(counts == sorted(counts, reverse=True) for counts in by_time.values())


def test_text_fits_80_columns_and_explains(netbpf: Any, two_hosts: tuple[Host, Host]) -> None:
    left, right = two_hosts
    options = ("--netns", right.inode, "--port", CLOSED, "--explain", "--events")
    with netbpf("skbdrop", *options, json_lines=False) as run:
        send(left, right, 3)
    head, *lines = run.stdout.splitlines()
    assert head.split() == "PID REASON PROTO SADDR:SPORT DADDR:DPORT".split()
    assert all(len(line) <= 80 for line in (head, *lines))
    assert [line.split()[:3] for line in lines[:3]] == [["-", "NO_SOCKET", "udp"]] * 3
    assert lines[3] == ""
    assert lines[4].split() == "REASON LOCATION PROTO DEV COUNT KB".split()
    assert lines[5].split()[:1] + lines[5].split()[2:] == [
        "NO_SOCKET", "udp", right.device, "3", f"{3 * (10 + IPV4_UDP) / 1024:.2f}",
    ]  # fmt: skip
    assert "NO_SOCKET: no socket is bound to that port" in run.stderr


def test_syns_that_the_listen_queue_turns_away_are_named_as_not_seen(
    netbpf: Any, two_hosts: tuple[Host, Host]
) -> None:
    left, right = two_hosts
    with traffic.peers() as new:
        client, server = new("nb-client", left), new("nb-server", right)
        port = server.listen("ipv4", backlog=1)
        with netbpf("skbdrop", "--netns", right.inode) as run:
            with rise_of("TcpExtListenDrops", right.snmp) as rise:
                words = {"family": "ipv4", "addr": right.ipv4, "port": port, "wait": False}
                for _ in range(5):
                    client.ask("connect", id=next(traffic.ids), **words)
    assert rise[0] > 0
    notes = [note for note in run.summary["notes"] if "TcpExt.ListenDrops" in note]
    assert len(notes) == 1 and "not seen" in notes[0]


def test_loss_is_counted_where_there_are_more_rows_than_entries(
    netbpf: Any, two_hosts: tuple[Host, Host]
) -> None:
    left, right = two_hosts
    options = ("--netns", right.inode, "-4", "--map-entries", 1, "--fail-on-loss")
    with netbpf("skbdrop", *options, returncode=3) as run:
        with right.dropping(f"udp dport {CLOSED + 1}"):
            send(left, right, 1)
            send(left, right, NUMBER, CLOSED + 1)
    shown = total(run.rows)
    assert run.summary["lost"]["map_full"] >= 1 + NUMBER - shown > 0
    assert run.summary["complete"] is False


# --- whatever the kind of probe ------------------------------------------------------------------


def datagrams(stage: Stage, run: Run) -> None:
    send(stage.left, stage.right, 23)


def dropped(run: Run, lost: set[str]) -> Counter[Any]:
    return Counter(plain(event, lost) for event in run.events if event["dport"] == CLOSED)


ALTERNATIVES = Case(lambda s: ("--events", "--netns", s.right.inode), datagrams, dropped)
