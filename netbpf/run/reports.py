"""Reports while a tool runs: losses as soon as they are seen, and every ten seconds how it goes."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from typing import Callable

from netbpf.output.outlet import Outlet
from netbpf.run.losses import Ledger

_LOOK_SECONDS = 1.0  # how often losses are looked at
_REPORT_SECONDS = 10.0  # between two reports
_SOON = 0.3  # the first of these while nobody reads the output

Lost = Mapping[str, int]


class Reports:
    """Counts losses for the next report and for the interval that is open.

    `due` is the monotonic time in seconds of the next look. `write` writes a report, with what was
    lost since the last one; a report that goes to `out` is left out while nobody reads that.
    """

    def __init__(
        self, ledger: Ledger, out: Outlet, write: Callable[[Lost], None], to_out: bool
    ) -> None:
        """Begin now."""
        self._ledger, self._out, self._write, self._to_out = ledger, out, write, to_out
        now = time.monotonic()
        self.due = now + _LOOK_SECONDS
        self._next, self._loss_reported = now + _REPORT_SECONDS, False
        self._unreported: Counter[str] = Counter()
        self._of_interval: Counter[str] = Counter()

    def of_interval(self) -> Lost:
        """Return {cause: number} of what was lost since this was asked last."""
        self._count()
        taken, self._of_interval = self._of_interval, Counter()
        return taken

    def look(self) -> None:
        """Report if it is time, or if something is lost for the first time since a report."""
        now = time.monotonic()
        self.due = now + (_SOON if self._out.blocked else _LOOK_SECONDS)
        self._count()
        if now < self._next and (self._loss_reported or not self._unreported):
            return
        self._next, self._loss_reported = now + _REPORT_SECONDS, bool(self._unreported)
        if not (self._to_out and self._out.blocked):
            self._write(self._unreported)
            self._unreported = Counter()

    def _count(self) -> None:
        fresh = self._ledger.since_last()
        self._unreported.update(fresh)
        self._of_interval.update(fresh)
