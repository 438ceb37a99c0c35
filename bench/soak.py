"""Check the memory use of all tools at once over many short connections and flows.

    sudo python3 bench/soak.py [--seconds 600] [--connections 1000000] [--flows 100000]

In a private network namespace, the load consists of short TCP connections, spread evenly over the
time and each with a new address or port, and of datagrams to a closed port of one distinct address
per flow. Ten tools trace it. The report has for each tool

rss      peak resident memory of its process in KiB, sampled once a second
maps     memory of its maps and buffers in MiB, as the kernel accounts it (memlock in fdinfo)
stated   the bound that netbpf/declare/memory.py states for them, in MiB
left     entries left 3 s after the end of the load in hash maps of state in progress
results  entries of other hash maps: rows, distributions, and LRU maps, which never grow
events   events delivered, and events lost as reported by the tool

The exit status is 1 if a tool exceeds its stated memory or RSS_KIB, or if entries are left.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

SOURCE_TREE = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(SOURCE_TREE))

from netbpf.bpf.maps import Map, possible_cpus  # noqa: E402
from netbpf.declare import memory  # noqa: E402
from netbpf.declare.tool import find_tool  # noqa: E402
from netbpf.system.syscalls import bpf  # noqa: E402

RSS_KIB = 80 << 10  # skbdrop holds the names of all kernel functions
TOOLS: dict[str, tuple[str, ...]] = {
    "gethostlatency": (),
    "netsize": ("10",),
    "skbdrop": ("--events", "10"),
    "soaccept": (),
    "sockstat": ("--top", "10", "10"),
    "soconnect": (),
    "tcplife": (),
    "tcpnagle": ("--top", "10", "10"),
    "tcpretrans": (),
    "tcpsynbl": ("10",),
}
# Maps of state in progress, which must be empty after the load.
IN_PROGRESS = {
    "sessions", "owners", "late", "attempts", "resends", "rendezvous", "calls", "established",
    "stalls", "refusals", "interruptions", "tracked", "states",
}  # fmt: skip
_PROG_BY_ID, _MAP_BY_ID, _INFO = 13, 14, 15  # enum bpf_cmd
_HASHES = {1, 5, 9, 10}  # enum bpf_map_type
_CLONE_NEWNET = 0x40000000


class MapState(NamedTuple):
    """A BPF map of a running tool."""

    name: str
    bytes: int
    entries: int


# --- the load -------------------------------------------------------------------------------------


def connect(number: int, seconds: float) -> None:
    """Make `number` short connections, spread evenly over `seconds`."""
    listeners = []
    for last in range(1, 201):
        listener = socket.create_server((f"127.0.1.{last}", 4711), backlog=16)
        listeners.append(listener)
    start = time.monotonic()
    for made in range(number):
        listener = listeners[made % len(listeners)]
        with socket.socket() as client:
            client.connect(listener.getsockname())
            server, _ = listener.accept()
            client.send(b"x" * 100)
        server.recv(200)
        server.close()
        if made % 50 == 0:
            time.sleep(max(0.0, start + seconds * made / number - time.monotonic()))


def send(flows: int, seconds: float) -> None:
    """Send a datagram to a closed port of each of `flows` addresses, spread over `seconds`."""
    start = time.monotonic()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for flow in range(flows):
            high, low = divmod(flow, 250)
            target = f"127.{2 + high // 250}.{high % 250}.{1 + low}"
            with contextlib.suppress(ConnectionRefusedError):
                sender.sendto(b"x", (target, 9))
            if flow % 50 == 0:
                time.sleep(max(0.0, start + seconds * flow / flows - time.monotonic()))


def load(options: argparse.Namespace) -> None:
    """Run both loads side by side."""
    sender = os.fork()
    if not sender:
        send(options.flows, options.seconds)
        os._exit(0)
    connect(options.connections, options.seconds)
    os.waitpid(sender, 0)


# --- memory of the tools --------------------------------------------------------------------------


def start(tool: str, directory: Path, netns: int) -> subprocess.Popen[bytes]:
    """Start a tool that traces the namespace, and wait until it is attached."""
    ready, out = directory / f"{tool}.ready", (directory / f"{tool}.out").open("wb")
    args = [tool, "--json", "--netns", str(netns), "--ready-file", str(ready), *TOOLS[tool]]
    process = subprocess.Popen(
        [sys.executable, "-m", "netbpf", *args], cwd=SOURCE_TREE, stdout=out,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    while not ready.exists():
        if process.poll() is not None:
            raise SystemExit(f"{tool} exited with status {process.returncode}")
        time.sleep(0.05)
    return process


def maps_of(pid: int) -> Iterator[MapState]:
    """Yield the maps of the BPF programs that a process holds."""
    ids: set[int] = set()
    for path in Path(f"/proc/{pid}/fdinfo").iterdir():
        with contextlib.suppress(FileNotFoundError):
            words = path.read_text().split()
            ids |= {int(words[i + 1]) for i, word in enumerate(words) if word == "prog_id:"}
    for one in {one for program in ids for one in _map_ids(program)}:
        fd = bpf(_MAP_BY_ID, struct.pack("=IIQ", one, 0, 0))
        fields = dict(line.split(":") for line in Path(f"/proc/self/fdinfo/{fd}").open())
        info = ctypes.create_string_buffer(80)
        bpf(_INFO, struct.pack("=IIQ", fd, len(info), ctypes.addressof(info)))
        name = info.raw[24:40].rstrip(b"\0").decode()
        is_hash = int(fields["map_type"]) in _HASHES
        entries = sum(1 for _ in Map.from_fd(fd).keys()) if is_hash else 0
        os.close(fd)
        yield MapState(name, int(fields["memlock"]), entries)


def _map_ids(program: int) -> list[int]:
    fd = bpf(_PROG_BY_ID, struct.pack("=IIQ", program, 0, 0))
    ids, info = (ctypes.c_uint32 * 64)(), ctypes.create_string_buffer(128)
    struct.pack_into("=I", info, 52, len(ids))  # struct bpf_prog_info: nr_map_ids, map_ids
    struct.pack_into("=Q", info, 56, ctypes.addressof(ids))
    bpf(_INFO, struct.pack("=IIQ", fd, len(info), ctypes.addressof(info)))
    os.close(fd)
    return list(ids[: struct.unpack_from("=I", info, 52)[0]])


def rss_of(pid: int) -> int:
    """Return the resident memory of a process in KiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    return 0


def report(tool: str, rss: int, maps: list[MapState], summary: dict[str, Any]) -> bool:
    """Print a tool's line; return whether it stayed within its stated memory."""
    sizes = memory.by_default(find_tool(tool), possible_cpus())
    buffer = sizes["buffer"] if any(one.name == "events" for one in maps) else 0
    stated = (sizes["maps"] or 0) + int((buffer or 0) * 1.02)
    used = sum(one.bytes for one in maps)
    filled = {one.name: one.entries for one in maps if one.entries}
    left = {name: entries for name, entries in filled.items() if name in IN_PROGRESS}
    results = {name: entries for name, entries in filled.items() if name not in IN_PROGRESS}
    lost = {name: number for name, number in summary["lost"].items() if number}
    good = used <= stated and rss <= RSS_KIB and not left
    print(
        f"{'ok ' if good else 'BAD'} {tool}: rss {rss}, maps {used / (1 << 20):.1f} MiB, stated "
        f"{stated / (1 << 20):.1f}; left {left or 0}, results {results or 0}; events "
        f"{summary['events']}, lost {lost or 0}",
        flush=True,
    )
    return good


def soak(options: argparse.Namespace, directory: Path) -> bool:
    """Trace the load with every tool; return whether all stayed within their stated memory."""
    netns = os.stat("/proc/self/ns/net").st_ino
    running = {tool: start(tool, directory, netns) for tool in TOOLS}
    peaks = dict.fromkeys(running, 0)
    worker = os.fork()
    if not worker:
        load(options)
        os._exit(0)
    while not os.waitpid(worker, os.WNOHANG)[0]:
        for tool, process in running.items():
            peaks[tool] = max(peaks[tool], rss_of(process.pid))
        time.sleep(1)
    time.sleep(3)
    good = True
    for tool, process in running.items():
        rss, maps = max(peaks[tool], rss_of(process.pid)), list(maps_of(process.pid))
        process.send_signal(2)
        process.wait()
        lines = (directory / f"{tool}.out").read_bytes().splitlines()
        good &= report(tool, rss, maps, json.loads(lines[-1]))
    return good


def main() -> int:
    """Run the benchmark; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--connections", type=int, default=1_000_000)
    parser.add_argument("--flows", type=int, default=100_000)
    options = parser.parse_args()
    if ctypes.CDLL(None).unshare(_CLONE_NEWNET):
        raise SystemExit("soak: error: needs root")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    with tempfile.TemporaryDirectory() as directory:
        return 0 if soak(options, Path(directory)) else 1


if __name__ == "__main__":
    sys.exit(main())
