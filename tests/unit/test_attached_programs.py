"""Programs of devices: which row they are listed under, their text, and what netlink tells."""

from __future__ import annotations

import json
import struct

import pytest

from netbpf.declare.attached_programs import AttachedPrograms, may_blame, name_programs
from netbpf.kernel.device_programs import DeviceProgram as Program
from netbpf.kernel.device_programs import DevicePrograms
from netbpf.kernel.netlink import attributes
from netbpf.output.writers import _plain

RUNS = {
    Program(23, "eth0", "xdp", 7, "drop", -1): 5,
    Program(23, "eth0", "tcx/ingress", 11, "a\x1b", -1): 3,
    Program(23, "eth0", "tcx/ingress", 13, "", -1): 2,
    Program(23, "eth1", "xdpgeneric", 17, "other", -1): 1,
    Program(29, "eth0", "xdp", 19, "elsewhere", -1): 1,
}


def listed(reason: str, dev: str = "eth0", netns: int = 23) -> list[int]:
    (row,) = name_programs([{"reason": reason, "dev": dev, "netns": netns}], RUNS)
    return [one["id"] for one in row["programs"] or ()]


@pytest.mark.parametrize(
    ("reason", "ids"),
    [("XDP", [7]), ("TC_INGRESS", [11, 13]), ("TC_EGRESS", []), ("NO_SOCKET", [])],
)
def test_programs_are_those_that_can_be_the_reason(reason: str, ids: list[int]):
    assert listed(reason) == ids


def test_programs_are_those_of_the_device_and_its_namespace():
    assert listed("XDP", "eth1") == [17]
    assert listed("XDP", netns=29) == [19]
    assert listed("XDP", "eth2") == []


def test_text_csv_and_json_of_the_programs():
    (row,) = name_programs([{"reason": "TC_INGRESS", "dev": "eth0", "netns": 23}], RUNS)
    lines = AttachedPrograms().text(row["programs"]).split("\n")
    assert lines == [
        "",
        "    program 11 a\\x1b (tcx/ingress), runs: 3",
        "    program 13 without a name (tcx/ingress), runs: 2",
    ]
    assert _plain(row["programs"]).count(";") == 1
    assert json.loads(json.dumps(row["programs"]))[1] == {
        "id": 13, "name": "", "attached": "tcx/ingress", "runs": 2,
    }  # fmt: skip
    assert AttachedPrograms().text(None) == ""


@pytest.mark.parametrize(
    ("reason", "wanted"),
    [
        (None, True),
        ("XDP", True),
        ("NO_SOCKET,TC_EGRESS", True),
        ("77", True),
        ("NO_SOCKET", False),
    ],
)
def test_programs_are_looked_for_only_if_a_reason_may_be_theirs(reason: str, wanted: bool):
    assert may_blame({"reason": reason}) is wanted


def test_attributes_of_netlink_are_padded_and_nested():
    data = struct.pack("=HH5s3xHHI", 9, 3, b"eth0\0", 8, 0x8000 | 43, 7)
    assert dict(attributes(data)) == {3: b"eth0\0", 43: struct.pack("=I", 7)}
    assert dict(attributes(struct.pack("=HH", 0, 1) + bytes(3))) == {1: b""}


def test_a_namespace_that_does_not_exist_has_no_programs():
    programs = DevicePrograms(netns=1)
    assert programs.programs == [] and programs.since_last() == {}
    programs.close()
