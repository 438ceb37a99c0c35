"""Counters of network devices, and how netsize uses them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from netbpf.declare.sizes import compare_devices
from netbpf.kernel.device_counters import Devices

ALL = {"interface": None}


def histogram(dev, point, count, wire_packets=None, hardware=0):
    wire = count if wire_packets is None else wire_packets
    key = {"dev": dev, "point": point, "netns": 7}
    return {"key": key, "count": count, "wire_packets": wire, "hardware": hardware}


def test_running_kernel_has_devices_in_its_namespaces():
    if not Path("/proc/self/net/dev").exists():
        pytest.skip("needs /proc/net: run it on Linux with proc mounted")
    inode = os.stat("/proc/self/ns/net").st_ino
    devices = Devices(inode)
    if os.geteuid() == 0:
        assert (inode, "lo") in devices.read()
    devices.close()
    assert devices.read() == {}


HEAD = b"Inter-| Receive | Transmit\n face |bytes packets |bytes packets\n"


@pytest.mark.parametrize(
    ("name", "shown"),
    [(b"a\x1cb", "a\x1cb"), (b"\xff", "\\xff"), ("\x85".encode(), "\x85"), (b"\x1d", "\x1d")],
)
def test_every_device_name_that_the_kernel_allows_is_read(name, shown):
    # Any user may create one in a network namespace.
    file = os.memfd_create("dev")
    os.write(
        file, HEAD + b"    " + name + b": 1 2 3 4 5 6 7 8 9 10 11\n    lo: 0 7 0 0 0 0 0 0 0 8\n"
    )
    devices = Devices.__new__(Devices)
    devices._files = {7: file}
    assert devices.read() == {(7, shown): (2, 10), (7, "lo"): (7, 8)}
    devices.close()


def test_packets_that_no_point_saw_are_reported():
    seen = [histogram("v0", "nic_recv", 1), histogram("v0", "nic_send", 10)]
    more, (behind, around) = compare_devices(seen, {(7, "v0"): (41, 12)}, ALL)
    (row,) = more["devices"]
    assert row == {
        "dev": "v0", "netns": 7, "received": 41, "received_unseen": 40,
        "sent": 12, "sent_unseen": 2,
    }  # fmt: skip
    assert "received 40 packets" in behind and "sent 2 packets" in around


def test_device_that_counts_less_or_nothing_is_not_reported():
    seen = [histogram("v0", "nic_recv", 3)]
    assert compare_devices(seen, {(7, "v0"): (2, 0), (7, "idle"): (0, 0)}, ALL)[1] == []


def test_hardware_counts_packets_on_the_wire_and_later():
    seen = [histogram("eth0", "nic_send", 100, wire_packets=7000, hardware=2)]
    assert compare_devices(seen, {(7, "eth0"): (0, 7040)}, ALL)[1] == []
    assert " 500 packets" in compare_devices(seen, {(7, "eth0"): (0, 7500)}, ALL)[1][0]
    # A software device counts the packets it receives from the stack.
    seen = [histogram("v0", "nic_send", 100, wire_packets=7000)]
    assert " 50 packets" in compare_devices(seen, {(7, "v0"): (0, 150)}, ALL)[1][0]


def test_only_selected_devices_are_compared():
    risen = {(7, "a"): (1, 1), (7, "b"): (1, 1)}
    more, _ = compare_devices([], risen, {"interface": ["b"]})
    assert [row["dev"] for row in more["devices"]] == ["b"]
