"""`make bench` measures what it says; how fast anything is, is not tested."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SOURCE_TREE = Path(__file__).resolve().parents[2]
LOADS = {"connections", "lookups"}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Any:
    out = tmp_path_factory.mktemp("bench")
    words = ("--quick", "--share", "0.02", "--tools", "tcplife", "--loads", ",".join(LOADS),
             "--out", str(out))  # fmt: skip
    subprocess.run(
        [sys.executable, "-m", "bench", *words, "start", "operations", "reader"],
        cwd=SOURCE_TREE, check=True, capture_output=True, timeout=300,
    )  # fmt: skip
    found = json.loads((out / "report.json").read_text())
    found["markdown"] = (out / "report.md").read_text()
    return found


def test_programs_run_as_often_as_the_traffic_has_them(report: Any) -> None:
    found = report["operations"]["tcplife"]["samples"]
    for variant in ("plain", "filtered to nothing", "filtered to all"):
        samples = found[f"connections, netbpf, {variant}"]
        assert len(samples) == 1
        # SYN_SENT, ESTABLISHED and FIN_WAIT1 to CLOSE of one end, SYN_RECV to CLOSE of the other,
        # and the call of accept(): other connections of this machine can only add to them.
        assert all(10 <= sample["runs"] for sample in samples)
    floor = found["connections, empty programs, plain"]
    assert all(10 <= sample["runs"] for sample in floor)
    assert {key.split(",")[0] for key in found} == LOADS


def test_empty_programs_write_no_events(report: Any) -> None:
    found = report["operations"]["tcplife"]["samples"]
    floor = min(sample["ns"] for sample in found["connections, empty programs, plain"])
    mine = min(sample["ns"] for sample in found["connections, netbpf, plain"])
    assert 0 < floor < mine


def test_starts_are_measured_cold_and_cached(report: Any) -> None:
    found = report["start"]["tcplife"]["samples"]
    for name in ("netbpf", "netbpf, cached"):
        assert len(found[name]) == 1
        assert all(value > 0 for sample in found[name] for value in sample.values())


def test_who_did_not_run_is_named_with_the_reason(report: Any) -> None:
    for part in (report["start"]["tcplife"], report["operations"]["tcplife"]):
        ran = {key.split(", ")[-2 if key.count(",") > 1 else 0] for key in part["samples"]}
        for suite in ("bcc", "libbpf-tools", "bpftrace", "the book"):
            assert suite in ran or part["not_run"][suite]
            if suite in part["not_run"]:
                line = f"- {suite} did not run: {part['not_run'][suite]}"
                assert line in report["markdown"]


def test_report_has_the_machine_and_all_tables(report: Any) -> None:
    assert {"kernel", "cpu", "cpus", "date", "rounds"} <= report["machine"].keys()
    assert set(report["reader_us"]["tcplife"]) == {"json", "text", "csv"}
    for head in ("## Start", "## Operations", "## Reader"):
        assert head in report["markdown"]
