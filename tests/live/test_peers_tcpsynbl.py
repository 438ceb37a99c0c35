"""Queues of listeners, as netbpf's tcpsynbl and its peers tell them."""

from __future__ import annotations

import contextlib
from collections import Counter
from typing import Any, NamedTuple

import peer_tools
import pytest
from harness import Json, Run
from peer_tools import Record, Tool, at_fault, bcc, book, bpftrace, libbpf, tools, watched
from test_tcpsynbl import Clients, listening, overflow, port_of
from topology import Host

SHORT, DUAL = 5, 23  # limits of listeners: one whose queue overflows, one for IPv4 and IPv6


class Queues(NamedTuple):
    """Listeners, and what was said of them: a peer's samples are {limit: {bucket: count}}."""

    tool: Tool
    ports: dict[int, int]
    run: Run
    samples: dict[int, dict[int, int]]
    text: str


@pytest.fixture(
    **tools(libbpf("tcpsynbl"), bcc("tcpsynbl"), bpftrace("tcpsynbl"), book("tcpsynbl"))
)
def queues(request: Any, one_host: Host, tmp_path_factory: pytest.TempPathFactory) -> Queues:
    words = ("tcpsynbl", "--netns", one_host.inode)
    with (
        watched(request.param, tmp_path_factory, *words) as (peer, run),
        contextlib.closing(Clients(one_host)) as clients,
        listening(one_host, SHORT) as short,
        listening(one_host, DUAL, "::", dual=True) as dual,
    ):
        ports = {SHORT: port_of(short), DUAL: port_of(dual)}
        overflow(clients, ports[SHORT], SHORT, 3)
        clients.connect(ports[DUAL], 7)
        clients.connect(ports[DUAL], 4, "::1")
        run.stop()
        peer.stop()
    samples = peer_tools.samples(peer.text)
    assert {SHORT, DUAL} <= set(samples), peer.text
    return Queues(request.param, ports, run, samples, peer.text)


def histogram(queues: Queues, limit: int) -> Json:
    (found,) = [h for h in queues.run.histograms if h["key"]["lport"] == queues.ports[limit]]
    return found


def test_tcpsynbl_has_the_samples_of_its_peers_for_an_ipv4_listener(queues: Queues) -> None:
    theirs, ours = queues.samples[SHORT], Counter[int]()
    for bucket in histogram(queues, SHORT)["buckets"]:
        # Two of the peers count a queue of 0 and one of 1 in the same bucket.
        ours[max(low for low in theirs if low <= bucket["low"])] += bucket["count"]
    assert ours == Counter({low: count for low, count in theirs.items() if count})
    assert sum(theirs.values()) == SHORT + 1


def test_tcpsynbl_tells_of_the_syns_that_a_full_queue_drops(queues: Queues, record: Record) -> None:
    (row,) = [row for row in queues.run.rows if row["lport"] == queues.ports[SHORT]]
    assert (row["handshakes"], row["dropped"]) == (SHORT + 1, 3)
    unseen = "dropping" not in queues.text and sum(queues.samples[SHORT].values()) == SHORT + 1
    at_fault(queues.tool, unseen, queues.samples[SHORT], record)


def test_tcpsynbl_counts_ipv4_handshakes_of_a_dual_stack_listener_once(
    queues: Queues, record: Record
) -> None:
    assert histogram(queues, DUAL)["count"] == 7 + 4
    theirs = sum(queues.samples[DUAL].values())
    assert theirs in (7 + 4, 2 * 7 + 4)
    at_fault(queues.tool, theirs != 7 + 4, queues.samples[DUAL], record)
