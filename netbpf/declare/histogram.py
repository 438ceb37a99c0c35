"""A declared histogram: a BPF map of log2 buckets, and the columns of its key.

The C map's value is `struct histogram` (include/histogram.bpf.h) followed by the members of
`extra`, its key is the C struct of `key`. Bucket 0 counts the value 0, bucket k the values from
2^(k-1) to 2^k - 1, so 0 and 1 have separate buckets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any, Callable, Optional, Union

from netbpf.declare.column import Column
from netbpf.declare.keyed import Keyed
from netbpf.declare.keys import Key, key_columns
from netbpf.declare.record import Record

SLOTS = 40  # buckets per histogram: HISTOGRAM_SLOTS in include/histogram.bpf.h

Describe = Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]]
Order = Union[str, Callable[[Mapping[str, Any]], Any]]


class Histogram:
    """A keyed distribution.

    `map` is the C map's name, `key` the record of its key (columns whose values become the JSON
    key), `extra` a record of per-CPU sums after the buckets, `unit` of the values. `describe`
    takes the histogram's fields and the extra sums, and returns fields to add to the machine
    formats and, as `headline`, the text above the text form.

    `unused` are columns of the key that only --by fills, `fixed` those that are always shown, and
    `default` the keys that are filled and shown without --by. With any of these, the keys of --by
    are the columns of `key` (see `netbpf.declare.keyed.Keyed`).

    Distributions are in the order of their keys, in falling order of the field `order`, or in the
    order of a function of their fields. `limit` names an option that is how many are shown.

    `coarser` is (option, unit): with that option of the tool, C counts in the other unit.

    `refresh` names probes (iterators) to run before each read.

    With `of`, the name of a column of the tool's events, there is no map: that column is counted in
    user space by the columns of `key` (also columns of the event), and shown instead of the events
    if the tool's option `option` is given.
    """

    def __init__(
        self,
        map: str,
        key: type[Record],
        unit: str,
        *,
        extra: Optional[type[Record]] = None,
        describe: Optional[Describe] = None,
        fields: Optional[dict[str, dict[str, Any]]] = None,
        of: str = "",
        option: str = "",
        unused: Sequence[str] = (),
        fixed: Sequence[str] = (),
        coarser: tuple[str, str] = ("", ""),
        refresh: Sequence[str] = (),
        default: Sequence[str] = (),
        order: Order = "",
        limit: str = "",
    ) -> None:
        self.map = map
        self.key = key
        self.unit = unit
        self.extra = extra
        self.describe = describe
        self.fields = fields or {}
        self.of = of
        self.option = option
        self.order = order
        self.limit = limit
        self.fixed = tuple(fixed)
        self.coarser = coarser
        self.refresh = tuple(refresh)
        names = [column.name for column in key.columns]
        self.usual = tuple(default) or tuple(name for name in names if name not in unused)
        filled = [] if default else [name for name in self.usual if name not in fixed]
        by_key = unused or fixed or default
        self.keyed = Keyed(key, fixed, filled, default) if by_key else None

    @property
    def units(self) -> list[str]:
        """The units that the values can have."""
        return [unit for unit in (self.unit, self.coarser[1]) if unit]

    def with_settings(self, settings: Mapping[str, Any]) -> Histogram:
        """Return the histogram in the unit of its values with these settings."""
        option, unit = self.coarser
        if not option or not settings.get(option):
            return self
        other = copy(self)
        other.unit = unit
        return other

    def columns(self, by: Sequence[Key]) -> Sequence[Column]:
        """Return the columns of the key that are shown with --by, or without it."""
        named = {column.name: column for column in self.key.columns}
        if by and self.keyed:
            shown = [named[name] for name in self.fixed]
            return (*key_columns(by, self.keyed.parts), *shown)
        return [named[name] for name in self.usual]

    def shown_keys(self, by: Sequence[Key]) -> tuple[str, ...]:
        """Return the names of these columns."""
        return (*(one.name for one in by), *self.fixed) if by else self.usual


def bucket_bounds(slot: int) -> tuple[int, int]:
    """Return the lowest and highest value (both inclusive) that `slot` counts."""
    return (0, 0) if slot == 0 else (1 << (slot - 1), (1 << slot) - 1)
