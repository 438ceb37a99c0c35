"""Warnings and notes about listeners that lose connections."""

from __future__ import annotations

from typing import Any

import pytest

from netbpf.declare.backlog import unattributed, warn

ROW = {
    "laddr": "10.0.0.1", "lport": 80, "pid": 23, "comm": "web", "netns": 1, "dropped": 3,
    "dropped_total": 7, "accept_limit": 5, "accept_max": 0, "syn_max": 0, "somaxconn": 4096,
    "syn_backlog": 512, "syncookies": 1,
}  # fmt: skip


def said(**changes: Any) -> str:
    ((_, sentence),) = warn([{**ROW, **changes}], {})
    return sentence


@pytest.mark.parametrize(
    ("changes", "head", "words"),
    [
        ({"accept_max": 6}, "OVERFLOW", "its accept queue of 5 is full"),
        ({"accept_max": 5}, "DROPS", "neither queue was seen full"),
        ({"syn_max": 5, "syncookies": 0}, "OVERFLOW", "its SYN queue is full"),
        ({"syn_max": 4, "syncookies": 0}, "DROPS", "neither queue was seen full"),
        ({"syn_max": 5}, "DROPS", "neither queue was seen full"),  # cookies: it drops nothing
        (
            {"syn_max": 12, "syncookies": 0, "accept_limit": 99, "syn_backlog": 16},
            "OVERFLOW",
            "SYN",
        ),
    ],
)
def test_only_a_queue_that_was_full_overflows(
    changes: dict[str, Any], head: str, words: str
) -> None:
    sentence = said(**changes)
    assert sentence.startswith(f"{head}: the listener on 10.0.0.1 port 80 (web, pid 23) dropped 3 ")
    assert "(since the start 7)" in sentence and words in sentence


def test_limit_of_the_namespace_is_named_where_it_is_in_the_way() -> None:
    assert "raise its backlog in listen()" in said(accept_max=6)
    assert "raise net.core.somaxconn (now 5)" in said(accept_max=6, somaxconn=5)


@pytest.mark.parametrize("dropped", [0, None])
def test_nothing_lost_or_not_known_is_no_alarm(dropped: int | None) -> None:
    assert list(warn([{**ROW, "dropped": dropped}], {})) == []


def test_losses_that_cannot_be_attributed_are_a_note() -> None:
    summary = {"counters": {"TcpExt.ListenDrops": 4}, "probes": [{"name": "dropped", "kind": None}]}
    (note,) = unattributed(summary, {})
    assert "ListenDrops +4" in note
    summary["probes"] = [{"name": "dropped", "kind": "rawtp"}]
    assert unattributed(summary, {}) == []
