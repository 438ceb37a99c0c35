"""Rule: a new tool is three new files. Nothing else is edited; what is generated is made again."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.contract.conventions import DATA, ROOT

NEW = DATA / "new_tool"
PLACES = {
    "rcvfull.py": "netbpf/tools",
    "rcvfull.bpf.c": "bpf_programs",
    "test_rcvfull.py": "tests/live",
}
# What knows no tool, and takes long.
OTHERS = (
    "test_new_tool.py",
    "test_guide.py",
    "test_make.py",
    "test_vagrant.py",
    "test_vagrant_host.py",
)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the project with one more tool."""
    unused = shutil.ignore_patterns(".*", "__pycache__", "build", "boxes", "dist", "*.egg-info")
    copy = tmp_path / "netbpf"
    shutil.copytree(ROOT, copy, ignore=unused)
    shutil.copytree(ROOT / ".ci", copy / ".ci")
    for name, place in PLACES.items():
        shutil.copy(NEW / name, copy / place / name)
    return copy


def python(tree: Path, *words: str) -> str:
    """Run a module in the copy; return what it prints."""
    done = subprocess.run(
        [sys.executable, "-m", *words], cwd=tree, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout[-8000:]}{done.stderr[-2000:]}"
    return done.stdout


def test_sample_has_what_no_tool_has_yet():
    ours = "".join(path.read_text() for path in (ROOT / "netbpf/tools").glob("*.py"))
    programs = "".join(path.read_text() for path in (ROOT / "bpf_programs").rglob("*.bpf.[ch]"))
    for name in ("udp_fail_queue_rcv_skb", "rcvbuf_bytes", "full_percent", "--least-kb"):
        assert name in (NEW / "rcvfull.py").read_text() and name not in ours
    for name in ("sk_rcvbuf", "sk_backlog"):
        assert name in (NEW / "rcvfull.bpf.c").read_text() and name not in programs


def test_a_tool_is_three_files(tree):
    assert "rcvfull" in python(tree, "netbpf", "list")
    documents = [path.relative_to(tree).as_posix() for path in (tree / "docs").glob("*.md")]
    documents = [str(path.relative_to(tree)) for path in (tree / "docs").glob("*.md")]
    python(tree, "netbpf.docs", "--tables", "README.md", *documents)
    left_out = [f"--ignore=tests/contract/{name}" for name in OTHERS]
    python(
        tree, "pytest", "-q", "-p", "no:cacheprovider", "tests/contract", "tests/unit", *left_out
    )
