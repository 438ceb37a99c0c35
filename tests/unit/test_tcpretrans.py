"""tcpretrans: rows of sessions, and segments that the kernel counted and no program saw."""

from __future__ import annotations

import pytest

from netbpf.declare.retransmissions import count_unseen, flow_rows


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
    assert count_unseen(totals, counters, set(lacking)) == hidden


def test_without_counters_nothing_is_known():
    assert count_unseen({"in_namespace": 3, "failed_there": 0}, {}, set()) == 0


def session(port, pid=0, comm=None, **sums):
    ends = {"pid": pid, "netns": 1, "lport": port, "rport": 9, "comm": comm, "family": 4}
    none = dict.fromkeys(("segs", "failed", "retrans", "sent"), 0)
    return {}, {**ends, "laddr": "10.0.0.1", "raddr": "10.0.0.2", **none, **sums}


def test_connections_between_the_same_ends_are_one_row():
    first = session(1, 7, "one", segs=3, retrans=2, sent=5)
    unowned = session(1, segs=1, retrans=1, sent=2)
    last = session(1, 8, "two", segs=2, retrans=1, sent=1)
    (row,) = flow_rows([first, last, unowned], {})
    assert (row["pid"], row["comm"], row["retransmits"], row["sent"]) == (8, "two", 6, 8)
    assert row["share"] == 0.5  # what the sockets count, not what was seen here


def test_a_request_counts_nothing_that_was_sent():
    (row,) = flow_rows([session(1, segs=2)], {})
    assert (row["retransmits"], row["sent"], row["share"]) == (2, None, None)


def test_rows_come_by_retransmissions_then_by_failures():
    groups = [session(1, failed=1), session(2, segs=1), session(3, failed=5), session(4, segs=2)]
    assert [row["lport"] for row in flow_rows(groups, {})] == [4, 2, 3, 1]
