"""The command line in unusual surroundings: closed streams, no directory, low limits, no -O."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from harness import SLOW, SOURCE_TREE, command

pytestmark = pytest.mark.beside

TRACE = ("sockstat", "-d", "0.3", "-p", "1")


def shell(script: str, *words: str, **options: object) -> subprocess.CompletedProcess[str]:
    """Run netbpf as "$@" in a shell script."""
    line = ["sh", "-c", script, "sh", *command(*words)]
    options = {"cwd": SOURCE_TREE, **options}
    return subprocess.run(line, capture_output=True, text=True, check=False, timeout=60, **options)


@pytest.mark.parametrize("closed", ["2>&-", "0<&- 2>&-"])
def test_messages_do_not_go_into_the_data_where_stderr_is_closed(closed: str) -> None:
    done = shell(f'"$@" {closed}', *TRACE, "-o", "csv")
    assert done.returncode == 0
    header, *rows = csv.reader(io.StringIO(done.stdout))
    assert header[:2] == ["time", "type"]
    assert all(len(row) == len(header) for row in rows)
    done = shell(f'"$@" {closed}', *TRACE, "--json", "-v")
    assert [json.loads(line)["tool"] for line in done.stdout.splitlines()]


@pytest.mark.parametrize("words", [TRACE, ("list",), ("doctor",)], ids=lambda words: words[0])
def test_closed_stdout_is_an_error_with_a_hint(words: tuple[str, ...]) -> None:
    done = shell('"$@" >&-', *words)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "netbpf: error: standard output is closed",
        "hint: redirect it to a file or a pipe",
    ]


def test_working_directory_that_is_gone_does_not_matter(tmp_path: Path) -> None:
    script = 'mkdir "$0" && cd "$0" && rmdir "$0" && NETBPF_CACHE=off "$@"'
    path = f"PYTHONPATH={SOURCE_TREE}"
    line = ["env", path, "sh", "-c", script, str(tmp_path / "gone"), *command(*TRACE)]
    done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=60 * SLOW)
    assert done.returncode == 0, done.stderr


def test_names_and_manuals_are_there_without_docstrings() -> None:
    script = 'PYTHONOPTIMIZE=2 "$@"'
    assert shell(script, "list").stdout == shell('"$@"', "list").stdout
    assert shell(script, "tcplife", "--help").stdout == shell('"$@"', "tcplife", "--help").stdout
    done = shell(script, *TRACE, "--json")
    assert json.loads(done.stdout.splitlines()[-1])["tool"] == "sockstat", done.stderr


def test_low_limit_of_open_files_is_raised_or_named() -> None:
    done = shell('ulimit -Sn 20; "$@"', *TRACE)
    assert done.returncode == 0, done.stderr
    # Without CAP_SYS_RESOURCE the hard limit stays.
    bounded = (
        'ulimit -n 20; exec setpriv --bounding-set -sys_resource --inh-caps -sys_resource "$@"'
    )
    done = shell(bounded, *TRACE)
    assert done.returncode == 1
    assert "20 files may be open at once" in done.stderr
    assert "hint: allow at least" in done.stderr


def test_root_of_a_user_namespace_lacks_privileges() -> None:
    done = shell('unshare --user --map-root-user "$@"', *TRACE)
    assert done.returncode == 77
    assert "user namespace" in done.stderr
    report = json.loads(shell('unshare --user --map-root-user "$@"', "doctor", "--json").stdout)
    assert report["missing_privileges"] == ["CAP_BPF", "CAP_PERFMON"]
    (check,) = (check for check in report["checks"] if check["name"] == "privileges")
    assert check["state"] != "ok" and "user namespace" in check["words"]


def test_options_of_probes_are_shown_as_they_are_typed() -> None:
    text = shell('"$@"', "doctor").stdout
    options = [word.strip("(),") for word in text.split() if word.startswith("--") and word != "--"]
    assert not [option for option in options if "_" in option]


def test_ci_takes_no_arguments() -> None:
    done = subprocess.run(
        [str(SOURCE_TREE / ".ci/run"), "unit"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[0].startswith("ci: error: unexpected argument 'unit'")
    assert sys.executable


@pytest.mark.parametrize("tool", ["sockstat", "tcpsynbl", "skbdrop", "netsize", "tcpnagle"])
def test_a_tool_that_shows_nothing_yet_names_what_it_traces(tool: str) -> None:
    done = shell('"$@"', tool, "-d", "0.3")
    first = done.stderr.splitlines()[0]
    assert first.startswith(f"{tool}: tracing for 0.3 s or until Ctrl-C, results at the end: ")
    assert "tracing" not in shell('"$@"', tool, "-d", "0.3", "--json").stderr
