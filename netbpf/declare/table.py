"""A declared table: the key and values of a BPF map, and the rows computed from them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Callable, Optional, Union

from netbpf.declare.column import Column
from netbpf.declare.columns import Gauge
from netbpf.declare.record import Record, Row

# One entry of the map in this interval: (key values, sums and gauges).
Entry = tuple[dict[str, Any], dict[str, Any]]
Rows = Sequence[dict[str, Any]]
Warn = Callable[[Rows, Mapping[str, Any]], Iterable[tuple[str, str]]]
Build = Callable[[Sequence[Entry], Mapping[str, Any]], Sequence[dict[str, Any]]]
Counted = Callable[[Rows, Mapping[str, int], Mapping[str, Any]], Rows]
Complete = Callable[[dict[str, Any], Mapping[str, Any]], Mapping[str, Any]]
Order = Union[str, Callable[[Mapping[str, Any]], Any]]


class Table:
    """Rows per interval, computed from one BPF map.

    `map` is the C map's name, `key` the record of its key, `sums` the record of its value. Members
    of 64 bits are added over CPUs if `per_cpu`, and shown as the increase in the interval, except
    `Gauge` columns. Other members are a sample, from the CPU whose first sum is the greatest.

    `row` declares the columns that are shown. By default a row has the columns of key and value, in
    falling order of the column `order`, or in the order of a function of the row; `limit` names an
    option that is the number of rows. `complete` takes such a row and the settings and returns the
    columns to add or to replace. `build` returns the rows instead, in display order. Columns that
    the selected probes cannot fill are null.

    With `forget`, an entry that did not change in an interval is removed; if it names a gauge, only
    if the gauge is not 0.

    `refresh` names probes (iterators) to run, in that order, at the start and before each read;
    `first` names one over the sockets of a network namespace, to run in each of them at the start.
    With `option`, the table is shown only if that option is given. `warn` takes the rows of an
    interval and yields (subject, sentence): printed on stderr immediately, and repeated in the
    summary, with the last sentence per subject. CSV of a tool that also has a histogram has the
    `main` table, or the one whose `option` is given.

    `counted` takes the rows, the increase of the kernel's `counters` in the interval by name, and
    the settings, and returns the completed rows. `programs` takes the rows, and how often each
    program attached to a network device ran (netbpf.kernel.device_programs), and returns the
    completed rows, if `with_programs(settings)`.
    """

    def __init__(
        self,
        map: str,
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
        counters: Sequence[str] = (),
        counted: Optional[Counted] = None,
        programs: Optional[Callable[[Rows, Mapping[Any, int]], Rows]] = None,
        with_programs: Callable[[Mapping[str, Any]], bool] = bool,
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
        self.counters = tuple(counters)
        self.counted = counted
        self.programs = programs
        self.with_programs = with_programs
        gauges = [column for column in sums.columns if isinstance(column, Gauge)]
        self.gauges = tuple(gauge.name for gauge in gauges)
        self.shown = tuple(gauge.name for gauge in gauges if gauge.shown)

    def columns(self, settings: Mapping[str, Any]) -> Sequence[Column]:
        """Return the columns of the rows that the table has with these settings."""
        return self.row.columns

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


def sorted_rows(rows: Sequence[dict[str, Any]], by: str) -> list[dict[str, Any]]:
    """Return `rows` sorted by the column `by`: numbers falling, text rising, unknown last.

    Rows without this column keep their order.
    """
    if not by or not rows or by not in rows[0]:
        return list(rows)
    known = [row for row in rows if row[by] is not None]
    falling = bool(known) and isinstance(known[0][by], (int, float))
    known.sort(key=lambda row: -row[by] if falling else str(row[by]))
    return [*known, *(row for row in rows if row[by] is None)]
