"""The doctor's forecast against what the tools then use, and on machines that lack something."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import harness
import pytest
from harness import SOURCE_TREE, command, netbpf_once

from netbpf.declare.tool import Tool, all_tools, tool_names
from netbpf.doctor import report as doctor
from netbpf.kernel.inspect import LiveKernel, RecordedKernel

TOOLS = [pytest.param(tool, id=tool.name) for tool in all_tools()]
# Root without a single capability: what it owns it can still read.
POWERLESS = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    done = netbpf_once("doctor", "--json")
    assert done.stderr == ""
    found: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == (0 if all(tool["usable"] for tool in found["tools"]) else 69)
    return found


def run(*words: object, **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in words],
        cwd=SOURCE_TREE,
        text=True,
        capture_output=True,
        stdin=subprocess.DEVNULL,
        timeout=harness.START_TIMEOUT,
        check=False,
        **more,
    )


def test_every_tool_is_in_the_report(report: dict[str, Any]) -> None:
    assert [tool["name"] for tool in report["tools"]] == tool_names()


@pytest.mark.parametrize("tool", TOOLS)
def test_a_tool_uses_what_the_doctor_said(report: dict[str, Any], tool: Tool) -> None:
    forecast = next(one for one in report["tools"] if one["name"] == tool.name)
    if not forecast["usable"]:
        pytest.skip(f"not on this kernel: {forecast['problems']}")
    done = netbpf_once(tool.name, "-d", "0.2", "--json")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    expected = {one["name"]: one for one in forecast["probes"]}
    for used in summary["probes"]:
        assert used["kind"] == expected[used["name"]]["kind"], used
        assert used["targets"] == expected[used["name"]]["targets"], used


def test_text_and_json_agree(report: dict[str, Any]) -> None:
    text = netbpf_once("doctor").stdout
    for tool in report["tools"]:
        mark = "ok" if tool["usable"] else "!!"
        assert f"\n{mark}  {tool['name']}: " in text
        for probe in tool["probes"]:
            assert f"\n    {probe['name']} " in text


@pytest.mark.skipif(not shutil.which("strace"), reason="needs strace: apt install strace")
def test_nothing_is_attached(tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    trace = ("strace", "-f", "-qq", "-e", "trace=bpf,perf_event_open", "-o", calls)
    done = run(*trace, *command("doctor"))
    assert done.returncode in (0, 69), done.stderr
    made = calls.read_text()
    assert "BPF_PROG_LOAD" in made  # it tries whether fentry programs are taken
    for attaching in ("perf_event_open", "BPF_RAW_TRACEPOINT_OPEN", "BPF_LINK_CREATE"):
        assert attaching not in made


def test_a_recording_chooses_as_the_kernel_does(tmp_path: Path) -> None:
    path = tmp_path / "kernel.json"
    done = netbpf_once("doctor", "--record", path)
    assert done.returncode == 0, done.stderr
    recorded, live = RecordedKernel(json.loads(path.read_text())), LiveKernel()
    for tool in all_tools():
        assert doctor.selections_of(tool, recorded) == doctor.selections_of(tool, live)
        assert doctor.examine_tool(tool, recorded) == doctor.examine_tool(tool, live)


def test_without_privileges_root_is_asked_for() -> None:
    done = run(*POWERLESS, *command("doctor"))
    assert done.returncode == 77, done.stderr
    assert "CAP_BPF, CAP_PERFMON missing" in done.stdout
    assert "run it as root: sudo netbpf doctor" in done.stdout
    assert done.stderr == ""


def test_without_privileges_nothing_is_recorded(tmp_path: Path) -> None:
    done = run(*POWERLESS, *command("doctor", "--record", tmp_path / "kernel.json"))
    assert done.returncode == 77
    assert list(tmp_path.iterdir()) == []


def test_without_btf_the_way_out_is_told() -> None:
    hide = 'mount -t tmpfs none /sys/kernel/btf && exec "$@"'
    done = run("unshare", "--mount", "sh", "-c", hide, "sh", *command("doctor", "--json"))
    assert done.returncode == 69, done.stderr
    report = json.loads(done.stdout)
    assert {tool["usable"] for tool in report["tools"]} == {False}
    assert any("--btf FILE" in hint for hint in report["hints"])


def test_without_bcc_the_package_is_named(tmp_path: Path) -> None:
    (tmp_path / "bcc").mkdir()
    (tmp_path / "bcc" / "__init__.py").write_text("raise ImportError('not here')\n")
    path = f"{tmp_path}:{SOURCE_TREE}"
    done = run(*command("doctor"), env={**os.environ, "PYTHONPATH": path})
    assert done.returncode == 69, done.stderr
    assert "!!  bcc" in done.stdout and "not here" in done.stdout
    assert "python3-bpfcc" in done.stdout
    # The kernel was examined all the same.
    assert "\n    state " in done.stdout


def test_a_file_without_types_is_a_usage_error() -> None:
    done = netbpf_once("doctor", "--btf", "/etc/hostname")
    assert done.returncode == 2
    assert "/etc/hostname" in done.stderr and "Traceback" not in done.stderr
