"""netsize counts what the devices themselves count, packet by packet and byte by byte."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import packets
import pytest
import traffic
from alternatives import Case, Stage
from compared import compares
from harness import SLOW, Json, Run, wait_until
from packets import LINK_HEADER, datagrams, log2_buckets
from topology import Host
from traffic import Peer

SIZES = (0, 1, 7, 64, 99, 512, 1024, 1400, 1452)  # the last fills an IPv6 packet
BULK = 4_000_037
POINTS = ("nic_recv", "stack_recv", "stack_send", "nic_send")


def of(run: Run, point: str, device: str) -> list[Json]:
    """The histograms of one point of one device."""
    return [h for h in run.histograms if (h["key"]["point"], h["key"]["dev"]) == (point, device)]


def total(run: Run, point: str, device: str) -> dict[str, int]:
    """Count and bytes of one point of one device, over all intervals."""
    found = of(run, point, device)
    return {"packets": sum(h["count"] for h in found), "bytes": sum(h["sum"] for h in found)}


def only(run: Run, point: str, device: str) -> Json:
    """The one histogram of a point of a device."""
    (found,) = of(run, point, device)
    return dict(found)


def devices(run: Run) -> set[str]:
    return {histogram["key"]["dev"] for histogram in run.histograms}


def rise(before: dict[str, int], after: dict[str, int], way: str, header: int) -> dict[str, int]:
    """What a device counted meanwhile, without its link headers; `way` is rx or tx."""
    grown = {name: after[name] - before[name] for name in before}
    count = grown[f"{way}_packets"]
    return {"packets": count, "bytes": grown[f"{way}_bytes"] - header * count}


@pytest.fixture(scope="module")
def pair(two_hosts: tuple[Host, Host]) -> Iterator[tuple[Peer, Peer]]:
    """A client and a server of TCP."""
    left, right = two_hosts
    with traffic.peers() as start:
        client, server = start("nb-client", left), start("nb-server", right)
        server.listen("ipv4")
        yield client, server


# --- counts and bytes ----------------------------------------------------------------------------


@compares("netsize", "dev", shape="histogram")
def test_veth_counts_and_bytes_equal_the_devices_own(
    netbpf: Any, two_hosts: tuple[Host, Host], pair: tuple[Peer, Peer]
) -> None:
    left, right = two_hosts
    before = left.device_counters(), right.device_counters()
    with netbpf("netsize") as run:
        for family in (socket.AF_INET, socket.AF_INET6):
            with datagrams(left, right, family) as up, datagrams(right, left, family) as down:
                up.send(SIZES * 11)
                down.send(SIZES * 7)
        session = traffic.connect(*pair)
        session.transfer(up=100003, down=1234)
        session.end()
    after = left.device_counters(), right.device_counters()
    for host, was, now in zip(two_hosts, before, after):
        sent, received = (rise(was, now, way, LINK_HEADER) for way in ("tx", "rx"))
        assert sent["packets"] > 100 and received["packets"] > 100
        assert total(run, "nic_send", host.device) == sent
        assert total(run, "stack_send", host.device) == sent
        assert total(run, "stack_recv", host.device) == received
        assert total(run, "nic_recv", host.device) == received


def test_loopback_counts_and_bytes_equal_the_devices_own(netbpf: Any, one_host: Host) -> None:
    before = one_host.device_counters()
    # Every namespace has a device of this name.
    with netbpf("netsize", "-i", "lo", "--netns", one_host.namespace) as run:
        for family in (socket.AF_INET, socket.AF_INET6):
            with datagrams(one_host, one_host, family) as pair:
                pair.send([*SIZES, 60000])
    after = one_host.device_counters()
    # loopback_xmit() counts after it has taken the link header off.
    sent, received = (rise(before, after, way, 0) for way in ("tx", "rx"))
    assert sent == received
    assert sent["packets"] == 2 * len(SIZES) + 2
    assert total(run, "nic_send", "lo") == sent
    assert total(run, "stack_send", "lo") == sent
    assert total(run, "stack_recv", "lo") == received
    assert total(run, "nic_recv", "lo") == received


@compares("netsize", "buckets", "count", "sum", "percentiles", shape="histogram")
def test_each_packet_is_in_its_bucket_and_the_percentiles_bound_it(
    netbpf: Any, two_hosts: tuple[Host, Host]
) -> None:
    left, _ = two_hosts
    lengths = []
    with netbpf("netsize", "-i", left.device) as run:
        for family in (socket.AF_INET, socket.AF_INET6):
            with datagrams(*two_hosts, family) as pair:
                lengths += pair.send([*SIZES * 3, *[1400] * 23])
    lengths.sort()
    for point in ("stack_send", "nic_send"):
        found = only(run, point, left.device)
        buckets = {(b["low"], b["high"]): b["count"] for b in found["buckets"] if b["count"]}
        assert buckets == log2_buckets(lengths)
        assert (found["count"], found["sum"]) == (len(lengths), sum(lengths))
        assert found["unit"] == "bytes"
        for percent in (50, 90, 99):
            exact = lengths[-(-len(lengths) * percent // 100) - 1]
            # A percentile is known as far as its bucket: it is given as one of the bounds.
            (bounds,) = log2_buckets([exact])
            assert found["percentiles"][f"p{percent}"] in bounds


# --- which device --------------------------------------------------------------------------------


def test_device_filter_shows_that_device_alone_and_how_it_receives(
    netbpf: Any, two_hosts: tuple[Host, Host]
) -> None:
    left, right = two_hosts
    with netbpf("netsize", "-i", right.device) as run, datagrams(left, right) as pair:
        lengths = pair.send(SIZES)
    assert devices(run) == {right.device}
    wanted = {"packets": len(lengths), "bytes": sum(lengths)}
    assert total(run, "stack_recv", right.device) == wanted
    # veth's receiver does not use NAPI: another probe covers it, and the summary says which.
    assert total(run, "nic_recv", right.device) == wanted
    (note,) = [note for note in run.summary["notes"] if right.device in note]
    assert "GRO" in note and "netif_rx" in note
    assert run.summary["events"] == 2 * len(lengths)  # nic_recv and stack_recv
    assert not any(run.summary["lost"].values())
    assert run.summary["complete"] is True


def test_device_without_traffic_shows_nothing(
    netbpf: Any, two_hosts: tuple[Host, Host], one_host: Host
) -> None:
    with netbpf("netsize", "-i", "lo", "--netns", two_hosts[0].namespace) as run:
        with datagrams(one_host, one_host) as pair:
            pair.send(SIZES)
    assert run.histograms == []
    assert run.summary["events"] == 0


def test_namespace_filter_shows_its_devices_and_no_other(
    netbpf: Any, two_hosts: tuple[Host, Host]
) -> None:
    left, right = two_hosts
    with netbpf("netsize", "--netns", left.inode) as run, datagrams(left, right) as pair:
        pair.send(SIZES)
    assert devices(run) == {left.device}


@compares("netsize", "netns", shape="histogram")
def test_namespace_of_a_device_is_the_one_that_it_is_in(
    netbpf: Any, two_hosts: tuple[Host, Host]
) -> None:
    """The truth is the number that the directory of the namespace has, and `ls -i` shows."""
    left, right = two_hosts
    with netbpf("netsize", "-i", f"{left.device},{right.device}") as run:
        with datagrams(left, right) as pair:
            pair.send(SIZES)
    where = {(h["key"]["dev"], h["key"]["netns"]) for h in run.histograms}
    there = {host.device: int(host.run("stat", "-Lc%i", "/proc/self/ns/net")) for host in two_hosts}
    assert where == set(there.items()) and len(set(there.values())) == 2


# --- merging -------------------------------------------------------------------------------------


@compares("netsize", "wire_packets", "wire_bytes", "merge_factor", shape="histogram")
def test_segmentation_offload_shows_as_merging_and_as_packets_on_the_wire(
    netbpf: Any, two_hosts: tuple[Host, Host], pair: tuple[Peer, Peer]
) -> None:
    left, _ = two_hosts
    before = segments_sent(left)
    with netbpf("netsize", "-i", left.device) as run:
        session = traffic.connect(*pair)
        session.transfer(up=BULK)
        session.end()
    segments = segments_sent(left) - before
    found = only(run, "nic_send", left.device)
    assert found["count"] < segments / 2
    # TCP itself counts the segments that its large packets stand for.
    assert found["wire_packets"] == segments
    assert found["merge_factor"] == pytest.approx(merging(found), rel=0.01)
    assert found["merge_factor"] > 2


def segments_sent(host: Host) -> int:
    counters = host.snmp()
    return counters["TcpOutSegs"] + counters["TcpRetransSegs"]


def merging(found: Json) -> float:
    """Bytes per packet in the stack over bytes per packet on the wire."""
    return float((found["sum"] / found["count"]) / (found["wire_bytes"] / found["wire_packets"]))


def veth_merges() -> bool:
    """Whether the switch `gro` of a veth device has an effect: since 5.13 (d3256efd8e8b)."""
    return " veth_set_features" in Path("/proc/kallsyms").read_text()


def test_merging_in_software_shows_between_the_stack_and_the_device(
    netbpf: Any, two_hosts: tuple[Host, Host], pair: tuple[Peer, Peer]
) -> None:
    left, right = two_hosts
    devices = f"{left.device},{right.device}"
    # GSO cuts before the device, GRO merges behind it, and between them all packets are small.
    with packets.offload(left, "tso", False), packets.offload(right, "gro", True):
        before, counted = segments_sent(left), right.device_counters()
        with netbpf("netsize", "-i", devices) as run:
            session = traffic.connect(*pair)
            session.transfer(up=BULK)
            session.end()
        sent = segments_sent(left) - before
    # A slow receiver's ring of 256 may overflow in between: veth then drops, and counts it as sent.
    received = rise(counted, right.device_counters(), "rx", LINK_HEADER)["packets"]
    assert sent / 2 < received <= sent
    for point, host, segments in (("nic_send", left, sent), ("nic_recv", right, received)):
        found = only(run, point, host.device)
        assert (found["count"], found["wire_packets"]) == (segments, segments)
        assert found["merge_factor"] == 1
    for point, host, segments in (("stack_send", left, sent), ("stack_recv", right, received)):
        found = only(run, point, host.device)
        assert found["wire_packets"] == segments
        assert found["merge_factor"] == pytest.approx(merging(found), rel=0.01)
        assert (found["merge_factor"] > 2) == (point == "stack_send" or veth_merges())


@compares("netsize", "average", "small_share", shape="histogram")
def test_small_packets_are_told_apart(netbpf: Any, two_hosts: tuple[Host, Host]) -> None:
    left, right = two_hosts
    with netbpf("netsize", "-i", left.device) as run, datagrams(left, right) as pair:
        # 128 bytes are the first that is not small; the header has 28.
        lengths = pair.send([10] * 53 + [99] * 24 + [100] * 13 + [1400] * 11)
    found = only(run, "nic_send", left.device)
    small = sum(length < 128 for length in lengths)
    assert small == 77
    assert found["small_share"] == pytest.approx(small / len(lengths), abs=0.001)
    assert found["average"] == pytest.approx(sum(lengths) / len(lengths), abs=0.1)


# --- the entry that most devices use -------------------------------------------------------------


@compares("netsize", "entry", shape="histogram")
def test_device_that_passes_the_gro_entry_is_counted_there(
    netbpf: Any, two_hosts: tuple[Host, Host]
) -> None:
    left, right = two_hosts
    # veth uses GRO only for what its other end has not merged already.
    with packets.offload(left, "tso", False), packets.offload(right, "gro", True):
        with netbpf("netsize", "-i", right.device) as run, datagrams(left, right) as pair:
            lengths = pair.send(SIZES)
    wanted = {"packets": len(lengths), "bytes": sum(lengths)}
    assert total(run, "nic_recv", right.device) == wanted
    assert total(run, "stack_recv", right.device) == wanted
    entry = "napi_gro_receive" if veth_merges() else "netif_rx"
    assert only(run, "nic_recv", right.device)["entry"] == [entry]
    # What does not pass the usual entry is said.
    assert veth_merges() != any(right.device in note for note in run.summary["notes"])


# --- intervals -----------------------------------------------------------------------------------


@compares("netsize", "point", shape="histogram")
def test_intervals_add_up_to_the_whole(netbpf: Any, two_hosts: tuple[Host, Host]) -> None:
    left, right = two_hosts
    lengths = []
    with netbpf("netsize", "0.2", "-i", left.device) as run, datagrams(left, right) as pair:
        for wanted in (1, 2, 3):
            lengths += pair.send(SIZES)
            wait_until(lambda: len(stamps(run)) >= wanted, what="the end of an interval")  # noqa: B023
    assert len(stamps(run)) == 3  # an interval in which nothing passed has no histogram
    assert total(run, "nic_send", left.device) == {"packets": len(lengths), "bytes": sum(lengths)}
    counted = Counter(h["key"]["point"] for h in run.histograms)
    assert set(counted) <= set(POINTS)


def stamps(run: Run) -> set[str]:
    return {histogram["time"] for histogram in run.histograms}


def test_count_ends_the_run_after_so_many_intervals(
    netbpf: Any, two_hosts: tuple[Host, Host]
) -> None:
    left, right = two_hosts
    with netbpf("netsize", "0.2", "3", "-i", left.device) as run, datagrams(left, right) as pair:
        lengths = pair.send(SIZES)
        assert run.wait_end() == 0
    assert 0.6 <= run.summary["seconds"] < 0.6 + 1 * SLOW
    assert total(run, "nic_send", left.device)["packets"] == len(lengths)


# --- whatever the kind of probe ------------------------------------------------------------------


def bulk(stage: Stage, run: Run) -> None:
    session = traffic.connect(stage.client, stage.server)
    session.transfer(up=1_000_003, down=1234)
    session.end()


def sizes(run: Run, lost: set[str]) -> Any:
    found = {tuple(h["key"].values()): (h["count"], h["sum"], h["buckets"]) for h in run.histograms}
    return sorted(found.items())


ALTERNATIVES = Case(lambda s: ("--netns", s.right.inode), bulk, sizes)
