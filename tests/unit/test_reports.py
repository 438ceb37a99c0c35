"""Reports while a tool runs: at the first loss, then every ten seconds."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from netbpf.run import reports
from netbpf.run.reports import Reports


class Case:
    """Reports of a fake ledger, on a clock that the test moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, to_out: bool = True) -> None:
        self.now, self.fresh = 1000.0, {}
        self.written: list[tuple[float, dict[str, int]]] = []
        monkeypatch.setattr(reports.time, "monotonic", lambda: self.now)
        self.out: Any = SimpleNamespace(blocked=False)
        ledger: Any = SimpleNamespace(since_last=self._take)
        self.reports = Reports(ledger, self.out, self._write, to_out)

    def _take(self) -> dict[str, int]:
        taken, self.fresh = self.fresh, {}
        return taken

    def _write(self, lost: Any) -> None:
        self.written.append((self.now - 1000, dict(lost)))

    def after(self, seconds: float, **lost: int) -> None:
        """Add losses, advance the time, and update once a second."""
        self.fresh = lost
        for _ in range(int(seconds)):
            self.now += 1
            self.reports.update()


def test_without_a_loss_there_is_a_report_every_ten_seconds(monkeypatch):
    case = Case(monkeypatch)
    case.after(25)
    assert case.written == [(10, {}), (20, {})]


def test_first_loss_is_reported_at_once_and_the_next_ones_ten_seconds_later(monkeypatch):
    case = Case(monkeypatch)
    case.after(2)
    case.after(1, ring_full=5)
    case.after(3, ring_full=7)
    case.after(9, map_full=1)
    assert case.written == [(3, {"ring_full": 5}), (13, {"ring_full": 7, "map_full": 1})]


def test_report_is_skipped_while_the_output_is_blocked_and_its_losses_are_in_the_next(monkeypatch):
    case = Case(monkeypatch)
    case.out.blocked = True
    case.after(3, ring_full=5)
    assert case.written == [] and case.reports.due == pytest.approx(case.now + 0.3)
    case.out.blocked = False
    case.after(10)
    assert case.written == [(11, {"ring_full": 5})]
    text = Case(monkeypatch, to_out=False)
    text.out.blocked = True
    text.after(1, ring_full=5)
    assert text.written == [(1, {"ring_full": 5})]


def test_interval_has_the_losses_since_the_one_before(monkeypatch):
    case = Case(monkeypatch)
    case.after(1, ring_full=5)
    case.fresh = {"ring_full": 2}
    assert case.reports.take_interval() == {"ring_full": 7}
    assert not case.reports.take_interval()
