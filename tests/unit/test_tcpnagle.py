"""tcpnagle: rows of sockets, their percentile and advice, and the order of settings."""

from __future__ import annotations

import pytest

from netbpf.declare.stalls import ADVICE
from netbpf.tools.tcpnagle import TOOL, StalledRow

stalled_rows = TOOL.tables[1].build
EMPTY = {column.name: 0 for column in StalledRow.columns}


def stalled(slots, reason="nagle", rounds=0, held_us=0):
    """A socket by {slot: holds}."""
    sums = {f"slot{number}": slots.get(number, 0) for number in range(40)}
    counted = {"holds": sum(slots.values()), "held_us": held_us, "rounds": rounds}
    return {**EMPTY, "reason": reason}, {**sums, **counted}


@pytest.mark.parametrize(
    ("slots", "bound"),
    [
        ({3: 1}, 7),
        ({3: 98, 10: 1}, 1023),  # of 99 the 99th: 98 are not 99 % of them
        ({3: 99, 10: 1}, 7),
        ({3: 98, 10: 2}, 1023),
        ({0: 5}, 0),
    ],
)
def test_p99_is_the_bound_that_99_of_100_do_not_exceed(slots, bound):
    (row,) = stalled_rows([stalled(slots)], {"top": 5})
    assert row["p99_us"] == bound


@pytest.mark.parametrize(
    ("holds", "rounds", "reason", "advice"),
    [
        (2, 1, "nagle", ADVICE),
        (3, 1, "nagle", None),
        (1, 1, "nagle", None),
        (4, 4, "cork", None),
        (9, 0, "nagle", None),
    ],
)
def test_advice_is_for_writes_that_wait_for_each_other(holds, rounds, reason, advice):
    (row,) = stalled_rows([stalled({16: holds}, reason, rounds)], {"top": 5})
    assert row["advice"] == advice


def test_settings_come_by_their_sends():
    counts = {"small": 0, "held": 0}
    groups = [
        ({"setting": name}, {"sends": n, **counts})
        for name, n in (("ON", 2), ("OFF", 9), ("CORK", 3))
    ]
    table = TOOL.tables[0]
    assert [row["setting"] for row in table.build(groups, {})] == ["OFF", "CORK", "ON"]


def test_stalled_sockets_are_those_that_held_longest():
    groups = [stalled({3: holds}, held_us=us) for holds, us in ((9, 10), (1, 30), (2, 20))]
    assert [row["held_us"] for row in stalled_rows(groups, {"top": 2})] == [30, 20]
