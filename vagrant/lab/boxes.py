"""Boxes: built by mkbox.sh, kept until what they are made of changes; and whether KVM boots one."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

from .processes import Ended, run, say, span
from .rows import VAGRANT, Row, box_key

BOXES = Path(os.environ.get("NETBPF_VM_BOXES", VAGRANT / "boxes"))
BUILD_MINUTES = 30
PROBE_SECONDS = 10


class NoBox(Exception):
    """A box could not be made; the message says why."""


def box_of(row: Row) -> Path:
    """Return where the row's box is, or will be."""
    return BOXES / f"{row.name}.box"


def is_fresh(row: Row) -> bool:
    """Return whether the box is there and made as it would be made now."""
    box, key = box_of(row), BOXES / f"{row.name}.box.key"
    return box.is_file() and key.is_file() and key.read_text().strip() == box_key(row)


def remove_unfinished() -> None:
    """Remove the working directories of builds that were killed."""
    for path in BOXES.glob("*.box.??????"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)


def build(row: Row, log: Path) -> None:
    """Make the row's box unless a fresh one is there. Raises NoBox and Stopped."""
    if is_fresh(row):
        return
    start = time.monotonic()
    say(f"{row.name}: building the box (log: {log})")
    log.unlink(missing_ok=True)
    BOXES.mkdir(exist_ok=True)
    key = box_key(row)
    # In namespaces of its own no mount and no process of it can be left.
    inside = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh"]
    words = [row.name, row.userland, row.suite, row.package, str(box_of(row)), *row.extra]
    try:
        command = [*inside, str(VAGRANT / "mkbox.sh"), *words]
        # unshare lets no other signal through.
        status = run(command, log, BUILD_MINUTES * 60, orphan="KILL")
    except Ended as error:
        raise NoBox(f"building the box {error}") from None
    if status != 0:
        raise NoBox(f"mkbox.sh ended with status {status}")
    (BOXES / f"{row.name}.box.key").write_text(key + "\n")
    say(f"{row.name}: box built, {span(start)}")


def choose_driver(row: Row) -> str:
    """Return kvm or qemu (emulation): NETBPF_VM_DRIVER, or what a trial says.

    That /dev/kvm can be opened does not say that a machine runs: inside of another virtual machine
    it may hang. So the row's kernel is booted with no root file system, and must get as far as
    missing it.
    """
    given = os.environ.get("NETBPF_VM_DRIVER")
    if given:
        say(f"driver: {given}, as NETBPF_VM_DRIVER says")
        return given
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        say("driver: qemu (emulation): /dev/kvm is not there")
        return "qemu"
    start = time.monotonic()
    works = kernel_starts(boot_output(Path(f"{box_of(row)}.vmlinuz")))
    driver, result = ("kvm", "started") if works else ("qemu (emulation)", "did not start")
    say(f"driver: {driver}: a kernel {result} with /dev/kvm, {span(start)}")
    return driver.split()[0]


def kernel_starts(output: str) -> bool:
    """Return whether a console's output is of a kernel that got as far as its root file system."""
    return "Kernel panic" in output or "VFS:" in output


def boot_output(kernel: Path) -> str:
    """Return what `kernel` writes to its console under KVM in some seconds, "" if it hangs."""
    command = ["timeout", "--kill-after=1", str(PROBE_SECONDS), "qemu-system-x86_64"]
    command += ["-accel", "kvm", "-nodefaults", "-no-user-config", "-display", "none"]
    command += ["-no-reboot", "-serial", "stdio", "-m", "256", "-kernel", str(kernel)]
    command += ["-append", "console=ttyS0 panic=-1"]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=PROBE_SECONDS + 5,
            start_new_session=True,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode("utf-8", "replace")
