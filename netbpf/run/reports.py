"""Reports while a tool runs: losses as soon as they are seen, and progress every ten seconds."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from typing import Callable

from netbpf.output.outlet import Outlet
from netbpf.run.losses import LossLedger

_READ_SECONDS = 1.0  # between two reads of the losses
_REPORT_SECONDS = 10.0  # between two reports
_BLOCKED_SECONDS = 0.3  # between two reads while the output is blocked

Lost = Mapping[str, int]


class Reports:
    """Counts losses for the next report and for the current interval.

    `due` is the monotonic time in seconds of the next update. `write` writes a report, with the
    losses since the last one. If reports go to `out`, they are skipped while it is blocked.
    """

    def __init__(
        self, ledger: LossLedger, out: Outlet, write: Callable[[Lost], None], to_out: bool
    ) -> None:
        """Begin to count now."""
        self._ledger, self._out, self._write, self._to_out = ledger, out, write, to_out
        now = time.monotonic()
        self.due = now + _READ_SECONDS
        self._next, self._loss_reported = now + _REPORT_SECONDS, False
        self._unreported: Counter[str] = Counter()
        self._of_interval: Counter[str] = Counter()

    def take_interval(self) -> Lost:
        """Return {cause: number} of the losses since the last call."""
        self._count()
        taken, self._of_interval = self._of_interval, Counter()
        return taken

    def update(self) -> None:
        """Report if it is due, or if these are the first losses since the last report."""
        now = time.monotonic()
        self.due = now + (_BLOCKED_SECONDS if self._out.blocked else _READ_SECONDS)
        self._count()
        if now < self._next and (self._loss_reported or not self._unreported):
            return
        self._next, self._loss_reported = now + _REPORT_SECONDS, bool(self._unreported)
        if not (self._to_out and self._out.blocked):
            self._write(self._unreported)
            self._unreported = Counter()

    def _count(self) -> None:
        losses = self._ledger.since_last()
        self._unreported.update(losses)
        self._of_interval.update(losses)
