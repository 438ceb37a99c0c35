"""netsize beside what devices count themselves: stacked devices, tunnels, ways around its points.

The truth is the devices' own counters (/proc/net/dev of their namespace), what the sender handed to
the kernel, and TCP's own count of segments.
"""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import packets
import pytest
import traffic
from compared import compares
from harness import Json, Run
from packets import LINK_HEADER, datagrams
from topology import Host, must, two_hosts

SOL_PACKET, PACKET_QDISC_BYPASS = 263, 20
BULK = 3_000_017
FUNCTIONS = {line.split()[2] for line in Path("/proc/kallsyms").read_text().splitlines()}
# Devices that others hand packets to, as far as this kernel has them, by a function of theirs.
STACKED = {"macvlan": "macvlan_handle_frame", "vlan": "vlan_dev_hard_header"}


def only(run: Run, point: str, device: str) -> Json:
    """The one histogram of a point of a device."""
    (found,) = [
        h for h in run.histograms if (h["key"]["point"], h["key"]["dev"]) == (point, device)
    ]
    return dict(found)


def count(run: Run, point: str, device: str) -> int:
    found = [h for h in run.histograms if (h["key"]["point"], h["key"]["dev"]) == (point, device)]
    return sum(h["count"] for h in found)


def own(run: Run, host: Host, device: str) -> Json:
    """What the summary has of a device's own counters."""
    (found,) = [
        one for one in run.summary["devices"] if (one["netns"], one["dev"]) == (host.inode, device)
    ]
    return dict(found)


def ip(host: Host, *words: object) -> str:
    return must("ip", "-n", host.namespace, *words)


def set_up(host: Host, device: str, address: str) -> None:
    ip(host, "link", "set", device, "addrgenmode", "none")
    ip(host, "address", "add", address, "dev", device)
    ip(host, "link", "set", device, "up")


def introduce(host: Host, device: str, other: Host, others: str, address: str) -> None:
    (link,) = json.loads(ip(other, "-j", "link", "show", others))
    words = ("lladdr", link["address"], "dev", device, "nud", "permanent")
    ip(host, "neighbour", "replace", address, *words)


@contextlib.contextmanager
def stacked(kind: str) -> Iterator[tuple[Host, Host, Host]]:
    """Two hosts whose devices have another one each on top: the hosts, and the upper ones' ends."""
    options = {"vlan": ("id", "42"), "macvlan": ("mode", "bridge")}[kind]
    with two_hosts() as (left, right):
        upper = [
            Host(left.namespace, "up0", "10.92.0.1", "fd00:92::1"),
            Host(right.namespace, "up1", "10.92.0.2", "fd00:92::2"),
        ]
        for host, end in zip((left, right), upper):
            words = ("link", host.device, "name", end.device, "type", kind, *options)
            ip(end, "link", "add", *words)
            set_up(end, end.device, f"{end.ipv4}/24")
        for end, other in (upper, upper[::-1]):
            introduce(end, end.device, other, other.device, other.ipv4)
        yield right, upper[0], upper[1]


# --- devices behind another one -------------------------------------------------------------------


@compares("netsize", "devices", shape="summary")
@pytest.mark.parametrize(
    "kind", [kind for kind, function in STACKED.items() if function in FUNCTIONS]
)
@pytest.mark.parametrize("filtered", [False, True], ids=["all", "filtered"])
def test_what_another_device_hands_over_is_counted_or_named(
    netbpf: Any, kind: str, filtered: bool
) -> None:
    with stacked(kind) as (lower, left, right):
        options = ("-i", f"lo,{right.device}") if filtered else ()
        before = right.device_counters(), lower.device_counters()
        with netbpf("netsize", "--netns", right.inode, *options) as run:
            with datagrams(left, right) as pair:
                pair.send([300] * 37)
        after = right.device_counters(), lower.device_counters()
        found = own(run, right, right.device)
        below = None if filtered else own(run, lower, lower.device)
    received = after[0]["rx_packets"] - before[0]["rx_packets"]
    assert received == 37
    assert found["received"] == received
    assert count(run, "nic_recv", right.device) + found["received_unseen"] == received
    # What is not in the distribution is named, in that run.
    notes = [
        note for note in run.summary["notes"] if right.device in note and "passed no probe" in note
    ]
    assert len(notes) == (1 if found["received_unseen"] else 0)
    assert all(f" {found['received_unseen']} packets" in note for note in notes)
    if below:
        lower_rise = after[1]["rx_packets"] - before[1]["rx_packets"]
        assert count(run, "nic_recv", lower.device) == lower_rise >= received
        assert below["received_unseen"] == 0


def test_bridge_receives_by_the_direct_entry_as_often_as_it_counts(netbpf: Any) -> None:
    with two_hosts() as (left, right):
        bridge = Host(right.namespace, "br0", "10.93.0.2")
        ip(right, "link", "add", bridge.device, "type", "bridge")
        ip(right, "link", "set", right.device, "master", bridge.device)
        set_up(bridge, bridge.device, f"{bridge.ipv4}/24")
        sender = Host(left.namespace, left.device, "10.93.0.1")
        ip(left, "address", "add", f"{sender.ipv4}/24", "dev", left.device)
        introduce(sender, left.device, bridge, bridge.device, bridge.ipv4)
        introduce(bridge, bridge.device, sender, left.device, sender.ipv4)
        before = bridge.device_counters()
        with netbpf("netsize", "--netns", right.inode) as run:
            with datagrams(sender, bridge) as pair:
                lengths = pair.send([10, 20, 999])
        rise = bridge.device_counters()["rx_packets"] - before["rx_packets"]
        unseen = own(run, bridge, bridge.device)["received_unseen"]
    found = only(run, "nic_recv", bridge.device)
    assert found["count"] == rise == len(lengths)
    assert found["sum"] == sum(lengths)
    assert found["entry"] == ["netif_receive_skb"]
    assert unseen == 0


# --- around the points ----------------------------------------------------------------------------


def test_sends_around_the_queueing_discipline_are_named_with_their_number(netbpf: Any) -> None:
    with two_hosts() as (left, right):
        before = left.device_counters()
        with netbpf("netsize", "--netns", left.inode) as run:
            frame = b"\x02\0\0\0\0\x99" + b"\x02\0\0\0\0\x01" + b"\x12\x34" + bytes(200)
            for bypass, number in ((0, 30), (1, 53)):
                with left.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
                    sender.setsockopt(SOL_PACKET, PACKET_QDISC_BYPASS, bypass)
                    sender.bind((left.device, 0))
                    for _ in range(number):
                        sender.send(frame)
        rise = left.device_counters()["tx_packets"] - before["tx_packets"]
        found = own(run, left, left.device)
    assert rise == 30 + 53
    assert (found["sent"], found["sent_unseen"]) == (83, 53)
    assert count(run, "nic_send", left.device) == 30
    (note,) = [note for note in run.summary["notes"] if "PACKET_QDISC_BYPASS" in note]
    assert left.device in note and " 53 packets" in note


def test_nothing_is_named_where_nothing_is_missing(netbpf: Any) -> None:
    with two_hosts() as (left, right):
        with netbpf("netsize", "-i", f"{right.device},{left.device}") as run:
            with datagrams(left, right) as pair:
                pair.send([100] * 11)
        found = [own(run, host, host.device) for host in (left, right)]
    assert [(one["received_unseen"], one["sent_unseen"]) for one in found] == [(0, 0), (0, 0)]
    assert not [note for note in run.summary["notes"] if "passed no probe" in note]


def test_full_map_counts_each_packet_that_has_no_room(netbpf: Any) -> None:
    with two_hosts() as (left, right):
        options = ("-i", right.device, "--map-entries", 1, "--fail-on-loss")
        with netbpf("netsize", *options, returncode=3) as run, datagrams(left, right) as pair:
            pair.send([100] * 11)
    # Each packet passes two points, and one of them has the room.
    assert [histogram["count"] for histogram in run.histograms] == [11]
    assert run.summary["lost"]["map_full"] == 11
    assert run.summary["complete"] is False


# --- tunnels --------------------------------------------------------------------------------------

# Bytes in front of the inner network header: outer IP, then what the tunnel adds.
TUNNELS = {"vxlan": 20 + 8 + 8 + LINK_HEADER, "geneve": 20 + 8 + 8 + LINK_HEADER,
           "gre": 20 + 4, "ipip": 20}  # fmt: skip


def tunnel(kind: str, host: Host, other: Host) -> Host:
    ends = ("remote", other.ipv4) if kind == "geneve" else (
        "local", host.ipv4, "remote", other.ipv4)  # fmt: skip
    more = {"vxlan": ("id", 42, "dstport", 4789), "geneve": ("id", 42)}.get(kind, ())
    ip(host, "link", "add", "tun1", "mtu", 1400, "type", kind, *more, *ends)
    end = Host(host.namespace, "tun1", f"10.94.0.{host.ipv4[-1]}")
    set_up(end, end.device, f"{end.ipv4}/24")
    return end


def kinds_here() -> list[str]:
    """The tunnels that this kernel was built with."""
    found = []
    for kind in TUNNELS:
        with two_hosts() as (left, right), contextlib.suppress(AssertionError):
            tunnel(kind, left, right)
            found.append(kind)
    return found


def test_wire_estimate_repeats_the_headers_of_tunnels(netbpf: Any) -> None:
    kinds = kinds_here()
    assert "vxlan" in kinds
    for kind in kinds:
        check_tunnel(netbpf, kind)


def check_tunnel(netbpf: Any, kind: str) -> None:
    with two_hosts() as (left, right), traffic.peers() as start:
        ends = [tunnel(kind, left, right), tunnel(kind, right, left)]
        if kind in ("vxlan", "geneve"):
            for end, other in (ends, ends[::-1]):
                introduce(end, end.device, other, other.device, other.ipv4)
        client, server = start("nb-client", ends[0]), start("nb-server", ends[1])
        server.listen("ipv4")
        before = segments(left)
        with netbpf("netsize", "--netns", left.inode, "-i", f"tun1,{left.device}") as run:
            session = traffic.connect(client, server)
            session.transfer(up=BULK)
            session.end()
        sent = segments(left) - before
    inner, outer = (only(run, "nic_send", device) for device in ("tun1", left.device))
    # TCP counts its segments; each has 20 bytes of IP and 32 of TCP with its timestamp, the SYN 8
    # more.
    assert (kind, inner["wire_packets"]) == (kind, sent)
    assert (kind, inner["wire_bytes"]) == (kind, BULK + sent * 52 + 8)
    assert (kind, outer["wire_packets"]) == (kind, sent)
    assert (kind, outer["wire_bytes"]) == (kind, inner["wire_bytes"] + sent * TUNNELS[kind])
    if kind == "vxlan":  # others may be cut before the device
        assert outer["merge_factor"] > 2


def segments(host: Host) -> int:
    counters = host.snmp()
    return counters["TcpOutSegs"] + counters["TcpRetransSegs"]


def test_wire_estimate_of_udp_segmentation_repeats_its_headers(netbpf: Any) -> None:
    size, number = 1000, 7
    with two_hosts() as (left, right), packets.datagrams(left, right) as pair:
        with netbpf("netsize", "--netns", left.inode) as run:
            pair.segmented(size, size * number - 1)
    found = only(run, "nic_send", left.device)
    assert found["wire_packets"] == number
    assert found["wire_bytes"] == size * number - 1 + number * packets.IPV4_UDP
