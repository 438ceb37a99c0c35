"""Rule: who may import whom, and what is imported only when it is needed."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from tests.contract.conventions import PACKAGE

# A room imports rooms below it only; rooms of one height do not import each other.
HEIGHTS = {
    "errors": 0,
    "declare": 1,
    "tools": 2,
    "aliases": 2,
    "findings": 2,
    "system": 2,
    "output": 2,
    "binaries": 3,
    "kernel": 4,
    "bpf": 5,
    "run": 6,
    "docs": 6,
    "doctor": 7,
    "triage": 7,
    "demo": 8,
    "commands": 9,
    "cli": 10,
    "__main__": 11,
}
ONLY_IN = {"bcc": ("bpf/compiler.py",), "click": ("cli.py", "commands/")}
CLICK = Path(click.__file__).parents[1]
LAZY = ("bcc", "numpy", "elftools")
MODULES = sorted(PACKAGE.rglob("*.py"))


def imported(node: ast.AST) -> Iterator[str]:
    """Yield the dotted names that an import statement imports."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert not node.level, "imports are absolute"
        yield from (f"{node.module}.{alias.name}" for alias in node.names)


def all_imports(path: Path) -> set[str]:
    return {name for node in ast.walk(ast.parse(path.read_text())) for name in imported(node)}


def early_imports(path: Path) -> set[str]:
    """Return what is imported when the module is: not in functions, not for type checkers."""
    found: set[str] = set()
    waiting: list[ast.AST] = [ast.parse(path.read_text())]
    while waiting:
        node = waiting.pop()
        found.update(imported(node))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting += node.orelse
            continue
        waiting += ast.iter_child_nodes(node)
    return found


def room(dotted: str) -> str:
    """Return the room of netbpf.ROOM.module."""
    parts = dotted.split(".")
    return parts[1] if len(parts) > 1 else ""


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
class TestModule:
    """Each module of the package."""

    def test_imports_only_from_below(self, path: Path) -> None:
        own = path.relative_to(PACKAGE).with_suffix("").parts[0]
        if own == "__init__":
            return
        assert own in HEIGHTS, f"say in this file where the room '{own}' stands"
        for name in all_imports(path):
            other = room(name) if name.startswith("netbpf.") else own
            if other in HEIGHTS and other != own:
                lower = HEIGHTS[other] < HEIGHTS[own]
                assert lower, f"{own} must not import {name}: imports go down, not up or across"

    def test_imports_bcc_and_click_only_where_allowed(self, path: Path) -> None:
        for name in all_imports(path):
            allowed = ONLY_IN.get(name.partition(".")[0])
            here = path.relative_to(PACKAGE).as_posix()
            assert not allowed or here.startswith(allowed), f"only {allowed} may import {name}"

    def test_imports_what_is_slow_or_may_be_missing_only_when_needed(self, path: Path) -> None:
        for name in early_imports(path):
            assert name.partition(".")[0] not in LAZY, f"import {name} inside the function"


def test_tools_know_declarations_only():
    for path in [*(PACKAGE / "tools").glob("*.py"), *(PACKAGE / "aliases").glob("*.py")]:
        for name in all_imports(path):
            if name.startswith("netbpf."):
                assert room(name) in ("declare", "errors"), f"{path.name}: a tool declares: {name}"


# What a run without special options can do without: each takes 2 to 15 ms of a start.
NOT_AT_START = {
    "asyncio", "netbpf.binaries.elf", "netbpf.run.stacks", "platform", "shutil", "socket",
    "subprocess", "tempfile", "traceback", "urllib.request", "uuid", "xml",
}  # fmt: skip


def test_start_imports_no_more_than_a_run_needs():
    code = (
        "import sys, click; before = set(sys.modules); import netbpf.cli, netbpf.run.session, "
        "netbpf.tools.tcplife; print(*(set(sys.modules) - before))"
    )
    command = [sys.executable, "-S", "-c", code]
    paths = os.pathsep.join([str(PACKAGE.parent), str(CLICK)])
    done = subprocess.run(
        command, env={"PYTHONPATH": paths}, capture_output=True, text=True, check=True
    )
    assert "netbpf.run.session" in done.stdout.split()
    assert NOT_AT_START.isdisjoint(done.stdout.split())


def test_early_imports_are_told_from_late_ones(tmp_path):
    path = tmp_path / "x.py"
    path.write_text(
        "import a\nfrom typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import b\n"
        "class C:\n    import c\ndef f():\n    import d\n"
    )
    assert early_imports(path) == {"a", "typing.TYPE_CHECKING", "c"}
    assert all_imports(path) == {"a", "b", "c", "d", "typing.TYPE_CHECKING"}


def test_modules_at_the_top_are_the_command_line_and_the_errors():
    assert {path.stem for path in PACKAGE.glob("*.py")} == {"__init__", "__main__", "cli", "errors"}
