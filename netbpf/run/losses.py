"""What was lost, by cause, and what the probes cost."""

from __future__ import annotations

import os
import struct
import time
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Optional

from netbpf.bpf.maps import Map
from netbpf.declare.losses import DUPLICATE_MISSES, IN_PROGRAMS
from netbpf.run.program import Attached
from netbpf.run.results.base import Result
from netbpf.system.forks import cpu_seconds
from netbpf.system.links import enable_statistics


def read_losses(losses: Map) -> dict[str, int]:
    """Return {cause: number} from the per-CPU array that every program has."""
    return {cause: _sum(losses, index) for index, cause in enumerate(IN_PROGRAMS)}


def read_duplicate_misses(losses: Map) -> int:
    """Return how many runs were missed of calls that another probe had reported already."""
    return _sum(losses, DUPLICATE_MISSES)


def _sum(losses: Map, index: int) -> int:
    raw = losses.get(struct.pack("=I", index)) or b""
    return sum(struct.unpack(f"={len(raw) // 8}q", raw))


class Cost:
    """What the loaded programs cost the machine: the kernel counts while this is open (5.8)."""

    def __init__(self, programs: Mapping[str, int]) -> None:
        """Watch {entry: descriptor}."""
        self._programs = dict(programs)
        self._start = time.monotonic()
        self._cpu = cpu_seconds()
        self._statistics = -1
        with suppress(OSError):
            self._statistics = enable_statistics()

    def read(self) -> dict[str, object]:
        """Return runs, run time in ns, share of one CPU in percent, and each program's part.

        `reader_cpu_seconds` is what netbpf itself used since then, compiling not included.
        """
        elapsed = max(time.monotonic() - self._start, 1e-9)
        each = {name: _program(fd) for name, fd in self._programs.items()}
        runs = sum(one.get("run_cnt", 0) for one in each.values())
        spent = sum(one.get("run_time_ns", 0) for one in each.values())
        return {
            "measured": self._statistics >= 0,
            "runs": runs,
            "run_ns": spent,
            "ns_per_run": round(spent / runs, 1) if runs else None,
            "cpu_percent": round(spent / elapsed / 1e7, 4),
            "reader_cpu_seconds": round(self._reader(), 4),
            "programs": {
                name: {key: one.get(theirs, 0) for key, theirs in _TOLD.items()}
                for name, one in each.items()
            },
        }

    def spent(self) -> int:
        """Return what programs and reader have used together, in ns of CPU time."""
        programs = sum(_program(fd).get("run_time_ns", 0) for fd in self._programs.values())
        return programs + int(self._reader() * 1e9)

    def _reader(self) -> float:
        return cpu_seconds() - self._cpu

    def missed(self, besides: Collection[str] = (), covered: int = 0) -> int:
        """Return how often a program was skipped as another one ran on that CPU (since 5.12).

        Of those of the programs `besides` others, so many had nothing to add (see
        read_duplicate_misses).
        """
        each = {n: _program(fd).get("recursion_misses", 0) for n, fd in self._programs.items()}
        return sum(each.values()) - min(covered, sum(each[name] for name in besides))

    def close(self) -> None:
        """Stop counting."""
        if self._statistics >= 0:
            os.close(self._statistics)
            self._statistics = -1


# Of a program: our name, and that in its fdinfo. Missed are runs that the kernel skipped (5.12).
_TOLD = {"runs": "run_cnt", "run_ns": "run_time_ns", "missed": "recursion_misses"}


def _program(fd: int) -> dict[str, int]:
    lines = Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines()
    pairs: Sequence[tuple[str, str, str]] = [line.partition(":") for line in lines]
    return {key: int(value) for key, _, value in pairs if value.strip().isdigit()}


class Budget:
    """What probes and reader may cost together, as a share of one CPU over the last seconds."""

    SPAN = 3.0  # seconds

    def __init__(self, cost: Cost, percent: float) -> None:
        """Allow `percent` of one CPU to what `cost` measures, from now on."""
        self._cost, self._percent = cost, percent
        self._samples = deque([(time.monotonic(), cost.spent())])

    def overrun(self) -> Optional[str]:
        """Return in words what was spent since the last looks, if it is more than allowed."""
        now, spent = time.monotonic(), self._cost.spent()
        while len(self._samples) > 1 and self._samples[1][0] <= now - self.SPAN:
            self._samples.popleft()
        then, before = self._samples[0]
        self._samples.append((now, spent))
        percent = (spent - before) / max(now - then, 1e-9) / 1e7
        if percent <= self._percent:
            return None
        return f"{percent:.2g} % of one CPU over the last {now - then:.0f} s"


class Ledger:
    """What a run has lost so far, by cause: events that happened and will not be shown."""

    def __init__(self, attached: Attached, cost: Cost, shape: Result) -> None:
        """Read the losses of what is `attached` and shown by `shape`."""
        maps = attached.loaded.maps
        self._losses = Map(maps["losses"], 4, 8, per_cpu=True)
        self._ring = "events" in maps
        self._besides = [
            c.entry for c in attached.selections if c.alternative and c.probe.complements
        ]
        self._cost, self._shape = cost, shape
        self.total: dict[str, int] = {}  # as last read

    def read(self) -> dict[str, int]:
        """Return {cause: number} since the start."""
        missed = self._cost.missed(self._besides, read_duplicate_misses(self._losses))
        lost = {
            **read_losses(self._losses),
            "probe_missed": missed,
            "reader": self._shape.strange,
            **self._shape.lost,
        }
        if not self._ring:
            del lost["ring_full"]
        return lost

    def since_last(self) -> dict[str, int]:
        """Return {cause: number} of what was lost since this was asked last, without zeros."""
        now, last = self.read(), self.total
        self.total = now
        return {c: n - last.get(c, 0) for c, n in now.items() if n > last.get(c, 0)}
