"""What an operation of a traced program costs more, and what one run of a program takes.

A process that makes traffic runs on the first CPU, the tool on the last. In each round, each tool
is attached in turn, and each kind of traffic is made without it before and with it afterwards.

extra  CPU time of an operation with the tool attached minus without, in us. The kernel accounts
       what probes take to the process that runs into them.
runs   runs of BPF programs per operation, and ns that one run takes by the kernel's own measure
       (BPF_ENABLE_STATS), in a batch of its own: measuring costs time, too. netbpf measures its
       programs always, so its extra time includes that.
"""

from __future__ import annotations

import contextlib
import re
import resource
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Callable, NamedTuple

from bench.contestants import FLOOR, PLAIN, Contestant
from bench.figures import figure, ratio, table
from bench.process import SOURCE_TREE, CannotRun, Running, measured, running

# Operations per batch: each takes some 0.3 s.
NUMBERS = {
    "connections": 4_000, "requests": 20_000, "megabytes": 500, "datagrams": 50_000,
    "lookups": 10_000, "nginx": 1,
}  # fmt: skip
UNIT = {name: name[:-1] for name in NUMBERS} | {"nginx": "request to nginx"}
_FEW_RUNS = 0.1  # per operation: less means that the tool does not see this kind of traffic

Sample = dict[str, float]  # extra_us, runs, ns


class Result(NamedTuple):
    """Samples by (load, suite, variant), and reasons of those that did not run, by suite."""

    samples: dict[tuple[str, str, str], list[Sample]]
    untraced: dict[str, list[float]]
    not_run: dict[str, str]


class PythonTraffic:
    """The process of traffic.py."""

    def __init__(self, cpu: int) -> None:
        self._process = subprocess.Popen(
            ["taskset", "-c", str(cpu), sys.executable, str(SOURCE_TREE / "bench/traffic.py")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._process.stdout and self._process.stdin
        assert self._process.stdout.readline() == "ready\n"
        self.pid = self._process.pid

    def make(self, load: str, number: int) -> float:
        """Make a number of operations; return the CPU time of one in us."""
        assert self._process.stdout and self._process.stdin
        self._process.stdin.write(f"{load} {number}\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline().split()[0]) / number / 1e3

    def end(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()


class _Nginx:
    """nginx, and wrk for each batch: each request on a connection of its own."""

    def __init__(self, cpu: int, scratch: Path, seconds: float) -> None:
        self._cpu, self._seconds = cpu, seconds
        config = scratch / "nginx.conf"
        config.write_text(
            "daemon off; master_process off; worker_processes 1; pid nginx.pid; error_log stderr;\n"
            "events { worker_connections 512; }\n"
            "http { access_log off; client_body_temp_path body; proxy_temp_path proxy;\n"
            "fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;\n"
            "server { listen 127.0.0.1:8080 backlog=512; location / { return 200 'ok'; } } }\n"
        )
        self._process = subprocess.Popen(
            ["taskset", "-c", str(cpu), "nginx", "-p", str(scratch), "-c", str(config)],
            stderr=subprocess.DEVNULL,
        )

    def make(self, load: str, number: int) -> float:
        """Make requests for some time; return the CPU time of one in us, of both programs."""
        before = self._cpu_ns()
        begin = _children_seconds()
        done = subprocess.run(
            ["taskset", "-c", str(self._cpu), "wrk", "-t", "1", "-c", "8",
             "-d", f"{self._seconds:g}", "-H", "Connection: close", "http://127.0.0.1:8080/"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        used = _children_seconds() - begin
        found = re.search(r"(\d+) requests in", done.stdout)
        assert found and int(found[1]), done.stdout
        self.requests = int(found[1])
        return (used * 1e6 + (self._cpu_ns() - before) / 1e3) / self.requests

    def _cpu_ns(self) -> int:
        return int(Path(f"/proc/{self._process.pid}/schedstat").read_text().split()[0])

    def end(self) -> None:
        """End nginx."""
        self._process.terminate()
        self._process.wait()


def _children_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


class Traffic:
    """All kinds of traffic, by name; `missing` has the reason of a kind that cannot be made."""

    def __init__(self, cpu: int, scratch: Path, share: float, loads: Sequence[str]) -> None:
        self._share = share
        self._python = PythonTraffic(cpu)
        self.pid = self._python.pid
        self._makers: dict[str, Any] = {name: self._python for name in loads if name != "nginx"}
        self.missing = ""
        if "nginx" not in loads:
            pass
        elif shutil.which("nginx") and shutil.which("wrk"):
            self._makers["nginx"] = _Nginx(cpu, scratch, max(1.0, 2 * share))
        else:
            self.missing = "nginx: it or wrk is not installed: make setup-bench"

    @property
    def loads(self) -> list[str]:
        """The names of all kinds."""
        return list(self._makers)

    def make(self, load: str, share: float = 1.0) -> tuple[float, int]:
        """Make a batch; return the CPU time of an operation in us, and how many there were."""
        number = max(1, int(NUMBERS[load] * self._share * share))
        maker = self._makers[load]
        cost = maker.make(load, number)
        return cost, getattr(maker, "requests", number)

    def end(self) -> None:
        """End all processes."""
        for maker in {self._python, *self._makers.values()}:
            maker.end()


@contextlib.contextmanager
def traffic(cpu: int, scratch: Path, share: float, loads: Sequence[str]) -> Iterator[Traffic]:
    """Have traffic in the block; `share` is the part of NUMBERS that a batch has."""
    made = Traffic(cpu, scratch, share, loads)
    try:
        for load in made.loads:  # fills caches
            made.make(load, 0.3)
        yield made
    finally:
        made.end()


def measure(
    entrants: list[Contestant], load: Traffic, rounds: int, cpu: int, scratch: Path,
    progress: Callable[[str], None],
) -> Result:  # fmt: skip
    """Measure one tool and its peers."""
    result = Result(defaultdict(list), defaultdict(list), {})
    for one in entrants:
        if one.missing:
            result.not_run[one.suite] = one.missing
    pairs = [(one, name) for one in entrants if not one.missing for name in one.variants]
    seen: dict[str, set[str]] = {}
    for number in range(rounds):
        for one, variant in pairs if number % 2 == 0 else pairs[::-1]:
            if one.suite in result.not_run:
                continue
            loads = seen.get(one.suite, set(load.loads))
            progress(f"{one.suite}, {variant}, round {number + 1}")
            before = {name: load.make(name)[0] for name in load.loads if name in loads}
            try:
                with _attached(one, variant, load.pid, cpu, scratch) as tool:
                    samples = {name: _sample(tool, load, name, before[name]) for name in before}
            except CannotRun as reason:
                result.not_run[one.suite] = str(reason)
                continue
            for name, sample in samples.items():
                result.samples[name, one.suite, variant].append(sample)
                result.untraced[name].append(before[name])
            if variant == PLAIN:
                seen[one.suite] = {n for n, sample in samples.items() if sample["runs"] > _FEW_RUNS}
    return result


@contextlib.contextmanager
def _attached(
    one: Contestant, variant: str, pid: int, cpu: int, scratch: Path
) -> Iterator[Running]:
    ready = scratch / "ready" if one.ready else None
    words = [word.format(pid=pid) for word in one.variants[variant]]
    words += [one.ready, str(ready)] if ready else []
    with running(words, ready, cpu, str(scratch / "cache")) as tool:
        yield tool


def _sample(tool: Running, load: Traffic, name: str, untraced: float) -> Sample:
    traced, _ = load.make(name)
    with measured(tool.pid) as runs:
        _, number = load.make(name, 0.3)
    return {"extra_us": traced - untraced, "runs": runs.number / number, "ns": runs.ns}


def as_markdown(tool: str, result: Result) -> str:
    """Return a table per kind of traffic that the tool sees, and who did not run."""
    parts = [f"### {tool}", ""]
    loads = dict.fromkeys(key[0] for key in result.samples)
    for load in loads:
        keys = [key for key in result.samples if key[0] == load]
        if not any(_median(result, key, "runs") > _FEW_RUNS for key in keys):
            continue
        untraced = figure(result.untraced[load])
        parts += [
            f"{UNIT[load].capitalize()}, without a tool {untraced} us:".replace("  ", " "),
            "",
        ]
        rows = (_row(result, key) for key in keys)
        heads = ("tool", "", "extra us", "of libbpf-tools", "of the floor", "runs", "ns per run")
        parts += [table(heads, rows, 2), ""]
    parts += [f"- {suite} did not run: {reason}" for suite, reason in result.not_run.items()]
    return "\n".join(parts).rstrip() + "\n"


def _row(result: Result, key: tuple[str, str, str]) -> Sequence[object]:
    load, suite, variant = key
    extra = figure(sample["extra_us"] for sample in result.samples[key])
    compared = []
    for other, name in (("libbpf-tools", variant), (FLOOR, PLAIN)):
        there = result.samples.get((load, other, name))
        same = suite == other or not there
        compared.append(
            "" if same else ratio(extra.median, _median(result, (load, other, name), "extra_us"))
        )
    runs = figure(sample["runs"] for sample in result.samples[key]).median
    ns = figure(sample["ns"] for sample in result.samples[key])
    return suite, variant, extra, *compared, f"{runs:.2f}", ns if runs else "-"


def _median(result: Result, key: tuple[str, str, str], name: str) -> float:
    return figure(sample[name] for sample in result.samples[key]).median
