"""Filters: what they mean where several things could be meant; the truth is what programs did."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import harness
import pytest
import topology
from crowd import CONTAINER
from topology import Host

SOCKETS = 7
MAKE = f"import socket\nfor _ in range({SOCKETS}): socket.socket()\n"
ROOT = Path(
    next(
        (words[1] for words in map(str.split, open("/proc/self/mounts")) if words[2] == "cgroup2"),
        "/nonexistent",
    )
)


@contextlib.contextmanager
def cgroup(*parts: str) -> Iterator[Path]:
    """Make a cgroup below one of our own, and remove all of it afterwards."""
    top = ROOT / f"netbpf-filters-{os.getpid()}"
    made = [top.joinpath(*parts[:n]) for n in range(len(parts) + 1)]
    for path in made:
        path.mkdir(exist_ok=True)
    try:
        yield made[-1]
    finally:
        for path in reversed(made):
            with contextlib.suppress(OSError):
                path.rmdir()


def make_sockets(group: Path, text: str = MAKE) -> None:
    enter = f'echo $$ > {group}/cgroup.procs; exec "$@"'
    topology.must("sh", "-c", enter, "sh", sys.executable, "-c", text)


def made(run: Any) -> int:
    return sum(row["calls"] for row in run.rows if row["op"] == "socket")


@pytest.mark.parametrize("depth", [0, 1, 15, 16, 23])
def test_cgroup_filter_reaches_all_levels_below(depth: int, netbpf: Any) -> None:
    with cgroup() as top, cgroup(*["below"] * depth) as group, cgroup("other") as other:
        whose = top if depth else group
        with netbpf("sockstat", "--cgroup", whose if depth != 1 else top / "below") as run:
            make_sockets(group)
            if depth == 1:
                make_sockets(other)
    assert made(run) == SOCKETS


def test_cgroup_filter_in_a_cgroup_namespace_finds_the_level(
    netbpf: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The hierarchy's root is not that of the host there: the number of levels is unknown.
    usual = harness.command
    inside = ("unshare", "--cgroup", "--mount", "sh", "-c")
    mount = f'umount {ROOT} && mount -t cgroup2 none {ROOT} && exec "$@"'
    with cgroup() as top, cgroup("in", "below") as group:
        enter = f'echo $$ > {top}/cgroup.procs && exec "$@"'
        apart = ["sh", "-c", enter, "sh", *inside, mount, "sh"]
        monkeypatch.setattr(harness, "command", lambda *words: [*apart, *usual(*words)])
        with netbpf("sockstat", "--cgroup", "/in") as run:
            make_sockets(group)
            make_sockets(top)
    assert made(run) == SOCKETS


def test_all_cgroups_of_a_container_are_meant(netbpf: Any) -> None:
    identity = f"{os.getpid():x}".rjust(64, "c")
    assert identity != CONTAINER
    with cgroup("a", f"docker-{identity}.scope") as one, cgroup("b", identity) as two:
        with netbpf("sockstat", "--container", identity) as run:
            make_sockets(one)
            make_sockets(two)
    assert made(run) == 2 * SOCKETS


def test_thread_is_refused_and_its_process_named() -> None:
    text = (
        "import threading, sys\n"
        "t = threading.Thread(target=sys.stdin.read); t.start()\n"
        "print(t.native_id, flush=True); t.join()\n"
    )
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", text], **streams) as process:
        thread = process.stdout.readline().strip()
        done = harness.netbpf_once("sockstat", "-p", thread, "-d", 0.2)
        process.stdin.close()
    assert done.returncode == 2
    assert f"thread of process {process.pid}" in done.stderr
    assert f"hint: a process is traced with all its threads: -p {process.pid}" in done.stderr


def test_process_that_has_ended_is_refused() -> None:
    with subprocess.Popen(["true"]) as process:
        harness.wait_until(lambda: "Z (zombie)" in Path(f"/proc/{process.pid}/status").read_text())
        done = harness.netbpf_once("sockstat", "-p", process.pid, "-d", 0.2)
    assert done.returncode == 2
    assert f"process {process.pid} has ended" in done.stderr


@contextlib.contextmanager
def namespace_named(name: str) -> Iterator[int]:
    topology.must("ip", "netns", "add", name)
    try:
        topology.must("ip", "-n", name, "link", "set", "lo", "up")
        yield os.stat(f"/run/netns/{name}").st_ino
    finally:
        topology.must("ip", "netns", "del", name)


def test_namespace_with_a_number_for_a_name_is_meant(netbpf: Any) -> None:
    name = str(77_000_000 + os.getpid())
    with namespace_named(name), netbpf("sockstat", "--netns", name) as run:
        topology.must("ip", "netns", "exec", name, sys.executable, "-c", MAKE)
    assert run.summary["counted"] == {"namespaces": 1, "filtered": False}
    assert made(run) == SOCKETS


def test_inode_of_no_network_namespace_is_refused() -> None:
    other = os.stat("/proc/self/ns/pid").st_ino
    done = harness.netbpf_once("sockstat", "--netns", other, "-d", 0.2)
    assert done.returncode == 2
    assert "hint: namespaces: lsns" in done.stderr


def test_namespace_with_the_id_of_a_process_for_a_name_is_ambiguous(netbpf: Any) -> None:
    with namespace_named(str(os.getpid())) as inode:
        done = harness.netbpf_once("sockstat", "--netns", os.getpid(), "-d", 0.2)
        with netbpf("sockstat", "--netns", f"/run/netns/{os.getpid()}") as by_path:
            topology.must("ip", "netns", "exec", str(os.getpid()), sys.executable, "-c", MAKE)
        with netbpf("sockstat", "--netns", inode) as by_inode:
            topology.must("ip", "netns", "exec", str(os.getpid()), sys.executable, "-c", MAKE)
    assert done.returncode == 2
    assert "the name of a namespace and the id of a process" in done.stderr
    assert made(by_path) == made(by_inode) == SOCKETS


SEND = (
    "import socket, sys\n"
    "s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW); s.bind((sys.argv[1], 0x800))\n"
    "for _ in range(7): s.send(b'x' * 60)\n"
)


def test_device_by_an_alternative_name_is_meant(netbpf: Any, two_hosts: tuple[Host, Host]) -> None:
    host, name = two_hosts[0], f"netbpfalternative{os.getpid()}"
    host.run("ip", "link", "property", "add", "dev", host.device, "altname", name)
    with netbpf("netsize", "--netns", host.inode, "-i", name) as run:
        host.run(sys.executable, "-c", SEND, host.device)
    sent = [h for h in run.histograms if h["key"]["point"] == "nic_send"]
    assert [(h["key"]["dev"], h["count"] >= 7) for h in sent] == [(host.device, True)]
    host.run("ip", "link", "property", "del", "dev", host.device, "altname", name)
    for tool, option in (("netsize", "-i"), ("skbdrop", "--dev")):
        done = harness.netbpf_once(tool, "--netns", host.inode, option, name, "-d", 0.2)
        assert done.returncode == 2
        assert f"there is no network device '{name}'" in done.stderr
        assert host.device in done.stderr and "hint:" in done.stderr
