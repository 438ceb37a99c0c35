"""A declared table: what a BPF map counts by key, and how that becomes rows per interval."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Callable, Optional, Union

from netbpf.declare.columns import Gauge
from netbpf.declare.record import Record, Row

# One entry of the map in this interval: (key values, sums and gauges).
Entry = tuple[dict[str, Any], dict[str, Any]]
Rows = Sequence[dict[str, Any]]
Warn = Callable[[Rows], Iterable[tuple[str, str]]]
Build = Callable[[Sequence[Entry], Mapping[str, Any]], Sequence[dict[str, Any]]]
Complete = Callable[[dict[str, Any], Mapping[str, Any]], Mapping[str, Any]]
Order = Union[str, Callable[[Mapping[str, Any]], Any]]


class Table:
    """Rows per interval, made from one BPF map.

    `map` is the C map's name, `key` the record of its key, `sums` the record of its value. Members
    of 64 bits are added over CPUs if `per_cpu`, and shown as the increase in the interval, except
    `Gauge` columns. Other members are a sample, taken together from the CPU whose first sum is the
    greatest.

    `row` declares the columns that are shown. By default a row has the columns of key and value, in
    falling order of the column `order`, or in the order of a function of the row; `limit` names an
    option that is the number of rows. `complete` takes such a row and the settings and returns the
    columns to add or to replace. `build` makes the rows instead, in the order to be shown. Columns
    that the selected probes cannot fill are null.

    With `forget`, an entry that did not change in an interval is removed; if that is the name of a
    gauge, only once the gauge is not 0.

    `refresh` names probes (iterators) to run, in that order, at the start and before each reading;
    `first` one over the sockets of a network namespace, to run in each of them at the start. With
    `option`, the table is made only if that option is given. `warn` takes the rows of an interval
    and yields (subject, sentence): printed on stderr at once, and repeated by the summary, once per
    subject with the last sentence. CSV of a tool that also has a histogram holds the `main` table,
    or the one whose `option` is given.
    """

    def __init__(
        self,
        map: str,  # noqa: A002 - it is a BPF map
        key: type[Record],
        sums: type[Record],
        row: type[Row],
        build: Optional[Build] = None,
        *,
        order: Order = "",
        limit: str = "",
        complete: Optional[Complete] = None,
        per_cpu: bool = True,
        refresh: Sequence[str] = (),
        first: str = "",
        option: str = "",
        warn: Optional[Warn] = None,
        forget: Union[bool, str] = False,
        main: bool = False,
    ) -> None:
        self.map = map
        self.key = key
        self.sums = sums
        self.row = row
        self.build: Build = build or self._rows
        self.order = order
        self.limit = limit
        self.complete = complete
        self.per_cpu = per_cpu
        self.refresh = tuple(refresh)
        self.first = first
        self.option = option
        self.warn = warn
        self.forget = forget
        self.main = main
        gauges = [column for column in sums.columns if isinstance(column, Gauge)]
        self.gauges = tuple(gauge.name for gauge in gauges)
        self.shown = tuple(gauge.name for gauge in gauges if gauge.shown)

    def _rows(
        self, entries: Sequence[Entry], settings: Mapping[str, Any]
    ) -> Sequence[dict[str, Any]]:
        rows = [{**key, **sums} for key, sums in entries]
        order = self.order
        if order:
            rows.sort(key=order if callable(order) else lambda row: -row[order])
        if self.limit and settings.get(self.limit):
            rows = rows[: settings[self.limit]]
        if self.complete:
            rows = [{**row, **self.complete(row, settings)} for row in rows]
        return [{column.name: row[column.name] for column in self.row.columns} for row in rows]
