"""The kernel's counters beside a result are of the network namespaces that it shows.

The truth is what the test sent to closed ports, each datagram one Udp.NoPorts, and what it reads
itself in /proc/net/snmp of every process's namespace before and after the run.
"""

from __future__ import annotations

import ctypes
import fcntl
import socket
import struct
import subprocess
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import topology
from harness import wait_until
from topology import Host

NUMBER = 23
LOAD = (
    "import socket, sys\n"
    "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
    "for _ in range(int(sys.argv[1])): s.sendto(b'x', ('127.0.0.1', 9))\n"
)


def send(host: Host, number: int = NUMBER) -> None:
    host.run("python3", "-c", LOAD, number)


def without_port() -> Counter[int]:
    """Return Udp.NoPorts of each namespace that a process is in, by the namespace's inode."""
    found: Counter[int] = Counter()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            lines = (process / "net/snmp").read_text().splitlines()
            inode = (process / "ns/net").stat().st_ino
        except OSError:
            continue
        names, values = (line.split() for line in lines if line.startswith("Udp: "))
        found[inode] = int(values[names.index("NoPorts")])
    return found


@pytest.fixture
def host_of_a_process() -> Any:
    with topology.one_host() as host:
        process = subprocess.Popen(host.inside("sleep", "60"))
        try:
            yield host
        finally:
            process.kill()
            process.wait()


def test_counters_are_the_sum_over_all_namespaces(netbpf: Any, host_of_a_process: Host) -> None:
    before = without_port()
    with netbpf("skbdrop") as run:
        send(host_of_a_process)
    after = without_port()  # of a namespace that has ended, nothing is known
    # The number of a namespace that ended is given to the next new one, whose counters begin at 0.
    grown = {inode: value - before[inode] for inode, value in after.items()}
    most = sum(more if more >= 0 else after[inode] for inode, more in grown.items())
    assert NUMBER <= run.summary["counters"]["Udp.NoPorts"] <= most
    assert run.summary["counted"]["filtered"] is False
    assert run.summary["counted"]["namespaces"] >= 2


def test_namespace_without_a_process_that_is_only_mounted_counts(
    netbpf: Any, one_host: Host
) -> None:
    with netbpf("skbdrop") as run:
        send(one_host)
    assert run.summary["counters"]["Udp.NoPorts"] >= NUMBER


def test_counters_of_an_interval_are_of_all_namespaces_as_well(
    netbpf: Any, host_of_a_process: Host
) -> None:
    with topology.one_host() as host, host.socket(socket.AF_INET, socket.SOCK_STREAM) as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        clients = []
        with netbpf("tcpsynbl", "-L", full.getsockname()[1], "0.5") as run:
            for _ in range(4):
                clients.append(host.socket(socket.AF_INET, socket.SOCK_STREAM))
                clients[-1].setblocking(False)
                clients[-1].connect_ex(full.getsockname())
            truth = wait_until(lambda: host.snmp()["TcpExtListenOverflows"])
            wait_until(lambda: overflows(run) >= truth, what="the interval's counters")
        for client in clients:
            client.close()
    assert overflows(run) == run.summary["counters"]["TcpExt.ListenOverflows"]


def overflows(run: Any) -> int:
    intervals = [line for line in run.lines if line["type"] == "counters"]
    return sum(line["counters"]["TcpExt.ListenOverflows"] for line in intervals)


def test_namespace_that_is_made_and_gone_meanwhile_counts_and_is_not_kept(netbpf: Any) -> None:
    with netbpf("skbdrop", "--events") as run:
        with topology.one_host() as host:
            inode = host.inode
            host.run("ip", "link", "add", "netbpfgone", "type", "veth", "peer", "netbpfstay")
            outside = topology.must("ip", "-n", host.namespace, "link", "show", "netbpfstay")
            assert outside
            host.run("ip", "link", "set", "netbpfstay", "netns", str(run.process.pid))
            send(host)
            run.wait_for(lambda events: [e["netns"] for e in events].count(inode) >= NUMBER)
            time.sleep(1.5)  # a look at all namespaces, at most one second and a bit after another
        # Its end takes one end of the pair away, and so the other: not so if a file keeps it alive.
        wait_until(lambda: not gone("netbpfstay", run.process.pid), what="the namespace's end")
    assert run.summary["counters"]["Udp.NoPorts"] >= NUMBER
    assert any("ended meanwhile" in note for note in run.summary["notes"])


def gone(device: str, pid: int) -> bool:
    return f"{device}:" in Path(f"/proc/{pid}/net/dev").read_text()


def test_filtered_run_says_that_its_counters_are_not(netbpf: Any, one_host: Host) -> None:
    with netbpf("tcplife", "-D", "9", "--netns", one_host.inode) as filtered:
        pass
    with netbpf("tcplife", "--netns", one_host.inode) as whole:
        pass
    assert filtered.summary["counted"] == {"namespaces": 1, "filtered": True}
    assert whole.summary["counted"] == {"namespaces": 1, "filtered": False}
    assert any("--rport or not" in note for note in filtered.summary["notes"])
    assert not any("or not" in note for note in whole.summary["notes"])


def test_namespace_that_only_a_socket_keeps_is_named_as_missing(netbpf: Any) -> None:
    made: list[socket.socket] = []

    def make() -> None:
        if ctypes.CDLL(None).unshare(0x40000000) == 0:  # CLONE_NEWNET
            made.append(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    with made[0] as sock:
        up = struct.pack("16sh14x", b"lo", 1)  # struct ifreq with IFF_UP
        fcntl.ioctl(sock, 0x8914, up)  # SIOCSIFFLAGS
        with netbpf("skbdrop") as run:
            for _ in range(NUMBER):
                sock.sendto(b"x", ("127.0.0.1", 9))
    assert any("counters lack" in note for note in run.summary["notes"])
