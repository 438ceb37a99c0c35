"""skbdrop names packets that XDP programs dropped, although the kernel gives no reason.

The truth is how many datagrams the test sent to a device whose program drops everything.
"""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from compared import compares
from test_skbdrop_kinds import REASONS
from topology import Host

PROGRAM = Path(__file__).parent / "programs/xdp.py"
NUMBER, PORT = 23, 9

pytestmark = pytest.mark.skipif(not REASONS, reason="needs a kernel that gives reasons: 5.17")


@contextlib.contextmanager
def dropping(host: Host, mode: str) -> Iterator[None]:
    """An XDP program drops what the host's device receives, in the block."""
    with subprocess.Popen(
        host.inside("python3", PROGRAM, host.device, mode),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdout and process.stdout.readline() == b"attached\n"
        yield


@pytest.fixture
def neighbours(two_hosts: tuple[Host, Host]) -> Iterator[tuple[Host, Host]]:
    """Two hosts, the first of which need not ask for the other's link address."""
    left, right = two_hosts
    (link,) = json.loads(right.run("ip", "-j", "link", "show", "dev", right.device))
    entry = (right.ipv4, "dev", left.device)
    left.run("ip", "neigh", "replace", *entry, "lladdr", link["address"], "nud", "permanent")
    yield left, right
    left.run("ip", "neigh", "del", *entry)


@compares("skbdrop", "reason", "location", "dev")
@pytest.mark.parametrize("mode", ["generic", "native"])
def test_packets_that_a_program_dropped_have_the_reason_xdp(
    netbpf: Any, neighbours: tuple[Host, Host], mode: str
) -> None:
    left, right = neighbours
    words = ("--netns", right.inode, "--proto", "udp")
    with dropping(right, mode), netbpf("skbdrop", "--reason", "XDP", "--events", *words) as run:
        with netbpf("skbdrop", "--reason", "NOT_SPECIFIED", *words) as other:
            with left.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                for _ in range(NUMBER):
                    sender.sendto(b"x", (right.ipv4, PORT))
            run.wait_for(NUMBER)
    (row,) = run.rows
    assert (row["reason"], row["dev"], row["count"]) == ("XDP", right.device, NUMBER)
    function = row["location"].partition("+")[0]
    assert function in {"generic": ["do_xdp_generic"], "native": ["veth_xdp_rcv_skb"]}[mode]
    assert all(event["reason"] == "XDP" for event in run.events) and other.rows == []
