"""sockstat: which processes --top shows, and in which order rows stand."""

from __future__ import annotations

from netbpf.declare.call_rows import busiest, by_protocol


def group(pid: int, calls: int, size: int, op: str = "send", error: object = None):
    key = {"pid": pid, "comm": f"nb-{pid}", "op": op, "error": error, "proto": "tcp4"}
    return key, {"calls": calls, "bytes": size}


GROUPS = [
    group(1, 90, 1000),
    group(2, 5, 9000),
    group(3, 5, 10),
    group(3, 4, 0, error="EAGAIN"),
    group(4, 7, 10),
    group(5, 1, 50, op="recv"),
]


def shown(sort: object, top: int = 9) -> list[int]:
    return [row["pid"] for row in busiest(GROUPS, {"sort": sort, "top": top})]


def test_busiest_are_those_with_the_most_bytes_of_each_operation_calls_in_a_tie():
    assert shown(None) == [2, 1, 3, 4, 5]
    assert shown(None, top=2) == [2, 1, 5]


def test_busiest_by_another_column():
    assert shown("calls") == [1, 3, 4, 2, 5]
    assert shown("would_block", top=1) == [3, 5]


def test_rows_are_in_the_order_of_operations_or_of_the_column_that_is_asked_for():
    plain = by_protocol(GROUPS, {"no_split": False, "sort": None})
    assert [(row["op"], row["calls"]) for row in plain] == [("send", 111), ("recv", 1)]
    least = by_protocol(
        [group(1, 9, 10), group(2, 1, 20, op="recv")], {"no_split": True, "sort": "bytes"}
    )
    assert [(row["op"], row["proto"]) for row in least] == [("recv", None), ("send", None)]
