"""Prove the marks of `compared`: python tests/live/prove_compared.py [FILE[::TEST] ...]

Each marked test runs once as it is, and must pass; then once for each column of its marks, with
that column spoiled in what the tool writes, and must fail. Exit status 1 if one does not notice.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TREE = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(TREE), str(TREE / "tests" / "live")]

from compared import SPOIL, Claim, all_claims  # noqa: E402


def passes(claim: Claim, spoil: str = "") -> bool:
    """Return whether the test of a claim passes, all its parameters together."""
    test = f"tests/live/{claim.file}::{claim.test}"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", test],
        cwd=TREE, env={**os.environ, SPOIL: spoil}, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return done.returncode == 0 and " passed" in done.stdout


def main(wanted: list[str]) -> int:
    """Prove the marks of all files, or of those that are named; return the exit status."""
    claims = [claim for claim in all_claims() if chosen(claim, wanted)]
    if not claims:
        print(f"no marks in {' '.join(wanted)}: name files (test_tcplife.py)", file=sys.stderr)
    sound: dict[tuple[str, str], bool] = {}
    failures = 0
    for claim in claims:
        test = claim.file, claim.test
        if test not in sound:
            sound[test] = passes(claim)
        spoil = f"{claim.tool}:{claim.shape}:{claim.column}"
        good = sound[test] and not passes(claim, spoil)
        why = "" if good else "  does not notice" if sound[test] else "  fails by itself"
        print(f"{'ok' if good else 'NO'}  {claim.file}::{claim.test}  {spoil}{why}", flush=True)
        failures += not good
    return 1 if failures or not claims else 0


def chosen(claim: Claim, wanted: list[str]) -> bool:
    """Return whether a claim belongs to one of the files or tests that were named."""
    names = (claim.file, f"{claim.file}::{claim.test}")
    return not wanted or any(Path(name).name in names for name in wanted)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
