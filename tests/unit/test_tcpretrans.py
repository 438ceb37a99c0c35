"""tcpretrans: what the kernel counted and showed to no program is told as lost."""

from __future__ import annotations

import pytest

from netbpf.tools.tcpretrans import unseen


@pytest.mark.parametrize(
    ("segs", "fails", "seen", "seen_fails", "lacking", "hidden"),
    [
        (5, 0, 5, 0, (), 0),
        (5, 0, 4, 0, (), 1),
        (5, 4, 1, 4, (), 0),
        (5, 4, 1, 3, (), 1),
        (5, 4, 0, 3, (), 2),
        (5, 4, 1, 0, ("err",), 0),  # before 6.17 failures are only counted
        (5, 4, 0, 0, ("err",), 1),
        (5, 0, 6, 1, (), 0),  # begun before the counters were read; failed before being counted
        (5, 2, 9, 0, (), 2),  # one that was seen twice makes good for nothing else
    ],
)
def test_what_the_kernel_counted_and_did_not_show(segs, fails, seen, seen_fails, lacking, hidden):
    counters = {"Tcp.RetransSegs": segs, "TcpExt.TCPRetransFail": fails}
    totals = {"segs": 0, "failed": 0, "in_namespace": seen, "failed_there": seen_fails}
    assert unseen(totals, counters, set(lacking)) == hidden


def test_without_counters_nothing_is_known():
    assert unseen({"in_namespace": 3, "failed_there": 0}, {}, set()) == 0
