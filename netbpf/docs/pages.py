"""A manual page as data, and its two forms: text for the terminal and roff for man(1).

A page is a list of sections, a section has a title and blocks. `parse` splits a section of a
docstring into blocks: paragraphs are filled, lines in two columns become terms with their meaning,
other indented or aligned lines are kept.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Union

from netbpf.output.text import fill

_TERM = 40  # a term longer than this gets a line of its own


class Paragraph(NamedTuple):
    """Running text."""

    text: str


class Literal(NamedTuple):
    """Lines that are not filled."""

    lines: tuple[str, ...]


class Shown(NamedTuple):
    """Output of a tool: kept, and not indented, as it may be 80 columns wide."""

    lines: tuple[str, ...]


class Heading(NamedTuple):
    """The title of a part of a section."""

    text: str


class Terms(NamedTuple):
    """(term, meaning) pairs; line breaks in a meaning are kept."""

    pairs: tuple[tuple[str, str], ...]


Block = Union[Paragraph, Literal, Shown, Heading, Terms]


class Section(NamedTuple):
    """A part of a page under a title in capitals."""

    title: str
    blocks: tuple[Block, ...]


def parse(text: str, output: bool = False) -> tuple[Block, ...]:
    """Return the blocks of a section; with `output`, indented blocks are output of a tool."""
    parts = re.split(r"\n\s*\n", textwrap.dedent(text).strip("\n"))
    return tuple(_block(part.splitlines(), output) for part in parts if part.strip())


_GAP = re.compile(r"(?<![ .:?!]) {2,}")  # between two columns, not between sentences


def _block(lines: Sequence[str], output: bool) -> Block:
    shown = output and all(line.startswith("  ") for line in lines)
    lines = textwrap.dedent("\n".join(lines)).splitlines()
    if shown:
        return Shown(tuple(lines))
    indented = [line.startswith(" ") for line in lines]
    if not any(_GAP.search(line.strip()) for line in lines):
        return Literal(tuple(lines)) if any(indented) else Paragraph(" ".join(lines))
    pairs: list[tuple[str, str]] = []
    for line, continues in zip(lines, indented):
        if continues and pairs:
            term, meaning = pairs.pop()
            pairs.append((term, f"{meaning} {line.strip()}".strip()))
        else:
            term, *rest = _GAP.split(line.strip(), maxsplit=1)
            pairs.append((term, rest[0] if rest else ""))
    return Terms(tuple(pairs))


def as_text(sections: Sequence[Section]) -> str:
    """Return the page for a terminal, filled to 80 columns."""
    lines: list[str] = []
    for section in sections:
        lines.append(section.title)
        for number, block in enumerate(section.blocks):
            # No empty line between a heading and the block below it.
            if number and not isinstance(section.blocks[number - 1], Heading):
                lines.append("")
            lines += _text_block(block)
        lines.append("")
    return "\n".join(lines).rstrip("\n")


def _text_block(block: Block) -> Iterator[str]:
    if isinstance(block, Paragraph):
        yield from fill(block.text, "  ", 2)
    elif isinstance(block, Heading):
        yield from fill(f"{block.text}:", "  ", 2)
    elif isinstance(block, Literal):
        yield from (f"  {line}".rstrip() for line in block.lines)
    elif isinstance(block, Shown):
        yield from block.lines
    else:
        fitting = [len(term) for term, _ in block.pairs if len(term) <= _TERM]
        column = max(fitting, default=_TERM) + 4
        for term, meaning in block.pairs:
            yield from _text_term(term, meaning, column)


def _text_term(term: str, meaning: str, column: int) -> Iterator[str]:
    head = f"  {term:<{column - 4}}  "
    if len(head) > column:
        yield head.rstrip()
        head = " " * column
        if not meaning:
            return
    for line in meaning.split("\n"):
        yield from fill(line, head, column)
        head = " " * column


def as_roff(name: str, version: str, sections: Sequence[Section]) -> str:
    """Return the page `name`(8) for man(1)."""
    # No hyphenation and no justification, which would change options and names.
    title = f'.TH "{escape(name.upper())}" 8 "" "{escape(version)}" "netbpf manual"'
    lines = [title, ".nh", ".ad l"]
    for section in sections:
        lines.append(f'.SH "{escape(section.title)}"')
        for block in section.blocks:
            lines += _roff_block(block)
    return "\n".join([*lines, ""])


def _roff_block(block: Block) -> Iterator[str]:
    if isinstance(block, Paragraph):
        yield from (".PP", _roff_line(block.text))
    elif isinstance(block, Heading):
        yield f'.SS "{escape(block.text)}"'
    elif isinstance(block, (Literal, Shown)):
        yield from (".PP", ".EX", *map(_roff_line, block.lines), ".EE")
    else:
        for term, meaning in block.pairs:
            yield from (".TP", f"\\fB{escape(term)}\\fR")
            yield "\n.br\n".join(map(_roff_line, meaning.split("\n")))


_SPECIAL = {
    "\\": r"\e",
    "-": r"\-",  # else roff prints a hyphen that a shell does not accept
    "'": r"\(aq",
    "`": r"\(ga",
    "^": r"\(ha",
    "~": r"\(ti",
    '"': r"\(dq",
}


def escape(text: str) -> str:
    """Return `text` escaped, so that roff prints exactly these characters."""
    return "".join(
        _SPECIAL.get(char) or (char if char.isascii() else f"\\[u{ord(char):04X}]") for char in text
    )


def _roff_line(text: str) -> str:
    escaped = escape(text)
    # At the start of a line a dot begins a request, and a space breaks a paragraph.
    return "\\&" + escaped if escaped.startswith((".", " ")) or not escaped else escaped
