"""A declared table: what a BPF map counts by key, and how that becomes rows per interval."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Callable, Optional, Union

from netbpf.declare.record import Record, Row

# One entry of the map in this interval: (key values, sums and gauges).
Group = tuple[dict[str, Any], dict[str, Any]]
Rows = Sequence[dict[str, Any]]
Alarm = Callable[[Rows], Iterable[tuple[str, str]]]
Build = Callable[[Sequence[Group], Mapping[str, Any]], Sequence[dict[str, Any]]]


class Table:
    """Rows per interval, made from one BPF map.

    `map` is the C map's name, `key` the record of its key, `sums` the record of its value: all
    members u64, added over CPUs if `per_cpu`, and given as the increase in the interval, except
    those named in `gauges`, which are the greatest of all CPUs' values as it stands. Members that
    are not u64 are a sample, taken together from the CPU whose first sum is the greatest. `row`
    declares the columns that are shown (all made in user space, so without C type), `build` makes
    the rows from the entries that changed, in the order to be shown; an entry in which one of the
    gauges `persistent` is not 0 is there even if nothing changed. Columns that the chosen probes
    cannot fill are emptied. With `forget`, an entry that did not change in an interval is removed;
    if that is the name of a gauge, only once it is not 0.

    `refresh` names probes (iterators) to run, in that order, at the start and before each reading;
    `first` one over the sockets of a network namespace, to run in each of them at the start.
    With `option`, the table is made only if that option is given. `alarm` takes the rows of an
    interval and yields (subject, sentence) for what must not be overlooked: said on stderr at once,
    and by the summary once per subject, with the last sentence. A `main` table is what CSV holds
    of a tool that has a histogram as well; a table with `option` comes first.
    """

    def __init__(
        self,
        map: str,  # noqa: A002 - it is a BPF map
        key: type[Record],
        sums: type[Record],
        row: type[Row],
        build: Build,
        *,
        per_cpu: bool = True,
        gauges: Sequence[str] = (),
        persistent: Sequence[str] = (),
        refresh: Sequence[str] = (),
        first: str = "",
        option: str = "",
        alarm: Optional[Alarm] = None,
        forget: Union[bool, str] = False,
        main: bool = False,
    ) -> None:
        self.map = map
        self.key = key
        self.sums = sums
        self.row = row
        self.build = build
        self.per_cpu = per_cpu
        self.gauges = tuple(gauges)
        self.persistent = tuple(persistent)
        self.refresh = tuple(refresh)
        self.first = first
        self.option = option
        self.alarm = alarm
        self.forget = forget
        self.main = main
