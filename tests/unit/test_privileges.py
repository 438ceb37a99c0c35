"""Missing privileges follow from the effective capabilities."""

from __future__ import annotations

import pytest

from netbpf.system.privileges import missing_privileges

SYS_ADMIN, PERFMON, BPF = 1 << 21, 1 << 38, 1 << 39


@pytest.mark.parametrize(
    ("effective", "missing"),
    [
        (0, ["CAP_BPF", "CAP_PERFMON"]),
        (SYS_ADMIN, []),
        (BPF, ["CAP_PERFMON"]),
        (PERFMON, ["CAP_BPF"]),
        (BPF | PERFMON, []),
        (0x1FFFFFFFFFF, []),
    ],
)
def test_missing_capabilities_are_named(tmp_path, effective, missing):
    status = tmp_path / "status"
    status.write_text(f"Name:\tx\nCapPrm:\t{2**41 - 1:016x}\nCapEff:\t{effective:016x}\n")
    assert missing_privileges(str(status)) == missing


def test_missing_line_means_no_capabilities(tmp_path):
    status = tmp_path / "status"
    status.write_text("Name:\tx\n")
    assert missing_privileges(str(status)) == ["CAP_BPF", "CAP_PERFMON"]
