"""What was lost, by cause, and what the probes cost."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from netbpf.kernel.attach import enable_statistics
from netbpf.kernel.maps import Map

# The causes that the C side counts, in the order of enum loss in include/netbpf.bpf.h.
CAUSES = ("ring_full", "map_full")
_COVERED = len(CAUSES)


def read_losses(losses: Map) -> dict[str, int]:
    """Return {cause: number} from the per-CPU array that every program has."""
    return {cause: _sum(losses, index) for index, cause in enumerate(CAUSES)}


def read_covered(losses: Map) -> int:
    """Return how many ends of calls no probe `earlier...` saw that had been told before."""
    return _sum(losses, _COVERED)


def _sum(losses: Map, index: int) -> int:
    raw = losses.get(struct.pack("=I", index)) or b""
    return sum(struct.unpack(f"={len(raw) // 8}q", raw))


class Cost:
    """What the loaded programs cost the machine: the kernel counts while this is open (5.8)."""

    def __init__(self, programs: Mapping[str, int]) -> None:
        """Watch {entry: descriptor}."""
        self._programs = dict(programs)
        self._start = time.monotonic()
        self._cpu = time.process_time()
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
            "reader_cpu_seconds": round(time.process_time() - self._cpu, 4),
            "programs": {
                name: {key: one.get(theirs, 0) for key, theirs in _TOLD.items()}
                for name, one in each.items()
            },
        }

    def missed(self, besides: Collection[str] = (), covered: int = 0) -> int:
        """Return how often a program was skipped as another one ran on that CPU (since 5.12).

        Of those of the programs `besides` others, so many had nothing to add (see read_covered).
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
