"""What does it cost to start tcplife? netbpf beside its peers, in interleaved rounds of one run.

Measured for each tool, in each round:

cpu    user and system time of the process (and the children it waited for), from start to end,
       from wait4(2). The tool is started, interrupted as soon as it says that it is attached,
       and waited for; so this is the whole cost of a start and a stop, without any tracing.
ready  wall time from start to the sign that it is attached.
rss    peak resident memory (VmHWM) of the tool's process at that sign: what stays while it traces.
peak   peak resident memory of the largest process that the tool ran, its compiler included, over
       its whole life (ru_maxrss). A process inherits that from whoever started it, here a Python
       that is larger than a small C program: what is not above this program's own is taken as rss.

netbpf keeps what it compiled for the next start. The row `netbpf` is a first start: it compiles, as
NETBPF_CACHE=off says. The row `netbpf, kept` is every further start with the same options: it takes
what the warm-up run has compiled. The ratios to peers are those of a first start.

The sign that a tool is attached is the file of `--ready-file` for netbpf and the header line for
the others, which both print after attaching. They get a terminal, so that nobody buffers it.

Everybody runs once unmeasured: that fills the page cache and Python's bytecode cache, and shows who
can run here at all. Who cannot is named with the reason. The order of the tools is turned round
from one round to the next, medians are compared, and a ratio is the median of the ratios of rounds.

bcc's own tool needs kernel headers and the tracing file systems. The benchmark runs in a mount
namespace of its own, in which it mounts what is missing and, where the running kernel has no
headers, offers those of another kernel under its name. Nothing of that is seen outside of the
namespace, nor is anything left when it ends.
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
KEPT = "netbpf, kept"
POLL_SECONDS = 0.002
STOP_SECONDS = 30
MEASURES = ("cpu_seconds", "ready_seconds", "rss_kib", "peak_kib")


class CannotRun(Exception):
    """A tool that does not get as far as being attached; the message says why."""


@dataclass(frozen=True)
class Tool:
    """A command, and where it says that it is attached: `header` or, if that is empty, a file.

    `cache` is NETBPF_CACHE: a directory for what is compiled, or "off".
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
    """All that a run has found: samples by tool, and why a tool has none."""

    samples: dict[str, list[Sample]] = field(default_factory=dict)
    not_run: dict[str, str] = field(default_factory=dict)
    headers: str = ""


def main() -> int:
    """Measure, print the table or the JSON object; 1 if netbpf itself could not run."""
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


# --- a place in which bcc's tool can work ---------------------------------------------------------


def enter_namespace() -> None:
    """Start again in a private mount namespace, if this machine lets us; else go on without."""
    probe = subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False)
    if probe.returncode != 0:
        print("bench: no private mount namespace here, going on without", file=sys.stderr)
        return
    command = ["unshare", "--mount", sys.executable, *sys.argv]
    os.execvpe(command[0], command, {**os.environ, INSIDE: "yes"})


def prepare_namespace() -> str:
    """Mount what is missing and return which kernel's headers bcc's tool will find."""
    release = os.uname().release
    if INSIDE in os.environ:
        if not Path("/sys/kernel/tracing/events").is_dir():
            mount("tracefs", "/sys/kernel/tracing")
        if not Path("/sys/kernel/debug/tracing").is_dir():
            mount("debugfs", "/sys/kernel/debug")
    if Path(f"/lib/modules/{release}/build").is_dir():
        return release
    return lend_headers(release) if INSIDE in os.environ else ""


def lend_headers(release: str) -> str:
    """Show another kernel's headers under `release` in this namespace; return whose they are."""
    owners = [link.parent for link in Path("/lib/modules").glob("*/build") if link.is_dir()]
    if not owners:
        return ""
    owner = max(owners, key=lambda path: path.stat().st_mtime)
    # Debian has the generated headers in `build` and the rest in `source`; others have `build`.
    links = {
        name: (owner / name).resolve() for name in ("build", "source") if (owner / name).is_dir()
    }
    if not mount("tmpfs", "/lib/modules"):
        return ""
    place = Path("/lib/modules", release)
    place.mkdir()
    for name, target in links.items():
        (place / name).symlink_to(target)
    return owner.name


def mount(kind: str, where: str) -> bool:
    """Mount a file system of this kind; what fails shows later, in the tool that needs it."""
    done = subprocess.run(["mount", "-t", kind, "none", where], capture_output=True, check=False)
    return done.returncode == 0


# --- one start and stop ---------------------------------------------------------------------------


def find_tools(netbpf: str, scratch: Path, report: Report) -> list[Tool]:
    """Return the tools that are installed; the others go to the report with what to install."""
    ready = str(scratch / "ready")
    command = [*shlex.split(netbpf), "tcplife", "--ready-file", ready]
    tools = [Tool("netbpf", command), Tool(KEPT, command, cache=str(scratch / "cache"))]
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
    """Warm up, sort out who cannot run, then measure round by round."""
    able = [tool for tool in tools if warmed_up(tool, timeout, scratch, report)]
    for number in range(rounds):
        for tool in able if number % 2 == 0 else reversed(able):
            sample = measure(tool, timeout, scratch)
            report.samples.setdefault(tool.name, []).append(sample)


def warmed_up(tool: Tool, timeout: float, scratch: Path, report: Report) -> bool:
    """Run the tool once; note why, if it cannot."""
    try:
        measure(tool, timeout, scratch)
    except CannotRun as reason:
        report.not_run[tool.name] = str(reason)
        if tool.name == "bcc" and not report.headers:
            report.not_run[tool.name] += "; no kernel headers here (scripts/setup.sh bench)"
        return False
    return True


def measure(tool: Tool, timeout: float, scratch: Path) -> Sample:
    """Start the tool, wait for its sign, interrupt it, and account for it."""
    ready_file, errors = scratch / "ready", scratch / "stderr"
    ready_file.unlink(missing_ok=True)
    with terminal() as (ours, theirs), errors.open("wb") as stderr:
        begin = time.monotonic()
        process = subprocess.Popen(
            tool.command,
            stdin=subprocess.DEVNULL,
            stdout=theirs,
            stderr=stderr,
            cwd=SOURCE_TREE,
            env=environment(scratch, tool.cache),
        )
        os.close(theirs)
        attached = wait_for_sign(tool, process.pid, ours, ready_file, begin + timeout)
        ready = time.monotonic() - begin
        rss = peak_rss(process.pid) if attached else 0
        usage = stop(process, ours)
    if not attached:
        raise CannotRun(first_error(errors.read_text(errors="replace"), ready, timeout))
    inherited = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak = usage.ru_maxrss if usage.ru_maxrss > inherited else rss
    return Sample(usage.ru_utime + usage.ru_stime, ready, rss, max(peak, rss))


@contextlib.contextmanager
def terminal() -> Iterator[tuple[int, int]]:
    """Open a terminal: our end, which is closed in the end, and that of the child."""
    ours, theirs = pty.openpty()
    try:
        yield ours, theirs
    finally:
        os.close(ours)


def environment(scratch: Path, cache: str) -> dict[str, str]:
    """Return an environment in which Python keeps its bytecode, but not in the source tree."""
    keep = {name: text for name, text in os.environ.items() if not name.startswith("PYTHON")}
    return {**keep, "PYTHONPYCACHEPREFIX": str(scratch / "pycache"), "NETBPF_CACHE": cache}


def wait_for_sign(tool: Tool, pid: int, output: int, ready_file: Path, deadline: float) -> bool:
    """Wait until the tool is attached: True; or has ended or takes too long: False."""
    seen = b""
    while time.monotonic() < deadline:
        seen += read_some(output, POLL_SECONDS)
        if tool.header in seen if tool.header else ready_file.exists():
            return True
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return False
    return False


def read_some(output: int, seconds: float) -> bytes:
    """Return what the terminal has within that time; nothing is not an error, nor is its end."""
    if not select.select([output], [], [], seconds)[0]:
        return b""
    try:
        return os.read(output, 65536)
    except OSError:  # EIO: the other end is closed
        time.sleep(seconds)
        return b""


def peak_rss(pid: int) -> int:
    """Return the peak resident memory of a process in KiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1])
    return 0


def stop(process: subprocess.Popen[bytes], output: int) -> resource.struct_rusage:
    """Interrupt the process, wait for its end and return what it and its children used."""
    # Not Popen's own methods: they would reap a process that has ended already.
    os.kill(process.pid, signal.SIGINT)
    deadline = time.monotonic() + STOP_SECONDS
    while True:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            break
        read_some(output, POLL_SECONDS)  # a full terminal would block it
        if time.monotonic() > deadline:
            os.kill(process.pid, signal.SIGKILL)
    process.returncode = os.waitstatus_to_exitcode(status)
    return usage


def first_error(text: str, waited: float, timeout: float) -> str:
    """Return the line of a tool's messages that says best why it did not start."""
    if waited >= timeout:
        return f"not attached after {timeout:g} s"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    spoken = [line for line in lines if not line.startswith("raise ")]
    telling = [line for line in spoken if "error" in line.lower() or "fail" in line.lower()]
    best = telling or spoken[-1:] or ["ended without a word"]
    return best[0][:200]


# --- results --------------------------------------------------------------------------------------


def medians(samples: list[Sample]) -> dict[str, float]:
    """Return the median of each measure."""
    return {name: statistics.median(getattr(s, name) for s in samples) for name in MEASURES}


def ratios(mine: list[Sample], theirs: list[Sample]) -> dict[str, float]:
    """Return netbpf's cost over the peer's, as the median over the rounds."""
    pairs = list(zip(mine, theirs))
    return {
        name: statistics.median(getattr(a, name) / max(getattr(b, name), 1e-9) for a, b in pairs)
        for name in MEASURES
    }


def as_json(report: Report) -> str:
    """Return everything, samples included, as one JSON object."""
    mine = report.samples.get("netbpf", [])
    own = ("netbpf", KEPT)
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
    """Return medians and ratios for a reader."""
    rounds = max(map(len, report.samples.values()), default=0)
    lines = [
        f"start and stop of tcplife, kernel {os.uname().release}, medians of {rounds} rounds",
        f"{'TOOL':<14}{'CPU(ms)':>9}{'READY(ms)':>11}{'RSS(MiB)':>10}"
        f"{'PEAK(MiB)':>10}   netbpf/peer: cpu ready rss peak",
    ]
    lines += [table_row(name, report) for name in report.samples]
    lines += [f"{name:<14} not run: {reason}" for name, reason in report.not_run.items()]
    if report.headers and report.headers != os.uname().release and "bcc" in report.samples:
        lines.append(f"bcc was lent the headers of {report.headers}")
    return "\n".join(lines)


def table_row(name: str, report: Report) -> str:
    """Return one tool's line of the table."""
    middle = medians(report.samples[name])
    row = f"{name:<14}{middle['cpu_seconds'] * 1e3:>9.1f}{middle['ready_seconds'] * 1e3:>11.1f}"
    row += f"{middle['rss_kib'] / 1024:>10.1f}{middle['peak_kib'] / 1024:>10.1f}"
    if name in ("netbpf", KEPT) or "netbpf" not in report.samples:
        return row
    ratio = ratios(report.samples["netbpf"], report.samples[name])
    return row + " " * 16 + "".join(f"{ratio[measure]:>6.2f}" for measure in MEASURES)


if __name__ == "__main__":
    sys.exit(main())
