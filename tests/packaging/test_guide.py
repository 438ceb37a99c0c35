"""Rule: the example of docs/adding-a-tool.md is complete, and keeps the rules of a tool."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests import guide


def test_example_is_three_new_files():
    name = guide.NAME
    assert sorted(guide.example_files()) == [
        f"bpf_programs/{name}.bpf.c",
        f"netbpf/tools/{name}.py",
        f"tests/live/test_{name}.py",
    ]
    assert not [path for path in guide.example_files() if (guide.SOURCE_TREE / path).exists()]


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the source tree with the example in it."""
    return guide.copy_with_example(tmp_path_factory.mktemp("guide"))


def test_example_passes_the_tests_of_every_tool(copy: Path):
    pytest_words = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/contract", "tests/unit")
    done = guide.run(copy, *pytest_words, "-k", f"{guide.NAME} or test_compared")
    where = "in a copy of this tree with the example; first repair what fails in the tree itself:"
    assert done.returncode == 0, f"{where}\n{done.stdout[-4000:]}"
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed and int(passed[1]) > 50


def test_example_is_in_the_generated_documents(copy: Path):
    documents = ["README.md", *(f"docs/{path.name}" for path in (copy / "docs").glob("*.md"))]
    assert guide.run(copy, "-m", "netbpf.docs", "--tables", *documents).returncode == 0
    for name in ("README.md", "docs/kernels.md"):
        assert f"\n| `{guide.NAME}` |" in (copy / name).read_text()
    assert guide.run(copy, "-m", "netbpf", guide.NAME, "--help").returncode == 0
