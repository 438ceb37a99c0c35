"""A run detects faults, and is the same each time."""

from __future__ import annotations

import os
import re

import pytest
from hypothesis import strategies as st

from tests.fuzz import target
from tests.fuzz.damage import damaged, mutated
from tests.fuzz.target import Target, run

NUMBERS = st.integers(0, 1000)


def forever(_: int) -> None:
    try:
        while True:
            pass
    except Exception:
        pass


def greedy(_: int) -> None:
    bytearray(b"x") * (target.MEMORY * 2)


def refuses(number: int) -> None:
    if number > 500:
        raise KeyError(number)


@pytest.mark.parametrize(
    ("check", "words"),
    [
        (refuses, "KeyError: 501"),  # the smallest one
        (forever, "it took too long"),
        (greedy, "it took too much memory"),
        (lambda _: os._exit(3), "the child ended with status"),
    ],
    ids=["exception", "hang", "memory", "death"],
)
def test_run_detects_faults(monkeypatch, check, words):
    if check is forever:
        monkeypatch.setattr(target, "CPU_SECONDS", 0.1)
    outcome = run(Target("bad", NUMBERS, check), 50)
    assert words in outcome.fault


def test_declared_exceptions_are_no_fault():
    outcome = run(Target("good", NUMBERS, refuses, (KeyError,)), 50)
    assert outcome.cases == 50 and not outcome.fault


def test_cases_depend_on_the_seed_only(tmp_path):
    def seen(seed: int) -> str:
        path = tmp_path / "seen"
        path.write_text("")
        with path.open("a", buffering=1) as file:
            assert not run(Target("x", NUMBERS, lambda n: print(n, file=file)), 30, seed).fault
        return path.read_text()

    assert seen(0) == seen(0) != seen(1)


def test_more_cases_than_one_batch_has(monkeypatch):
    monkeypatch.setattr(target, "BATCH", 20)
    assert run(Target("x", mutated([b"abc"]), len), 70).cases == 70


def test_damage_starts_with_none_and_can_hit_a_chosen_offset():
    seeds = [b"\0" * 64, b"other"]
    assert damaged(seeds, b"") == seeds[0] and damaged(seeds, b"\1") == seeds[1]
    hit = set()
    for place in range(64):
        script = bytes([0, 1, place, 0, 1, 1, 0, 0, 0])  # a bit, at one of the wanted places
        found = re.search(rb"[^\0]", damaged(seeds, script, [7, 9]))
        hit.add(found.start() if found else -1)
    assert hit == {7, 9}
