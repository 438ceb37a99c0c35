"""skbdrop: its notes, its rows and the functions of a stack."""

from __future__ import annotations

import pytest

from netbpf.declare.drops import from_location, notes, rows
from netbpf.kernel.select import select
from netbpf.tools.skbdrop import TOOL
from tests.unit.fakes import FakeKernel

STACK = ["kfree_skb+0x1", "tcp_v4_rcv+0x91", "ip_rcv+0x2"]


def summary(rejected=(), counters=(), hidden=0, unread=0):
    return {
        "probes": [{"name": "drop", "rejected": list(rejected)}],
        "totals": {"hidden": hidden, "unread": unread},
        "counters": dict(counters),
    }


@pytest.mark.parametrize(
    ("arguments", "number"), [(("skb", "location", "reason"), 0), (("skb", "location"), 1)]
)
def test_a_kernel_without_reasons_has_a_note(arguments, number):
    (probe,) = [probe for probe in TOOL.probes if probe.name == "drop"]
    kernel = FakeKernel(raw={"kfree_skb": arguments}, takes=("rawtp", "raw_tracepoint"))
    (selection,) = select([probe], kernel, {})
    rejected = [f"{text}: {why}" for text, why in selection.rejected]
    assert len(notes(summary(rejected), {})) == number


def test_counters_that_no_probe_sees_are_notes():
    grown = {"TcpExt.ListenDrops": 3, "Device.lo.rx_errs": 0, "Raw.7.drops": 2, "Udp.NoPorts": 5}
    first, second = notes(summary(counters=grown), {})
    assert "ListenDrops +3" in first and "Raw.7.drops +2" in second


def test_a_stack_begins_with_the_function_that_dropped_the_packet():
    assert from_location(STACK, "tcp_v4_rcv+0x91") == STACK[1:]
    assert from_location(STACK, "elsewhere+0x1") == STACK
    assert from_location(None, "tcp_v4_rcv+0x91") is None


def test_rows_come_by_packets_with_an_example():
    key = {"reason": "NO_SOCKET", "location": "tcp_v4_rcv+0x91", "proto": "tcp", "dev": "lo",
           "netns": 1, "harmless": "no", "socket": "no", "stack": None}  # fmt: skip
    sums = {"bytes": 9, "sport": 1, "dport": 2, "saddr": "10.0.0.1", "daddr": "10.0.0.2"}
    entries = [
        (key, {**sums, "count": 1, "family": "ipv4"}),
        (key, {**sums, "count": 3, "family": None}),
    ]
    most, least = rows(entries, {"explain": True})
    assert (most["count"], most["example"]) == (3, None)
    assert least["example"] == "10.0.0.1:1 > 10.0.0.2:2" and "socket" in least["meaning"]
