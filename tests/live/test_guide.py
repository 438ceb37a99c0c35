"""The example of docs/adding-a-tool.md passes its live tests."""

from __future__ import annotations

import re

from tests import guide


def test_example_passes_its_live_tests(tmp_path):
    copy = guide.copy_with_example(tmp_path)
    files = (f"tests/live/test_{guide.NAME}.py", "tests/live/test_alternatives.py")
    pytest_words = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", guide.NAME)
    done = guide.run(copy, *pytest_words, *files)
    assert done.returncode == 0, done.stdout[-4000:]
    assert re.search(r"\b3 passed", done.stdout), done.stdout
