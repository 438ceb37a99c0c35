"""Build boxes with mkbox.sh, rebuild them if their inputs change, and detect a working KVM."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

from .processes import Terminated, elapsed, notice, run
from .rows import VAGRANT, Row, box_key

BOXES = Path(os.environ.get("NETBPF_VM_BOXES", VAGRANT / "boxes"))
BUILD_MINUTES = 30
PROBE_SECONDS = 10


class NoBox(Exception):
    """A box could not be built; the message is the reason."""


def box_of(row: Row) -> Path:
    """Return the path of the row's box, whether it exists or not."""
    return BOXES / f"{row.name}.box"


def is_fresh(row: Row) -> bool:
    """Return whether the box exists and its inputs have not changed."""
    box, key = box_of(row), BOXES / f"{row.name}.box.key"
    return box.is_file() and key.is_file() and key.read_text().strip() == box_key(row)


def remove_unfinished() -> None:
    """Remove the working directories of killed builds."""
    for path in BOXES.glob("*.box.??????"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)


def build(row: Row, log: Path) -> None:
    """Build the row's box unless a fresh one exists. Raises NoBox and Stopped."""
    if is_fresh(row):
        return
    start = time.monotonic()
    notice(f"{row.name}: building the box (log: {log})")
    log.unlink(missing_ok=True)
    BOXES.mkdir(exist_ok=True)
    key = box_key(row)
    # In private namespaces, so that the build cannot leave mounts or processes behind.
    unshare = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh"]
    args = [row.name, row.userland, row.suite, row.package, str(box_of(row)), *row.extra]
    try:
        command = [*unshare, str(VAGRANT / "mkbox.sh"), *args]
        # unshare blocks all other signals.
        status = run(command, log, BUILD_MINUTES * 60, orphan="KILL")
    except Terminated as error:
        raise NoBox(f"building the box {error}") from None
    if status != 0:
        raise NoBox(f"mkbox.sh exited with status {status}")
    (BOXES / f"{row.name}.box.key").write_text(key + "\n")
    notice(f"{row.name}: box built, {elapsed(start)}")


def choose_driver(row: Row) -> str:
    """Return "kvm" or "qemu" (emulation): NETBPF_VM_DRIVER, or the result of a test boot.

    In nested virtualization, guests may hang although /dev/kvm can be opened. So the row's kernel
    is booted without a root file system, and must get as far as panicking about that.
    """
    given = os.environ.get("NETBPF_VM_DRIVER")
    if given:
        notice(f"driver: {given} (NETBPF_VM_DRIVER)")
        return given
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        notice("driver: qemu (emulation): /dev/kvm is not accessible")
        return "qemu"
    start = time.monotonic()
    works = kernel_starts(boot_output(Path(f"{box_of(row)}.vmlinuz")))
    driver, result = ("kvm", "started") if works else ("qemu (emulation)", "did not start")
    notice(f"driver: {driver}: a kernel {result} with /dev/kvm, {elapsed(start)}")
    return driver.split()[0]


def kernel_starts(output: str) -> bool:
    """Return whether the console output shows that a kernel tried to mount its root."""
    return "Kernel panic" in output or "VFS:" in output


def boot_output(kernel: Path) -> str:
    """Return the console output of `kernel` under KVM within PROBE_SECONDS, "" if it hangs."""
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
