"""Rule: no file and no function is longer than can be read at once."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.contract.conventions import PACKAGE, PROGRAMS

# Lines. A tool's docstring is its manual, with real output: it does not count.
MODULE, TOOL, PROGRAM, FUNCTION = 300, 120, 150, 40


def lines_of(path: Path) -> int:
    return len(path.read_text().splitlines())


def manual_of(path: Path) -> int:
    return ast.parse(path.read_text()).body[0].end_lineno or 0


def named(path: Path) -> str:
    return path.relative_to(PACKAGE.parent).as_posix()


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=named)
def test_module_is_short(path):
    tool = path.parent.name == "tools"
    length, limit = lines_of(path), TOOL if tool else MODULE
    assert length - (manual_of(path) if tool else 0) <= limit, (
        "split it by what it does, or move rules and what two tools need to declare/"
    )


@pytest.mark.parametrize("path", sorted(PROGRAMS.rglob("*.bpf.[ch]")), ids=named)
def test_c_file_is_short(path):
    limit = MODULE if path.suffix == ".h" else PROGRAM
    assert lines_of(path) <= limit, "move what others need into include/"


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=named)
def test_functions_fit_on_a_screen(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            length = _length(node)
            assert length <= FUNCTION, f"{node.name}() has {length} lines: give its parts names"


def _length(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    # The docstring and the parameters are not what has to be followed.
    first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
    return (node.end_lineno or 0) - first.lineno + 1
