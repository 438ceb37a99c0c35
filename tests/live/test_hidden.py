"""What a kernel keeps from BPF is told as lost, and a test that lacks it is run again."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from typing import Any

import harness
import hidden
import pytest
import traffic
from topology import Host

SOCKETS = 200


@contextlib.contextmanager
def busy_init() -> Iterator[None]:
    """Give process 1 something to do: children whose parent has ended."""
    script = "while :; do for i in 1 2 3 4 5 6 7 8; do (true &); done; done"
    process = subprocess.Popen(["sh", "-c", script])
    try:
        yield
    finally:
        harness.kill(process)


def test_what_was_sent_again_is_seen_or_told_as_lost(netbpf: Any, one_host: Host) -> None:
    with traffic.peers() as new, one_host.dropping(f"tcp dport {traffic.DROPPED_PORT}"):
        client = new("nb-client", one_host)
        before = one_host.snmp()
        with netbpf("tcpretrans", "-c", "--netns", one_host.inode) as run, busy_init():
            idents = [next(traffic.ids) for _ in range(SOCKETS)]
            words = {"addr": one_host.ipv4, "port": traffic.DROPPED_PORT, "wait": False}
            for ident in idents:
                client.ask("connect", id=ident, family="ipv4", **words)
            harness.wait_until(lambda: sent_again(one_host, before) >= 2 * SOCKETS)
            for ident in idents:
                client.ask("close", id=ident, reset=True)
        sent = sent_again(one_host, before)
    summary = run.summary
    assert summary["counters"]["Tcp.RetransSegs"] == sent
    assert summary["totals"]["segs"] + summary["lost"]["unseen"] == sent
    assert summary["complete"] == (not any(summary["lost"].values()))
    if not hidden.hides_init():
        assert summary["lost"]["unseen"] <= summary["lost"]["probe_missed"]


def sent_again(host: Host, before: dict[str, int]) -> int:
    return host.snmp()["TcpRetransSegs"] - before["TcpRetransSegs"]


@pytest.mark.skipif(
    not hidden.hides_init(), reason="needs a kernel that hides process 1 from BPF: a sandbox's"
)
def test_witness_sees_what_was_hidden(netbpf: Any, one_host: Host) -> None:
    # Where it is hidden is chance: with process 1 busy it takes a few tries.
    witness = hidden.Witness()
    try:
        for _ in range(30):
            with witness.watching() as kept:
                test_what_was_sent_again_is_seen_or_told_as_lost(netbpf, one_host)
            sent = [line for line in kept if "tcp_retransmit_skb" in line]
            if sent:
                break
        assert sent
    finally:
        witness.close()
