"""Iterators that emit the events whose end no probe shows: they run every second."""

from __future__ import annotations

import time

from netbpf.declare.probes import Role
from netbpf.run.attached import Attached
from netbpf.run.snapshot import run_iterators

_SECONDS = 1.0  # between two runs


class Sweeps:
    """The iterators with the role SWEEP; `due` is when they run next, on the monotonic clock."""

    def __init__(self, attached: Attached) -> None:
        self._links = attached.with_role(Role.SWEEP)
        self.due = time.monotonic() if self._links else float("inf")

    def run_if_due(self) -> None:
        """Run them if the time has come."""
        if time.monotonic() >= self.due:
            self.run()

    def run(self) -> None:
        """Run them now, in the order in which the tool declares them."""
        if self._links:
            run_iterators(self._links)
            self.due = time.monotonic() + _SECONDS
