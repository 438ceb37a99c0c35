"""Fuzz every parser of outside data: python -m tests.fuzz [TARGET ...]; see CONTRIBUTING.md.

CASES is how many cases each gets, SEED which ones.
"""

from __future__ import annotations

import os
import sys

from tests.fuzz.target import run
from tests.fuzz.targets import TARGETS


def main() -> int:
    """Run the targets that are named, or all; return 1 if any has a fault."""
    cases, seed = int(os.environ.get("CASES") or 100_000), int(os.environ.get("SEED") or 0)
    wanted = sys.argv[1:] or list(TARGETS)
    unknown = [name for name in wanted if name not in TARGETS]
    if unknown:
        print(f"no such target: {', '.join(unknown)}; there are {', '.join(TARGETS)}")
        return 2
    faults = 0
    for name in wanted:
        outcome = run(TARGETS[name], cases, seed)
        said = "FAULT" if outcome.fault else "ok"
        print(f"{name:<16} {outcome.cases:>7} cases {outcome.seconds:>7.1f} s  {said}", flush=True)
        if outcome.fault:
            faults += 1
            print(outcome.fault, flush=True)
    return min(faults, 1)


sys.exit(main())
