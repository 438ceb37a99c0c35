"""The example of docs/adding-a-tool.md passes its own live test."""

from __future__ import annotations

import re

from tests import guide


def test_example_passes_its_live_test(tmp_path):
    copy = guide.copy_with_example(tmp_path)
    pytest_words = ("-m", "pytest", "-q", "-p", "no:cacheprovider")
    done = guide.run(copy, *pytest_words, f"tests/live/test_{guide.NAME}.py")
    assert done.returncode == 0, done.stdout[-4000:]
    assert re.search(r"[1-9]\d* passed", done.stdout), done.stdout
