"""How the cost grows with open sockets and with packets per second.

sockets  netbpf runs while so many TCP connections are open over loopback, and ends after two
         intervals: its CPU time with what it prints at the end, wall time until it is attached, its
         memory and that of its maps, and ns of one program run while short connections are made
packets  datagrams are sent at a steady rate: ns of one program run, and the part of a CPU that the
         reader takes
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from bench.figures import table
from bench.operations import PythonTraffic
from bench.process import SOURCE_TREE, measured, running

SIZES = (1_000, 10_000, 100_000)
RATES = (1_000, 10_000, 100_000)
# Tools that look at all sockets, with the words that make them do so.
SNAPSHOTS: dict[str, tuple[str, ...]] = {
    "tcplife": ("--open",), "tcptop": ("1",), "tcprtt": ("--per", "session", "1"),
    "sockstat": ("1",), "tcpstates": (), "soaccept": (),
}  # fmt: skip
# Tools that count packets or messages.
COUNTERS: dict[str, tuple[str, ...]] = {
    "netsize": ("1",),
    "sockstat": ("1",),
    "sockstat --by raddr": ("1", "--by", "raddr"),
    "socksize": ("1",),
}
_PORT = 4713
_PER_PROCESS = 2_000  # connections: both ends are descriptors, of which limits permit 4,096


class Size(NamedTuple):
    """One start with so many sockets: seconds, MiB."""

    sockets: int
    cpu_seconds: float
    ready_seconds: float
    rss_mib: float
    maps_mib: float
    ns: float
    lines: int


class Rate(NamedTuple):
    """One tool at one rate: ns per run, share of a CPU that its process takes."""

    packets: int
    reached: float
    ns: float
    reader_share: float


@contextmanager
def open_sockets(number: int) -> Iterator[None]:
    """Have so many TCP connections in the block; both ends of each are of another process."""
    holders = [
        subprocess.Popen(
            [sys.executable, str(SOURCE_TREE / "bench/sockets.py"), str(share), f"127.0.2.{place}"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )
        for place, share in enumerate(_shares(number), 1)
    ]  # fmt: skip
    try:
        for holder in holders:
            assert holder.stdout
            if holder.stdout.readline() != b"ready\n":
                raise RuntimeError(f"{number} connections could not be opened")
        yield
    finally:
        for holder in holders:
            holder.communicate()


def _shares(number: int) -> list[int]:
    return [min(_PER_PROCESS, number - first) for first in range(0, number, _PER_PROCESS)]


def maps_mib(pid: int) -> float:
    """Return the memory of the maps that a process holds, as the kernel accounts it."""
    found: dict[str, int] = {}
    for file in Path(f"/proc/{pid}/fdinfo").iterdir():
        text = file.read_text()
        if "map_id" in text and "memlock" in text:  # not of an iterator over a map
            fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
            found[fields["map_id"].strip()] = int(fields["memlock"])
    return sum(found.values()) / (1 << 20)


def sockets(
    netbpf: tuple[str, ...], sizes: tuple[int, ...], scratch: Path, progress: Callable[[str], None]
) -> dict[str, list[Size]]:
    """Start each tool with so many sockets."""
    found: dict[str, list[Size]] = {name: [] for name in SNAPSHOTS}
    ready, cache = scratch / "ready", str(scratch / "cache")
    load = PythonTraffic(min(os.sched_getaffinity(0)))
    for name, words in SNAPSHOTS.items():  # compile
        with running((*netbpf, name, *words, "--ready-file", str(ready)), ready, cache=cache):
            pass
    for number in sizes:
        progress(f"{number} open connections")
        with open_sockets(number):
            for name, words in SNAPSHOTS.items():
                command = (*netbpf, name, *words, "--ready-file", str(ready))
                with running(command, ready, cache=cache) as tool:
                    kept = maps_mib(tool.pid)
                    with measured(tool.pid) as runs:
                        load.make("connections", 1_000)
                    time.sleep(2.0)
                    rss, _ = tool.memory()
                    usage = tool.stop()
                found[name].append(
                    Size(number, usage.cpu_seconds, tool.ready_seconds, rss / 1024, kept,
                         runs.ns, tool.lines)
                )  # fmt: skip
    load.end()
    return found


def packets(
    netbpf: tuple[str, ...], rates: tuple[int, ...], scratch: Path, progress: Callable[[str], None]
) -> dict[str, list[Rate]]:
    """Send datagrams at each rate for two seconds while each tool counts."""
    found: dict[str, list[Rate]] = {name: [] for name in COUNTERS}
    ready, cache = scratch / "ready", str(scratch / "cache")
    for rate in rates:
        for name, words in COUNTERS.items():
            progress(f"{name}, {rate} packets/s")
            command = (*netbpf, name.split()[0], *words, "--ready-file", str(ready))
            with running(command, ready, cache=cache) as tool:
                time.sleep(1.5)  # the first interval loads what later ones use
                cpu = _cpu_ns(tool.pid)
                with measured(tool.pid) as runs:
                    reached = _send(rate, 3.0)
                spent = _cpu_ns(tool.pid) - cpu
            found[name].append(Rate(rate, reached, runs.ns, spent / 3e9))
    return found


def _cpu_ns(pid: int) -> int:
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0])


def _send(rate: int, seconds: float) -> float:
    receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    receiver.bind(("127.0.0.1", _PORT))
    sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    receiver.settimeout(5.0)  # for one that was lost
    sender.connect(receiver.getsockname())
    begin = time.monotonic()
    sent = 0
    while (now := time.monotonic() - begin) < seconds:
        while sent < rate * now:
            sender.send(b"x" * 64)
            receiver.recv(64)
            sent += 1
            if not sent % 64 and time.monotonic() - begin >= seconds:
                break
        time.sleep(0.001)
    receiver.close()
    sender.close()
    return sent / (time.monotonic() - begin)


def as_markdown(by_size: dict[str, list[Size]], by_rate: dict[str, list[Rate]]) -> str:
    """Return both tables."""
    rows = [
        (name, f"{one.sockets:,}", f"{one.cpu_seconds:.2f}", f"{one.ready_seconds:.2f}",
         f"{one.rss_mib:.0f}", f"{one.maps_mib:.0f}", f"{one.ns:.0f}", one.lines)
        for name, sizes in by_size.items() for one in sizes
    ]  # fmt: skip
    heads = (
        "tool",
        "connections",
        "CPU s",
        "ready s",
        "RSS MiB",
        "maps MiB",
        "ns per run",
        "lines",
    )
    text = "### Open sockets\n\n" + table(heads, rows) + "\n\n### Packets per second\n\n"
    lines = [
        (name, f"{one.packets:,}", f"{one.reached:,.0f}", f"{one.ns:.0f}",
         f"{one.reader_share:.2%}")
        for name, rates in by_rate.items() for one in rates
    ]  # fmt: skip
    return text + table(("tool", "wanted", "reached", "ns per run", "reader"), lines) + "\n"
