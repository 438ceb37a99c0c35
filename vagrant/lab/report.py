"""Count test results from JUnit files, print them as a table, and save them."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .rows import PROJECT, Row, provides_recording

PASSED, FAILED, USAGE, UNAVAILABLE, NO_ROOT = 0, 1, 2, 69, 77
OTHER = "other"
REASON_LINES, REASON_WIDTH = 40, 2000


@dataclass
class Counts:
    """Numbers of passed, failed and skipped tests; an error counts as failed."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0

    def __str__(self) -> str:
        return f"{self.passed}/{self.failed}/{self.skipped}"

    def __add__(self, more: Counts) -> Counts:
        return Counts(
            self.passed + more.passed, self.failed + more.failed, self.skipped + more.skipped
        )


@dataclass
class Outcome:
    """The results of a row. `missing`: why there was no machine, `died`: why it has no results."""

    row: Row
    missing: str = ""
    died: str = ""
    status: int = 0
    facts: dict[str, str] = field(default_factory=dict)
    # By file: "netem" for test_netem.py; "doctor/tcplife" for a parameter that is a tool.
    tests: dict[str, Counts] = field(default_factory=dict)
    failing: list[str] = field(default_factory=list)
    # What pytest says about a failed test, by its id.
    reasons: dict[str, str] = field(default_factory=dict)
    skips: list[str] = field(default_factory=list)

    @property
    def failed(self) -> bool:
        """Whether a test failed or its result is unknown."""
        return bool(self.died or self.failing or (not self.missing and self.status))


def exit_status(outcomes: Iterable[Outcome]) -> int:
    """Return 1 if a test failed, else 69 if a machine could not be created, else 0."""
    outcomes = list(outcomes)
    if any(outcome.failed for outcome in outcomes):
        return FAILED
    return UNAVAILABLE if any(outcome.missing for outcome in outcomes) else PASSED


def tool_names() -> set[str]:
    """Return the names of all tools."""
    return {path.stem for path in (PROJECT / "netbpf" / "tools").glob("[a-z]*.py")}


def read_junit(outcome: Outcome, text: str, tools: set[str]) -> None:
    """Count the tests of a JUnit file. Raises ElementTree.ParseError for a truncated file."""
    for case in ElementTree.fromstring(text).iter("testcase"):
        # A file that pytest cannot collect has no class name; its name is the module.
        module = case.get("classname") or case.get("name") or ""
        stem = next((part for part in module.split(".") if part.startswith("test_")), "")
        name = stem[5:] or OTHER
        # A test of all tools names its own in the parameters: test_x[tcplife].
        parts = re.split(r"[][-]", case.get("name") or "")
        if name not in tools:
            name = "/".join([name, *(part for part in parts if part in tools)][:2])
        _count(outcome, case, outcome.tests.setdefault(name, Counts()))


def tool_of(name: str, tools: Iterable[str]) -> str:
    """Return the tool of a key of `Outcome.tests`, or OTHER."""
    last = name.split("/")[-1]
    return last if last in tools else OTHER


def _count(outcome: Outcome, case: ElementTree.Element, counts: Counts) -> None:
    skip = case.find("skipped")
    failure = next((found for kind in ("failure", "error") for found in case.iter(kind)), None)
    if failure is not None:
        counts.failed += 1
        outcome.failing.append(test_id(case))
        outcome.reasons[test_id(case)] = failure.text or failure.get("message", "")
    elif skip is not None:
        counts.skipped += 1
        outcome.skips.append(f"{test_id(case)}: {skip.get('message', '')}")
    else:
        counts.passed += 1


def test_id(case: ElementTree.Element) -> str:
    """Return the test's id on pytest's command line."""
    parts = (case.get("classname") or "").split(".")
    end = next((n for n, part in enumerate(parts, 1) if part.startswith("test_")), len(parts))
    path, inner = "/".join(parts[:end]), parts[end:]
    return "::".join(
        [f"{path}.py", *inner, case.get("name", "")] if path else [case.get("name", "")]
    )


def table(outcomes: Sequence[Outcome]) -> str:
    """Return a table of tools by machines and the failed tests; cells are passed/failed/skipped."""
    cells = [_by_tool(outcome) for outcome in outcomes]
    tools = sorted({tool for column in cells for tool in column} - {OTHER})
    tools += [OTHER] if any(OTHER in column for column in cells) else []
    lines = [
        ["", *(outcome.row.name for outcome in outcomes)],
        ["kernel", *(outcome.facts.get("release", "-") for outcome in outcomes)],
        ["bcc", *(outcome.facts.get("bcc", "-") for outcome in outcomes)],
    ]
    lines += [[tool, *(str(column.get(tool, "-")) for column in cells)] for tool in tools]
    lines += [["result", *(_result(outcome) for outcome in outcomes)]]
    widths = [max(map(len, column)) for column in zip(*lines)]
    shown = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
    return "\n".join([*shown, "cells: passed/failed/skipped", *_troubles(outcomes)])


def _by_tool(outcome: Outcome) -> dict[str, Counts]:
    tools, counts_by_tool = tool_names(), dict[str, Counts]()
    for name, counts in outcome.tests.items():
        tool = tool_of(name, tools)
        counts_by_tool[tool] = counts_by_tool.get(tool, Counts()) + counts
    return counts_by_tool


def _result(outcome: Outcome) -> str:
    if outcome.missing:
        return "no machine"
    if outcome.died:
        return "no result"
    return "failed" if outcome.failed else "passed"


def _troubles(outcomes: Iterable[Outcome]) -> Iterable[str]:
    for outcome in outcomes:
        name = outcome.row.name
        if outcome.missing or outcome.died:
            yield f"{name}: {outcome.missing or outcome.died}"
        elif outcome.failed and not outcome.failing:
            yield f"{name}: no test failed, but the run exited with status {outcome.status}"
        for test in outcome.failing:
            yield f"{name}: failed: {test}"
            reason = outcome.reasons.get(test, "").strip().splitlines()
            yield from (f"    {line[:REASON_WIDTH]}" for line in reason[-REASON_LINES:])


def save(outcomes: Iterable[Outcome], rows: Sequence[Row], work: Path, project: Path) -> list[Path]:
    """Save recordings and results in the source tree; return the written files."""
    path = project / "vagrant" / "results.json"
    results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    written = []
    for outcome in outcomes:
        if outcome.missing or outcome.died:
            continue
        row = outcome.row
        results[row.name] = merged(results.get(row.name, {}), outcome)
        recording = work / row.name / "kernel.json"
        if provides_recording(rows, row) and recording.is_file():
            target = project / "tests" / "data" / "kernels" / f"{row.kernel}.json"
            target.write_bytes(recording.read_bytes())
            written.append(target)
    if results:
        path.write_text(json.dumps(results, indent=2, sort_keys=True) + "\n")
        written.append(path)
    return written


def merged(old: dict[str, Any], outcome: Outcome) -> dict[str, Any]:
    """Return a row of results.json; if facts are equal, counts of tests that did not run stay."""
    facts = {"userland": outcome.row.userland, **outcome.facts}
    same = all(old.get(name) == value for name, value in facts.items())
    existing = {path.stem[5:] for path in (PROJECT / "tests" / "live").glob("test_*.py")}
    before = old.get("tests", {})
    kept = {name: counts for name, counts in before.items() if name.split("/")[0] in existing}
    tests = {name: asdict(counts) for name, counts in outcome.tests.items()}
    return {**facts, "tests": {**(kept if same else {}), **tests}}
