"""Measure the cost of starting tcplife: netbpf and the tcplife of bcc and libbpf-tools.

Each tool is started, interrupted as soon as it is attached, and waited for. Measured per round:

cpu    user and system time of the process and the children that it waited for, from wait4(2): the
       cost of a start and a stop without tracing.
ready  wall time from the start until the tool is attached.
rss    peak resident memory (VmHWM) of the tool's process when it is attached.
peak   peak resident memory of the tool's largest process, including its compiler, from start to
       end (ru_maxrss). A process inherits this value from its parent, here a Python process that
       is larger than a small C program; a value that is not above the parent's is replaced by rss.

netbpf caches compiled programs. The row `netbpf` is a first start, which compiles
(NETBPF_CACHE=off). The row `netbpf, cached` is a later start with the same options, which loads
what the warm-up run compiled. Ratios to peers are those of a first start.

A tool is attached when the file of `--ready-file` exists (netbpf) or when it has printed its
header line (the others). Tools write to a terminal, so that they do not buffer their output.

A warm-up run of each tool fills the page cache and Python's bytecode cache, and finds out which
tools can run; the others are reported with the reason. The order of the tools alternates between
rounds. Results are medians over the rounds, and ratios are medians of the ratios per round.

bcc's tool needs kernel headers and tracefs. The benchmark runs in a private mount namespace, where
it mounts missing file systems and, if the running kernel has no headers, provides those of another
kernel in their place. Nothing is visible outside the namespace or left behind.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pty
import resource
import select
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

SOURCE_TREE = Path(__file__).resolve().parent.parent
INSIDE = "NETBPF_BENCH_INSIDE"
CACHED = "netbpf, cached"
POLL_SECONDS = 0.002
STOP_SECONDS = 30
MEASURES = ("cpu_seconds", "ready_seconds", "rss_kib", "peak_kib")


class CannotRun(Exception):
    """A tool could not attach; the message is the reason."""


@dataclass(frozen=True)
class Tool:
    """A command, and the `header` that it prints when attached (if empty, it has a ready file).

    `cache` is NETBPF_CACHE: a directory for compiled programs, or "off".
    """

    name: str
    command: list[str]
    header: bytes = b""
    cache: str = "off"


@dataclass(frozen=True)
class Sample:
    """One start and stop of one tool."""

    cpu_seconds: float
    ready_seconds: float
    rss_kib: int
    peak_kib: int


@dataclass
class Report:
    """The results: samples by tool, and the reason for each tool that could not run."""

    samples: dict[str, list[Sample]] = field(default_factory=dict)
    not_run: dict[str, str] = field(default_factory=dict)
    headers: str = ""


def main() -> int:
    """Measure and print the results; return 1 if netbpf itself could not run."""
    options = parse_options()
    if os.geteuid() != 0:
        print("bench: error: attaching BPF programs needs root", file=sys.stderr)
        return 77
    if INSIDE not in os.environ:
        enter_namespace()
    report = Report(headers=prepare_namespace())
    with tempfile.TemporaryDirectory(prefix="netbpf-bench-") as scratch:
        tools = find_tools(options.netbpf, Path(scratch), report)
        measure_all(tools, options.rounds, options.timeout, Path(scratch), report)
    print(as_json(report) if options.json else as_table(report))
    return 0 if "netbpf" in report.samples else 1


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-n", "--rounds", type=int, default=7, help="measured rounds (7)")
    parser.add_argument("--timeout", type=float, default=60, help="seconds for one start (60)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--netbpf",
        default="/usr/bin/python3 -m netbpf",
        help="how to call netbpf (/usr/bin/python3 -m netbpf, in the source tree)",
    )
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error("at least one round is needed")
    return options


# --- mount namespace for bcc's tool ---------------------------------------------------------------


def enter_namespace() -> None:
    """Restart in a private mount namespace, if this machine permits it."""
    probe = subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False)
    if probe.returncode != 0:
        print(
            "bench: warning: cannot create a mount namespace, continuing without", file=sys.stderr
        )
        return
    command = ["unshare", "--mount", sys.executable, *sys.argv]
    os.execvpe(command[0], command, {**os.environ, INSIDE: "yes"})


def prepare_namespace() -> str:
    """Mount missing file systems; return the release whose kernel headers bcc will use."""
    release = os.uname().release
    if INSIDE in os.environ:
        if not Path("/sys/kernel/tracing/events").is_dir():
            mount("tracefs", "/sys/kernel/tracing")
        if not Path("/sys/kernel/debug/tracing").is_dir():
            mount("debugfs", "/sys/kernel/debug")
    if Path(f"/lib/modules/{release}/build").is_dir():
        return release
    return provide_headers(release) if INSIDE in os.environ else ""


def provide_headers(release: str) -> str:
    """Provide another kernel's headers as those of `release`; return that kernel's release."""
    owners = [link.parent for link in Path("/lib/modules").glob("*/build") if link.is_dir()]
    if not owners:
        return ""
    owner = max(owners, key=lambda path: path.stat().st_mtime)
    # Debian has generated headers in `build` and the others in `source`; elsewhere all in `build`.
    links = {
        name: (owner / name).resolve() for name in ("build", "source") if (owner / name).is_dir()
    }
    if not mount("tmpfs", "/lib/modules"):
        return ""
    directory = Path("/lib/modules", release)
    directory.mkdir()
    for name, target in links.items():
        (directory / name).symlink_to(target)
    return owner.name


def mount(kind: str, where: str) -> bool:
    """Mount a file system; return whether it succeeded (a tool that needs it will fail)."""
    done = subprocess.run(["mount", "-t", kind, "none", where], capture_output=True, check=False)
    return done.returncode == 0


# --- one start and stop ---------------------------------------------------------------------------


def find_tools(netbpf: str, scratch: Path, report: Report) -> list[Tool]:
    """Return the installed tools; report the others with the package to install."""
    ready = str(scratch / "ready")
    command = [*shlex.split(netbpf), "tcplife", "--ready-file", ready]
    tools = [Tool("netbpf", command), Tool(CACHED, command, cache=str(scratch / "cache"))]
    peers = [
        ("bcc", ["tcplife-bpfcc", "/usr/share/bcc/tools/tcplife"], "bpfcc-tools or bcc-tools"),
        ("libbpf-tools", ["/usr/sbin/tcplife", "bpf-tcplife"], "libbpf-tools"),
    ]
    for name, candidates, package in peers:
        path = next(filter(None, map(shutil.which, candidates)), None)
        if path:
            tools.append(Tool(name, [path], b"PID"))
        else:
            report.not_run[name] = f"not installed: {package} (scripts/setup.sh bench)"
    return tools


def measure_all(
    tools: list[Tool], rounds: int, timeout: float, scratch: Path, report: Report
) -> None:
    """Warm up, exclude tools that cannot run, then measure in rounds."""
    working = [tool for tool in tools if warmed_up(tool, timeout, scratch, report)]
    for number in range(rounds):
        for tool in working if number % 2 == 0 else reversed(working):
            sample = measure(tool, timeout, scratch)
            report.samples.setdefault(tool.name, []).append(sample)


def warmed_up(tool: Tool, timeout: float, scratch: Path, report: Report) -> bool:
    """Run the tool once; report the reason if it cannot run."""
    try:
        measure(tool, timeout, scratch)
    except CannotRun as reason:
        report.not_run[tool.name] = str(reason)
        if tool.name == "bcc" and not report.headers:
            report.not_run[tool.name] += "; no kernel headers (scripts/setup.sh bench)"
        return False
    return True


def measure(tool: Tool, timeout: float, scratch: Path) -> Sample:
    """Start the tool, wait until it is attached, interrupt it, and return its resource usage."""
    ready_file, errors = scratch / "ready", scratch / "stderr"
    ready_file.unlink(missing_ok=True)
    with terminal() as (master, slave), errors.open("wb") as stderr:
        begin = time.monotonic()
        process = subprocess.Popen(
            tool.command,
            stdin=subprocess.DEVNULL,
            stdout=slave,
            stderr=stderr,
            cwd=SOURCE_TREE,
            env=environment(scratch, tool.cache),
        )
        os.close(slave)
        attached = wait_until_attached(tool, process.pid, master, ready_file, begin + timeout)
        ready = time.monotonic() - begin
        rss = peak_rss(process.pid) if attached else 0
        usage = stop(process, master)
    if not attached:
        raise CannotRun(first_error(errors.read_text(errors="replace"), ready, timeout))
    inherited = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak = usage.ru_maxrss if usage.ru_maxrss > inherited else rss
    return Sample(usage.ru_utime + usage.ru_stime, ready, rss, max(peak, rss))


@contextlib.contextmanager
def terminal() -> Iterator[tuple[int, int]]:
    """Open a pseudo-terminal; the master is closed at the end, the slave by the caller."""
    master, slave = pty.openpty()
    try:
        yield master, slave
    finally:
        os.close(master)


def environment(scratch: Path, cache: str) -> dict[str, str]:
    """Return an environment in which Python caches bytecode outside the source tree."""
    keep = {name: text for name, text in os.environ.items() if not name.startswith("PYTHON")}
    return {**keep, "PYTHONPYCACHEPREFIX": str(scratch / "pycache"), "NETBPF_CACHE": cache}


def wait_until_attached(
    tool: Tool, pid: int, terminal: int, ready_file: Path, deadline: float
) -> bool:
    """Wait until the tool is attached; return False if it has exited or the deadline passed."""
    output = b""
    while time.monotonic() < deadline:
        output += read_some(terminal, POLL_SECONDS)
        if tool.header in output if tool.header else ready_file.exists():
            return True
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return False
    return False


def read_some(terminal: int, seconds: float) -> bytes:
    """Return what can be read from the terminal within `seconds`; empty at its end."""
    if not select.select([terminal], [], [], seconds)[0]:
        return b""
    try:
        return os.read(terminal, 65536)
    except OSError:  # EIO: the other end is closed
        time.sleep(seconds)
        return b""


def peak_rss(pid: int) -> int:
    """Return the peak resident memory of a process in KiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1])
    return 0


def stop(process: subprocess.Popen[bytes], terminal: int) -> resource.struct_rusage:
    """Interrupt the process, wait for it, and return the resource usage of it and its children."""
    # Popen's methods would reap a process that has already exited, and discard its usage.
    os.kill(process.pid, signal.SIGINT)
    deadline = time.monotonic() + STOP_SECONDS
    while True:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            break
        read_some(terminal, POLL_SECONDS)  # a full terminal would block the process
        if time.monotonic() > deadline:
            os.kill(process.pid, signal.SIGKILL)
    process.returncode = os.waitstatus_to_exitcode(status)
    return usage


def first_error(text: str, waited: float, timeout: float) -> str:
    """Return the line of a tool's messages that explains best why it did not start."""
    if waited >= timeout:
        return f"not attached after {timeout:g} s"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    messages = [line for line in lines if not line.startswith("raise ")]
    errors = [line for line in messages if "error" in line.lower() or "fail" in line.lower()]
    best = errors or messages[-1:] or ["exited without a message"]
    return best[0][:200]


# --- results --------------------------------------------------------------------------------------


def medians(samples: list[Sample]) -> dict[str, float]:
    """Return the median of each measure."""
    return {name: statistics.median(getattr(s, name) for s in samples) for name in MEASURES}


def ratios(mine: list[Sample], theirs: list[Sample]) -> dict[str, float]:
    """Return the ratios of netbpf's cost to the peer's, as medians over the rounds."""
    pairs = list(zip(mine, theirs))
    return {
        name: statistics.median(getattr(a, name) / max(getattr(b, name), 1e-9) for a, b in pairs)
        for name in MEASURES
    }


def as_json(report: Report) -> str:
    """Return all results, including samples, as one JSON object."""
    mine = report.samples.get("netbpf", [])
    own = ("netbpf", CACHED)
    peers = {name: found for name, found in report.samples.items() if name not in own and mine}
    return json.dumps(
        {
            "benchmark": "start",
            "kernel": os.uname().release,
            "headers": report.headers or None,
            "medians": {name: medians(found) for name, found in report.samples.items()},
            "netbpf_over_peer": {name: ratios(mine, found) for name, found in peers.items()},
            "samples": {n: [asdict(s) for s in found] for n, found in report.samples.items()},
            "not_run": report.not_run,
        }
    )


def as_table(report: Report) -> str:
    """Return medians and ratios as a table."""
    rounds = max(map(len, report.samples.values()), default=0)
    lines = [
        f"start and stop of tcplife, kernel {os.uname().release}, medians of {rounds} rounds",
        f"{'TOOL':<14}{'CPU(ms)':>9}{'READY(ms)':>11}{'RSS(MiB)':>10}"
        f"{'PEAK(MiB)':>10}   netbpf/peer: cpu ready rss peak",
    ]
    lines += [table_row(name, report) for name in report.samples]
    lines += [f"{name:<14} not run: {reason}" for name, reason in report.not_run.items()]
    if report.headers and report.headers != os.uname().release and "bcc" in report.samples:
        lines.append(f"bcc used the kernel headers of {report.headers}")
    return "\n".join(lines)


def table_row(name: str, report: Report) -> str:
    """Return one tool's line of the table."""
    middle = medians(report.samples[name])
    row = f"{name:<14}{middle['cpu_seconds'] * 1e3:>9.1f}{middle['ready_seconds'] * 1e3:>11.1f}"
    row += f"{middle['rss_kib'] / 1024:>10.1f}{middle['peak_kib'] / 1024:>10.1f}"
    if name in ("netbpf", CACHED) or "netbpf" not in report.samples:
        return row
    ratio = ratios(report.samples["netbpf"], report.samples[name])
    return row + " " * 16 + "".join(f"{ratio[measure]:>6.2f}" for measure in MEASURES)


if __name__ == "__main__":
    sys.exit(main())
