"""Sizes of packets, as netbpf's netsize and its peer tell them."""

from __future__ import annotations

from typing import Any, NamedTuple

import peer_tools
import pytest
from harness import Run
from packets import datagrams
from peer_tools import Record, Tool, at_fault, book, tools, watched
from topology import Host

# The peer counts what all namespaces send: of this size nothing else is under way.
SIZE, NUMBER = 50_000, 137
BUCKET = 32768
# bpftrace's names for three of our points; the fourth is only that of drivers with NAPI GRO.
POINTS = {"stack_recv": "recv_bytes", "stack_send": "send_bytes", "nic_send": "nic_send_bytes"}


class Sizes(NamedTuple):
    """What was said of the datagrams: {map: {lower bound: packets}} by the peer."""

    tool: Tool
    run: Run
    maps: dict[str, dict[int, int]]

    def ours(self, point: str) -> dict[int, int]:
        """Return {lower bound: packets} of a point."""
        (found,) = [h for h in self.run.histograms if h["key"]["point"] == point]
        return {bucket["low"]: bucket["count"] for bucket in found["buckets"] if bucket["count"]}


@pytest.fixture(**tools(book("netsize")))
def sizes(request: Any, one_host: Host, tmp_path_factory: pytest.TempPathFactory) -> Sizes:
    words = ("netsize", "--netns", one_host.namespace)
    with watched(request.param, tmp_path_factory, *words) as (peer, run):
        with datagrams(one_host, one_host) as pair:
            pair.send([SIZE] * NUMBER)
        run.stop()
        peer.stop()
    return Sizes(request.param, run, peer_tools.maps(peer.text))


@pytest.mark.parametrize("point", POINTS)
def test_netsize_counts_the_packets_that_its_peer_counts(sizes: Sizes, point: str) -> None:
    assert sizes.ours(point) == {BUCKET: NUMBER}
    assert sizes.maps[POINTS[point]][BUCKET] == NUMBER


def test_netsize_counts_what_devices_without_gro_receive(sizes: Sizes, record: Record) -> None:
    assert sizes.ours("nic_recv") == {BUCKET: NUMBER}
    theirs = sizes.maps.get("nic_recv_bytes", {})
    at_fault(sizes.tool, theirs.get(BUCKET, 0) < NUMBER, theirs, record)
