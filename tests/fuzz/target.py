"""A fuzzing target, which runs in a child with limits on time and memory per case."""

from __future__ import annotations

import json
import os
import resource
import signal
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Callable, NamedTuple

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.strategies import SearchStrategy

CPU_SECONDS, SECONDS = 2.0, 30.0  # per case
MEMORY = 256 << 20  # bytes per case
BATCH = 5000  # cases per seed: hypothesis's memory of them grows


@dataclass(frozen=True)
class Target:
    """A parser of outside data.

    `inputs` makes what it reads: valid input with damage as well as valid input of which a model
    has the answer. `check` hands one input to it and raises if the answer is wrong; of exceptions
    only those in `allowed` may come out.
    """

    name: str
    inputs: SearchStrategy[Any]
    check: Callable[[Any], None]
    allowed: tuple[type[Exception], ...] = ()


class Outcome(NamedTuple):
    """The result of a run: cases, seconds, and the fault with an example, "" if none."""

    cases: int
    seconds: float
    fault: str


class TooSlow(BaseException):
    """No parser may catch this."""


def run(target: Target, cases: int, first_seed: int = 0) -> Outcome:
    """Run `cases` cases in a child, the same ones each time for one seed."""
    ours, theirs = os.pipe()
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        os.close(ours)
        _child(target, cases, first_seed, theirs)
    os.close(theirs)
    with open(ours, "rb") as channel:
        lines = channel.read().decode().splitlines()
    _, status = os.waitpid(child, 0)
    done, fault = json.loads(lines[-1]) if lines else (0, "")
    if status and not fault:
        fault = f"the child ended with status {status}"
    return Outcome(done, time.monotonic() - began, fault)


def _child(target: Target, cases: int, first_seed: int, channel: int) -> None:
    done, fault, status = 0, "", 1
    try:
        _limit()
        done, fault = _batches(target, cases, first_seed)
        status = 0
    except BaseException:
        fault = traceback.format_exc()
    finally:
        os.write(channel, json.dumps([done, fault[-30000:]]).encode() + b"\n")
        os._exit(status)


def _limit() -> None:
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30),) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for number in (signal.SIGALRM, signal.SIGPROF):
        signal.signal(number, _too_slow)


def _too_slow(number: int, frame: object) -> None:
    raise TooSlow


def _batches(target: Target, cases: int, first_seed: int) -> tuple[int, str]:
    counted = [0]

    def one(case: Any) -> None:
        counted[0] += 1
        before = _peak()
        with _in_time():
            try:
                target.check(case)
            except target.allowed:
                pass
        assert _peak() <= before + MEMORY, "it took too much memory"

    number = first_seed
    while counted[0] < cases:
        before = counted[0]
        some = min(BATCH, cases - before)
        prepared = settings(
            max_examples=some, database=None, deadline=None, report_multiple_bugs=False,
            phases=(Phase.generate, Phase.shrink), suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        try:
            prepared(seed(number)(given(target.inputs)(one)))()
        except Exception as error:
            notes = "\n".join(getattr(error, "__notes__", ()))
            return counted[0], f"{traceback.format_exc()}\n{notes}"
        if counted[0] == before:
            break
        number += 1
    return counted[0], ""


@contextmanager
def _in_time() -> Iterator[None]:
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    except TooSlow as error:
        raise AssertionError("it took too long") from error
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
