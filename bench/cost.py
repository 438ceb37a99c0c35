"""What does a tool cost the machine? CPU time of probes and reader per connection, in a storm.

    sudo python3 bench/cost.py [--connections 20000] [--rounds 3] [TOOL ...]

In a network namespace of its own, a client and a server open and close short TCP connections over
loopback as fast as one process can, first without a tool and then with one attached, in turns. For
each tool, medians over the rounds:

probes   us of CPU time per connection in BPF programs, as the kernel counts it
reader   us of CPU time per connection in netbpf itself, from the first event to the last
longer   how much longer a connection takes with the tool attached than without, in percent
lost     events lost, by the tool's own account

For gethostlatency, the storm is of lookups of a name in /etc/hosts.

`--python` prints the lines of netbpf/declare/costs.py, from which the manuals have their figures.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

SOURCE_TREE = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(SOURCE_TREE))

from netbpf.declare.tool import tool_names  # noqa: E402

STORM = SOURCE_TREE / "tests" / "live" / "programs" / "storm.py"
OPTIONS = {"skbdrop": ("--events",)}
LOADS = {"gethostlatency": "lookups"}  # of the storm; connections for all others
_CLONE_NEWNET = 0x40000000
_READY_SECONDS = 60


class Sample(NamedTuple):
    """One storm: us per connection, and events lost."""

    probes: float
    reader: float
    longer: float
    lost: int


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("tools", nargs="*", metavar="TOOL", help="all of them if none is named")
    parser.add_argument("--connections", type=int, default=20_000, help="per storm (20000)")
    parser.add_argument("--rounds", type=int, default=3, help="storms per tool (3)")
    parser.add_argument("--python", action="store_true", help="print lines of Python")
    options = parser.parse_args()
    if os.geteuid() != 0:
        print("cost: error: attaching BPF programs needs root", file=sys.stderr)
        return 77
    if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "unshare")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    storm(1000)
    tools = options.tools or tool_names()
    samples: dict[str, list[Sample]] = {tool: [] for tool in tools}
    for _ in range(options.rounds):
        for tool in tools:
            samples[tool].append(measure(tool, options.connections))
    print(as_python(samples) if options.python else as_table(samples, options.connections))
    return 0


def storm(number: int, load: str = "connections") -> float:
    """Open and close so many connections, or make lookups; return how long one takes, in us."""
    began = time.monotonic()
    command = [sys.executable, STORM, load, str(number)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return (time.monotonic() - began) / number * 1e6


def measure(tool: str, number: int) -> Sample:
    """Return what a tool costs in a storm of that many connections."""
    load = LOADS.get(tool, "connections")
    alone = storm(number, load)
    with tempfile.TemporaryDirectory(prefix="netbpf-cost-") as scratch:
        sign, out = Path(scratch) / "ready", Path(scratch) / "out"
        words = [tool, "--json", "--ready-file", str(sign), *OPTIONS.get(tool, ())]
        with out.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "netbpf", *words], cwd=SOURCE_TREE, stdout=file,
                stderr=subprocess.DEVNULL,
            )  # fmt: skip
        try:
            end = time.monotonic() + _READY_SECONDS
            while not sign.exists() and process.poll() is None and time.monotonic() < end:
                time.sleep(0.01)
            traced = storm(number, load)
            process.terminate()
            process.wait(_READY_SECONDS)
        finally:
            process.kill()
            process.wait()
        summary = json.loads(out.read_text().splitlines()[-1])
    cost = summary["overhead"]
    return Sample(
        cost["run_ns"] / number / 1e3,
        cost["reader_cpu_seconds"] / number * 1e6,
        100 * (traced / alone - 1),
        sum(summary["lost"].values()),
    )


def medians(samples: list[Sample]) -> Sample:
    """Return the median of each figure."""
    middle = [statistics.median(figures) for figures in zip(*samples)]
    return Sample(middle[0], middle[1], middle[2], int(middle[3]))


def as_table(samples: dict[str, list[Sample]], number: int) -> str:
    """Return the table in Markdown."""
    lines = [
        f"{number} connections per storm, Linux {platform.release()}, {platform.machine()}",
        "",
        "| tool | probes us | reader us | longer % | lost |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for tool, each in samples.items():
        one = medians(each)
        lines.append(
            f"| {tool} | {one.probes:.2f} | {one.reader:.2f} | {one.longer:+.0f} | {one.lost} |"
        )
    return "\n".join(lines)


def as_python(samples: dict[str, list[Sample]]) -> str:
    """Return the entries of a dictionary."""
    each = ((tool, medians(found)) for tool, found in samples.items())
    return "\n".join(
        f'    "{tool}": Cost({one.probes:.1f}, {one.reader:.1f}),' for tool, one in each
    )


if __name__ == "__main__":
    sys.exit(main())
