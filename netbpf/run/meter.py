"""How much CPU time BPF programs take, measured all the time or, while they run often, in part.

The kernel reads a clock before and after each run that it measures. On a virtual machine that takes
as long as a small program: 30 runs of netsize's programs took 11 us measured and 6.5 us unmeasured.
So programs that run often are measured in a tenth of the time, and the rest is estimated.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Callable, NamedTuple, Optional

from netbpf.system.links import enable_statistics, fdinfo

OFTEN = 5_000  # runs per second: measuring them takes less than 0.1 % of a CPU
_ON, _OFF = 0.05, 0.45  # seconds; _OFF is the mean, so that no regular traffic is always missed
_FIRST, _LONGEST = 0.1, 1.0  # seconds between two looks at how often programs run

Switch = Callable[[bool], bool]  # turns measuring on or off, and returns whether it is so now


class Runs(NamedTuple):
    """Runs of a program, and what they took; both can be estimates."""

    number: float
    ns: float

    def plus(self, other: Runs) -> Runs:
        """Add numbers and times."""
        return Runs(self.number + other.number, self.ns + other.ns)

    def times(self, factor: float) -> Runs:
        """Multiply both."""
        return Runs(self.number * factor, self.ns * factor)


NONE = Runs(0.0, 0.0)


class Statistics:
    """Turns the kernel's measuring of BPF programs on and off; another program may have it on."""

    def __init__(self) -> None:
        self._fd = -1

    def __call__(self, on: bool) -> bool:
        """Turn measuring on or off; return `on`. Raises OSError."""
        if on and self._fd < 0:
            self._fd = enable_statistics()
        elif not on and self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        return on


class Meter:
    """Measures the programs of the descriptors `programs` from its construction on.

    Without `switch`, they are measured all the time. `due` is the monotonic time in seconds at
    which update() has something to do, `measured` whether the kernel measures at all.
    """

    def __init__(self, programs: Collection[int], switch: Optional[Switch] = None) -> None:
        """Begin to measure."""
        self._programs, self._switch = tuple(programs), switch
        self._own = Statistics()
        self.measured = False
        with suppress(OSError):
            self.measured = self._own(True)
        self._begin = self._at = time.monotonic()
        self._on, self._pause = True, _FIRST
        self._seen = self._read(self._programs)
        self._sums = dict(self._seen)
        self._rates = dict.fromkeys(self._programs, NONE)  # per second, in the last time measured
        self._unmeasured = 0.0  # seconds, in all
        self._gap = 0.0  # seconds before the time that is measured now, not yet estimated
        self.due = self._at + self._pause if switch and self.measured else float("inf")

    @staticmethod
    def _read(programs: Collection[int]) -> dict[int, Runs]:
        found = {}
        for program in programs:
            info = fdinfo(program)
            found[program] = Runs(info.get("run_cnt", 0), info.get("run_time_ns", 0))
        return found

    def update(self) -> None:
        """Turn measuring on or off, if it is time."""
        now = time.monotonic()
        if now < self.due:
            return
        if self._on:
            self._end_measured(now)
        else:
            self._begin_measured()

    def _end_measured(self, now: float) -> None:
        seen = self._read(self._programs)
        self._sums, self._rates = self._with(seen, now)
        self._at, self._seen, self._gap = now, seen, 0.0
        often = sum(rate.number for rate in self._rates.values()) > OFTEN
        if often and self._turned_off():
            self._at, self._on = time.monotonic(), False
            self._pause = _FIRST
            self.due = self._at + _OFF * random.uniform(0.5, 1.5)
        else:
            self._pause = min(2 * self._pause, _LONGEST)
            self.due = now + self._pause

    def _begin_measured(self) -> None:
        if self._turned_on():
            now = time.monotonic()
            self._gap = now - self._at
            self._unmeasured += self._gap
            self._at, self._on, self._seen = now, True, self._read(self._programs)
            self.due = now + _ON
        else:
            self.due = time.monotonic() + _LONGEST

    def _turned_off(self) -> bool:
        try:
            return self._turn(False)
        except TimeoutError:
            return True  # it may be turned off later: do not count until it is surely on
        except OSError:
            return False

    def _turned_on(self) -> bool:
        with suppress(OSError):
            return self._turn(True)
        return False

    def _turn(self, on: bool) -> bool:
        assert self._switch
        done = self._switch(on) == on
        if done:
            self._own(False)  # the switch has its own descriptor
        return done

    def _with(
        self, seen: Mapping[int, Runs], now: float
    ) -> tuple[dict[int, Runs], dict[int, Runs]]:
        """Return sums and rates with what ran since the last reading."""
        seconds = max(now - self._at, 1e-6)
        sums, rates = {}, {}
        for program, runs in seen.items():
            before = self._seen[program]
            grown = Runs(runs.number - before.number, runs.ns - before.ns)
            enough = seconds > _ON / 2
            rates[program] = grown.times(1 / seconds) if enough else self._rates[program]
            # The time before is estimated from a sample that began at random; the one before it
            # ended because programs ran often in it, so it would be too many.
            sums[program] = self._sums[program].plus(grown).plus(rates[program].times(self._gap))
        return sums, rates

    def read(self, programs: Collection[int]) -> Mapping[int, Runs]:
        """Return the runs so far of some of the programs."""
        now = time.monotonic()
        if self._on:
            return self._with(self._read(programs), now)[0]
        gap = now - self._at
        return {fd: self._sums[fd].plus(self._rates[fd].times(gap)) for fd in programs}

    @property
    def percent(self) -> float:
        """The share of the time, in percent, in which the programs were measured."""
        if not self.measured:
            return 0.0
        now = time.monotonic()
        off = self._unmeasured + (0.0 if self._on else now - self._at)
        return 100 * (1 - off / max(now - self._begin, 1e-6))

    def close(self) -> None:
        """Stop measuring."""
        self._own(False)
