"""libvirt, as virsh shows it, and its daemons where nobody else starts them."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

from .processes import ask
from .rows import PROJECT

WORK = PROJECT / "build" / "vm"
VIRSH = ["virsh", "--quiet", "--connect", "qemu:///system"]
PREFIX = "netbpf-vm-"
POOL = "default"
# The first answer takes long: libvirt asks QEMU what it can do.
ANSWER_SECONDS = 90
END_SECONDS = 20
DAEMONS = ("virtlogd", "libvirtd")


class NoLibvirt(Exception):
    """There is no libvirt to work with; the message says why."""


def virsh(*words: str) -> str:
    """Return what virsh prints, "" if it fails."""
    status, text = ask([*VIRSH, *words])
    return text if status == 0 else ""


def names(*words: str) -> list[str]:
    """Return the first column of a list that virsh prints."""
    return [line.split()[0] for line in virsh(*words).splitlines() if line.strip()]


def volumes() -> list[str]:
    """Return the names of the images in the pool."""
    return names("vol-list", POOL)


# --- machines ------------------------------------------------------------------------------------


def our_domains() -> list[str]:
    """Return the machines of this lab: those whose console is written to our directory."""
    found = [name for name in names("list", "--all", "--name") if name.startswith(PREFIX)]
    return [name for name in found if f"'{WORK}/" in virsh("dumpxml", name)]


def others_machines(*which: str) -> list[str]:
    """Return the machines that are not this lab's; those of another source tree's are not."""
    ours = our_domains()
    return [name for name in names("list", *which, "--name") if name not in ours]


def remove_machine(name: str) -> None:
    """Remove the domain `name`, whether it runs or not."""
    virsh("destroy", name)
    virsh("undefine", name, "--managed-save", "--snapshots-metadata")


# --- daemons -------------------------------------------------------------------------------------


def answers() -> bool:
    """Return whether a libvirt daemon answers."""
    return ask([*VIRSH, "version"], limit=20)[0] == 0


def start_daemons(directory: Path) -> None:
    """Start libvirt's daemons by hand, with their process ids in `directory`. Raises NoLibvirt."""
    for daemon in DAEMONS:
        path = shutil.which(daemon)
        if not path:
            raise NoLibvirt(f"{daemon} is not installed: run scripts/setup.sh vm")
        ask([path, "-d", "-p", str(directory / f"{daemon}.pid")])
    deadline = time.monotonic() + ANSWER_SECONDS
    while not answers():
        if time.monotonic() > deadline:
            raise NoLibvirt("libvirtd was started and does not answer")
        time.sleep(0.5)


def is_ours(directory: Path) -> bool:
    """Return whether the libvirtd whose process id is in `directory` runs."""
    return _name_of(_number_in(directory / "libvirtd.pid")) == "libvirtd"


def stop_daemons(directory: Path) -> bool:
    """Stop the daemons whose process ids are in `directory`; return whether there was one."""
    stopped = False
    for daemon in reversed(DAEMONS):
        path = directory / f"{daemon}.pid"
        number = _number_in(path)
        # The number of one that ended may be somebody else's by now.
        if number and _name_of(number) == daemon:
            _end(number, daemon)
            stopped = True
        path.unlink(missing_ok=True)
    return stopped


def _number_in(path: Path) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return 0


def _name_of(number: int) -> str:
    try:
        return Path(f"/proc/{number}/comm").read_text().strip()
    except OSError:
        return ""


def _end(number: int, name: str) -> None:
    for kind in (signal.SIGTERM, signal.SIGKILL):
        os.kill(number, kind)
        deadline = time.monotonic() + END_SECONDS
        while time.monotonic() < deadline:
            if _name_of(number) != name:
                return
            time.sleep(0.1)
