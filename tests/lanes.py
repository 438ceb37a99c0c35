"""Run all tests in less time: those that need no quiet machine run beside the live tests.

First the live tests that watch traffic, and beside them, at a lower priority, everything that
watches none. Then, one after the other, the tests that look at the whole machine or measure time.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Marker expressions: each test is in just one of the lanes.
BESIDE = "not live or beside"
LIVE = "live and not beside and not alone"
ALONE = "live and alone and not beside"


def command(marks: str, words: Sequence[str]) -> list[str]:
    """Return the command that runs the tests of a lane."""
    return [sys.executable, "-m", "pytest", "-m", marks, *words]


def precompile() -> None:
    """Compile the modules once, for the thousands of processes that the tests start.

    PYTHONDONTWRITEBYTECODE may be set. Root leaves no files of its own in the source tree.
    """
    trees = [ROOT / name for name in ("netbpf", "tests")]
    subprocess.run([sys.executable, "-m", "compileall", "-q", *trees], check=True)
    owner = ROOT.stat()
    for tree in trees:
        for directory in tree.rglob("__pycache__"):
            for path in (directory, *directory.iterdir()):
                os.chown(path, owner.st_uid, owner.st_gid)


def main(words: Sequence[str]) -> int:
    """Run all lanes; return 0 if all tests passed."""
    precompile()
    with tempfile.TemporaryFile() as output:
        beside = subprocess.Popen(
            command(BESIDE, words), stdout=output, stderr=output, preexec_fn=lambda: os.nice(10)
        )
        failed = subprocess.run(command(LIVE, words), check=False).returncode
        failed = beside.wait() or failed
        output.seek(0)
        sys.stdout.buffer.write(output.read())
        sys.stdout.flush()
    failed = subprocess.run(command(ALONE, words), check=False).returncode or failed
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
