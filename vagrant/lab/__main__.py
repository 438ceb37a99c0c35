"""`make vm`: the live tests on the kernels of kernels.yaml, and a table of what came of them.

Exit status: 0 all tests passed, 1 a test failed or a machine died under the tests, 2 the command
line names a kernel that is not in the list, 69 a box or a machine could not be made or another run
is at work, 77 not root, 130 or 143 after a signal.
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
from .processes import Stopped, check, say, stopping, tail
from .rows import PROJECT, Row, UnknownKernel, read_rows, select
from .shared import Share

LOCK = libvirt.WORK / "lock"
received: list[int] = []


def arguments(words: Optional[Sequence[str]] = None) -> argparse.Namespace:
    """Return the options. Their defaults come from the environment, where make puts them."""
    given: Callable[..., str] = lambda name, usual="": os.environ.get(name) or usual  # noqa: E731
    cpus = str(os.cpu_count() or 1)
    parser = argparse.ArgumentParser(prog="make vm", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--kernel", default=given("KERNEL"), help="names or kernels, a comma list; all")
    add("--tests", default=given("TESTS", "tests/live"), help="pytest's words")
    add("--jobs", type=int, default=given("JOBS", cpus), help="machines at a time")
    add("--limit", type=float, default=given("LIMIT", "90"), help="minutes for a machine's tests")
    add("--up-limit", type=float, default=given("UP_LIMIT", "10"), help="minutes to come up")
    add("--keep", action="store_true", default=bool(given("KEEP")), help="leave machines up")
    add("--save", action="store_true", default=bool(given("SAVE")), help="keep the results")
    add("--boxes-only", action="store_true", help="build boxes, boot nothing")
    add("--clean", action="store_true", help="remove what a kept or killed run left")
    return parser.parse_args(words)


def on_signal(number: int, _frame: Any) -> None:
    """Ask the run to end; once is enough, and the clean-up is not to be disturbed."""
    if not received:
        say("stopping; this takes a moment, nothing is to stay behind")
    received.append(number)
    stopping.set()


class Run:
    """One run: its machines, one brought up after the other, tested side by side."""

    def __init__(self, rows: Sequence[Row], options: argparse.Namespace) -> None:
        self.rows = rows
        self.options = options
        self.slots = threading.Semaphore(options.jobs)
        self.outcomes: dict[str, report.Outcome] = {row.name: report.Outcome(row) for row in rows}
        self.kept: list[Machine] = []

    def build_boxes(self) -> list[Row]:
        """Build the boxes that are missing, side by side; return the rows that have one."""
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
            say(f"{row.name}: error: {error}")
            for line in tail(directory / "box.log", 15):
                say(f"    {line}")
            return False
        return True

    def boot_and_test(self, rows: Sequence[Row], before: host.Before) -> None:
        """Bring up and test the machines. Raises Stopped."""
        driver = boxes.choose_driver(rows[0])
        options = Options(
            driver=driver,
            cpus=int(os.environ.get("NETBPF_VM_CPUS") or self._share(driver, len(rows))),
            words=tuple(shlex.split(self.options.tests)),
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

    def _share(self, driver: str, machines: int) -> int:
        """Return how many CPUs a machine gets: those of the host, shared out.

        One if it is emulated: with more, QEMU 7.2 runs breakpoints that the kernel set for a moment
        to change its code, and has taken back; twice of two times a 6.12 kernel panicked at that.
        """
        share = (os.cpu_count() or 1) // min(self.options.jobs, machines)
        return max(1, share) if driver == "kvm" else 1

    def _up(self, machine: Machine) -> bool:
        try:
            machine.up()
        except NoMachine as error:
            machine.outcome.missing = str(error)
            say(f"{machine.row.name}: error: {error}")
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
                say(f"{machine.row.name}: removed")
        finally:
            self.slots.release()

    def results(self) -> list[report.Outcome]:
        """Return the outcomes in the order of the rows."""
        return [self.outcomes[row.name] for row in self.rows]


@contextlib.contextmanager
def lock() -> Iterator[bool]:
    """Hold the lock of this source tree's lab; give False if another run has it."""
    libvirt.WORK.mkdir(parents=True, exist_ok=True)
    with LOCK.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def clean_up(share: Share) -> None:
    """Take away what a run of this tree left: one that was killed, kept machines, or ends now."""
    left = host.left_behind()
    if left:
        share.enter()
        host.clean_up(left)


def work(run: Run, share: Share) -> None:
    """Build, boot, test, clean up. Raises Stopped, after the clean-up, and NoLibvirt."""
    rows = run.build_boxes()
    if run.options.boxes_only or not rows:
        return
    # Signals ask; they break nothing off. So whatever was begun gets to the `finally`.
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


def tell(run: Run) -> int:
    """Show and keep what came of the machines; return the exit status."""
    if not run.options.boxes_only:
        print(report.table(run.results()), flush=True)
    if run.options.save:
        for path in report.save(run.results(), read_rows(), libvirt.WORK, PROJECT):
            say(f"saved {path.relative_to(PROJECT)}")
    return report.exit_status(run.results())


def show_kept(machines: Sequence[Machine]) -> None:
    """Say how to get into the machines that stay."""
    for machine in machines:
        say(f"{machine.row.name} is still up: ssh -F {machine.ssh_config} {machine.row.name}")
    say("`make vm-clean`, or the next `make vm`, removes them")


def locked(options: argparse.Namespace, rows: Sequence[Row]) -> int:
    """Do what was asked for, this being the only run; return the exit status."""
    run, share = Run(rows, options), Share()
    try:
        try:
            if host.left_behind():
                say("removing what an earlier run left")
                clean_up(share)
            if not options.clean:
                work(run, share)
        finally:
            share.leave()
        return report.PASSED if options.clean else tell(run)
    except Stopped:
        return 128 + received[0]
    except libvirt.NoLibvirt as error:
        say(f"error: {error}")
        return report.UNAVAILABLE
    finally:
        host.give_to_owner()


def main() -> int:
    """Run the command; return its exit status."""
    options = arguments()
    try:
        rows = select(read_rows(), options.kernel)
    except UnknownKernel as error:
        known = ", ".join(f"{row.name} ({row.kernel})" for row in read_rows())
        print(f"vm: error: no kernel '{error}' in vagrant/kernels.yaml", file=sys.stderr)
        print(f"hint: there are {known}", file=sys.stderr)
        return report.USAGE
    if os.geteuid() != 0:
        print("vm: error: needs root\nhint: sudo make vm", file=sys.stderr)
        return report.NO_ROOT
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, on_signal)
    with lock() as alone:
        if not alone:
            print("vm: error: another `make vm` is at work here", file=sys.stderr)
            print("hint: wait for it; two would take each other's machines away", file=sys.stderr)
            return report.UNAVAILABLE
        return locked(options, rows)


if __name__ == "__main__":
    sys.exit(main())
