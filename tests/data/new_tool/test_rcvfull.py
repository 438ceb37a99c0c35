"""rcvfull against the kernel's own counter."""

from __future__ import annotations

import socket
from typing import Any

from alternatives import Case, Stage, events
from compared import compares
from harness import Run
from topology import Host


@compares("rcvfull", "time", "comm", "rcvfull_bytes", "rcvfull_percent", "netns")
def test_each_drop_is_one_line(netbpf: Any, one_host: Host) -> None:
    with one_host.socket(socket.AF_INET, socket.SOCK_DGRAM) as full:
        full.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        full.bind(("127.0.0.1", 0))
        before = one_host.snmp()["UdpRcvbufErrors"]
        with netbpf("rcvfull", "--netns", one_host.namespace) as run:
            for _ in range(20):
                full.sendto(bytes(512), full.getsockname())
            drops = one_host.snmp()["UdpRcvbufErrors"] - before
            run.wait_for(drops)
        size = full.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
    assert drops > 0
    for event in run.events:
        assert (event["rcvfull_bytes"], event["netns"]) == (size, one_host.inode)
        assert 50 <= event["rcvfull_percent"] <= 100
        assert event["comm"] and run.summary["start"] <= event["time"] <= run.summary["end"]


def overflow(stage: Stage, run: Run) -> None:
    with stage.alone.socket(socket.AF_INET, socket.SOCK_DGRAM) as full:
        full.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        full.bind(("127.0.0.1", 0))
        for _ in range(20):
            full.sendto(bytes(512), full.getsockname())


ALTERNATIVES = Case(lambda stage: (), overflow, events)
