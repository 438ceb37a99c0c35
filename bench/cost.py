"""Measure the cost of a tool: CPU time of probes and reader per connection under load.

    sudo python3 bench/cost.py [--connections 20000] [--rounds 3] [TOOL ...]

In a private network namespace, one process opens and closes short TCP connections over loopback as
fast as it can, alternately without a tool and with the tool attached. Medians over the rounds:

probes   CPU time of BPF programs per connection in us, as measured by the kernel
reader   CPU time of netbpf itself per connection in us, from the first event to the last
longer   how much longer a connection takes with the tool attached, in percent
lost     lost events, as reported by the tool

For gethostlatency, the load is lookups of a name in /etc/hosts.

`--python` prints the entries of netbpf/declare/costs.py, which the manuals quote.
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
LOADS = {"gethostlatency": "lookups"}  # connections for all other tools
_CLONE_NEWNET = 0x40000000
_READY_SECONDS = 60


class Sample(NamedTuple):
    """One measurement: us per connection, percent, and lost events."""

    probes: float
    reader: float
    longer: float
    lost: int


def main() -> int:
    """Measure and print the results; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("tools", nargs="*", metavar="TOOL", help="tools to measure (all)")
    parser.add_argument(
        "--connections", type=int, default=20_000, help="connections per measurement (20000)"
    )
    parser.add_argument("--rounds", type=int, default=3, help="measurements per tool (3)")
    parser.add_argument("--python", action="store_true", help="print Python code for the tools")
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
    """Make `number` connections or lookups; return the time for each in us."""
    start = time.monotonic()
    command = [sys.executable, STORM, load, str(number)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return (time.monotonic() - start) / number * 1e6


def measure(tool: str, number: int) -> Sample:
    """Return the cost of a tool under a load of `number` connections."""
    load = LOADS.get(tool, "connections")
    untraced = storm(number, load)
    with tempfile.TemporaryDirectory(prefix="netbpf-cost-") as scratch:
        ready, out = Path(scratch) / "ready", Path(scratch) / "out"
        args = [tool, "--json", "--ready-file", str(ready), *OPTIONS.get(tool, ())]
        with out.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "netbpf", *args], cwd=SOURCE_TREE, stdout=file,
                stderr=subprocess.DEVNULL,
            )  # fmt: skip
        try:
            end = time.monotonic() + _READY_SECONDS
            while not ready.exists() and process.poll() is None and time.monotonic() < end:
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
        100 * (traced / untraced - 1),
        sum(summary["lost"].values()),
    )


def medians(samples: list[Sample]) -> Sample:
    """Return the median of each figure."""
    probes, reader, longer, lost = (statistics.median(values) for values in zip(*samples))
    return Sample(probes, reader, longer, int(lost))


def as_table(samples: dict[str, list[Sample]], number: int) -> str:
    """Return the table in Markdown."""
    lines = [
        f"{number} connections per measurement, Linux {platform.release()}, {platform.machine()}",
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
    """Return the argument cost= of each tool."""
    each = ((tool, medians(rounds)) for tool, rounds in samples.items())
    return "\n".join(
        f"{tool}: cost=Cost({one.probes:.1f}, {one.reader:.1f})," for tool, one in each
    )


if __name__ == "__main__":
    sys.exit(main())
