"""skbdrop names packets that XDP programs dropped, although the kernel gives no reason.

The truth is how many datagrams the test sent to a device whose program drops everything, and how
often the program ran, as its own process reads it.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import subprocess
from collections.abc import Callable, Iterator
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
def dropping(host: Host, mode: str) -> Iterator[Callable[[], int]]:
    """A program drops what the host's device receives or sends; yield the number of its runs."""
    with subprocess.Popen(
        host.inside("python3", PROGRAM, host.device, mode),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdin and process.stdout
        if process.stdout.readline() != "attached\n":
            assert mode in ("ingress", "egress"), "XDP is everywhere"
            pytest.skip("needs a kernel with tcx: 6.6")

        def runs() -> int:
            assert process.stdin and process.stdout
            process.stdin.write("\n")
            process.stdin.flush()
            return int(process.stdout.readline())

        yield runs


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
    for event in run.events:
        assert (event["reason"], event["dev"]) == ("XDP", right.device)
        assert event["location"].partition("+")[0] == function
    assert other.rows == []


MODES = {  # the reason, and the attach point as ip and bpftool name it
    "generic": ("XDP", "xdpgeneric"), "native": ("XDP", "xdp"),
    "ingress": ("TC_INGRESS", "tcx/ingress"), "egress": ("TC_EGRESS", "tcx/egress"),
}  # fmt: skip


@compares("skbdrop", "programs", shape="rows")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("scope", ["namespace", "machine"])
def test_rows_list_the_programs_that_are_attached(
    netbpf: Any, neighbours: tuple[Host, Host], mode: str, scope: str
) -> None:
    """And how often they ran meanwhile: no longer than the kernel counts, which is the run."""
    left, right = neighbours
    at = left if mode == "egress" else right
    reason, attached = MODES[mode]
    words = ("--netns", at.inode) if scope == "namespace" else ("--dev", at.device)
    with dropping(at, mode) as runs:
        with netbpf("skbdrop", "--reason", f"{reason},NO_SOCKET", *words) as run:
            before = runs()
            with left.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                for _ in range(NUMBER):
                    sender.sendto(b"x", (right.ipv4, PORT))
            with at.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:  # not by a program
                sender.sendto(b"x", ("127.0.0.1", PORT))
            during = runs() - before
        after = runs() - before
    (row,) = (row for row in run.rows if row["reason"] == reason and row["proto"] == "udp")
    (program,) = row["programs"]
    assert row["count"] == NUMBER
    assert (program["name"], program["attached"]) == (f"drop_{mode}"[:15], attached)
    assert NUMBER <= during <= program["runs"] <= after
    others = [row for row in run.rows if row["reason"] not in (reason, "TC_INGRESS")]
    assert all(row["programs"] is None for row in others)


def test_text_has_a_line_for_each_program(netbpf: Any, neighbours: tuple[Host, Host]) -> None:
    left, right = neighbours
    words = ("--netns", right.inode, "--proto", "udp")
    with dropping(right, "generic"):
        with netbpf("skbdrop", *words, json_lines=False) as run:
            with left.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                for _ in range(NUMBER):
                    sender.sendto(b"x", (right.ipv4, PORT))
    _, row, program = run.stdout.splitlines()
    assert row.startswith("XDP ")
    assert re.fullmatch(r"    program [0-9]+ drop_generic \(xdpgeneric\), runs: [0-9]+", program)


def test_programs_of_other_devices_are_not_listed(
    netbpf: Any, two_hosts: tuple[Host, Host], one_host: Host
) -> None:
    """A drop by XDP at another device: its own program only."""
    left, right = two_hosts
    with dropping(one_host, "generic"), dropping(left, "native"):
        with netbpf("skbdrop", "--reason", "XDP") as run:
            with one_host.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                for _ in range(NUMBER):
                    sender.sendto(b"x", ("127.0.0.1", PORT))
    (row,) = (row for row in run.rows if row["netns"] == one_host.inode)
    assert [(one["name"], one["attached"]) for one in row["programs"]] == [
        ("drop_generic", "xdpgeneric")
    ]  # fmt: skip
    assert row["count"] == NUMBER and row["programs"][0]["runs"] >= NUMBER
