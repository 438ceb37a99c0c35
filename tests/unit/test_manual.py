"""Manuals: the two forms of a page, what is generated from a declaration, and generated tables."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from netbpf.declare import (
    PROCESS,
    Bytes,
    Column,
    Duration,
    Enum,
    Event,
    Fentry,
    Option,
    Pid,
    Probe,
    Tool,
    Tracepoint,
)
from netbpf.declare.aliases import all_aliases
from netbpf.declare.tool import all_tools, find_tool, tool_names
from netbpf.docs.__main__ import main, write_pages
from netbpf.docs.manual import man_page, manual_text
from netbpf.docs.pages import (
    Heading,
    Literal,
    Paragraph,
    Section,
    Terms,
    as_roff,
    as_text,
    escape,
    parse,
)
from netbpf.docs.tables import probes_table, renew, tools_table
from netbpf.errors import NetbpfError

DOC = r"""pretend - what is not there, and 'how' much of it

DESCRIPTION
  Some words that go on for longer than a terminal is wide, so that they must be filled anew by the
  text form.

    if (laid out)
        kept as it is

EXAMPLES
  netbpf pretend        all of it
  netbpf pretend --odd  the odd ones, which takes so many words that they need a second line

OVERHEAD
  None.

LIMITS
  .TH at the start of a line is no request, \fB is no font, and ~ is no ring.
"""


class Thing(Event):
    """What the pretended tool shows."""

    pid = Pid("whose")
    size = Bytes("how large", header="SIZE_KB")
    span_us = Duration("how long", wide=True)
    how = Enum("in which way", {0: None, 1: "well", 2: "badly"})
    secret = Column("not for people", text=False)


TOOL = Tool(
    DOC,
    event=Thing,
    probes=(
        Probe("seen", Fentry("see"), Tracepoint("eye:see", "eye:saw", loses=("size",))),
        Probe("felt", Tracepoint("skin:feel"), optional=True, loses=("span_us",), option="odd"),
    ),
    options=(*PROCESS, Option("--odd", help="only the odd ones")),
    no_filter="it pretends",
    counters=("Ip.InReceives",),
)


def section(text: str, title: str) -> str:
    return text.split(f"\n{title}\n", 1)[1].split("\n\n\n", 1)[0]


def test_sections_come_in_the_order_of_man_pages():
    titles = [line for line in manual_text(TOOL).splitlines() if line and line[0] != " "]
    assert titles == [
        "NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "FIELDS", "PROBES", "EXAMPLES", "OVERHEAD",
        "LIMITS", "EXIT STATUS",
    ]  # fmt: skip


def test_text_is_80_columns_wide_at_most():
    assert max(map(len, manual_text(TOOL).splitlines())) <= 80


def test_own_options_come_first_and_unsupported_ones_with_the_reason():
    options = section(manual_text(TOOL), "OPTIONS")
    first = [line for line in options.splitlines() if line.strip()][0]
    assert first.split() == ["--odd", "only", "the", "odd", "ones"]
    assert options.index("Filters:") < options.index("Output:") < options.index("Limits:")
    assert "Not supported, a usage error, since it pretends: --netns, --ipv4" in options


def test_defaults_are_shown():
    assert "(default 32m)" in section(manual_text(TOOL), "OPTIONS")


def test_fields_have_type_unit_and_text_heading():
    fields = " ".join(section(manual_text(TOOL), "FIELDS").split())
    assert "pid whose [integer]" in fields
    assert "size how large [integer, bytes; text SIZE_KB in KB]" in fields
    assert "span_us how long [integer, us; text in ms with -w]" in fields
    assert "how in which way [well | badly]" in fields
    assert "secret not for people [integer; not in text]" in fields
    assert "growth of the kernel's own Ip.InReceives" in fields


def test_probes_list_alternatives_in_order_and_conditions():
    probes = " ".join(section(manual_text(TOOL), "PROBES").split())
    assert (
        "seen 1. fentry see (fentry) 2. tracepoint eye:see or eye:saw, without size (tp)" in probes
    )
    assert "only with --odd; optional: without it, span_us may be unknown" in probes


def test_parse_fills_paragraphs_and_keeps_indented_lines():
    filled, kept = parse(TOOL.sections()["DESCRIPTION"])
    assert isinstance(filled, Paragraph) and filled.text.endswith("by the text form.")
    assert kept == Literal(("if (laid out)", "    kept as it is"))


def test_parse_takes_two_columns_as_terms():
    text = "  a  first\n  bc  second,\n      continued\n  d\n      below\n  e\n"
    pairs = (("a", "first"), ("bc", "second, continued"), ("d", "below"), ("e", ""))
    assert parse(text) == (Terms(pairs),)


def test_two_spaces_after_a_sentence_are_not_columns():
    assert parse("  One.  Two.\n  Three:  four.\n") == (Paragraph("One.  Two. Three:  four."),)


def test_terms_are_in_columns_and_long_ones_on_their_own_line():
    long = "x" * 50
    page = as_text([Section("T", (Heading("H"), Terms((("a", "one\ntwo"), (long, "three")))))])
    assert page.splitlines() == ["T", "  H:", "  a  one", "     two", f"  {long}", "     three"]


@pytest.mark.parametrize(
    ("text", "roff"),
    [
        ("a-b", r"a\-b"),
        ("\\n", r"\en"),
        ("'a'", r"\(aqa\(aq"),
        ('"', r"\(dq"),
        ("~^`", r"\(ti\(ha\(ga"),
        ("µ", r"\[u00B5]"),
    ],
)
def test_roff_prints_just_these_characters(text, roff):
    assert escape(text) == roff


def test_a_dot_at_the_start_of_a_line_is_not_a_request():
    page = as_roff("n", "v", [Section("S", (Paragraph(".br"), Literal((".SH", "", " x"))))])
    assert [line for line in page.splitlines() if line.startswith(r"\&")] == [
        r"\&.br", r"\&.SH", r"\&", r"\& x",
    ]  # fmt: skip


def test_man_page_has_a_name_that_apropos_finds():
    lines = man_page(TOOL).splitlines()
    assert lines[0].startswith('.TH "NETBPF\\-PRETEND" 8')
    assert r"netbpf\-pretend \- what is not there, and \(aqhow\(aq much of it" in lines


@pytest.mark.skipif(not shutil.which("groff"), reason="needs groff: apt install groff")
def test_man_page_is_typeset_without_warnings(tmp_path):
    path = tmp_path / "page.8"
    path.write_text(man_page(TOOL))
    done = subprocess.run(
        ["groff", "-man", "-ww", "-Tascii", "-P-cbou", str(path)], capture_output=True, text=True
    )
    assert done.stderr == ""
    assert ".TH at the start of a line is no request, \\fB is no font" in " ".join(
        done.stdout.split()
    )


def test_all_pages_are_written(tmp_path):
    written = write_pages(tmp_path / "man")
    assert {path.name for path in written} == {
        "netbpf.8",
        *(f"netbpf-{name}.8" for name in (*tool_names(), *(one.name for one in all_aliases()))),
    }  # fmt: skip
    assert all(path.read_text().startswith(".TH") for path in written)


# --- generated tables -----------------------------------------------------------------------------

README = "# x\n<!-- generated: tools -->\nstale\n<!-- end -->\nkept\n"


def test_renewing_changes_only_text_between_marks():
    new = renew(README)
    assert new.startswith("# x\n<!-- generated: tools -->\n| tool |")
    assert new.endswith("|\n<!-- end -->\nkept\n")
    assert "stale" not in new
    assert renew(new) == new


def test_an_unknown_table_is_an_error():
    with pytest.raises(NetbpfError, match="'chairs'"):
        renew("<!-- generated: chairs -->\n<!-- end -->")


def test_tables_are_generated_from_declarations():
    assert tools_table([TOOL]).splitlines()[2] == (
        "| `pretend` | what is not there, and 'how' much of it | a line per event |"
    )
    rows = probes_table([TOOL]).splitlines()
    assert rows[2] == (
        "| `pretend` | `seen` | fentry `see`<br>"
        "tracepoint `eye:see` or `eye:saw`, without size | always |"
    )


def test_check_reports_and_writes_nothing(tmp_path: Path, capsys):
    path = tmp_path / "README.md"
    path.write_text(README)
    other = tmp_path / "other.md"
    other.write_text(README.replace("tools", "options"))
    paths = [str(path), str(other)]
    assert main(["--tables", *paths, "--check"]) == 1
    messages = capsys.readouterr().err.splitlines()
    assert [line.split(" ", 1) for line in messages] == [
        [one, "is out of date: run make readme"] for one in paths
    ]
    assert path.read_text() == README
    assert main(["--tables", *paths]) == 0
    assert main(["--tables", *paths, "--check"]) == 0
    assert "| tool |" in path.read_text() and "| option |" in other.read_text()


COSTS = {tool.name: tool.cost for tool in all_tools() if tool.cost}


@pytest.mark.parametrize("name", COSTS)
def test_manual_has_the_measured_cost_of_its_tool(name):
    text = " ".join(manual_text(find_tool(name)).split())
    assert f"{COSTS[name].probes:.1f} us of CPU time per" in text
    assert f"the reader {COSTS[name].reader:.1f} us" in text
