"""Where packets spend their time: order of stages, the slowest of them, what is said."""

from __future__ import annotations

import pytest

from netbpf.declare import lifetimes
from netbpf.errors import UsageError


def one(dev, stage, count=2, total=8):
    return {"key": {"dev": dev, "way": "rx", "stage": stage}, "count": count, "sum": total}


def test_stages_follow_each_other_as_on_the_way():
    found = [one(dev, stage) for dev in ("lo", "eth0") for stage in ("total", "stack", "socket")]
    found.append(one("lo", "device"))
    found.sort(key=lifetimes.order)
    assert [(h["key"]["dev"], h["key"]["stage"]) for h in found] == [
        ("eth0", "stack"), ("eth0", "socket"), ("eth0", "total"),
        ("lo", "device"), ("lo", "stack"), ("lo", "socket"), ("lo", "total"),
    ]  # fmt: skip


def test_average_share_and_what_was_discarded():
    found = lifetimes.describe(one("lo", "driver"), {"total_us": 32, "discarded": 1})
    assert (found["average"], found["share"], found["discarded"]) == (4, 0.25, 1)
    assert found["headline"] == "2 packets, average 4 us, 25% of their time, 1 discarded"
    nothing = lifetimes.describe(one("lo", "socket", total=0), {"total_us": 0, "discarded": 0})
    assert nothing["share"] is None
    assert nothing["headline"] == "2 packets, average 0 us"


def test_stage_in_which_a_packet_was_longest():
    times = {"device_us": 3, "stack_us": 5, "socket_us": 4, "total_us": 12}
    assert lifetimes.slowest(times, {})["stage"] == "stack"


def test_notes_on_what_no_distribution_has():
    summary = {"totals": {"unknown": 7, "virtual": 0}}
    (note,) = lifetimes.notes(summary, {"tx": False})
    assert note.startswith("7 packets were read")
    summary = {"totals": {"unknown": 0, "virtual": 5}}
    (note,) = lifetimes.notes(summary, {"tx": True})
    assert note.startswith("5 packets to devices without hardware")


def test_sent_packets_have_no_process():
    key = type("Key", (), {"name": "comm"})
    settings = {"by": [key], "tx": True, "interface": None, "stage": ["qdisc", "total"]}
    with pytest.raises(UsageError, match="no process is known"):
        lifetimes.constants(settings)
    assert "FILTER_STAGE(x)" in lifetimes.constants({**settings, "tx": False})
