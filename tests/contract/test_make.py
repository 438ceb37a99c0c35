"""Rule: `make test` runs all tests, and each smaller target only its own."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import netbpf
from tests import lanes
from tests.contract.conventions import ROOT

TREES = ("unit", "contract", "live", "packaging", "fuzz")
FILES = {tree: set((ROOT / "tests" / tree).glob("test_*.py")) for tree in TREES}


def commands(target: str, *words: str) -> list[str]:
    """Return the shell commands that `make target` runs."""
    environment = {n: v for n, v in os.environ.items() if not n.startswith(("MAKE", "MFLAGS"))}
    done = subprocess.run(
        ["make", "--dry-run", "--no-print-directory", target, *words],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout.splitlines()


def pytest_args(target: str) -> list[str]:
    """Return the arguments that a make target passes to pytest."""
    (line,) = [line for line in commands(target) if "-m pytest" in line]
    assert "||" not in line and not line.lstrip("@").startswith("-"), "a failure must count"
    return shlex.split(line.partition("-m pytest")[2])


MARKS = """
import json, sys, pytest
class Marks:
    def pytest_collection_finish(self, session):
        marks = {item.nodeid: [mark.name for mark in item.iter_markers()] for item in session.items}
        print("marks:" + json.dumps(marks))
words = ["--collect-only", "-q", "-p", "no:cacheprovider"]
sys.exit(pytest.main(words, plugins=[Marks()]))
"""


@functools.cache
def marks_of_tests() -> dict[str, list[str]]:
    """Return the marks of each test."""
    done = subprocess.run(
        [sys.executable, "-c", MARKS],
        cwd=ROOT, env={**os.environ, "PYTEST_ADDOPTS": ""}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("marks:")]
    marks: dict[str, list[str]] = json.loads(line.partition(":")[2])
    return marks


def is_in(lane: str, marks: list[str]) -> bool:
    """Return whether a lane's marker expression selects a test with these marks."""
    names = {name: name in marks for name in ("live", "beside", "alone")}
    return bool(eval(lane, {}, names))


def files_of(tests: set[str]) -> dict[str, set[Path]]:
    """Return the files of tests, by the directory below tests."""
    files = {ROOT / test.partition("::")[0] for test in tests}
    return {tree: {path for path in files if path.parts[-2] == tree} for tree in TREES}


def test_make_live_runs_every_live_test():
    flag, expression = pytest_args("live")
    assert flag == "-m"
    chosen = {test for test, marks in marks_of_tests().items() if is_in(expression, marks)}
    assert files_of(chosen)["live"] == FILES["live"]


def test_make_test_runs_every_test_once():
    (line,) = [line for line in commands("test") if "tests.lanes" in line]
    assert "||" not in line and not line.lstrip("@").startswith("-"), "a failure must count"
    tests = marks_of_tests()
    for test, marks in tests.items():
        chosen = [is_in(lane, marks) for lane in (lanes.BESIDE, lanes.LIVE, lanes.ALONE)]
        assert chosen.count(True) == 1, test
    assert files_of(set(tests)) == FILES


def test_lanes_fail_if_one_of_them_does(monkeypatch, capfd):
    monkeypatch.setattr(lanes, "precompile", lambda: None)
    marks = {lanes.BESIDE: 0, lanes.LIVE: 0, lanes.ALONE: 0}
    code = "import sys; print('ran', sys.argv[1]); sys.exit(int(sys.argv[2]))"
    monkeypatch.setattr(
        lanes, "command", lambda lane, words: [sys.executable, "-c", code, lane, str(marks[lane])]
    )
    assert lanes.main([]) == 0
    assert sorted(capfd.readouterr().out.splitlines()) == sorted(f"ran {lane}" for lane in marks)
    for lane in marks:
        marks[lane] = 1
        assert lanes.main([]) == 1
        marks[lane] = 0


def test_processes_of_the_tests_find_compiled_modules():
    lanes.precompile()
    for path in (ROOT / "netbpf").rglob("*.py"):
        compiled = Path(importlib.util.cache_from_source(str(path)))
        assert compiled.stat().st_uid == ROOT.stat().st_uid


@pytest.mark.parametrize("target", ["unit", "contract"])
def test_smaller_target_runs_its_directory(target):
    assert pytest_args(target) == [f"tests/{target}"]


def test_nothing_is_deselected():
    settings = (ROOT / "pyproject.toml").read_text()
    options = re.search(r"^addopts = (.*)$", settings, re.M)
    assert options and not re.search(r'"-m|"-k|deselect|ignore', options[1])


def test_fuzz_runs_all_or_named_targets():
    for words, wanted in (([], []), (["TARGETS=elf go"], ["elf", "go"])):
        (line,) = [line for line in commands("fuzz", *words) if "tests.fuzz" in line]
        assert shlex.split(line.partition("-m tests.fuzz")[2]) == wanted


def test_fuzz_runs_the_requested_number_of_cases():
    environment = {**os.environ, "CASES": "3", "SEED": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.fuzz", "lines", "ports"],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    rows = [line.split() for line in done.stdout.splitlines()]
    assert [(row[:3], row[-1]) for row in rows] == [
        (["lines", "3", "cases"], "ok"), (["ports", "3", "cases"], "ok"),
    ]  # fmt: skip


def test_continuous_integration_runs_make_test_and_lint():
    text = (ROOT / ".ci" / "run").read_text()
    for target in ("lint", "test"):
        assert re.search(rf"^make --silent {target} \|\| status=1$", text, re.M)
    assert text.rstrip().endswith('exit "$status"')


@pytest.mark.parametrize("target", ["test", "live", "unit", "contract", "fuzz", "lint", "wheel"])
def test_target_installs_what_it_needs_first(target):
    level = {"test": "test", "live": "test"}.get(target, "dev")
    assert commands(target)[0] == f"scripts/setup.sh {level}"


def test_entry_point_of_the_wheel_exists():
    found = re.search(r'^netbpf = "([\w.]+):(\w+)"$', (ROOT / "pyproject.toml").read_text(), re.M)
    assert found, "pyproject.toml has no command"
    assert callable(getattr(importlib.import_module(found[1]), found[2]))


def test_demonstration_installs_what_is_missing_first():
    assert re.search(r"^run: setup ##", (ROOT / "Makefile").read_text(), re.M)


def test_package_and_command_have_the_same_version():
    assert f'\nversion = "{netbpf.__version__}"\n' in (ROOT / "pyproject.toml").read_text()
