"""Rule: the list of kernels is consistent, and `make vm` selects and counts as documented.

Without libvirt: these tests cover decisions of the lab, not its effects.
"""

from __future__ import annotations

import re
import shutil
import sys
from dataclasses import replace

import pytest

from tests.contract.conventions import PACKAGE, ROOT

# Not part of a package, because it runs with the system's Python.
sys.path.insert(0, str(ROOT / "vagrant"))
from lab import __main__ as command  # noqa: E402
from lab import boxes, machine, report, rows  # noqa: E402

ROWS = rows.read_rows()
KEYS = {"name", "userland", "kernel", "package", "suite", "ci", "why"}


def named(name):
    return next(row for row in ROWS if row.name == name)


def number(kernel):
    return [int(part) for part in kernel.split(".")]


# --- the list ------------------------------------------------------------------------------------


def test_rows_are_complete_and_names_are_unique():
    text = rows.yaml.safe_load((ROOT / "vagrant" / "kernels.yaml").read_text())
    for row in text:
        assert KEYS <= set(row) <= KEYS | {"extra"}, row.get("name")
        assert re.fullmatch(r"\d+\.\d+", row["kernel"]), "quoted, or YAML makes 6.10 a number"
        assert re.fullmatch(r"[a-z][a-z0-9.-]*", row["name"]), "it names a machine and files"
        assert isinstance(row["ci"], bool)
    assert len({row.name for row in ROWS}) == len(ROWS)


def test_names_and_kernels_are_distinct():
    assert not {row.name for row in ROWS} & ({row.kernel for row in ROWS} | {"all"})


def test_ci_boots_the_oldest_and_the_newest():
    kernels = sorted((row.kernel for row in ROWS), key=number)
    in_ci = {row.kernel for row in ROWS if row.ci}
    assert {kernels[0], kernels[-1]} <= in_ci
    assert len({row.userland for row in ROWS}) >= 3, "three releases of bcc at least"


def test_readme_names_the_oldest_kernel():
    oldest = min((row.kernel for row in ROWS), key=number)
    assert f"Linux {oldest} or newer" in (ROOT / "README.md").read_text()


# --- documentation -------------------------------------------------------------------------------


def test_every_variable_is_explained():
    vagrantfile = (ROOT / "vagrant" / "Vagrantfile").read_text()
    readme = (ROOT / "vagrant" / "README.md").read_text()
    used = set(re.findall(r'ENV(?:\.fetch\(|\[)"(\w+)"', vagrantfile))
    assert used >= {"NETBPF_VM_DRIVER", "NETBPF_VM_SERIAL"}
    for name in used:
        assert f"# {name} " in vagrantfile, f"{name}: describe it at the top of the Vagrantfile"
        assert f"`{name}`" in readme, f"{name}: describe it in vagrant/README.md"


def test_every_setting_of_make_reaches_the_lab_and_is_explained():
    readme = (ROOT / "vagrant" / "README.md").read_text()
    makefile = (ROOT / "Makefile").read_text()
    source = (ROOT / "vagrant" / "lab" / "__main__.py").read_text()
    passed = re.search(r"^VM_SETTINGS = ((?:.*\\\n)*.*)$", makefile, re.M)
    for name in re.findall(r'given\("(\w+)"', source):
        assert passed and name in passed[1].split(), f"{name} is not in VM_SETTINGS"
        assert re.search(rf"`{name}(=1)?`", readme), f"{name}: describe it in vagrant/README.md"


# --- rows and boxes ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ("6.12", ["trixie"]),
        ("sid", ["sid"]),
        ("7.2", ["sid", "bookworm-7.2"]),
        ("sid, 6.1", ["bookworm", "sid"]),
        ("all", [row.name for row in ROWS]),
        ("", [row.name for row in ROWS if row.ci]),
    ],
)
def test_rows_are_chosen_by_name_and_kernel(wanted, expected):
    assert [row.name for row in rows.select(ROWS, wanted)] == expected


@pytest.mark.parametrize("wanted", ["6", "7.20", "sid,nosuch"])
def test_unknown_kernels_are_named(wanted):
    with pytest.raises(rows.UnknownKernel, match=re.escape(wanted.split(",")[-1])):
        rows.select(ROWS, wanted)


def test_unknown_kernel_is_a_usage_error_that_lists_kernels(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["lab", "--kernel", "9.9"])
    assert command.main() == 2
    assert all(row.name in capsys.readouterr().err for row in ROWS[:1])


def test_version_prefix_is_not_another_kernel():
    row = named("bookworm")
    assert row.runs("6.1.0-50-amd64")
    assert not row.runs("6.12.48-amd64")


def test_recordings_come_from_the_first_row_of_a_kernel():
    assert rows.provides_recording(ROWS, named("sid"))
    assert not rows.provides_recording(ROWS, named("bookworm-7.2"))


@pytest.fixture
def ingredients(tmp_path):
    for name in rows.INGREDIENTS:
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


@pytest.mark.parametrize("name", rows.INGREDIENTS)
def test_box_is_stale_when_an_input_changes(ingredients, name):
    key = rows.box_key(ROWS[0], ingredients)
    assert key == rows.box_key(ROWS[0], ingredients)
    with (ingredients / name).open("a") as file:
        file.write("# changed\n")
    assert rows.box_key(ROWS[0], ingredients) != key


def test_box_is_stale_when_its_row_changes_except_descriptions():
    row = ROWS[0]
    assert rows.box_key(replace(row, extra=("vim",))) != rows.box_key(row)
    assert rows.box_key(replace(row, suite="sid")) != rows.box_key(row)
    assert rows.box_key(replace(row, why="other words", ci=not row.ci)) == rows.box_key(row)


def test_a_box_without_its_key_is_stale(tmp_path, monkeypatch):
    monkeypatch.setattr(boxes, "BOXES", tmp_path)
    row = ROWS[0]
    (tmp_path / f"{row.name}.box").write_text("")
    assert not boxes.is_fresh(row)
    (tmp_path / f"{row.name}.box.key").write_text(rows.box_key(row) + "\n")
    assert boxes.is_fresh(row)


def test_kvm_works_if_a_kernel_misses_its_root():
    assert boxes.kernel_starts("VFS: Unable to mount root fs\nKernel panic - not syncing")
    assert not boxes.kernel_starts("")
    assert not boxes.kernel_starts("qemu-system-x86_64: failed to initialize kvm")


# --- results -------------------------------------------------------------------------------------

JUNIT = """<?xml version="1.0"?><testsuites><testsuite>
<testcase classname="tests.live.test_tcplife" name="test_close" />
<testcase classname="tests.live.test_tcplife" name="test_reset[v6]">
<failure message="2 != 1">>       assert lines == 1&#10;E       assert 2 == 1</failure></testcase>
<testcase classname="tests.live.test_tcplife.TestOpen" name="test_it"><error/></testcase>
<testcase classname="tests.live.test_netsize" name="test_gro"><skipped message="no GRO"/></testcase>
<testcase classname="tests.live.test_runner" name="test_stop" />
<testcase classname="tests.live.test_doctor" name="test_choice[x-tcplife]" />
<testcase classname="" name="tests.live.test_netsize"><error message="cannot import"/></testcase>
</testsuite></testsuites>"""


def outcome_of(junit="", **members):
    outcome = report.Outcome(named("sid"), **members)
    if junit:
        report.read_junit(outcome, junit, {"tcplife", "netsize"})
    return outcome


def test_tests_are_counted_for_the_tool_that_they_are_named_after():
    outcome = outcome_of(JUNIT)
    assert {name: str(counts) for name, counts in outcome.tests.items()} == {
        "tcplife": "1/2/0",
        "netsize": "0/1/1",
        "runner": "1/0/0",
        "doctor/tcplife": "1/0/0",
    }
    assert outcome.failing == [
        "tests/live/test_tcplife.py::test_reset[v6]",
        "tests/live/test_tcplife.py::TestOpen::test_it",
        "tests.live.test_netsize",
    ]
    assert outcome.skips == ["tests/live/test_netsize.py::test_gro: no GRO"]


def test_tools_are_those_of_the_package():
    assert report.tool_names() == {
        path.stem for path in (PACKAGE / "tools").glob("*.py") if path.stem != "__init__"
    }


def test_table_has_a_column_per_machine_and_says_which_tests_failed_and_why():
    absent = report.Outcome(named("bullseye"), missing="vagrant up took longer than 10 min")
    text = report.table([absent, outcome_of(JUNIT, status=1, facts={"release": "7.2.1"})])
    lines = text.splitlines()
    assert lines[0].split() == ["bullseye", "sid"]
    assert "tcplife  -           2/2/0" in lines
    assert "other    -           1/0/0" in lines
    assert "result   no machine  failed" in lines
    assert "bullseye: vagrant up took longer than 10 min" in lines
    failed = lines.index("sid: failed: tests/live/test_tcplife.py::test_reset[v6]")
    assert lines[failed + 1 : failed + 3] == [
        "    >       assert lines == 1",
        "    E       assert 2 == 1",
    ]
    assert lines[-1] == "    cannot import"


PASSING = '<testsuites><testcase classname="tests.live.test_netsize" name="test_a"/></testsuites>'


@pytest.mark.parametrize(
    ("outcomes", "status"),
    [
        ([outcome_of(PASSING)], 0),
        ([outcome_of(PASSING), outcome_of(JUNIT, status=1)], 1),
        ([outcome_of(PASSING), outcome_of(missing="no box")], 69),
        ([outcome_of(missing="no box"), outcome_of(JUNIT, status=1)], 1),
        ([outcome_of(missing="no box"), outcome_of(died="no result came back")], 1),
        ([outcome_of(PASSING, status=5)], 1),
    ],
    ids=["passed", "failed", "no machine", "failed wins", "died", "pytest was not content"],
)
def test_exit_status(outcomes, status):
    assert report.exit_status(outcomes) == status


def test_progress_is_read_from_lines_of_pytest(tmp_path):
    log = tmp_path / "log"
    log.write_text(
        "tests/live/test_a.py::test_one PASSED      [ 25%]\n"
        "tests/live/test_a.py::test_two[a b] FAILED [ 50%]\n"
        "tests/live/test_a.py::test_three SKIPPED (no WiFi) [ 75%]\n"
        "tests/live/test_a.py::test_four ERROR      [100%]\n"
        "FAILED tests/live/test_a.py::test_two[a b] - assert 1 == 2\n"
    )
    assert machine.progress(log) == (1, 2, 1)
    assert machine.progress(tmp_path / "none") == (0, 0, 0)


def test_results_are_merged_while_facts_are_equal():
    facts = {"release": "7.2.1", "bcc": "0.37.0", "python": "3.14.2"}
    old = {
        "userland": "sid",
        **facts,
        "tests": {"doctor/soaccept": {"passed": 9}, "gone": {"passed": 1}},
    }
    new = report.merged(old, outcome_of(PASSING, facts=facts))
    assert new["tests"]["doctor/soaccept"] == {"passed": 9}
    assert new["tests"]["netsize"] == {"passed": 1, "failed": 0, "skipped": 0}
    assert "gone" not in new["tests"], "no such test file"
    other = report.merged({**old, "bcc": "0.36.0"}, outcome_of(PASSING, facts=facts))
    assert set(other["tests"]) == {"netsize"}


def test_recordings_of_dead_machines_are_not_saved(tmp_path):
    for name in ("sid", "bookworm-7.2", "bookworm"):
        (tmp_path / "work" / name).mkdir(parents=True)
        (tmp_path / "work" / name / "kernel.json").write_text(name)
    for name in ("vagrant", "tests/data/kernels"):
        (tmp_path / name).mkdir(parents=True)
    outcomes = [
        report.Outcome(named("sid")),
        report.Outcome(named("bookworm-7.2")),
        report.Outcome(named("bookworm"), died="no result came back"),
    ]
    report.save(outcomes, ROWS, tmp_path / "work", tmp_path)
    kept = {path.name: path.read_text() for path in (tmp_path / "tests/data/kernels").iterdir()}
    assert kept == {"7.2.json": "sid"}
    assert set(rows.yaml.safe_load((tmp_path / "vagrant/results.json").read_text())) == {
        "sid",
        "bookworm-7.2",
    }


def test_tail_removes_escape_sequences(tmp_path):
    log = tmp_path / "serial"
    log.write_bytes(b"one\r\n\x1b[0;32m  OK  \x1b[0m two\r\nold\rnew\n\x07\n\n")
    assert machine.tail(log, 3) == ["  OK   two", "new", "?"]
    log.write_text("Error: no\n\tfrom /usr/lib/x.rb:7:in `create'\n")
    assert machine.tail(log, 3) == ["Error: no"]
