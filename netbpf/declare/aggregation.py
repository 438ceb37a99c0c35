"""A declared aggregation: rows per interval made of a tool's events, and shown instead of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Callable, Optional, Protocol

from netbpf.declare.record import Row


class Group(Protocol):
    """What is kept of the events of one row."""

    def add(self, values: Mapping[str, Any], ended: bool) -> None:
        """Take an event; `ended` is false for what still goes on when the interval ends."""

    def row(self) -> dict[str, Any]:
        """Return the row's columns, those of the key left out."""


class Aggregation:
    """Rows per interval, made of the events if the tool's option `option` is given.

    Events with the same values of the columns `key` are one row: `group` makes what collects them.
    `row` declares the columns that are shown, those of the key among them. Rows come in falling
    order of the column `order`, those left out for which `keep` (of row and settings) is false.
    """

    def __init__(
        self,
        row: type[Row],
        key: Sequence[str],
        group: Callable[[], Group],
        order: str,
        keep: Callable[[Mapping[str, Any], Mapping[str, Any]], bool] = lambda row, settings: True,
        option: str = "summary",
    ) -> None:
        self.row = row
        self.key = tuple(key)
        self.group = group
        self.order = order
        self.keep = keep
        self.option = option


def percentile(values: Sequence[int], percent: int) -> Optional[int]:
    """Return the value of sorted `values` that `percent` of them do not exceed, None of none."""
    return values[-(-len(values) * percent // 100) - 1] if values else None
