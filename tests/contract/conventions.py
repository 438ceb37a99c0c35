"""Where things are, and what the contract tests share: the tools and their C texts."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

from netbpf.bpf.layout import program_directory, program_text
from netbpf.declare.tool import Tool, find_tool, tool_names

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "netbpf"
PROGRAMS = ROOT / "bpf_programs"
DATA = ROOT / "tests" / "data"

# A test with this is run for every tool, and gets it as `name` (so that a tool that cannot even be
# imported fails by its name, and not the whole run).
every_tool = pytest.mark.parametrize("name", tool_names())


def tool_of(name: str) -> Tool:
    """Return the tool `name`."""
    return find_tool(name)


@cache
def program(name: str) -> str:
    """Return the C program of a tool with its headers put in and its comments taken out."""
    return without_comments(program_text(program_directory() / f"{name}.bpf.c"))


def without_comments(text: str) -> str:
    """Return C without comments and with joined lines joined."""
    text = re.sub(r"/\*.*?\*/", " ", text, flags=re.DOTALL)
    return re.sub(r"//[^\n]*", "", text).replace("\\\n", " ")
