"""One machine: `vagrant up`, the tests over plain ssh, their results brought back, and its end."""

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
from .libvirt import PREFIX, WORK, names, our_domains, remove_machine, virsh
from .processes import Ended, ask, run, say, span, tail
from .rows import VAGRANT, Row

TRIES = 2
TICK_SECONDS = 60
GRACE_SECONDS = 240  # for tests that were interrupted, before the machine is taken for dead
INTERRUPTED = 124  # status of run-tests.sh when time was up
SERIAL_LINES, LOG_LINES = 40, 15
RESULTS = ("junit.xml", "kernel.json", "facts.json", "dmesg")
# Half a minute of silence is nothing to a machine under emulation; five are.
KEEPALIVE = ["-o", "ServerAliveInterval=30", "-o", "ServerAliveCountMax=10"]


class NoMachine(Exception):
    """The machine did not come up; the message says why."""


@dataclass(frozen=True)
class Options:
    """What is the same for all machines of a run."""

    driver: str
    cpus: int
    words: tuple[str, ...]
    up_minutes: float
    test_minutes: float


class Machine:
    """The machine of a row, and its directory of logs and results."""

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
        """The machine's name in libvirt."""
        return PREFIX + self.row.name

    def environment(self) -> dict[str, str]:
        """Return what Vagrant and the Vagrantfile are told; nothing of it is the user's own."""
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

    # --- up --------------------------------------------------------------------------------------

    def up(self) -> None:
        """Bring the machine up, ready for ssh. Raises NoMachine and Stopped."""
        if self.domain in names("list", "--all", "--name") and self.domain not in our_domains():
            raise NoMachine(f"a machine {self.domain} that `make vm` did not make is in the way")
        # Results of an earlier run must never be taken for those of this one.
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
                say(f"{self.row.name}: {error}; trying once more")
            else:
                say(f"{self.row.name}: up, {span(start)}")
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
                status, text = ask(["vagrant", "ssh-config", self.row.name], 60, environment)
                self.ssh_config.write_text(text)
        except Ended as error:
            raise NoMachine(f"vagrant up {error}") from None
        finally:
            _without_progress(log)
            # The image is in libvirt's pool now.
            shutil.rmtree(self._unpacked(), ignore_errors=True)
        if status != 0:
            raise NoMachine(f"vagrant up ended with status {status}")

    def _unpacked(self) -> Path:
        return WORK / "home" / "boxes" / f"netbpf-vm-VAGRANTSLASH-{self.row.name}"

    def panic(self) -> str:
        """Return that the kernel panicked, if it did: nothing else would end the wait."""
        with contextlib.suppress(OSError), self.serial.open("rb") as serial:
            serial.seek(max(0, self.serial.stat().st_size - 20000))
            if b"Kernel panic - not syncing" in serial.read():
                return "ended: the machine's kernel panicked"
        return ""

    def dead(self) -> str:
        """Return why the machine will not answer any more, "" if it may."""
        if virsh("domstate", self.domain).strip() in ("shut off", "crashed"):
            return "ended: the machine is off"
        return self.panic()

    def _show(self, title: str, path: Path, count: int) -> None:
        lines = tail(path, count)
        say(f"{self.row.name}: {title} {path}" + (":" if lines else ": empty"))
        for line in lines:
            say(f"    {line}")

    def _show_boot(self) -> None:
        self._show("the end of", self.directory / "up.log", LOG_LINES)
        self._show("the end of the console,", self.serial, SERIAL_LINES)

    # --- tests -----------------------------------------------------------------------------------

    def ssh(self, *words: str) -> list[str]:
        """Return the command that runs `words` as root inside."""
        remote = shlex.join(["sudo", *words])
        return ["ssh", "-F", str(self.ssh_config), *KEEPALIVE, self.row.name, remote]

    def test(self) -> None:
        """Run the tests and note the outcome. Raises Stopped."""
        start = time.monotonic()
        slow = "1" if self.options.driver == "kvm" else "10"
        minutes = f"{self.options.test_minutes:g}"
        script = ("sh", "/project/vagrant/run-tests.sh", slow, minutes)
        command = self.ssh(*script, *self.options.words)
        say(f"{self.row.name}: tests (log: {self.log})")
        try:
            limit = self.options.test_minutes * 60 + GRACE_SECONDS
            self.outcome.status = run(command, self.log, limit, watch=Watch(self, start))
            if self.outcome.status == INTERRUPTED:
                self.outcome.died = f"the tests did not end within {minutes} minutes"
        except Ended as error:
            self.outcome.died = f"the tests {error}"
        passed, failed, skipped = progress(self.log)
        say(f"{self.row.name}: tests ended: {passed} passed, {failed} failed, {span(start)}")
        if not self.dead():
            self._fetch()
        self._judge()

    def _fetch(self) -> None:
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
                    # The names are ours; a machine cannot choose where to write.
                    name = os.path.basename(member.name)
                    content = archive.extractfile(member) if member.isfile() else None
                    if name in RESULTS and content:
                        (self.directory / name).write_bytes(content.read())

    def _judge(self) -> None:
        outcome = self.outcome
        try:
            outcome.facts = json.loads((self.directory / "facts.json").read_text())
            junit = (self.directory / "junit.xml").read_text(errors="replace")
            report.read_junit(outcome, junit, report.tool_names())
        except (OSError, ValueError, ElementTree.ParseError):
            reason = f"no result came back, ssh ended with status {outcome.status}"
            outcome.died = outcome.died or reason
        (self.directory / "skips.txt").write_text("".join(f"{x}\n" for x in outcome.skips))
        release = outcome.facts.get("release", "")
        if release and not self.row.runs(release):
            outcome.missing = f"the box has {release}, and kernels.yaml says {self.row.kernel}"
        if outcome.died:
            say(f"{self.row.name}: error: {outcome.died}")
            self._show("the end of", self.log, LOG_LINES)
            self._show("the end of the console,", self.serial, SERIAL_LINES)

    # --- the end ---------------------------------------------------------------------------------

    def halt(self) -> None:
        """Remove the machine and its images, in whatever state it is."""
        if self.domain in our_domains():
            remove_machine(self.domain)
        remove_volumes(self.before, self.row.name)
        shutil.rmtree(WORK / "dot" / "machines" / self.row.name, ignore_errors=True)


class Watch:
    """Says every minute how far the tests are, and sees a machine die."""

    def __init__(self, machine: Machine, start: float) -> None:
        self.machine = machine
        self.start = start
        self.next = start + TICK_SECONDS

    def __call__(self) -> str:
        """Return why there is nothing to wait for any more, or ""."""
        if time.monotonic() < self.next:
            return ""
        self.next += TICK_SECONDS
        passed, failed, _ = progress(self.machine.log)
        name = self.machine.row.name
        say(f"{name}: tests: {passed} passed, {failed} failed so far, {span(self.start)}")
        return self.machine.dead()


def progress(log: Path) -> tuple[int, int, int]:
    """Return how many tests have passed, failed and been skipped, by pytest's lines in a log."""
    try:
        text = log.read_text(errors="replace")
    except OSError:
        return 0, 0, 0
    ends = re.findall(r"::\S.* (PASSED|FAILED|ERROR|SKIPPED)\b", text)
    failed = ends.count("FAILED") + ends.count("ERROR")
    return ends.count("PASSED"), failed, ends.count("SKIPPED")


def _without_progress(log: Path) -> None:
    """Take the thousands of lines of Vagrant's progress bars out of a log."""
    with contextlib.suppress(OSError):
        lines = log.read_text(errors="replace").replace("\r", "\n").split("\n")
        kept = [line for line in lines if "Progress:" not in line and line.strip()]
        log.write_text("\n".join(kept) + "\n")
