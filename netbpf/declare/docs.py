"""Read docstrings, which are the manuals, even if Python strips them (-OO)."""

from __future__ import annotations

import ast
from pathlib import Path


def written(doc: str | None, file: str) -> str:
    """Return `doc` or, if it is None, the docstring in the source `file`.

    The result is empty if there is no docstring or the file cannot be read.
    """
    if doc is not None:
        return doc
    try:
        return ast.get_docstring(ast.parse(Path(file).read_text()), clean=False) or ""
    except (OSError, SyntaxError, ValueError):
        return ""
