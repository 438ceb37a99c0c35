"""A machine: boot it with Vagrant, run the tests over ssh, fetch the results, remove it."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import tarfile
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

from . import report
from .boxes import BOXES
from .host import Before, remove_volumes
from .libvirt import PREFIX, WORK, names, own_domains, remove_machine, virsh
from .processes import Terminated, capture, elapsed, notice, run, tail
from .rows import VAGRANT, Row

TRIES = 2
TICK_SECONDS = 60
GRACE_SECONDS = 240  # for interrupted tests to finish
INTERRUPTED = 124  # status of run-tests.sh after the time limit
SERIAL_LINES, LOG_LINES = 40, 15
RESULTS = ("junit.xml", "kernel.json", "facts.json", "dmesg")
# An emulated machine may not respond for half a minute; after five minutes it is dead.
KEEPALIVE = ["-o", "ServerAliveInterval=30", "-o", "ServerAliveCountMax=10"]


class NoMachine(Exception):
    """The machine could not be booted; the message is the reason."""


@dataclass(frozen=True)
class Options:
    """Options of all machines of a run."""

    driver: str
    cpus: int
    pytest_args: tuple[str, ...]
    up_minutes: float
    test_minutes: float


class Machine:
    """The machine of a row, and its directory for logs and results."""

    def __init__(self, row: Row, options: Options, before: Before) -> None:
        self.row = row
        self.options = options
        self.before = before
        self.outcome = report.Outcome(row)
        self.directory = WORK / row.name
        self.log = self.directory / "log"
        self.serial = self.directory / f"{row.name}.serial"
        self.ssh_config = self.directory / "ssh-config"

    @property
    def domain(self) -> str:
        """The machine's libvirt domain."""
        return PREFIX + self.row.name

    def environment(self) -> dict[str, str]:
        """Return the environment of Vagrant; it keeps the user's Vagrant directories untouched."""
        return {
            "VAGRANT_HOME": str(WORK / "home"),
            "VAGRANT_DOTFILE_PATH": str(WORK / "dot"),
            "VAGRANT_CWD": str(VAGRANT),
            "VAGRANT_DEFAULT_PROVIDER": "libvirt",
            "VAGRANT_CHECKPOINT_DISABLE": "1",
            "NETBPF_VM_BOXES": str(BOXES),
            "NETBPF_VM_DRIVER": self.options.driver,
            "NETBPF_VM_CPUS": str(self.options.cpus),
            "NETBPF_VM_SERIAL": str(self.directory),
        }

    # --- boot ------------------------------------------------------------------------------------

    def up(self) -> None:
        """Boot the machine until ssh works. Raises NoMachine and Stopped."""
        if self.domain in names("list", "--all", "--name") and self.domain not in own_domains():
            raise NoMachine(f"a machine {self.domain} exists that this source tree did not create")
        # Results of an earlier run must not be mistaken for those of this one.
        for path in self.directory.iterdir():
            if path.name != "box.log":
                path.unlink()
        for left in reversed(range(TRIES)):
            start = time.monotonic()
            try:
                self._up_once()
            except NoMachine as error:
                self.halt()
                self._show_boot()
                if not left:
                    raise
                notice(f"{self.row.name}: {error}; retrying")
            else:
                notice(f"{self.row.name}: up, {elapsed(start)}")
                return

    def _up_once(self) -> None:
        log = self.directory / "up.log"
        log.unlink(missing_ok=True)
        command = ["vagrant", "up", self.row.name, "--no-color"]
        environment = self.environment()
        (WORK / "home").mkdir(exist_ok=True)
        try:
            status = run(command, log, self.options.up_minutes * 60, environment, self.panic)
            if status == 0:
                status, text = capture(["vagrant", "ssh-config", self.row.name], 60, environment)
                self.ssh_config.write_text(text)
        except Terminated as error:
            raise NoMachine(f"vagrant up {error}") from None
        finally:
            _without_progress(log)
            # The image has been imported into libvirt's pool.
            shutil.rmtree(self._unpacked(), ignore_errors=True)
        if status != 0:
            raise NoMachine(f"vagrant up exited with status {status}")

    def _unpacked(self) -> Path:
        return WORK / "home" / "boxes" / f"netbpf-vm-VAGRANTSLASH-{self.row.name}"

    def panic(self) -> str:
        """Return a message if the kernel panicked; the wait would not end otherwise."""
        with contextlib.suppress(OSError), self.serial.open("rb") as serial:
            serial.seek(max(0, self.serial.stat().st_size - 20000))
            if b"Kernel panic - not syncing" in serial.read():
                return "stopped: the machine's kernel panicked"
        return ""

    def dead(self) -> str:
        """Return why the machine is dead, "" if it may still respond."""
        if virsh("domstate", self.domain).strip() in ("shut off", "crashed"):
            return "stopped: the machine is off"
        return self.panic()

    def _show(self, title: str, path: Path, count: int) -> None:
        lines = tail(path, count)
        notice(f"{self.row.name}: {title} {path}" + (":" if lines else ": empty"))
        for line in lines:
            notice(f"    {line}")

    def _show_boot(self) -> None:
        self._show("the end of", self.directory / "up.log", LOG_LINES)
        self._show("the end of the console,", self.serial, SERIAL_LINES)

    # --- tests -----------------------------------------------------------------------------------

    def ssh(self, *command: str) -> list[str]:
        """Return the ssh command that runs `command` as root in the machine."""
        remote = shlex.join(["sudo", *command])
        return ["ssh", "-F", str(self.ssh_config), *KEEPALIVE, self.row.name, remote]

    def test(self) -> None:
        """Run the tests and record the outcome. Raises Stopped."""
        start = time.monotonic()
        slow = "1" if self.options.driver == "kvm" else "10"
        minutes = f"{self.options.test_minutes:g}"
        script = ("sh", "/project/vagrant/run-tests.sh", slow, minutes)
        command = self.ssh(*script, *self.options.pytest_args)
        notice(f"{self.row.name}: running tests (log: {self.log})")
        try:
            limit = self.options.test_minutes * 60 + GRACE_SECONDS
            self.outcome.status = run(command, self.log, limit, watch=Watch(self, start))
            if self.outcome.status == INTERRUPTED:
                self.outcome.died = f"the tests did not finish within {minutes} minutes"
        except Terminated as error:
            self.outcome.died = f"the tests {error}"
        passed, failed, skipped = progress(self.log)
        notice(
            f"{self.row.name}: tests finished: {passed} passed, {failed} failed, {elapsed(start)}"
        )
        if not self.dead():
            self._fetch_results()
        self._read_results()

    def _fetch_results(self) -> None:
        command = self.ssh("tar", "-C", "/project/build/results", "-cf", "-", ".")
        with contextlib.suppress(subprocess.TimeoutExpired, tarfile.TarError):
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                timeout=120,
                start_new_session=True,
            )
            with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
                for member in archive:
                    # Only known names, so that the machine cannot write elsewhere.
                    name = os.path.basename(member.name)
                    content = archive.extractfile(member) if member.isfile() else None
                    if name in RESULTS and content:
                        (self.directory / name).write_bytes(content.read())

    def _read_results(self) -> None:
        outcome = self.outcome
        try:
            outcome.facts = json.loads((self.directory / "facts.json").read_text())
            junit = (self.directory / "junit.xml").read_text(errors="replace")
            report.read_junit(outcome, junit, report.tool_names())
        except (OSError, ValueError, ElementTree.ParseError):
            reason = f"no results: ssh exited with status {outcome.status}"
            outcome.died = outcome.died or reason
        (self.directory / "skips.txt").write_text("".join(f"{x}\n" for x in outcome.skips))
        release = outcome.facts.get("release", "")
        if release and not self.row.runs(release):
            outcome.missing = (
                f"the box has kernel {release}, not {self.row.kernel} as in kernels.yaml"
            )
        if outcome.died:
            notice(f"{self.row.name}: error: {outcome.died}")
            self._show("the end of", self.log, LOG_LINES)
            self._show("the end of the console,", self.serial, SERIAL_LINES)

    # --- remove ----------------------------------------------------------------------------------

    def halt(self) -> None:
        """Remove the machine and its images in any state."""
        if self.domain in own_domains():
            remove_machine(self.domain)
        remove_volumes(self.before, self.row.name)
        shutil.rmtree(WORK / "dot" / "machines" / self.row.name, ignore_errors=True)


class Watch:
    """Prints the progress of the tests every minute and detects a dead machine."""

    def __init__(self, machine: Machine, start: float) -> None:
        self.machine = machine
        self.start = start
        self.next = start + TICK_SECONDS

    def __call__(self) -> str:
        """Return why waiting is useless, or ""."""
        if time.monotonic() < self.next:
            return ""
        self.next += TICK_SECONDS
        passed, failed, _ = progress(self.machine.log)
        name = self.machine.row.name
        notice(f"{name}: {passed} passed, {failed} failed so far, {elapsed(self.start)}")
        return self.machine.dead()


def progress(log: Path) -> tuple[int, int, int]:
    """Return the number of passed, failed and skipped tests in a pytest log."""
    try:
        text = log.read_text(errors="replace")
    except OSError:
        return 0, 0, 0
    results = re.findall(r"::\S.* (PASSED|FAILED|ERROR|SKIPPED)\b", text)
    failed = results.count("FAILED") + results.count("ERROR")
    return results.count("PASSED"), failed, results.count("SKIPPED")


def _without_progress(log: Path) -> None:
    """Remove Vagrant's progress bars, thousands of lines, from a log."""
    with contextlib.suppress(OSError):
        lines = log.read_text(errors="replace").replace("\r", "\n").split("\n")
        kept = [line for line in lines if "Progress:" not in line and line.strip()]
        log.write_text("\n".join(kept) + "\n")
