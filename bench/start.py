"""What a start costs: each tool is started, interrupted as soon as it is attached, and waited for.

cpu    user and system time of the process and the children that it waited for, of a start and a
       stop without tracing
ready  wall time from the start until the tool is attached
rss    resident memory of all processes of the tool when it is attached, pss the part of it that
       is not shared, or shared evenly
later  the same after a minute without traffic

netbpf keeps compiled programs. "netbpf" is a first start, which compiles; "netbpf, cached" is a
later one with the same options.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from bench.contestants import NETBPF, PLAIN, Contestant
from bench.figures import figure, ratio, table
from bench.process import CannotRun, running

CACHED = "netbpf, cached"
CLICK = "import click"  # what any Python program with options costs at least


class Sample(NamedTuple):
    """One start and stop of one tool."""

    cpu_ms: float
    ready_ms: float
    rss_mib: float
    pss_mib: float


class Result(NamedTuple):
    """Samples by suite, memory after a minute, and the reason for each that could not run."""

    samples: dict[str, list[Sample]]
    later: dict[str, tuple[float, float]]
    not_run: dict[str, str]


class _Start(NamedTuple):
    name: str
    words: tuple[str, ...]
    ready: bool
    cache: str


def measure(
    entrants: list[Contestant], rounds: int, seconds: float, scratch: Path,
    progress: Callable[[str], None],
) -> Result:  # fmt: skip
    """Measure starts in `rounds`, whose order alternates, then leave all running for `seconds`."""
    result = Result({}, {}, {})
    starts = _starts(entrants, scratch, result)
    for number in range(rounds + 1):  # the first fills caches
        for start in starts if number % 2 == 0 else starts[::-1]:
            if start.name in result.not_run:
                continue
            progress(f"start of {start.name}, round {number}")
            try:
                sample = _once(start, scratch)
            except CannotRun as reason:
                result.not_run[start.name] = str(reason)
                continue
            if number:
                result.samples.setdefault(start.name, []).append(sample)
    if seconds:
        working = [one for one in starts if one.name in result.samples]
        _leave_running(working, seconds, scratch, result)
    return result


def _starts(entrants: list[Contestant], scratch: Path, result: Result) -> list[_Start]:
    starts = []
    for one in entrants:
        if one.missing:
            result.not_run[one.suite] = one.missing
        elif one.suite == NETBPF:
            starts.append(_Start(NETBPF, one.variants[PLAIN], True, "off"))
            starts.append(_Start(CACHED, one.variants[PLAIN], True, str(scratch / "cache")))
        elif not one.ready:
            starts.append(_Start(one.suite, one.variants[PLAIN], False, "off"))
    return starts


def _words(start: _Start, scratch: Path) -> tuple[list[str], Path | None]:
    ready = scratch / f"ready-{start.name.replace(' ', '-')}" if start.ready else None
    return [*start.words, *(["--ready-file", str(ready)] if ready else [])], ready


def _once(start: _Start, scratch: Path) -> Sample:
    words, ready = _words(start, scratch)
    with running(words, ready, cache=start.cache) as tool:
        rss, pss = tool.memory()
        usage = tool.stop()
    return Sample(usage.cpu_seconds * 1e3, tool.ready_seconds * 1e3, rss / 1024, pss / 1024)


def _leave_running(starts: list[_Start], seconds: float, scratch: Path, result: Result) -> None:
    with ExitStack() as stack:
        tools = {}
        for start in starts:
            words, ready = _words(start, scratch)
            tools[start.name] = stack.enter_context(running(words, ready, cache=start.cache))
        time.sleep(seconds)
        for name, tool in tools.items():
            rss, pss = tool.memory()
            result.later[name] = (rss / 1024, pss / 1024)


def as_markdown(tool: str, result: Result) -> str:
    """Return a table of the medians with quartiles, and ratios of netbpf to each."""
    rows = []
    cached = result.samples.get(CACHED)
    for name, samples in result.samples.items():
        each = [figure(values) for values in zip(*samples)]
        later = "{:.1f}, {:.1f}".format(*result.later[name]) if name in result.later else "-"
        compared = ""
        if cached and name != CACHED:
            mine = [figure(values).median for values in zip(*cached)]
            compared = ", ".join(ratio(a, b.median) for a, b in zip(mine, each))
        rows.append((name, *each, later, compared))
    heads = (
        "tool", "CPU ms", "ready ms", "RSS MiB", "PSS MiB", "RSS, PSS later",
        "cached over this",
    )  # fmt: skip
    lines = [f"### {tool}", "", table(heads, rows), ""]
    lines += [f"- {name} did not run: {reason}" for name, reason in result.not_run.items()]
    return "\n".join(lines).rstrip() + "\n"
