"""Manual of an alias: what it stands for, its columns, and the flags of the original."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from netbpf import __version__
from netbpf.declare.aliases import Alias, chosen_columns
from netbpf.declare.columns import Column
from netbpf.docs.manual import tool_options
from netbpf.docs.pages import Paragraph, Section, Terms, as_roff, as_text
from netbpf.docs.wording import describe_flags


def alias_text(alias: Alias) -> str:
    """Return the manual of `alias` for a terminal, 80 columns wide."""
    return f"same as: {alias.same_as}\n\n{as_text(alias_sections(alias))}"


def alias_page(alias: Alias) -> str:
    """Return the man page netbpf-ALIAS(8) in roff."""
    return as_roff(f"netbpf-{alias.name}", f"netbpf {__version__}", alias_sections(alias, man=True))


def alias_sections(alias: Alias, man: bool = False) -> list[Section]:
    """Return the sections of the manual."""
    positional = (
        [f"[{alias.argument[0]}]"] if alias.argument[0] else
        ["[INTERVAL [COUNT]]"] if alias.tool.interval else []
    )  # fmt: skip
    name = f"netbpf-{alias.name}" if man else alias.name
    parts = ["flags"] * bool(alias.flags) + ["text columns"] * bool(alias.columns)
    same = (
        f"Runs {alias.tool_name} with the {' and the '.join(parts)} of {alias.name} in "
        f"{alias.suite}. -w shows all columns. JSON and CSV are those of {alias.tool_name}."
        if parts
        else f"Shows with {alias.tool_name} what {alias.name} in {alias.suite} shows."
    )
    first = (Paragraph(f"Same as: {alias.same_as}"),) if man else ()
    tool_page = f"netbpf-{alias.tool_name}(8)" if man else f"'netbpf {alias.tool_name} --help'"
    rest = f"{tool_page}: fields of JSON and CSV, probes, overhead and limits."
    sections = [
        Section("NAME", (Paragraph(f"{name} - {alias.summary}"),)),
        Section(
            "SYNOPSIS", (Paragraph(" ".join(["netbpf", alias.name, "[OPTIONS]", *positional])),)
        ),
        Section("DESCRIPTION", (*first, Paragraph(same), *map(Paragraph, alias.notes))),
    ]
    if alias.columns:
        sections.append(Section("COLUMNS", (Terms(tuple(_columns(alias))),)))
    if alias.flags:
        title = f"FLAGS OF {alias.suite.upper()}"
        sections.append(Section(title, (Terms(tuple(describe_flags(alias))),)))
    sections.append(Section("OPTIONS", tuple(tool_options(alias.tool, alias))))
    return [*sections, Section("SEE ALSO", (Paragraph(rest),))]


def alias_columns(alias: Alias) -> list[Column]:
    """Return the text columns of an alias."""
    return chosen_columns(shown_record(alias), alias.columns, (), wide=False)


def shown_record(alias: Alias) -> Sequence[Column]:
    """Return the columns of the first record of the tool that has the columns of an alias."""
    tool = alias.tool
    wanted = {one.name for one in alias.columns}
    records = [*([tool.event] if tool.event else []), *(table.row for table in tool.tables)]
    found = (r.columns for r in records if wanted <= {column.name for column in r.columns})
    return next(found, ())


def _columns(alias: Alias) -> Iterator[tuple[str, str]]:
    for column in alias_columns(alias):
        field = "" if column.title.lower() == column.name else f" [{column.name}]"
        yield column.title, column.help + field
