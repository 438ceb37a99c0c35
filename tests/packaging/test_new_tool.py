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
# What the sample has and no tool has yet: an event, fields of the kernel's structs, an option.
NEWS = ("udp_fail_queue_rcv_skb", "sk_rcvbuf", "sk_backlog", "--least-kb")
IN_COPY = "in a copy of this tree with one more tool; first repair what fails in the tree itself:"
# What knows no tool, and takes long.
OTHERS = (
    "contract/test_make.py",
    "contract/test_vagrant.py",
    "contract/test_vagrant_host.py",
    "unit/test_btf_damage.py",
    "unit/test_elf.py",
    "unit/test_golang.py",
    "unit/test_returns.py",
    "unit/test_syscall_filter.py",
    "unit/test_untrusted.py",
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
    output = f"{done.stdout[-8000:]}{done.stderr[-2000:]}"
    assert done.returncode == 0, f"{IN_COPY}\n{output}"
    return done.stdout


def test_sample_has_what_no_tool_has_yet():
    sample = "".join((NEW / name).read_text() for name in PLACES)
    ours = "".join(path.read_text() for path in (ROOT / "netbpf/tools").glob("*.py"))
    ours += "".join(path.read_text() for path in (ROOT / "bpf_programs").rglob("*.bpf.[ch]"))
    assert all(name in sample for name in NEWS)
    known = [name for name in NEWS if name in ours]
    if known:  # no failure: a new tool need not edit the sample
        pytest.skip(f"tools have {', '.join(known)} now: the sample in {NEW.name} proves less")


def test_a_tool_is_three_files(tree):
    assert "rcvfull" in python(tree, "netbpf", "list")
    documents = [str(path.relative_to(tree)) for path in (tree / "docs").glob("*.md")]
    python(tree, "netbpf.docs", "--tables", "README.md", *documents)
    left_out = [f"--ignore=tests/{name}" for name in OTHERS]
    python(
        tree, "pytest", "-q", "-p", "no:cacheprovider", "tests/contract", "tests/unit", *left_out
    )
