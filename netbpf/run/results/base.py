"""The interface of a tool's result to the runner."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from netbpf.declare.cgroup_names import NAMES
from netbpf.declare.columns import Column
from netbpf.declare.keys import Key
from netbpf.kernel.workloads import names_of
from netbpf.output.writers import Writer
from netbpf.run.stop import Stop


class Result:
    """A result of a tool: events, distributions or a table.

    `columns` are those written, `seen` is the number of rows in `unit`, `notes` and `fields` are
    added to the summary. With `heading`, text output begins with the column names, before there is
    anything to show.

    For tools with several results: `title` describes the rows ("" for none), `not_in_csv` lists
    parts of the result that CSV omits. `requested`: an option asks for this result. `main`: it is
    declared as the main one.
    """

    unit = "events"
    heading = False
    title = ""
    not_in_csv: tuple[str, ...] = ()
    requested = False
    main = False
    columns: tuple[Column, ...] = ()

    def __init__(self) -> None:
        self.seen = 0
        self.notes: list[str] = []
        self.fields: dict[str, Any] = {}
        self.namespaces: set[int] = set()  # network namespaces of the rows

    @property
    def invalid_records(self) -> int:
        """The number of records that did not match the declaration."""
        return 0

    @property
    def lost(self) -> dict[str, int]:
        """{cause: number} of losses that only this result has."""
        return {}

    @property
    def empty(self) -> bool:
        """Whether nothing was shown, not even something open or pending at the end."""
        return not any((self.seen, self.fields.get("open"), self.fields.get("pending")))

    def note(self, text: str) -> None:
        """Add a note to the summary."""
        self.notes.append(text)

    def begin(self, stop: Stop, writer: Writer) -> None:
        """Prepare: probes are attached, nothing has been written."""
        self.stop, self.writer = stop, writer

    def next_due(self) -> float:
        """Return the monotonic time at which read() must be called even without new data."""
        return float("inf")

    def read(self) -> bool:
        """Write new events; return whether there were any."""
        return False

    def listen(self, wanted: bool) -> None:
        """Say whether the kernel shall wake the reader for the next event."""

    def collect(self, final: bool) -> None:
        """Read the data of the interval that ends now from the kernel."""

    def close_interval(self, final: bool) -> None:
        """Write what collect() has read."""

    def drain(self) -> None:
        """Write the remaining events from before the end; probes are detached."""

    @property
    def taken(self) -> int:
        """The number of records that were read from the ring buffer."""
        return 0

    @property
    def waiting(self) -> int:
        """The number of events that are not read yet."""
        return 0

    @property
    def unwritten(self) -> int:
        """The number of events that are not written yet."""
        return self.waiting

    @property
    def unread(self) -> int:
        """The number of events from before the end that were not read."""
        return 0

    @property
    def after_end(self) -> int:
        """The number of events after the end."""
        return 0

    def progress(self) -> dict[str, Any]:
        """Return fields to add to a progress report."""
        return {}

    def summary(self) -> dict[str, Any]:
        """Return fields to add to the summary."""
        return self.fields


def with_names(values: dict[str, Any], by: Iterable[Key]) -> dict[str, Any]:
    """Add the names of a cgroup that are keys to the values that have its id."""
    wanted = [key.name for key in by if key.name in NAMES]
    if not wanted:
        return values
    names = names_of(values["cgroup"])
    return {**values, **{name: names[name] for name in wanted}}
