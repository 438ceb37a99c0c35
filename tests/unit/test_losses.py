"""Losses and cost: read from the loss map and from the fdinfo of each program."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from netbpf.declare.losses import IN_PROGRAMS
from netbpf.run import losses, meter
from netbpf.run.losses import Budget, Cost, read_duplicate_misses, read_losses
from netbpf.run.meter import Meter
from netbpf.system import links

FDINFO = """\
pos:\t0
flags:\t02000002
prog_type:\t17
prog_tag:\tabcdef0123456789
run_time_ns:\t{time}
run_cnt:\t{runs}
recursion_misses:\t{missed}
verified_insns:\t412
"""


class FakeMap:
    """The per-CPU array of losses, three CPUs."""

    def get(self, key: bytes) -> bytes:
        index = struct.unpack("=I", key)[0]
        return struct.pack("=3Q", index + 1, 0, 10)


class EmptyMap:
    """An array without entries."""

    def get(self, key: bytes) -> None:
        return None


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The fdinfo of two programs that have run."""
    monkeypatch.setattr(links, "Path", lambda name: tmp_path / name.rpartition("/")[2])
    reader, writer = os.pipe()
    os.close(writer)
    monkeypatch.setattr(meter, "enable_statistics", lambda: reader)
    (tmp_path / "11").write_text(FDINFO.format(time=3000, runs=2, missed=1))
    (tmp_path / "12").write_text(FDINFO.format(time=1000, runs=2, missed=4))
    return tmp_path


def test_losses_are_summed_over_cpus_by_cause():
    assert read_losses(FakeMap()) == {"ring_full": 11, "map_full": 12}
    assert read_losses(EmptyMap()) == dict.fromkeys(IN_PROGRAMS, 0)
    assert read_duplicate_misses(FakeMap()) == 13


def cost_of(**programs: int) -> Cost:
    return Cost(programs, Meter(programs.values()))


@pytest.mark.usefixtures("programs")
def test_cost_is_the_sum_of_all_programs():
    cost = cost_of(a_tp=11, b_tp=12)
    found = cost.read()
    assert (found["measured"], found["runs"], found["run_ns"]) == (True, 4, 4000)
    assert found["ns_per_run"] == 1000.0
    assert found["programs"] == {
        "a_tp": {"runs": 2, "run_ns": 3000, "missed": 1},
        "b_tp": {"runs": 2, "run_ns": 1000, "missed": 4},
    }
    assert cost.missed() == 5
    # b complements another probe: of its four missed runs, those that were covered are no loss.
    assert [cost.missed(["b_tp"], covered) for covered in (0, 3, 4, 7)] == [5, 2, 1, 1]


def test_share_of_a_cpu_is_run_time_over_elapsed_time(programs, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(losses.time, "monotonic", lambda: now[0])
    cost = cost_of(a_tp=11)
    now[0] += 10
    (programs / "11").write_text(FDINFO.format(time=1_000_003_000, runs=3, missed=0))
    found = cost.read()
    assert (found["cpu_percent"], found["measured_percent"]) == (10.0, 100.0)


def test_kernel_without_statistics_is_reported_and_not_an_error(programs, monkeypatch):
    def refuse() -> int:
        raise PermissionError

    monkeypatch.setattr(meter, "enable_statistics", refuse)
    (programs / "13").write_text("pos:\t0\nprog_type:\t17\n")
    cost = cost_of(a_tp=13)
    found = cost.read()
    assert (found["measured"], found["runs"], found["ns_per_run"]) == (False, 0, None)
    assert found["measured_percent"] == 0.0
    assert cost.missed() == 0


class Spending:
    """A cost that uses a given share of one CPU."""

    def __init__(self) -> None:
        self.ns = 0

    def spent(self) -> int:
        return self.ns


def test_budget_limits_the_last_seconds_and_not_the_average(monkeypatch):
    now, cost = [1000.0], Spending()
    monkeypatch.setattr(losses.time, "monotonic", lambda: now[0])
    budget = Budget(cost, 1.0)
    for _ in range(3600):  # an hour of quiet
        now[0] += 1
        assert budget.overrun() is None
    now[0] += 1
    cost.ns += int(0.02e9)  # 2 % of this second are 0.7 % of the last three
    assert budget.overrun() is None
    now[0] += 1
    cost.ns += int(0.02e9)
    assert budget.overrun() == "1.3 % of one CPU over the last 3 s"


def test_budget_in_the_first_seconds_is_for_the_elapsed_time(monkeypatch):
    now, cost = [1000.0], Spending()
    monkeypatch.setattr(losses.time, "monotonic", lambda: now[0])
    budget = Budget(cost, 10)
    now[0] += 1
    cost.ns += int(0.2e9)
    assert budget.overrun() == "20 % of one CPU over the last 1 s"


@pytest.mark.usefixtures("programs")
def test_spent_time_is_that_of_programs_and_reader(monkeypatch):
    cpu = iter([1.0, 1.5])
    monkeypatch.setattr(losses.time, "process_time", lambda: next(cpu))
    assert cost_of(a_tp=11, b_tp=12).spent() == 4000 + 500_000_000
