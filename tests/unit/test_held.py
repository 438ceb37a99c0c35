"""Events that may be amended: delayed by 0.1 s, in order, and changed in place."""

from __future__ import annotations

from typing import Any

from netbpf.declare import AmendedEvent, Count
from netbpf.run.results.held import Held


class Ended(AmendedEvent):
    """An event with a value that may change."""

    cstruct = "ended"
    amended = "how"
    how = Count("how")


def row(key: int, how: int, time: int = 1) -> tuple[Any, ...]:
    return (time, key, how)


def hows(events: list[list[Any]]) -> list[int]:
    return [event[2] for event in events]


def test_members_have_the_indexes_that_this_test_uses():
    assert [member.name for member in Ended.members] == ["time", "key", "how"]


def test_event_without_a_key_is_not_delayed():
    held = Held(Ended)
    held.add([row(0, 1), row(0, 2)], now=5.0)
    assert hows(held.release(5.0)) == [1, 2]
    assert held.due == float("inf")


def test_event_with_a_key_is_delayed_and_order_is_kept():
    held = Held(Ended)
    held.add([row(16, 1), row(0, 2)], now=5.0)
    assert held.release(5.0) == []
    assert 5.0 < held.due < 5.2
    assert hows(held.release(held.due)) == [1, 2]


def test_amendment_changes_the_latest_event_with_its_key_and_is_not_an_event():
    held = Held(Ended)
    held.add([row(16, 1), row(32, 2)], now=5.0)
    held.add([row(16, 3)], now=5.001)  # another socket in the place of the first
    held.add([row(17, 9), row(33, 8)], now=5.002)
    assert hows(held.release()) == [1, 8, 9]


def test_amendment_of_a_missing_or_written_event_is_ignored():
    held = Held(Ended)
    held.add([row(16, 1)], now=5.0)
    assert hows(held.release()) == [1]
    held.add([row(17, 9), row(49, 9), row(0, 2)], now=6.0)
    assert hows(held.release()) == [2]


def test_amendment_of_another_socket_changes_no_delayed_event():
    held = Held(Ended)
    held.add([row(16, 1), row(49, 9)], now=5.0)
    assert hows(held.release()) == [1]


def test_second_event_with_a_key_can_be_amended_when_the_first_is_written():
    held = Held(Ended)
    held.add([row(16, 1)], now=5.0)
    held.add([row(16, 2)], now=5.075)
    assert hows(held.release(5.11)) == [1]
    held.add([row(17, 9)], now=5.12)
    assert hows(held.release()) == [9]


def test_amendment_from_the_map_waits_for_its_event_and_is_used_once():
    elsewhere = [{16: 7}, {}, {}]
    held = Held(Ended, lambda: elsewhere.pop(0))
    held.add([row(32, 1)], now=5.0)
    assert hows(held.release()) == [1]
    held.add([row(16, 2)], now=6.0)
    assert hows(held.release()) == [7]
    held.add([row(16, 3)], now=7.0)
    assert hows(held.release()) == [3]
