"""Every parser of outside data passes a hundred cases, the same ones each time."""

from __future__ import annotations

import pytest

from tests.fuzz.target import run
from tests.fuzz.targets import TARGETS

CASES = 100


@pytest.mark.parametrize("name", TARGETS)
def test_parser_handles_damage(name):
    outcome = run(TARGETS[name], CASES)
    assert not outcome.fault, outcome.fault
    assert outcome.cases >= CASES
