"""Rule: text that must not occur in the project, such as comparisons of kernel versions."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tests.contract.conventions import PACKAGE, PROGRAMS, ROOT

TREES = (
    "netbpf",
    "bpf_programs",
    "tests",
    "scripts",
    "vagrant",
    "bench",
    "docs",
    ".ci",
    "build/man",
)
BY_VERSION = [
    r"LINUX_VERSION_CODE",
    r"KERNEL_VERSION",
    r"platform\.release",
    r"\brelease\s*(<|>|==|!=|\[)",
    r"\brelease\.(split|partition|startswith|replace)",
    r"re\.\w+\([^)]*\brelease\b",
    r"uname\(\)\.release\s*(<|>|==|!=|\.|\[)",
]
# bcc's headers compare versions, see this file.
FOR_BCC = PROGRAMS / "include" / "kernel" / "version.h"
# Directories that exist on every machine.
COMMON = {
    "/",
    "/home",
    "/root",
    "/tmp",
    "/usr",
    "/usr/src",
    "/opt",
    "/srv",
    "/mnt",
    "/var",
    "/var/tmp",
}


def files() -> list[Path]:
    """Return every text file of the project."""
    skip = {"__pycache__", ".venv", ".git", "boxes", ".vagrant"}
    found = [path for path in ROOT.iterdir() if path.is_file() and path.name not in skip]
    for tree in TREES:
        for directory, inner, names in os.walk(ROOT / tree):
            inner[:] = set(inner) - skip  # boxes may be built meanwhile
            found += [path for name in names if (path := Path(directory, name)).is_file()]
    return sorted(found)


def text_of(path: Path) -> str:
    return path.read_bytes().decode("utf-8", "replace")


def sources() -> list[Path]:
    found = [*PACKAGE.rglob("*.py"), *PROGRAMS.rglob("*.[ch]")]
    return sorted(path for path in found if path != FOR_BCC)


@pytest.mark.parametrize("path", sources(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_kernel_versions_are_not_compared(path):
    for number, line in enumerate(text_of(path).splitlines(), 1):
        for pattern in BY_VERSION:
            assert not re.search(pattern, line), (
                f"line {number}: ask for the feature: {line.strip()}"
            )


def private_paths() -> list[str]:
    """Return local paths: the checkout and the home directory."""
    found = {str(ROOT), str(ROOT.parent), os.path.expanduser("~")}
    return sorted(path for path in found if path not in COMMON)


def test_no_local_paths():
    for path in files():
        text = text_of(path)
        for private in private_paths():
            found = re.search(rf"(?<![\w.]){re.escape(private)}(?![\w-])", text)
            assert not found, f"{path.relative_to(ROOT)} names {private}"


def test_line_endings():
    for path in files():
        if path.suffix in (".py", ".c", ".h", ".md", ".toml", ".sh", ".yml", ".txt"):
            data = path.read_bytes()
            assert b"\r" not in data, f"{path.relative_to(ROOT)}: carriage return"
            assert not data or data.endswith(b"\n"), f"{path.relative_to(ROOT)}: no line end"


def test_every_c_file_names_its_licence():
    for path in PROGRAMS.rglob("*.[ch]"):
        first = text_of(path).partition("\n")[0]
        assert "SPDX-License-Identifier: GPL-2.0-only" in first, path.relative_to(ROOT)


def test_skips_say_how_to_enable():
    for path in (ROOT / "tests").rglob("test_*.py"):
        for reason in re.findall(r"pytest\.skip\(\s*f?\"([^\"]*)\"", text_of(path)):
            remedy = re.search(r":|run |make |install|needs|sudo|\{", reason)
            assert remedy, f"{path.name}: '{reason}': name a remedy"
