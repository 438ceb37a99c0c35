"""Decode events, many at once, and fill in what the reader knows about them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Optional

from netbpf.declare.batch import Columns, columns_of, rows_of
from netbpf.declare.cgroup_names import NAMES, cgroup_column
from netbpf.declare.record import Event
from netbpf.declare.stacks import decoder_with
from netbpf.declare.tool import Tool
from netbpf.kernel.workloads import names_of
from netbpf.run.attached import Attached


class EventDecoder:
    """Decodes the events of a tool.

    `unowned` is set when a socket's owner is unknown that a new snapshot may find.
    """

    def __init__(
        self, tool: Tool, event: type[Event], settings: Mapping[str, Any], attached: Attached
    ) -> None:
        self.unowned = False
        self._settings = settings
        self._decode = decoder_with(event, settings)
        self._enrich = tool.enrich if not tool.enriches or tool.enriches(settings) else None
        self._refresh = tool.refresh_owners
        # A column that the probes in use cannot fill holds zeros in C.
        self._missing = [c.name for c in event.columns if c.name in attached.missing]
        self._cgroup = cgroup_column(event.columns)
        self._names = [c.name for c in event.columns if c.name in NAMES] if self._cgroup else []

    def events(
        self, times: Sequence[int], raws: Sequence[Sequence[Any]]
    ) -> tuple[Sequence[int], Columns]:
        """Return the times and columns of those events that the tool shows."""
        columns = self._columns(raws)
        if not self._enrich:
            return times, columns
        rows = [self._enrich(row, self._settings) for row in rows_of(columns)]
        kept = [(ns, row) for ns, row in zip(times, rows) if row is not None]
        return [ns for ns, _ in kept], columns_of([row for _, row in kept])

    def one(self, raw: Sequence[Any]) -> Optional[dict[str, Any]]:
        """Return the values of one event, None if the tool does not show it."""
        _, columns = self.events((0,), (raw,))
        return next(rows_of(columns), None)

    def _columns(self, raws: Sequence[Sequence[Any]]) -> Columns:
        columns = self._decode(raws)
        columns.update(dict.fromkeys(self._missing, (None,) * len(raws)))
        if self._cgroup:
            self._name(columns)
        if self._refresh and not self.unowned:
            self.unowned = ("unknown", "yes") in zip(columns["owner"], columns[self._refresh])
        return columns

    def _name(self, columns: Columns) -> None:
        numbers = columns[self._cgroup]
        known = {number: names_of(number or 0) for number in set(numbers)}
        found = [known[number] for number in numbers]
        unknown = (None,) * len(numbers)
        for name in self._names:
            named = any(names[name] is not None for names in known.values())
            columns[name] = [names[name] for names in found] if named else unknown
