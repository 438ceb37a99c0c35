"""Manage what all runs on a host share: libvirt's daemons, networks and pool, firewall chains.

Runs of several source trees may be active at once. The first records the state of the host
(`Baseline`) and starts the daemons if none responds; the last one removes what was added since.
Each run holds a shared lock on the file `users` while it is active; the kernel releases the lock if
the run is killed. Runs hold the file `gate` while they start or end, so that none starts to use
what another one is removing.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import subprocess
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from io import TextIOWrapper
from pathlib import Path
from typing import Callable, Optional

from . import libvirt
from .libvirt import POOL, PREFIX, names, virsh
from .processes import capture, check, notice

# On tmpfs: a reboot removes the record along with what it describes.
SHARED = Path("/run/netbpf-vm")
FORWARD = Path("/proc/sys/net/ipv4/ip_forward")
POLL_SECONDS = 0.1


@dataclass
class Baseline:
    """The state of the host before the first run, to be kept. None: not yet recorded."""

    chains: dict[str, str] = field(default_factory=dict)
    ip_forward: str = ""
    interfaces: list[str] = field(default_factory=list)
    networks: Optional[list[str]] = None
    pools: Optional[list[str]] = None


class Share:
    """The use of shared resources by one run."""

    def __init__(self) -> None:
        self.users: Optional[TextIOWrapper] = None

    def enter(self) -> None:
        """Keep libvirt running until leave(). Raises NoLibvirt and Stopped."""
        if self.users:
            return
        SHARED.mkdir(exist_ok=True)
        with _gate(check):
            self.users = _open("users")
            fcntl.flock(self.users, fcntl.LOCK_SH)
            baseline = _read()
            if not baseline:
                baseline = _record()
                _write(baseline)
            if not libvirt.answers():
                start = time.monotonic()
                libvirt.start_daemons(SHARED)
                notice(f"libvirtd started, {time.monotonic() - start:.0f} s")
            if baseline.networks is None:
                baseline.networks = names("net-list", "--all", "--name")
                baseline.pools = names("pool-list", "--all", "--name")
                _write(baseline)

    def leave(self) -> None:
        """End the use; remove what runs added unless another run is active."""
        if not SHARED.is_dir():
            return
        with _gate():
            if self.users:
                self.users.close()
                self.users = None
            baseline = _read()
            with _open("users") as users:
                if not _locked(users):
                    notice("libvirt keeps running: another run is active")
                elif baseline:
                    _remove_all(baseline)


def _record() -> Baseline:
    return Baseline(
        chains={tool: saved_rules(tool) for tool in ("iptables", "ip6tables")},
        ip_forward=FORWARD.read_text().strip(),
        interfaces=os.listdir("/sys/class/net"),
    )


def _remove_all(baseline: Baseline) -> None:
    running = names("list", "--name")
    ours = libvirt.is_ours(SHARED)
    if libvirt.answers():
        _remove_networks(baseline, everything=ours and not running)
        _remove_pool(baseline)
    if not ours:
        # A daemon that runs did not start keeps running anyway.
        running = [name for name in running if name.startswith(PREFIX)]
    if running:
        notice(f"libvirt keeps running for: {' '.join(running)}")
        return
    if libvirt.stop_daemons(SHARED):
        _restore_firewall(baseline)
    _state().unlink()
    notice("cleaned up")


def _remove_networks(baseline: Baseline, everything: bool) -> None:
    known = baseline.networks or []
    for name in names("net-list", "--name"):
        xml = virsh("net-dumpxml", name)
        bridge = re.search(r"<bridge name='([^']+)'", xml)
        ours = name.startswith(PREFIX) and name not in known
        # A network that our daemon autostarted is removed with the daemon.
        autostarted = everything and bridge and bridge[1] not in baseline.interfaces
        if (ours and " connections=" not in xml) or autostarted:
            virsh("net-destroy", name)
    active = names("net-list", "--name")
    for name in names("net-list", "--all", "--name"):
        if name.startswith(PREFIX) and name not in known and name not in active:
            virsh("net-undefine", name)


def _remove_pool(baseline: Baseline) -> None:
    if baseline.pools is not None and POOL not in baseline.pools and not libvirt.volumes():
        virsh("pool-destroy", POOL)
        virsh("pool-undefine", POOL)


# --- files ---------------------------------------------------------------------------------------


def _state() -> Path:
    return SHARED / "found.json"


def _read() -> Optional[Baseline]:
    try:
        return Baseline(**json.loads(_state().read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _write(baseline: Baseline) -> None:
    _state().write_text(json.dumps(asdict(baseline), indent=1) + "\n")


def _open(name: str) -> TextIOWrapper:
    # Not inheritable, so that a daemon does not hold the lock of the run that started it.
    return (SHARED / name).open("a")


def _locked(file: TextIOWrapper) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def _gate(check: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold the lock for starting or ending a run; call `check` repeatedly while waiting for it."""
    with _open("gate") as gate:
        if not _locked(gate):
            notice("waiting: another run is starting or stopping libvirt")
            while not _locked(gate):
                check()
                time.sleep(POLL_SECONDS)
        yield


# --- firewall ------------------------------------------------------------------------------------


def saved_rules(tool: str) -> str:
    """Return all rules in the format of iptables-save and ip6tables-save."""
    return capture([f"{tool}-save"])[1]


def _restore_firewall(baseline: Baseline) -> None:
    for tool, rules in baseline.chains.items():
        for command in chain_commands(tool, rules, saved_rules(tool)):
            subprocess.run(command, check=False, stderr=subprocess.DEVNULL)
    if baseline.ip_forward and FORWARD.read_text().strip() != baseline.ip_forward:
        FORWARD.write_text(baseline.ip_forward + "\n")


def chain_commands(tool: str, before: str, now: str) -> list[list[str]]:
    """Return the commands that remove the libvirt chains added since `before`.

    A table is left alone if one of its chains still has rules, which an active network needs.
    """
    old, commands = _tables(before), []
    for table, lines in _tables(now).items():
        new = _chains(lines) - _chains(old.get(table, []))
        rules = [line.split() for line in lines if line.startswith("-A ")]
        if any(rule[1] in new for rule in rules):
            continue
        jumps = [rule for rule in rules if rule[-1] in new and rule[-2] in ("-j", "-g")]
        commands += [[tool, "-t", table, "-D", *rule[1:]] for rule in jumps]
        commands += [[tool, "-t", table, "-X", chain] for chain in sorted(new)]
    return commands


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
