"""This host: libvirt's daemons, and everything that a run leaves in it, which is taken away again.

Before a run touches anything it writes down what is there (`Before`). What is there in addition
when it ends is its own and goes. A run that was killed leaves that file behind, and the next one
cleans up from it first.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Optional

from .processes import ask, say
from .rows import PROJECT

WORK = PROJECT / "build" / "vm"
STATE = WORK / "before.json"
RUN = WORK / "run"
VIRSH = ["virsh", "--quiet", "--connect", "qemu:///system"]
PREFIX = "netbpf-vm-"
POOL = "default"
FORWARD = Path("/proc/sys/net/ipv4/ip_forward")
# The first answer takes long: libvirt asks QEMU what it can do.
ANSWER_SECONDS = 90
DAEMONS = ("virtlogd", "libvirtd")
Libvirt = dict[str, list[str]]


class NoLibvirt(Exception):
    """There is no libvirt to work with; the message says why."""


@dataclass
class Before:
    """What was there before a run: all of it is somebody else's."""

    chains: dict[str, str] = field(default_factory=dict)
    ip_forward: str = ""
    interfaces: list[str] = field(default_factory=list)
    started_daemons: bool = False
    # None until the daemon was asked.
    libvirt: Optional[Libvirt] = None

    def write(self) -> None:
        """Keep this for the run that cleans up."""
        STATE.write_text(json.dumps(asdict(self), indent=1) + "\n")


# --- libvirt -------------------------------------------------------------------------------------


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


def libvirt_things() -> Libvirt:
    """Return what libvirt has, by kind."""
    return {
        "networks": names("net-list", "--all", "--name"),
        "pools": names("pool-list", "--all", "--name"),
        "volumes": volumes(),
    }


def our_domains() -> list[str]:
    """Return the machines of this lab: those whose console is written to our directory."""
    found = [name for name in names("list", "--all", "--name") if name.startswith(PREFIX)]
    return [name for name in found if f"'{WORK}/" in virsh("dumpxml", name)]


def others_machines(*which: str) -> list[str]:
    """Return the machines that are not this lab's; those of another source tree's are not."""
    ours = our_domains()
    return [name for name in names("list", *which, "--name") if name not in ours]


def answers() -> bool:
    """Return whether a libvirt daemon answers."""
    return ask([*VIRSH, "version"], limit=20)[0] == 0


def start_daemons() -> None:
    """Start libvirt's daemons by hand. Raises NoLibvirt."""
    RUN.mkdir(parents=True, exist_ok=True)
    for daemon in DAEMONS:
        path = shutil.which(daemon)
        if not path:
            raise NoLibvirt(f"{daemon} is not installed: run scripts/setup.sh vm")
        ask([path, "-d", "-p", str(RUN / f"{daemon}.pid")])
    deadline = time.monotonic() + ANSWER_SECONDS
    while not answers():
        if time.monotonic() > deadline:
            raise NoLibvirt("libvirtd was started and does not answer")
        time.sleep(0.5)


def stop_daemons() -> None:
    """Stop the daemons whose process ids are in our files, and nobody else's."""
    for daemon in reversed(DAEMONS):
        path = RUN / f"{daemon}.pid"
        try:
            number = int(path.read_text())
        except (OSError, ValueError):
            continue
        if _name_of(number) == daemon:
            _end(number, daemon)
        path.unlink(missing_ok=True)


def _name_of(number: int) -> str:
    try:
        return Path(f"/proc/{number}/comm").read_text().strip()
    except OSError:
        return ""


def _end(number: int, name: str) -> None:
    for kind in (signal.SIGTERM, signal.SIGKILL):
        os.kill(number, kind)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            if _name_of(number) != name:
                return
            time.sleep(0.1)


def prepare() -> Before:
    """Write down what is there, and see to it that libvirt answers. Raises NoLibvirt."""
    before = Before(
        chains={tool: saved_rules(tool) for tool in ("iptables", "ip6tables")},
        ip_forward=FORWARD.read_text().strip(),
        interfaces=os.listdir("/sys/class/net"),
        started_daemons=not answers(),
    )
    before.write()
    if before.started_daemons:
        start = time.monotonic()
        start_daemons()
        say(f"libvirtd started, {time.monotonic() - start:.0f} s")
    before.libvirt = libvirt_things()
    before.write()
    return before


# --- taking away ---------------------------------------------------------------------------------


def remove_machine(name: str) -> None:
    """Remove the domain `name`, whether it runs or not."""
    virsh("destroy", name)
    virsh("undefine", name, "--managed-save", "--snapshots-metadata")


def remove_volumes(before: Before, machine: str = "") -> None:
    """Remove images of this run: those of one machine, or all; none that another is based on."""
    known = (before.libvirt or {}).get("volumes", [])
    in_use = "".join(virsh("dumpxml", name) for name in others_machines("--all"))
    ours = [name for name in volumes() if name.startswith(PREFIX) and name not in known]
    ours = [name for name in ours if f"/{name}'" not in in_use]
    if machine:
        box = f"{PREFIX}VAGRANTSLASH-{machine}_vagrant_box_image_"
        ours = [name for name in ours if name == f"{PREFIX}{machine}.img" or name.startswith(box)]
    # A machine's disk comes before the box's image that it is based on.
    for name in sorted(ours, key=lambda name: "_vagrant_box_image_" in name):
        others = [other for other in volumes() if other != name]
        if not any(f"/{name}<" in virsh("vol-dumpxml", other, POOL) for other in others):
            virsh("vol-delete", name, POOL)


def _remove_networks(before: Before) -> None:
    known = (before.libvirt or {}).get("networks", [])
    for name in names("net-list", "--name"):
        xml = virsh("net-dumpxml", name)
        bridge = re.search(r"<bridge name='([^']+)'", xml)
        made = name.startswith(PREFIX) and name not in known and " connections=" not in xml
        # One that starts with the daemon goes with the daemon.
        came_along = before.started_daemons and bridge and bridge[1] not in before.interfaces
        if made or came_along:
            virsh("net-destroy", name)
    for name in names("net-list", "--all", "--name"):
        active = name in names("net-list", "--name")
        if name.startswith(PREFIX) and name not in known and not active:
            virsh("net-undefine", name)


def _remove_pool(before: Before) -> None:
    if POOL not in (before.libvirt or {}).get("pools", [POOL]) and not volumes():
        virsh("pool-destroy", POOL)
        virsh("pool-undefine", POOL)


def clean_up(before: Before) -> bool:
    """Take away everything that came since `before`; return whether that went well."""
    if before.libvirt is not None:
        if not answers():
            start_daemons()
        for name in our_domains():
            remove_machine(name)
        remove_volumes(before)
        if before.started_daemons and others_machines():
            say("libvirt's daemons stay: somebody else's machine runs")
            before.started_daemons = False
        _remove_networks(before)
        _remove_pool(before)
    left = our_domains() if before.libvirt is not None else []
    if before.started_daemons:
        stop_daemons()
        _restore_network(before)
    if left:
        say(f"error: could not remove: {' '.join(left)}")
        return False
    for name in ("dot", "home/boxes", "home/tmp"):
        shutil.rmtree(WORK / name, ignore_errors=True)
    STATE.unlink(missing_ok=True)
    return True


def left_behind() -> Optional[Before]:
    """Return what an earlier run wrote down and did not clean up, if there is one."""
    try:
        return Before(**json.loads(STATE.read_text()))
    except (OSError, ValueError, TypeError):
        return None


def give_to_owner() -> None:
    """Give what root wrote into the source tree to the owner of that, who must be able to clean."""
    owner = PROJECT.stat()
    for top in (PROJECT / "build", PROJECT / "vagrant" / "boxes"):
        for directory, _, files in os.walk(top):
            for path in (directory, *(os.path.join(directory, name) for name in files)):
                os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)


# --- the packet filter ---------------------------------------------------------------------------


def saved_rules(tool: str) -> str:
    """Return all rules as `iptables-save` or `ip6tables-save` writes them."""
    return ask([f"{tool}-save"])[1]


def _restore_network(before: Before) -> None:
    for tool, rules in before.chains.items():
        for command in chain_commands(tool, rules, saved_rules(tool)):
            subprocess.run(command, check=False, stderr=subprocess.DEVNULL)
    if before.ip_forward and FORWARD.read_text().strip() != before.ip_forward:
        FORWARD.write_text(before.ip_forward + "\n")


def chain_commands(tool: str, before: str, now: str) -> list[list[str]]:
    """Return the commands that remove libvirt's chains which came since `before`.

    A table in which one of them still has rules is left alone: somebody's network needs them.
    """
    old, found = _tables(before), []
    for table, lines in _tables(now).items():
        new = _chains(lines) - _chains(old.get(table, []))
        words = [line.split() for line in lines if line.startswith("-A ")]
        if any(rule[1] in new for rule in words):
            continue
        jumps = [rule for rule in words if rule[-1] in new and rule[-2] in ("-j", "-g")]
        found += [[tool, "-t", table, "-D", *rule[1:]] for rule in jumps]
        found += [[tool, "-t", table, "-X", chain] for chain in sorted(new)]
    return found


def _tables(text: str) -> dict[str, list[str]]:
    tables: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in text.splitlines():
        if line.startswith("*"):
            lines = tables.setdefault(line[1:].strip(), [])
        else:
            lines.append(line)
    return tables


def _chains(lines: Iterable[str]) -> set[str]:
    return {line.split()[0][1:] for line in lines if line.startswith(":LIBVIRT_")}
