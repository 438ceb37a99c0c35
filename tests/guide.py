"""The example tool of docs/adding-a-tool.md, as files in a copy of the source tree."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

SOURCE_TREE = Path(__file__).resolve().parents[1]
GUIDE = SOURCE_TREE / "docs" / "adding-a-tool.md"
NAME = "tcpreset"
_SKIPPED = shutil.ignore_patterns(
    ".git", ".venv", "build", "dist", "boxes", "__pycache__", ".*_cache", "*.egg-info"
)


def example_files() -> dict[str, str]:
    """Return {path: text} of the example's files: a path in backquotes, then a code block."""
    text = GUIDE.read_text(encoding="utf-8")
    return dict(re.findall(r"^`(\S+)`\n\n```\w+\n(.*?)^```", text, re.M | re.S))


def copy_with_example(directory: Path) -> Path:
    """Copy the source tree to `directory`, add the example to it, and return the copy."""
    copy = directory / "netbpf"
    shutil.copytree(SOURCE_TREE, copy, ignore=_SKIPPED)
    for path, text in example_files().items():
        (copy / path).write_text(text, encoding="utf-8")
    return copy


def run(copy: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python with these arguments in the copy."""
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTEST_ADDOPTS": ""}
    return subprocess.run(
        [sys.executable, *arguments], cwd=copy, env=environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
