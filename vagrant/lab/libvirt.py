"""Control libvirt with virsh, and start its daemons if none is running."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

from .processes import capture
from .rows import PROJECT

WORK = PROJECT / "build" / "vm"
VIRSH = ["virsh", "--quiet", "--connect", "qemu:///system"]
PREFIX = "netbpf-vm-"
POOL = "default"
# The first response is slow: libvirt probes the capabilities of QEMU.
ANSWER_SECONDS = 90
END_SECONDS = 20
DAEMONS = ("virtlogd", "libvirtd")


class NoLibvirt(Exception):
    """libvirt is not available; the message is the reason."""


def virsh(*args: str) -> str:
    """Return the output of virsh, "" if it fails."""
    status, text = capture([*VIRSH, *args])
    return text if status == 0 else ""


def names(*args: str) -> list[str]:
    """Return the first column of virsh's output."""
    return [line.split()[0] for line in virsh(*args).splitlines() if line.strip()]


def volumes() -> list[str]:
    """Return the names of the images in the pool."""
    return names("vol-list", POOL)


# --- machines ------------------------------------------------------------------------------------


def own_domains() -> list[str]:
    """Return the machines of this source tree: their console is logged to its directory."""
    lab = [name for name in names("list", "--all", "--name") if name.startswith(PREFIX)]
    return [name for name in lab if f"'{WORK}/" in virsh("dumpxml", name)]


def other_domains(*which: str) -> list[str]:
    """Return all other machines, including those of other source trees."""
    ours = own_domains()
    return [name for name in names("list", *which, "--name") if name not in ours]


def remove_machine(name: str) -> None:
    """Remove the domain `name`, running or not."""
    virsh("destroy", name)
    virsh("undefine", name, "--managed-save", "--snapshots-metadata")


# --- daemons -------------------------------------------------------------------------------------


def answers() -> bool:
    """Return whether a libvirt daemon responds."""
    return capture([*VIRSH, "version"], limit=20)[0] == 0


def start_daemons(directory: Path) -> None:
    """Start libvirt's daemons, with pid files in `directory`. Raises NoLibvirt."""
    for daemon in DAEMONS:
        path = shutil.which(daemon)
        if not path:
            raise NoLibvirt(f"{daemon} is not installed: run scripts/setup.sh vm")
        capture([path, "-d", "-p", str(directory / f"{daemon}.pid")])
    deadline = time.monotonic() + ANSWER_SECONDS
    while not answers():
        if time.monotonic() > deadline:
            raise NoLibvirt("libvirtd was started but does not respond")
        time.sleep(0.5)


def is_ours(directory: Path) -> bool:
    """Return whether the libvirtd of the pid file in `directory` is running."""
    return _comm_of(_pid_in(directory / "libvirtd.pid")) == "libvirtd"


def stop_daemons(directory: Path) -> bool:
    """Stop the daemons of the pid files in `directory`; return whether one was running."""
    stopped = False
    for daemon in reversed(DAEMONS):
        path = directory / f"{daemon}.pid"
        pid = _pid_in(path)
        # The pid may have been reused since the daemon exited.
        if pid and _comm_of(pid) == daemon:
            _kill(pid, daemon)
            stopped = True
        path.unlink(missing_ok=True)
    return stopped


def _pid_in(path: Path) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return 0


def _comm_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def _kill(pid: int, comm: str) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        os.kill(pid, number)
        deadline = time.monotonic() + END_SECONDS
        while time.monotonic() < deadline:
            if _comm_of(pid) != comm:
                return
            time.sleep(0.1)
