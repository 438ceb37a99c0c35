"""tcpsynbl: in which order its rows come, and which queue its advice names."""

from __future__ import annotations

import pytest

from netbpf.declare.backlog import advice
from netbpf.tools.tcpsynbl import TOOL, ListenerRow

NOTHING = {column.name: 0 for column in ListenerRow.columns}


def test_those_that_drop_come_first_then_the_fullest_for_their_limit():
    listeners = [
        (1, {"dropped": 0, "accept_max": 50, "accept_limit": 4095}),
        (2, {"dropped": 0, "accept_max": 4, "accept_limit": 5}),
        (3, {"dropped": 1, "accept_max": 1, "accept_limit": 5}),
        (4, {"dropped": 7, "accept_max": 0, "accept_limit": 5}),
        (5, {"dropped": 0, "accept_max": 1, "accept_limit": 0}),
    ]
    groups = [({**NOTHING, "lport": port}, sums) for port, sums in listeners]
    assert [row["lport"] for row in TOOL.tables[0].build(groups, {})] == [4, 3, 5, 2, 1]


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"accept_max": 5}, ""),  # one more than the limit may wait
        ({"accept_max": 6}, "accept queue of 5 is full"),
        ({"syn_max": 5}, "SYN queue is full (5 "),
        ({"syn_max": 4}, ""),
        ({"syn_max": 9, "syncookies": 1}, ""),
        # The last quarter of tcp_max_syn_backlog is for peers that are proven.
        ({"accept_limit": 100, "syn_max": 48}, "SYN queue is full (48 "),
        ({"accept_limit": 100, "syn_max": 47}, ""),
        ({"accept_limit": 100, "syn_max": 99, "syn_backlog": 0}, ""),  # that is not known
    ],
)
def test_a_queue_is_named_if_it_was_full(more, named):
    row = {**NOTHING, "accept_limit": 5, "somaxconn": 4096, "syn_backlog": 64, **more}
    found = advice(row)
    assert named in found and bool(found) == bool(named)


@pytest.mark.parametrize(
    ("somaxconn", "raises"), [(4096, "raise its backlog"), (5, "raise net.core.somaxconn (now 5)")]
)
def test_what_limits_the_backlog_is_what_is_to_be_raised(somaxconn, raises):
    row = {**NOTHING, "accept_limit": 5, "accept_max": 6, "somaxconn": somaxconn}
    assert raises in advice(row)
