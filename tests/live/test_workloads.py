"""Systemd unit, container and pod by name, in every tool that shows a process.

Programs run in cgroups with the paths that each container runtime and systemd make, and state files
as the runtimes write them are where these keep them, readable only for root. The truth is what the
test wrote there.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import topology
from compared import compares
from harness import TIMEOUT, Run
from topology import Host

from netbpf.kernel.btf import Btf

DROPPED = 10
DATAGRAMS = 23
TCP_BYTES = 1009
NAMES = ("container", "container_name", "pod", "pod_uid", "unit", "user_unit")
PROGRAM = f"""
import os, socket, sys
open(sys.argv[1] + "/cgroup.procs", "w").write("0")
open("/proc/self/comm", "w").write("nb-workload")
reader = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2304)
reader.bind(("127.0.0.1", 0))
server = socket.create_server(("127.0.0.1", 0))
print("ready", flush=True)
sys.stdin.readline()
server.listen()
socket.getaddrinfo("localhost", 80)
with socket.create_connection(server.getsockname()) as client:
    accepted = server.accept()[0]
    accepted.sendall(bytes({TCP_BYTES}))
    accepted.close()
    while client.recv({TCP_BYTES}):
        pass
late = socket.socket()
late.setblocking(False)
late.connect_ex(("127.0.0.1", {DROPPED}))
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
    for _ in range({DATAGRAMS}):
        sender.sendto(bytes(700), reader.getsockname())
with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as ping:
    ping.sendto(bytes.fromhex("0800f7ff00000000"), ("127.0.0.1", 0))  # an echo request
    while ping.recv(64)[20]:  # until the type is that of a reply
        pass
print("done", flush=True)
sys.stdin.read()
"""


class Place(NamedTuple):
    """A cgroup's path, the state files for it, and its names."""

    path: str
    files: dict[str, Any]
    names: tuple[str | None, ...]


UID = "0b7632a2-a56e-4278-987a-22de18008dbe"
POD_SLICE = f"kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{UID}.slice".replace(
    "-a56e-4278-987a-", "_a56e_4278_987a_"
)
TASKS = "/run/containerd/io.containerd.runtime.v2.task"
POD = {"namespace": "netbpf-shop", "name": "web-1"}
ANNOTATIONS = {f"io.kubernetes.pod.{name}": value for name, value in POD.items()}


def identity(number: int) -> str:
    return f"{number}eed" * 16


def places() -> dict[str, Place]:
    one, two, three, four, five, six = map(identity, range(1, 7))
    sandbox = {f"io.kubernetes.cri.sandbox-{name}": value for name, value in POD.items()}
    return {
        "containerd": Place(
            f"{POD_SLICE}/cri-containerd-{one}.scope",
            {f"{TASKS}/k8s.io/{one}/config.json": {
                "annotations": {**sandbox, "io.kubernetes.cri.container-name": "nginx"}}},
            (one, "nginx", "netbpf-shop/web-1", UID, f"cri-containerd-{one}.scope", None),
        ),
        "cri-o": Place(
            f"kubepods/besteffort/pod{UID}/crio-{two}",
            {f"/run/containers/storage/netbpf-containers/{two}/userdata/config.json": {
                "annotations": {**ANNOTATIONS, "io.kubernetes.container.name": "db"}}},
            (two, "db", "netbpf-shop/web-1", UID, None, None),
        ),
        "docker": Place(
            f"system.slice/docker-{three}.scope",
            {f"/var/lib/docker/containers/{three}/config.v2.json": {"ID": three, "Name": "/cache"}},
            (three, "cache", None, None, f"docker-{three}.scope", None),
        ),
        "podman": Place(
            f"machine.slice/libpod-{four}.scope/container",
            {"/run/containers/storage/netbpf-containers/volatile-containers.json": [
                {"id": five, "names": ["other"]}, {"id": four, "names": ["queue"]}]},
            (four, "queue", None, None, f"libpod-{four}.scope", None),
        ),
        "nerdctl": Place(
            f"netbpf-default/{five}",
            {f"{TASKS}/netbpf-default/{five}/config.json": {
                "annotations": {"nerdctl/name": "proxy"}}},
            (five, "proxy", None, None, None, None),
        ),
        "no-file": Place(
            f"system.slice/docker-{six}.scope", {},
            (six, None, None, None, f"docker-{six}.scope", None),
        ),
        "service": Place(
            "system.slice/netbpf-web.service", {},
            (None, None, None, None, "netbpf-web.service", None),
        ),
        "user": Place(
            "user.slice/user-65533.slice/user@65533.service/app.slice/netbpf-web.service", {},
            (None, None, None, None, "user@65533.service", "netbpf-web.service"),
        ),
    }  # fmt: skip


PLACES = places()


@contextlib.contextmanager
def made(path: Path) -> Iterator[Path]:
    """Make a directory and its parents; remove those that were missing."""
    missing = [p for p in (path, *path.parents) if not p.exists()]
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        yield path
    finally:
        for one in missing:
            one.rmdir()


@contextlib.contextmanager
def written(path: Path, value: Any) -> Iterator[None]:
    """Write a file that only root can read."""
    with made(path.parent):
        path.touch(mode=0o600, exist_ok=False)
        try:
            path.write_text(json.dumps(value))
            yield
        finally:
            path.unlink()


@contextlib.contextmanager
def workload(host: Host, place: Place) -> Iterator[subprocess.Popen[str]]:
    """Run the program at a place; it starts with the next line of its input."""
    with contextlib.ExitStack() as stack:
        cgroup = stack.enter_context(made(topology.cgroup2_mount() / place.path))
        for path, value in place.files.items():
            stack.enter_context(written(Path(path), value))
        words = host.inside(sys.executable, "-I", "-S", "-c", PROGRAM, str(cgroup))
        pipe = subprocess.PIPE
        process = stack.enter_context(
            subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True, bufsize=1)
        )
        assert process.stdin and process.stdout
        assert process.stdout.readline() == "ready\n"
        try:
            yield process
        finally:
            process.stdin.close()
            process.wait(TIMEOUT)


def play(processes: Sequence[subprocess.Popen[str]]) -> None:
    for process in processes:
        assert process.stdin and process.stdout
        process.stdin.write("\n")
        assert process.stdout.readline() == "done\n"


def names(line: dict[str, Any]) -> tuple[str | None, ...]:
    return tuple(line[name] for name in NAMES)


EVENTS = {
    "gethostlatency": (),
    "skbdrop": ("--events",),
    "so1stbyte": ("--events",),
    "soaccept": (),
    "soconnect": (),
    "solisten": (),
    "solife": (),
    "superping": (),
    "tcplife": (),
    "tcpretrans": (),
    "tcpsnoop": (),
    "tcpstates": (),
    "tcpwin": (),
}


@compares("gethostlatency", "container", "container_name", "pod", "pod_uid", "unit", "user_unit")
@compares("skbdrop", "container", "container_name", "pod", "pod_uid", "unit", "user_unit")
@compares("so1stbyte", "container", "container_name", "pod", "pod_uid", "unit", "user_unit")
@compares("soaccept", "container", "container_name", "pod", "pod_uid", "unit", "user_unit")
@compares("soconnect", "container", "container_name", "pod", "pod_uid", "unit", "user_unit")
@compares("solisten", "container", "container_name", "pod", "pod_uid", "unit", "user_unit")
@compares("solife", "container", "container_name", "pod", "pod_uid", "unit", "user_unit")
@compares("superping", "container", "container_name", "pod", "pod_uid", "unit", "user_unit")
@compares("tcplife", "container", "container_name", "pod", "pod_uid", "unit", "user_unit")
@compares("tcpretrans", "container", "container_name", "pod", "pod_uid", "unit", "user_unit")
@compares("tcpsnoop", "container", "container_name", "pod", "pod_uid", "unit", "user_unit")
@compares("tcpstates", "container", "container_name", "pod", "pod_uid", "unit", "user_unit")
@compares("tcpwin", "container", "container_name", "pod", "pod_uid", "unit", "user_unit")
@pytest.mark.parametrize("tool", EVENTS)
def test_every_event_of_a_process_has_its_names(netbpf: Any, one_host: Host, tool: str) -> None:
    if tool == "skbdrop" and "rx_sk" not in (Btf().parameters("__traceiter_kfree_skb") or ()):
        pytest.skip("needs a kernel that gives the socket of a dropped packet: 6.11")
    chosen = [PLACES[name] for name in ("containerd", "user")]
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(workload(one_host, place)) for place in chosen]
        stack.enter_context(one_host.dropping(f"tcp dport {DROPPED}"))
        words = (*EVENTS[tool], "--netns", one_host.inode)
        with netbpf(tool, *words) as run:
            play(processes)
            run.wait_for(lambda found: all(of(found, p.pid) for p in processes))
    for process, place in zip(processes, chosen):
        for event in of(run.events, process.pid):
            assert names(event) == place.names


def of(events: Sequence[dict[str, Any]], pid: int) -> list[dict[str, Any]]:
    return [event for event in events if event["pid"] == pid]


@pytest.mark.parametrize("name", PLACES)
def test_names_of_each_runtime_and_manager(netbpf: Any, one_host: Host, name: str) -> None:
    """The tool has dropped its privileges when it reads the files."""
    with workload(one_host, PLACES[name]) as process:
        with netbpf("soconnect", "--netns", one_host.inode) as run:
            play([process])
            run.wait_for(1)
    assert not [name for name in run.summary["privileges"]["kept"] if "DAC" in name]
    assert {names(event) for event in run.events} == {PLACES[name].names}


def test_a_cgroup_that_has_ended_has_no_names(netbpf: Any, one_host: Host) -> None:
    """Its events are read after it was removed: the tool is stopped meanwhile."""
    with netbpf("tcplife", "--netns", one_host.inode) as run:
        os.kill(run.process.pid, signal.SIGSTOP)
        try:
            with workload(one_host, PLACES["service"]) as process:
                play([process])
        finally:
            os.kill(run.process.pid, signal.SIGCONT)
        run.wait_for(2)
    assert {names(event) for event in run.events} == {(None,) * len(NAMES)}


@compares("sockstat", "container_name", "pod", "pod_uid", "unit", "user_unit", shape="--by")
def test_calls_by_each_name(netbpf: Any, one_host: Host) -> None:
    keys = [*NAMES, ",".join(NAMES)]
    chosen = list(PLACES.values())
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(workload(one_host, place)) for place in chosen]
        options = ("--comm", "nb-workload", "--op", "bind,connect", "--proto", "tcp")
        runs = [stack.enter_context(netbpf("sockstat", *options, "--by", k)) for k in keys]
        play(processes)
    for key, run in zip(keys, runs):
        wanted: dict[tuple[str | None, ...], int] = {}
        for place in chosen:
            value = tuple(v if n in key.split(",") else None for n, v in zip(NAMES, place.names))
            wanted[value] = wanted.get(value, 0) + 2  # connect twice
        assert {names(row): row["calls"] for row in run.rows} == wanted, key


@compares("tcptop", "container", "container_name", "pod", "pod_uid", shape="--by")
@compares("tcptop", "unit", "user_unit", shape="--by")
def test_bytes_by_each_name(netbpf: Any, one_host: Host) -> None:
    chosen = [PLACES[name] for name in ("containerd", "user", "docker")]
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(workload(one_host, place)) for place in chosen]
        options = ("tcptop", "--netns", one_host.inode, 300, "--by")
        runs = [stack.enter_context(netbpf(*options, k)) for k in (*NAMES, ",".join(NAMES))]
        play(processes)
    for name, run in zip(NAMES, runs):
        wanted: dict[str | None, int] = {}
        for place in chosen:
            value = place.names[NAMES.index(name)]
            wanted[value] = wanted.get(value, 0) + 2 * TCP_BYTES  # both ends
        assert {row[name]: row["bytes"] for row in run.rows} == wanted
    assert {names(row) for row in runs[-1].rows} == {place.names for place in chosen}


@compares("sormem", "container_name", "pod", "pod_uid", "unit", "user_unit", shape="--by")
def test_receive_buffers_by_each_name(netbpf: Any, one_host: Host) -> None:
    chosen = [PLACES[name] for name in ("containerd", "user", "docker")]
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(workload(one_host, place)) for place in chosen]
        options = ("sormem", "--netns", one_host.inode, "--by")
        runs = [stack.enter_context(netbpf(*options, k)) for k in (*NAMES, ",".join(NAMES))]
        play(processes)
        for run in runs:
            run.stop()  # while the programs have their sockets
    for name, run in zip(NAMES, runs):
        wanted: dict[str | None, int] = {}
        for place in chosen:
            value = place.names[NAMES.index(name)]
            # The full one of UDP, that of TCP, and the raw one that has read the echo.
            wanted[value] = wanted.get(value, 0) + 3
        assert {row[name]: row["sockets"] for row in run.rows} == wanted
    assert {names(row) for row in runs[-1].rows} == {place.names for place in chosen}


@compares("tcpsnoop", "container", "container_name", "pod", "pod_uid", shape="--by")
@compares("tcpsnoop", "unit", "user_unit", shape="--by")
def test_segments_by_each_name(netbpf: Any, one_host: Host) -> None:
    chosen = [PLACES[name] for name in ("containerd", "user", "docker")]
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(workload(one_host, place)) for place in chosen]
        options = ("tcpsnoop", "--netns", one_host.inode)
        runs = [
            stack.enter_context(netbpf(*options, "--by", name))
            for name in (*NAMES, ",".join(NAMES))
        ]
        before = one_host.snmp()["TcpInSegs"]
        play(processes)
        received = one_host.snmp()["TcpInSegs"] - before
    for run in runs:
        assert sum(row["segs"] for row in run.rows) == 2 * received > 0  # sent, and received
    for name, run in zip(NAMES, runs):
        values = {place.names[NAMES.index(name)] for place in chosen}
        assert {row[name] for row in run.rows} - {None} == values - {None}  # refused ones: None
    assert {names(row) for row in runs[-1].rows} >= {place.names for place in chosen}


@compares("skbdrop", "container_name", "pod", "pod_uid", "unit", "user_unit", shape="--by")
@pytest.mark.skipif(
    "rx_sk" not in (Btf().parameters("__traceiter_kfree_skb") or ()),
    reason="needs a kernel that gives the socket: 6.11",
)
def test_drops_by_each_name(netbpf: Any, one_host: Host) -> None:
    chosen = [PLACES[name] for name in ("containerd", "user", "docker")]
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(workload(one_host, place)) for place in chosen]
        options = ("--netns", one_host.inode, "--reason", "SOCKET_RCVBUFF")
        runs = [
            stack.enter_context(netbpf("skbdrop", *options, "--by", name))
            for name in (*NAMES, ",".join(NAMES))
        ]
        before = one_host.snmp()["UdpRcvbufErrors"]
        play(processes)
        lost = one_host.snmp()["UdpRcvbufErrors"] - before
    for run in runs:
        assert sum(row["count"] for row in run.rows) == lost > 0
    for name, run in zip(NAMES, runs):
        values = {place.names[NAMES.index(name)] for place in chosen}
        assert {row[name] for row in run.rows} == values
    assert {names(row) for row in runs[-1].rows} == {place.names for place in chosen}


@compares("nettop", "container", "container_name", "pod", "pod_uid", shape="--by")
@compares("nettop", "unit", "user_unit", shape="--by")
def test_datagrams_by_each_name(netbpf: Any, one_host: Host) -> None:
    chosen = [PLACES[name] for name in ("containerd", "user", "docker")]
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(workload(one_host, place)) for place in chosen]
        options = ("nettop", "--netns", one_host.inode, "--comm", "nb-workload", 300, "--by")
        keys = (*NAMES, ",".join(NAMES))
        runs = [stack.enter_context(netbpf(*options, f"{k},proto")) for k in keys]
        play(processes)
    for name, run in zip(NAMES, runs):
        wanted: dict[str | None, int] = {}
        for place in chosen:
            value = place.names[NAMES.index(name)]
            wanted[value] = wanted.get(value, 0) + DATAGRAMS
        sent = {row[name]: row["tx_packets"] for row in run.rows if row["proto"] == "udp"}
        assert sent == wanted
    assert {names(row) for row in runs[-1].rows} == {place.names for place in chosen}


def test_text_has_the_names_in_two_columns(netbpf: Any, one_host: Host) -> None:
    chosen = [PLACES[name] for name in ("containerd", "user", "no-file")]
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(workload(one_host, place)) for place in chosen]
        words = ("tcplife", "-w", "--netns", one_host.inode)
        run: Run = stack.enter_context(netbpf(*words, json_lines=False))
        play(processes)
    head, *lines = run.stdout.splitlines()
    assert head.split()[-2:] == ["CONTAINER_NAME", "UNIT"]
    found = {tuple(line.split()[-2:]) for line in lines}
    assert found == {
        ("netbpf-shop/web-1/nginx", PLACES["containerd"].names[4]),
        ("-", "user@65533.service/netbpf-web.service"),
        (identity(6)[:12], PLACES["no-file"].names[4]),
    }


@pytest.mark.parametrize("word", ["nginx", "netbpf-shop/web-1/nginx", identity(1)[:12]])
def test_filter_by_the_name_of_a_container(netbpf: Any, one_host: Host, word: str) -> None:
    chosen = [PLACES[name] for name in ("containerd", "docker")]
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(workload(one_host, place)) for place in chosen]
        words = ("--netns", one_host.inode)
        run = stack.enter_context(netbpf("soconnect", *words, "--container", word))
        everybody = stack.enter_context(netbpf("soconnect", *words))
        play(processes)
        everybody.wait_for(lambda found: all(of(found, p.pid) for p in processes))
        run.wait_for(1)
    assert {event["pid"] for event in run.events} == {processes[0].pid}
