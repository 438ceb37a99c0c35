"""Rule: every column of every tool's JSON is compared with a value from elsewhere by a live test.

The marks (tests/live/compared.py) say which test does it; tests/live/prove_compared.py proves them
by spoiling one column after the other.
"""

from __future__ import annotations

import re

import compared
import pytest

from netbpf.declare.tool import all_tools
from tests.contract.conventions import ROOT

CLAIMS = compared.all_claims()
COLUMNS = {
    (tool.name, shape, column)
    for tool in all_tools()
    for shape, columns in compared.shapes_of(tool).items()
    for column in columns
}
LIVE = ROOT / "tests" / "live"


def test_every_column_is_compared_by_a_live_test():
    marked = {(claim.tool, claim.shape, claim.column) for claim in CLAIMS}
    lacking = sorted(COLUMNS - marked - MISSING)
    assert not lacking, "mark the live tests that compare these: @compares(tool, column, shape=...)"


def test_marks_name_columns_that_are_there():
    unknown = [c for c in CLAIMS if (c.tool, c.shape, c.column) not in COLUMNS]
    assert not unknown, "the tool has no such column (any more)"


def test_list_of_what_is_missing_only_shrinks():
    marked = {(claim.tool, claim.shape, claim.column) for claim in CLAIMS}
    assert not MISSING & marked, "it is compared now: take it off the list"
    assert MISSING <= COLUMNS, "the tool has no such column (any more): take it off the list"


@pytest.mark.parametrize("name", sorted({claim.file for claim in CLAIMS}))
def test_marks_stand_on_tests_that_run_and_handle_the_column(name):
    text = (LIVE / name).read_text()
    helpers = "".join(
        (LIVE / f"{module}.py").read_text()
        for module in re.findall(r"^(?:from|import) (\w+)", text, re.M)
        if (LIVE / f"{module}.py").exists() and module != "compared"
    )
    handled = re.sub(r"^@compares\((?:.|\n)*?\)$", "", text, flags=re.M) + helpers
    for claim in (claim for claim in CLAIMS if claim.file == name):
        assert claim.test.startswith("test_"), f"{claim.test} is no test"
        assert re.search(rf"\b{claim.column}\b", handled), f"nothing reads {claim.column}"
        head = text.partition(f"def {claim.test}(")[0].rpartition("\n\n\n")[2]
        assert "@pytest.mark.skip(" not in head, f"{claim.test} never runs"


# --- how marks are proved ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value", [0, 7, 0.5, "a", "", "2026-01-02T03:04:05.000006Z", True, [], [1], {}, {"a": 2}]
)
def test_a_spoiled_value_is_another_of_the_same_type(value):
    spoiled = compared.wrong(value)
    assert spoiled != value and type(spoiled) is type(value)
    assert compared.wrong(None) is None


def line(tool, shape):
    kinds = {"event": "event", "histogram": "histogram", "summary": "summary"}
    columns = dict.fromkeys(compared.shapes_of(tool)[shape], 1)
    return {"time": 1, **columns, "tool": tool.name, "type": kinds.get(shape, "interval")}


@pytest.mark.parametrize("tool", all_tools(), ids=lambda tool: tool.name)
def test_one_column_of_one_kind_of_line_is_spoiled(tool, monkeypatch):
    shapes = compared.shapes_of(tool)
    for shape in shapes:
        assert compared.spoiled(line(tool, shape)) == line(tool, shape)
    for shape, columns in shapes.items():
        for column in columns:
            monkeypatch.setenv(compared.SPOIL, f"{tool.name}:{shape}:{column}")
            for other in shapes:
                before, after = line(tool, other), compared.spoiled(line(tool, other))
                changed = [name for name in before if before[name] != after[name]]
                assert changed == ([column] if other == shape else []), (shape, column, other)
        monkeypatch.delenv(compared.SPOIL)


# Not compared yet, as (tool, shape): columns. It may only shrink.
_LATER: dict[tuple[str, str], str] = {}
MISSING = {(*where, column) for where, columns in _LATER.items() for column in columns.split()}
