"""A declared aggregation: rows per interval, computed from a tool's events and shown instead.

The columns of the row that are not part of the key have `over=`, the aggregate that computes their
value: `p99_us = Elapsed("...", over=Percentile("latency_us", 99))`.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Callable, Optional

from netbpf.declare.column import Column, prefer
from netbpf.declare.columns import Bytes, Duration, Micros
from netbpf.declare.histogram import Histogram
from netbpf.declare.keys import Key, key_record, keys_of, parse_keys, row_columns
from netbpf.declare.options import Option, count, nonempty
from netbpf.declare.record import Row

Values = Mapping[str, Any]
# Selects the events that count: a function of the values, and of whether the event has ended.
When = Callable[[Values, bool], Any]


def ended(values: Values, has_ended: bool) -> bool:
    """Select events that have ended, not those that were open when the interval ended."""
    return has_ended


def pending(values: Values, has_ended: bool) -> bool:
    """Count events that had not ended when the interval ended."""
    return not has_ended


def succeeded(values: Values, has_ended: bool) -> bool:
    """Count events that ended with the result OK."""
    return has_ended and values["result"] == "OK"


def failed(values: Values, has_ended: bool) -> bool:
    """Count events that ended with another result than OK."""
    return has_ended and values["result"] != "OK"


def with_error(values: Values, has_ended: bool) -> bool:
    """Count events with a value in the column `errno`."""
    return values["errno"] is not None


def without_error(values: Values, has_ended: bool) -> bool:
    """Count events without a value in the column `errno`."""
    return values["errno"] is None


def always(values: Values, has_ended: bool) -> bool:
    """Count all events."""
    return True


class Number:
    """The number of events; the base of the other aggregates.

    `start` returns the state for an interval, `add` updates it with an event, and `result` returns
    the column's value. Aggregates with the same `key` share a state.
    """

    def __init__(self, column: str = "", when: When = ended) -> None:
        self.column = column
        self.when = when

    @property
    def key(self) -> tuple[object, ...]:
        """What identifies the state."""
        return (type(self), self.column, self.when)

    def start(self) -> Any:
        """Return the state before the first event."""
        return [0]

    def add(self, state: Any, values: Values) -> None:
        """Count an event."""
        state[0] += 1

    def result(self, state: Any) -> Any:
        """Return the column's value."""
        return state[0]


class Sum(Number):
    """The sum of a column."""

    def add(self, state: Any, values: Values) -> None:
        """Add the event's value."""
        state[0] += values[self.column] or 0


class Last(Number):
    """The last value that is not null."""

    def start(self) -> Any:
        """Return the state before the first event."""
        return [None]

    def add(self, state: Any, values: Values) -> None:
        """Keep the event's value."""
        if values[self.column] is not None:
            state[0] = values[self.column]


class Largest(Last):
    """The largest value."""

    def add(self, state: Any, values: Values) -> None:
        """Keep the event's value if it is larger."""
        value = values[self.column]
        if value is not None:
            state[0] = value if state[0] is None else max(state[0], value)


class Percentile(Number):
    """The value that `percent` of the events do not exceed, null if there is none."""

    def __init__(self, column: str, percent: int, when: When = ended) -> None:
        super().__init__(column, when)
        self.percent = percent

    def start(self) -> Any:
        """Return the state before the first event."""
        return array("Q")

    def add(self, state: Any, values: Values) -> None:
        """Keep the event's value."""
        if values[self.column] is not None:
            state.append(values[self.column])

    def result(self, state: Any) -> Optional[int]:
        """Return the percentile."""
        return percentile(sorted(state), self.percent)


class MostCommon(Number):
    """The most frequent value, null if there is none."""

    def start(self) -> Any:
        """Return the state before the first event."""
        return Counter()

    def add(self, state: Any, values: Values) -> None:
        """Count the event's value."""
        if values[self.column] is not None:
            state[values[self.column]] += 1

    def result(self, state: Any) -> Any:
        """Return the most frequent value."""
        most = state.most_common(1)
        return most[0][0] if most else None


class Aggregation:
    """Rows per interval, computed from the events if the tool's option `option` is given.

    Events with the same values of the columns `key` are one row. `row` declares the columns: those
    of the key, and those with `over=`. Rows for which `having` (of row and settings) is true are
    shown in falling order of the column `order`. With --by, other
    columns of the events are the key.

    With `measure`, the name of a duration or size, the tool shows its distribution by `key` (or
    --by), and events or rows only with --events or --summary.
    """

    def __init__(
        self,
        row: type[Row],
        key: Sequence[str],
        order: str,
        having: Callable[[Values, Values], Any] = lambda row, settings: True,
        option: str = "summary",
        measure: str = "",
    ) -> None:
        self.row = row
        self.key = tuple(key)
        self.order = order
        self.having = having
        self.option = option
        self.measure = measure
        self.event_option = "events" if measure else ""
        prefer(row.columns, order)
        self.aggregates = {c.name: c.over for c in row.columns if c.over is not None}
        self.keys: tuple[str, ...] = ()
        self.event: Sequence[Column] = ()

    def bind(self, event: Sequence[Column]) -> None:
        """Take the columns of the events, which can be keys."""
        self.event = tuple(event)
        self.keys = keys_of(event)

    def columns(self, by: Sequence[Key]) -> Sequence[Column]:
        """Return the columns of rows by these keys, those of `row` if there are none."""
        if not by:
            return self.row.columns
        sums = [c for c in self.row.columns if c.over is not None and c.name not in self.keys]
        return row_columns(by, self.event, sums)

    def options(self) -> tuple[Option, ...]:
        """Return the options that select and sort the rows."""
        sets: Mapping[str, Any] = {"histogram": None} if self.measure else {}
        usual = "distributions" if self.measure else "a line per event"
        each = "a distribution, or with --summary a row," if self.measure else "a row"
        events = Option("--events", help=f"a line per event instead of {usual}", sets=sets)
        return (
            *((events,) if self.measure else ()),
            Option("--summary", help=f"a row per key instead of {usual}", sets=sets),
            Option(
                "--by", metavar="LIST", parse=lambda text: parse_keys(text, self.event),
                sets={} if self.measure else {"summary": True},
                help=f"{each} for each value of these: {', '.join(self.keys)}; blocks: raddr/24",
            ),
            Option("--top", metavar="N", parse=count, help="show the first N rows only"),
            Option("--sort", metavar="COLUMN", parse=nonempty,
                   help=f"sort rows by this column, the most first (default {self.order})"),
            *((self._histogram_option(),) if self.measured else ()),
        )  # fmt: skip

    def _histogram_option(self) -> Option:
        return Option(
            "--histogram", metavar="COLUMN", choices=self.measured, default=self.measure or None,
            sets={} if self.measure else {"summary": False},
            help="a distribution of this column instead of each event; with --by per key",
        )  # fmt: skip

    @property
    def measured(self) -> list[str]:
        """The columns of events that are durations or sizes."""
        measured = (Duration, Micros, Bytes)
        return [c.name for c in self.event if isinstance(c, measured) and not c.option]

    def distribution(self, column: str, by: Sequence[Key]) -> Histogram:
        """Return the histogram of a column by keys."""
        (measured,) = [one for one in self.event if one.name == column]
        keys = by or (tuple(map(Key, self.key)) if self.measure else ())
        return Histogram("", key_record(keys, self.event), measured.unit, of=column)


def percentile(values: Sequence[int], percent: int) -> Optional[int]:
    """Return the value of sorted `values` that `percent` of them do not exceed, None if empty."""
    return values[-(-len(values) * percent // 100) - 1] if values else None
