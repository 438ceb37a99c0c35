"""Losses by cause, and the CPU time of probes and reader."""

from __future__ import annotations

import struct
import time
from collections import deque
from collections.abc import Collection, Mapping
from typing import Optional

from netbpf.bpf.maps import Map
from netbpf.declare.losses import DUPLICATE_MISSES, IN_PROGRAMS
from netbpf.run.attached import Attached
from netbpf.run.meter import Meter
from netbpf.run.results.base import Result
from netbpf.system.forks import cpu_seconds
from netbpf.system.links import fdinfo


def read_losses(losses: Map) -> dict[str, int]:
    """Return {cause: number} from the per-CPU array `losses` that every program has."""
    return {cause: _sum(losses, index) for index, cause in enumerate(IN_PROGRAMS)}


def read_duplicate_misses(losses: Map) -> int:
    """Return the number of missed runs for calls that another probe had reported already."""
    return _sum(losses, DUPLICATE_MISSES)


def _sum(losses: Map, index: int) -> int:
    raw = losses.get(struct.pack("=I", index)) or b""
    return sum(struct.unpack(f"={len(raw) // 8}q", raw))


class Cost:
    """CPU time of the programs {entry: descriptor}, which `meter` measures, and of the reader."""

    def __init__(self, programs: Mapping[str, int], meter: Meter) -> None:
        """Begin to measure."""
        self._programs, self._meter = dict(programs), meter
        self._start = time.monotonic()
        self._cpu = cpu_seconds()

    def read(self) -> dict[str, object]:
        """Return runs, run time in ns and percent of one CPU, in total and by program.

        `measured_percent` is the share of the time in which the kernel measured; for the rest, runs
        and time are estimates. `reader_cpu_seconds` is the CPU time of netbpf itself since the
        start, without compiling.
        """
        elapsed = max(time.monotonic() - self._start, 1e-9)
        found = self._meter.read(self._programs.values())
        each = {entry: found[fd] for entry, fd in self._programs.items()}
        runs = sum(one.number for one in each.values())
        spent = sum(one.ns for one in each.values())
        return {
            "measured": self._meter.measured,
            "measured_percent": round(self._meter.percent, 1),
            "runs": round(runs),
            "run_ns": round(spent),
            "ns_per_run": round(spent / runs, 1) if runs else None,
            "cpu_percent": round(spent / elapsed / 1e7, 4),
            "reader_cpu_seconds": round(self._reader(), 4),
            "programs": {
                entry: {
                    "runs": round(one.number),
                    "run_ns": round(one.ns),
                    "missed": missed_runs(self._programs[entry]),
                }
                for entry, one in each.items()
            },
        }

    def spent(self) -> int:
        """Return the CPU time of programs and reader together, in ns."""
        programs = self._meter.read(self._programs.values()).values()
        return round(sum(runs.ns for runs in programs) + self._reader() * 1e9)

    def _reader(self) -> float:
        return cpu_seconds() - self._cpu

    def missed(self, complements: Collection[str] = (), covered: int = 0) -> int:
        """Return how often the kernel skipped a program that was active on that CPU (since 5.12).

        `complements` are programs that complement others: `covered` of their skipped runs had
        nothing to add (see read_duplicate_misses).
        """
        each = {name: missed_runs(fd) for name, fd in self._programs.items()}
        return sum(each.values()) - min(covered, sum(each[name] for name in complements))


def missed_runs(program: int) -> int:
    """Return how often the kernel skipped the program of this descriptor (since 5.12)."""
    return fdinfo(program).get("recursion_misses", 0)


class Budget:
    """Limits the CPU time of probes and reader: percent of one CPU over the last `SPAN` seconds."""

    SPAN = 3.0  # seconds

    def __init__(self, cost: Cost, percent: float) -> None:
        """Allow `percent` of one CPU for what `cost` measures, from now on."""
        self._cost, self._percent = cost, percent
        self._samples = deque([(time.monotonic(), cost.spent())])

    def overrun(self) -> Optional[str]:
        """Return a description of the recent CPU time if it exceeds the limit, else None."""
        now, spent = time.monotonic(), self._cost.spent()
        while len(self._samples) > 1 and self._samples[1][0] <= now - self.SPAN:
            self._samples.popleft()
        then, before = self._samples[0]
        self._samples.append((now, spent))
        percent = (spent - before) / max(now - then, 1e-9) / 1e7
        if percent <= self._percent:
            return None
        return f"{percent:.2g} % of one CPU over the last {now - then:.0f} s"


class LossLedger:
    """The losses of a run so far, by cause: events that happened and will not be shown."""

    def __init__(self, attached: Attached, cost: Cost, result: Result) -> None:
        """Read the losses of the `attached` programs and of their `result`."""
        maps = attached.loaded.maps
        self._losses = Map(maps["losses"], 4, 8, per_cpu=True)
        self._ring = "events" in maps
        self._complements = [
            s.entry for s in attached.selections if s.alternative and s.probe.complements
        ]
        self._cost, self._result = cost, result
        self._owners = attached.owners
        self.total: dict[str, int] = {}  # as last read

    def read(self) -> dict[str, int]:
        """Return {cause: number} since the start."""
        missed = self._cost.missed(self._complements, read_duplicate_misses(self._losses))
        lost = {
            **read_losses(self._losses),
            "probe_missed": missed,
            "reader": self._result.invalid_records,
            **self._result.lost,
        }
        if not self._ring:
            del lost["ring_full"]
        if self._owners:
            for cause, number in _lost_owners(self._owners).items():
                lost[cause] = lost.get(cause, 0) + number
        return lost

    def since_last(self) -> dict[str, int]:
        """Return {cause: number} of the losses since the last call, without zeros."""
        now, last = self.read(), self.total
        self.total = now
        return {c: n - last.get(c, 0) for c, n in now.items() if n > last.get(c, 0)}


def _lost_owners(owners: Attached) -> dict[str, int]:
    """Return {cause: number} of owners that the programs of a session did not record."""
    lost = read_losses(Map(owners.loaded.maps["losses"], 4, 8, per_cpu=True))
    del lost["ring_full"]
    missed = sum(map(missed_runs, owners.loaded.programs.values()))
    return {**lost, "probe_missed": lost.get("probe_missed", 0) + missed}
