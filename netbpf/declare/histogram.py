"""A declared histogram: a BPF map of log2 buckets, and the columns of its key.

The C map's value is `struct histogram` (include/histogram.bpf.h) followed by the members of
`extra`, its key is the C struct of `key`. Bucket 0 counts the value 0, bucket k the values from
2^(k-1) to 2^k - 1, so 0 and 1 have separate buckets.
"""

from __future__ import annotations

from typing import Any, Callable, Optional

from netbpf.declare.record import Record

SLOTS = 40  # buckets per histogram: HISTOGRAM_SLOTS in include/histogram.bpf.h

Describe = Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]]


class Histogram:
    """A keyed distribution.

    `map` is the C map's name, `key` the record of its key (columns whose values become the JSON
    key), `extra` a record of per-CPU sums after the buckets, `unit` of the values. `describe`
    takes the histogram's fields and the extra sums, and returns fields to add to the machine
    formats and, as `headline`, the text above the text form.

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
    ) -> None:
        self.map = map
        self.key = key
        self.unit = unit
        self.extra = extra
        self.describe = describe
        self.fields = fields or {}
        self.of = of
        self.option = option


def bucket_bounds(slot: int) -> tuple[int, int]:
    """Return the lowest and highest value (both inclusive) that `slot` counts."""
    return (0, 0) if slot == 0 else (1 << (slot - 1), (1 << slot) - 1)
