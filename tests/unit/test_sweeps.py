"""Iterators that emit events run every second, and before a result is read."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from netbpf.run.results import sweeps


@pytest.fixture
def clock(monkeypatch):
    now = SimpleNamespace(time=100.0, runs=[])
    monkeypatch.setattr(sweeps.time, "monotonic", lambda: now.time)
    monkeypatch.setattr(sweeps, "run_iterators", now.runs.append)
    return now


def test_they_run_once_a_second(clock):
    found = sweeps.Sweeps(SimpleNamespace(with_role=lambda role: [7, 5]))
    for clock.time in (100.0, 100.5, 100.9, 101.0, 101.5, 107.0, 107.5):
        found.run_if_due()
    assert clock.runs == [[7, 5]] * 3
    assert found.due == 108.0


def test_run_that_is_asked_for_postpones_the_next(clock):
    found = sweeps.Sweeps(SimpleNamespace(with_role=lambda role: [7]))
    clock.time = 100.5
    found.run()
    clock.time = 101.4
    found.run_if_due()
    assert len(clock.runs) == 1 and found.due == 101.5


def test_most_tools_have_none(clock):
    found = sweeps.Sweeps(SimpleNamespace(with_role=lambda role: []))
    found.run_if_due()
    found.run()
    assert clock.runs == [] and found.due == float("inf")
