"""Docstrings are manuals: they are there even where Python leaves them out (-OO)."""

from __future__ import annotations

import ast
from pathlib import Path


def written(doc: str | None, file: str) -> str:
    """Return the docstring of the module in `file`: `doc`, or if that is None the one in its text.

    Empty if there is none, or no text to be read.
    """
    if doc is not None:
        return doc
    try:
        return ast.get_docstring(ast.parse(Path(file).read_text()), clean=False) or ""
    except (OSError, SyntaxError, ValueError):
        return ""
