"""What several tools cost together: ten tools in one process, and each of them alone.

cpu    user and system time of a start and a stop, with compiled programs in the cache
rss    resident memory when attached
extra  CPU time of a connection with the tool attached minus without, in us

"sum of ten" adds up the ten rows above it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

from bench.figures import figure, ratio, table
from bench.operations import Traffic
from bench.process import running

TEN = ("sockstat", "soconnect", "soaccept", "tcplife", "tcpretrans", "tcpsynbl", "tcpnagle",
       "gethostlatency", "netsize", "skbdrop")  # fmt: skip
LOAD = "connections"
RECORD, TRIAGE, SUM = "record (ten)", "triage", "sum of ten"
# Targets: of the largest of the ten, of the largest of the ten, of their sum.
WANTED = {"cpu": 4.0, "rss": 2.0, "extra": 0.7}

Samples = dict[str, dict[str, list[float]]]


def measure(
    netbpf: Sequence[str], load: Traffic, rounds: int, cpu: int, scratch: Path,
    progress: Callable[[str], None],
) -> Samples:  # fmt: skip
    """Return {name: {"cpu" ms, "rss" MiB, "extra" us}}, in rounds whose order alternates."""
    commands = {tool: (*netbpf, tool, "--json") for tool in TEN}
    commands[RECORD] = (*netbpf, "record", *TEN)
    commands[TRIAGE] = (*netbpf, "triage", "-d", "600")
    found: Samples = {name: defaultdict(list) for name in commands}
    for number in range(rounds + 1):  # the first fills caches
        names = list(commands) if number % 2 == 0 else list(commands)[::-1]
        for name in names:
            progress(f"{name}, round {number}")
            start = _start(commands[name], cpu, scratch)
            before, _ = load.make(LOAD)
            words = [*commands[name], "--ready-file", str(scratch / "ready")]
            with running(words, scratch / "ready", cpu, str(scratch / "cache")):
                traced, _ = load.make(LOAD)
            if number:
                for column, value in zip(WANTED, (*start, traced - before)):
                    found[name][column].append(value)
    return found


def _start(command: Sequence[str], cpu: int, scratch: Path) -> tuple[float, float]:
    words = [*command, "--ready-file", str(scratch / "ready")]
    with running(words, scratch / "ready", cpu, str(scratch / "cache")) as tool:
        rss, _ = tool.memory()
        usage = tool.stop()
    return usage.cpu_seconds * 1e3, rss / 1024


def as_markdown(found: Samples) -> str:
    """Return a table of the medians with quartiles, and the ratios that matter."""
    rows: list[tuple[object, ...]] = [
        (name, *(figure(found[name][column]) for column in WANTED)) for name in found
    ]
    medians = {c: [figure(found[tool][c]).median for tool in TEN] for c in WANTED}
    rows.insert(len(TEN), (SUM, *(f"{sum(medians[column]):.1f}" for column in WANTED)))
    lines = [table(("tool", "CPU ms", "RSS MiB", "extra us"), rows, 1), ""]
    for name in (RECORD, TRIAGE):
        own = {column: figure(found[name][column]).median for column in WANTED}
        parts = [
            f"CPU {ratio(own['cpu'], max(medians['cpu']))} of the largest of the ten",
            f"RSS {ratio(own['rss'], max(medians['rss']))} of the largest",
            f"extra time {ratio(own['extra'], sum(medians['extra']))} of the sum",
        ]
        lines.append(f"- {name}: {', '.join(parts)}")
    return "\n".join(lines) + "\n"
