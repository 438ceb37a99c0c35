"""Programs that run rarely are measured all the time, others in part, and estimates are right."""

from __future__ import annotations

import random
from collections.abc import Collection
from typing import Any, Callable

import pytest

from netbpf.run import meter
from netbpf.run.meter import OFTEN, Meter

PROGRAMS = {7: 300, 8: 50}  # ns of one run


class Kernel:
    """Runs each program `rate(now)` times per second, and counts that while it is measured."""

    def __init__(self, rate: Callable[[float], float]) -> None:
        self.now, self.on, self.works, self.rate = 1000.0, False, True, rate
        self.counted, self.happened, self.switched = 0.0, 0.0, 0
        self.late: Collection[int] = ()

    def sleep_until(self, when: float) -> None:
        """Let time pass in small steps."""
        while self.now < when:
            step = min(0.001, when - self.now)
            runs = self.rate(self.now) * step
            self.happened += runs
            self.counted += runs * self.on
            self.now += step

    def fdinfo(self, program: int) -> dict[str, int]:
        """Return what the kernel has counted of a program."""
        return {"run_cnt": int(self.counted), "run_time_ns": int(self.counted) * PROGRAMS[program]}

    def turn(self, on: bool) -> bool:
        """Turn measuring on or off."""
        if not self.works:
            raise BrokenPipeError
        self.switched += 1
        self.on = on
        if self.switched in self.late:  # done, and the answer comes too late
            raise TimeoutError
        return on


def run(
    monkeypatch: pytest.MonkeyPatch, rate: Callable[[float], float], seconds: float,
    switched: bool = True, works: bool = True, late: float = 0.0, unanswered: Collection[int] = (),
) -> tuple[Kernel, Meter]:  # fmt: skip
    """Return kernel and meter after some seconds; each look comes up to `late` seconds late."""
    kernel, chance = Kernel(rate), random.Random(17)
    monkeypatch.setattr(meter.random, "uniform", chance.uniform)
    monkeypatch.setattr(meter.time, "monotonic", lambda: kernel.now)
    monkeypatch.setattr(meter, "fdinfo", kernel.fdinfo)
    monkeypatch.setattr(meter, "enable_statistics", lambda: 1 << 20)
    monkeypatch.setattr(meter.os, "close", lambda fd: None)
    kernel.on, kernel.works, kernel.late = True, works, unanswered
    measured = Meter(PROGRAMS, kernel.turn if switched else None)
    end = kernel.now + seconds
    while kernel.now < end:
        kernel.sleep_until(min(end, measured.due + chance.uniform(0, late)))
        measured.update()
    return kernel, measured


def runs_of(measured: Meter) -> dict[int, Any]:
    return {program: runs.number for program, runs in measured.read(PROGRAMS).items()}


def test_programs_that_run_rarely_are_measured_all_the_time(monkeypatch):
    kernel, measured = run(monkeypatch, lambda now: OFTEN / 2 * 0.99, 30)
    assert runs_of(measured) == pytest.approx(dict.fromkeys(PROGRAMS, kernel.happened), abs=1)
    assert measured.percent == 100 and kernel.switched == 0


@pytest.mark.parametrize("late", [0.0, 0.02, 0.5])
def test_a_storm_is_measured_in_part_and_the_rest_is_estimated(monkeypatch, late):
    kernel, measured = run(monkeypatch, lambda now: 100_000, 60, late=late)
    assert runs_of(measured) == pytest.approx(dict.fromkeys(PROGRAMS, kernel.happened), rel=0.01)
    for program, runs in measured.read(PROGRAMS).items():
        assert runs.ns / runs.number == pytest.approx(PROGRAMS[program], rel=0.01)
    assert measured.percent < (13 if late < 0.1 else 50)


def test_a_load_that_changes_is_estimated_from_both_sides(monkeypatch):
    kernel, measured = run(monkeypatch, lambda now: 20_000 * (1 + int(now / 7) % 5), 300)
    assert runs_of(measured) == pytest.approx(dict.fromkeys(PROGRAMS, kernel.happened), rel=0.05)


def test_bursts_at_regular_times_are_not_missed(monkeypatch):
    kernel, measured = run(monkeypatch, lambda now: 900_000 * (now % 0.5 < 0.05), 600)
    assert runs_of(measured) == pytest.approx(dict.fromkeys(PROGRAMS, kernel.happened), rel=0.15)


def test_after_a_storm_programs_are_measured_all_the_time_again(monkeypatch):
    kernel, measured = run(monkeypatch, lambda now: 100_000 * (now < 1010), 70)
    assert kernel.on
    assert runs_of(measured) == pytest.approx(dict.fromkeys(PROGRAMS, kernel.happened), rel=0.1)
    assert measured.percent > 85


@pytest.mark.parametrize(("switched", "works"), [(False, True), (True, False)])
def test_without_a_switch_everything_is_measured(monkeypatch, switched, works):
    kernel, measured = run(monkeypatch, lambda now: 100_000, 10, switched, works)
    assert runs_of(measured) == pytest.approx(dict.fromkeys(PROGRAMS, kernel.happened), abs=1)
    assert measured.percent == 100


@pytest.mark.parametrize("unanswered", [{1}, {3}, {2, 4}, {3, 4, 5}, range(5, 30)])
def test_a_switch_that_answers_too_late_is_taken_for_off(monkeypatch, unanswered):
    kernel, measured = run(monkeypatch, lambda now: 100_000, 120, unanswered=unanswered)
    assert runs_of(measured) == pytest.approx(dict.fromkeys(PROGRAMS, kernel.happened), rel=0.01)


def test_a_kernel_that_does_not_measure_is_no_error(monkeypatch):
    def refuse() -> int:
        raise PermissionError

    monkeypatch.setattr(meter, "enable_statistics", refuse)
    monkeypatch.setattr(meter, "fdinfo", lambda program: {})
    measured = Meter(PROGRAMS, lambda on: on)
    measured.update()
    assert not measured.measured and runs_of(measured) == dict.fromkeys(PROGRAMS, 0.0)
