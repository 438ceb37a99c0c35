"""`make vm`: run the live tests on the kernels of kernels.yaml and print a table of results.

Exit status: 0 if all tests passed, 1 if a test failed or a machine crashed during the tests, 2 for
an unknown kernel, 69 if a box or a machine could not be created or if another run is active, 77 if
not root, 130 or 143 after a signal.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import shlex
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Callable, Optional

from . import boxes, host, libvirt, report
from .machine import Machine, NoMachine, Options
from .processes import Stopped, check, notice, stopping, tail
from .rows import PROJECT, Row, UnknownKernel, read_rows, select
from .shared import Share

LOCK = libvirt.WORK / "lock"
received: list[int] = []


def arguments(args: Optional[Sequence[str]] = None) -> argparse.Namespace:
    """Parse the command line; defaults come from the environment, which make sets."""
    given: Callable[..., str] = lambda name, default="": os.environ.get(name) or default  # noqa: E731
    cpus = str(os.cpu_count() or 1)
    parser = argparse.ArgumentParser(prog="make vm", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--kernel", default=given("KERNEL"), help="names or kernels, comma-separated, or all")
    add("--tests", default=given("TESTS", "tests/live"), help="arguments for pytest")
    add("--jobs", type=int, default=given("JOBS", cpus), help="machines in parallel")
    add(
        "--limit",
        type=float,
        default=given("LIMIT", "90"),
        help="minutes for the tests of a machine",
    )
    add("--up-limit", type=float, default=given("UP_LIMIT", "10"), help="minutes to boot a machine")
    add("--keep", action="store_true", default=bool(given("KEEP")), help="leave machines running")
    add("--save", action="store_true", default=bool(given("SAVE")), help="save the results")
    add("--boxes-only", action="store_true", help="build boxes, boot no machine")
    add(
        "--clean",
        action="store_true",
        help="remove machines that were kept or left by a killed run",
    )
    return parser.parse_args(args)


def on_signal(number: int, _frame: Any) -> None:
    """Stop the run; further signals are ignored, so that they do not interrupt the clean-up."""
    if not received:
        notice("stopping and cleaning up, this takes a moment")
    received.append(number)
    stopping.set()


class Run:
    """A run: machines boot one after the other and are tested in parallel."""

    def __init__(self, rows: Sequence[Row], options: argparse.Namespace) -> None:
        self.rows = rows
        self.options = options
        self.slots = threading.Semaphore(options.jobs)
        self.outcomes: dict[str, report.Outcome] = {row.name: report.Outcome(row) for row in rows}
        self.kept: list[Machine] = []

    def build_boxes(self) -> list[Row]:
        """Build missing boxes in parallel; return the rows that have a box."""
        boxes.remove_unfinished()
        with ThreadPoolExecutor(self.options.jobs) as pool:
            built = list(pool.map(self._build, self.rows))
        check()
        return [row for row, good in zip(self.rows, built) if good]

    def _build(self, row: Row) -> bool:
        directory = libvirt.WORK / row.name
        directory.mkdir(parents=True, exist_ok=True)
        try:
            boxes.build(row, directory / "box.log")
        except Stopped:
            return False
        except boxes.NoBox as error:
            self.outcomes[row.name].missing = str(error)
            notice(f"{row.name}: error: {error}")
            for line in tail(directory / "box.log", 15):
                notice(f"    {line}")
            return False
        return True

    def boot_and_test(self, rows: Sequence[Row], before: host.Before) -> None:
        """Boot and test the machines. Raises Stopped."""
        driver = boxes.choose_driver(rows[0])
        options = Options(
            driver=driver,
            cpus=int(os.environ.get("NETBPF_VM_CPUS") or self._cpus(driver, len(rows))),
            pytest_args=tuple(shlex.split(self.options.tests)),
            up_minutes=self.options.up_limit,
            test_minutes=self.options.limit,
        )
        with ThreadPoolExecutor(self.options.jobs) as pool:
            tests = []
            for row in rows:
                while not self.slots.acquire(timeout=0.2):
                    check()
                machine = Machine(row, options, before)
                self.outcomes[row.name] = machine.outcome
                if self._up(machine):
                    tests.append(pool.submit(self._test, machine))
            for test in tests:
                test.result()

    def _cpus(self, driver: str, machines: int) -> int:
        """Return the number of CPUs per machine: an equal share of the host's CPUs.

        Emulated machines have one CPU. With more, QEMU 7.2 executes breakpoints that the kernel
        inserted while patching its code and has already removed; a 6.12 kernel panicked twice in
        two attempts.
        """
        share = (os.cpu_count() or 1) // min(self.options.jobs, machines)
        return max(1, share) if driver == "kvm" else 1

    def _up(self, machine: Machine) -> bool:
        try:
            machine.up()
        except NoMachine as error:
            machine.outcome.missing = str(error)
            notice(f"{machine.row.name}: error: {error}")
            self.slots.release()
            return False
        return True

    def _test(self, machine: Machine) -> None:
        try:
            machine.test()
            if self.options.keep:
                self.kept.append(machine)
            else:
                machine.halt()
                notice(f"{machine.row.name}: removed")
        finally:
            self.slots.release()

    def results(self) -> list[report.Outcome]:
        """Return the outcomes in the order of the rows."""
        return [self.outcomes[row.name] for row in self.rows]


@contextlib.contextmanager
def lock() -> Iterator[bool]:
    """Lock this source tree's lab; yield False if another run holds the lock."""
    libvirt.WORK.mkdir(parents=True, exist_ok=True)
    with LOCK.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def clean_up(share: Share) -> None:
    """Remove what runs of this tree left: a killed run, kept machines, or this run."""
    left = host.left_behind()
    if left:
        share.enter()
        host.clean_up(left)


def build_and_test(run: Run, share: Share) -> None:
    """Build, boot, test, clean up. Raises Stopped (after the clean-up) and NoLibvirt."""
    rows = run.build_boxes()
    if run.options.boxes_only or not rows:
        return
    # Signals only set a flag, so that `finally` is always reached.
    try:
        share.enter()
        before = host.prepare()
        check()
        run.boot_and_test(rows, before)
    finally:
        if run.kept and not stopping.is_set():
            show_kept(run.kept)
        else:
            clean_up(share)


def report_results(run: Run) -> int:
    """Print and, if requested, save the results; return the exit status."""
    if not run.options.boxes_only:
        print(report.table(run.results()), flush=True)
    if run.options.save:
        for path in report.save(run.results(), read_rows(), libvirt.WORK, PROJECT):
            notice(f"saved {path.relative_to(PROJECT)}")
    return report.exit_status(run.results())


def show_kept(machines: Sequence[Machine]) -> None:
    """Print how to log in to the machines that were kept."""
    for machine in machines:
        notice(
            f"{machine.row.name} is still running: ssh -F {machine.ssh_config} {machine.row.name}"
        )
    notice("`make vm-clean` or the next `make vm` removes them")


def run_locked(options: argparse.Namespace, rows: Sequence[Row]) -> int:
    """Run as the only run of this source tree; return the exit status."""
    run, share = Run(rows, options), Share()
    try:
        try:
            if host.left_behind():
                notice("removing machines and images of an earlier run")
                clean_up(share)
            if not options.clean:
                build_and_test(run, share)
        finally:
            share.leave()
        return report.PASSED if options.clean else report_results(run)
    except Stopped:
        return 128 + received[0]
    except libvirt.NoLibvirt as error:
        notice(f"error: {error}")
        return report.UNAVAILABLE
    finally:
        host.restore_ownership()


def main() -> int:
    """Run the command; return its exit status."""
    options = arguments()
    try:
        rows = select(read_rows(), options.kernel)
    except UnknownKernel as error:
        known = ", ".join(f"{row.name} ({row.kernel})" for row in read_rows())
        print(f"vm: error: vagrant/kernels.yaml has no kernel '{error}'", file=sys.stderr)
        print(f"hint: choose from {known}", file=sys.stderr)
        return report.USAGE
    if os.geteuid() != 0:
        print("vm: error: needs root\nhint: sudo make vm", file=sys.stderr)
        return report.NO_ROOT
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, on_signal)
    with lock() as alone:
        if not alone:
            print("vm: error: another `make vm` is running in this source tree", file=sys.stderr)
            print("hint: wait for it to finish", file=sys.stderr)
            return report.UNAVAILABLE
        return run_locked(options, rows)


if __name__ == "__main__":
    sys.exit(main())
