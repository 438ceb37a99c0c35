"""What a shape of a tool's result is to the runner."""

from __future__ import annotations

from typing import Any

from netbpf.declare.columns import Column
from netbpf.output.writers import Writer
from netbpf.run.stop import Stop


class Result:
    """What the runner needs to know of a result.

    `columns` are what is written, `seen` counts it in `unit`, `strange` counts records that could
    not be read, `notes` are remarks for the summary. `heading` tells whether text begins with the
    names of the columns, before there is anything to show.

    Where a tool has several, `title` names what this one writes ("" if nothing), `beside` what CSV
    leaves out of it; `asked` is true if an option asks for it, `main` if it is declared to be the
    main one.
    """

    unit = "events"
    heading = False
    title = ""
    beside: tuple[str, ...] = ()
    asked = False
    main = False
    columns: tuple[Column, ...] = ()

    def __init__(self) -> None:
        self.seen = 0
        self.notes: list[str] = []
        self.more: dict[str, Any] = {}
        self.namespaces: set[int] = set()  # network namespaces of what was shown

    @property
    def strange(self) -> int:
        """How many records could not be read."""
        return 0

    @property
    def lost(self) -> dict[str, int]:
        """What else was lost, by causes of this shape's own."""
        return {}

    @property
    def empty(self) -> bool:
        """Has nothing been shown, not even what is open or pending at the end?"""
        return not any((self.seen, self.more.get("open"), self.more.get("pending")))

    def note(self, text: str) -> None:
        """Remember a remark for the summary."""
        self.notes.append(text)

    def begin(self, stop: Stop, writer: Writer) -> None:
        """Get ready: probes are attached, nothing has been written."""
        self.stop, self.writer = stop, writer

    def next_due(self) -> float:
        """Return the monotonic time at which read() wants to be called anyway."""
        return float("inf")

    def read(self) -> bool:
        """Write what has come; tell whether there was anything."""
        return False

    def collect(self, final: bool) -> None:
        """Take from the kernel what belongs to the interval that ends now."""

    def close_interval(self, final: bool) -> None:
        """Write what collect() took."""

    def drain(self) -> None:
        """Write what came before the end and was on its way; probes are detached."""

    @property
    def waiting(self) -> int:
        """How many events wait to be read."""
        return 0

    @property
    def unread(self) -> int:
        """How many events of the time before the end were not read."""
        return 0

    @property
    def after_end(self) -> int:
        """How many events came after the end."""
        return 0

    def progress(self) -> dict[str, Any]:
        """Return fields to add to a report while the tool runs."""
        return {}

    def summary(self) -> dict[str, Any]:
        """Return fields to add to the summary."""
        return self.more
