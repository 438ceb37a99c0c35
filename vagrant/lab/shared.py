"""What all runs on a host use together: libvirt's daemons, networks and pool, the packet filter.

Runs of several source trees may be at work at once. The first writes down what is there (`Found`)
and starts the daemons if none answer; the last that ends, and only that one, takes away what has
come since. Each holds a shared lock on `users` as long as it is at work, between two machines too,
and the kernel takes that lock from a run which is killed. Whoever comes or goes holds `gate`, so
that no run begins to use what another one is taking away.
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
from .processes import ask, check, say

# Empty after a boot, as what it tells of.
SHARED = Path("/run/netbpf-vm")
FORWARD = Path("/proc/sys/net/ipv4/ip_forward")
POLL_SECONDS = 0.1


@dataclass
class Found:
    """What the first run found: all of it is somebody else's. None is what was not yet asked."""

    chains: dict[str, str] = field(default_factory=dict)
    ip_forward: str = ""
    interfaces: list[str] = field(default_factory=list)
    networks: Optional[list[str]] = None
    pools: Optional[list[str]] = None


class Share:
    """A run's part in what runs share."""

    def __init__(self) -> None:
        self.users: Optional[TextIOWrapper] = None

    def enter(self) -> None:
        """Have libvirt answer until `leave`. Raises NoLibvirt, and Stopped."""
        if self.users:
            return
        SHARED.mkdir(exist_ok=True)
        with _gate(check):
            self.users = _open("users")
            fcntl.flock(self.users, fcntl.LOCK_SH)
            found = _read()
            if not found:
                found = _look()
                _write(found)
            if not libvirt.answers():
                start = time.monotonic()
                libvirt.start_daemons(SHARED)
                say(f"libvirtd started, {time.monotonic() - start:.0f} s")
            if found.networks is None:
                found.networks = names("net-list", "--all", "--name")
                found.pools = names("pool-list", "--all", "--name")
                _write(found)

    def leave(self) -> None:
        """End this run's part; take away what runs brought if no other one is at work."""
        if not SHARED.is_dir():
            return
        with _gate():
            if self.users:
                self.users.close()
                self.users = None
            found = _read()
            with _open("users") as users:
                if not _locked(users):
                    say("libvirt stays as it is: another run is at work")
                elif found:
                    _take_away(found)


def _look() -> Found:
    return Found(
        chains={tool: saved_rules(tool) for tool in ("iptables", "ip6tables")},
        ip_forward=FORWARD.read_text().strip(),
        interfaces=os.listdir("/sys/class/net"),
    )


def _take_away(found: Found) -> None:
    running = names("list", "--name")
    ours = libvirt.is_ours(SHARED)
    if libvirt.answers():
        _remove_networks(found, everything=ours and not running)
        _remove_pool(found)
    if not ours:
        # A daemon that was there before needs nobody's leave to stay.
        running = [name for name in running if name.startswith(PREFIX)]
    if running:
        say(f"libvirt stays as it is for what runs: {' '.join(running)}")
        return
    if libvirt.stop_daemons(SHARED):
        _restore_packet_filter(found)
    _state().unlink()
    say("all removed")


def _remove_networks(found: Found, everything: bool) -> None:
    known = found.networks or []
    for name in names("net-list", "--name"):
        xml = virsh("net-dumpxml", name)
        bridge = re.search(r"<bridge name='([^']+)'", xml)
        made = name.startswith(PREFIX) and name not in known
        # One that starts with the daemon goes with the daemon.
        came_along = everything and bridge and bridge[1] not in found.interfaces
        if (made and " connections=" not in xml) or came_along:
            virsh("net-destroy", name)
    active = names("net-list", "--name")
    for name in names("net-list", "--all", "--name"):
        if name.startswith(PREFIX) and name not in known and name not in active:
            virsh("net-undefine", name)


def _remove_pool(found: Found) -> None:
    if found.pools is not None and POOL not in found.pools and not libvirt.volumes():
        virsh("pool-destroy", POOL)
        virsh("pool-undefine", POOL)


# --- files ---------------------------------------------------------------------------------------


def _state() -> Path:
    return SHARED / "found.json"


def _read() -> Optional[Found]:
    try:
        return Found(**json.loads(_state().read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _write(found: Found) -> None:
    _state().write_text(json.dumps(asdict(found), indent=1) + "\n")


def _open(name: str) -> TextIOWrapper:
    # Not inherited by children: a daemon must not hold what its starter holds.
    return (SHARED / name).open("a")


def _locked(file: TextIOWrapper) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def _gate(check: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Be the only run that comes or goes; call `check` again and again while that has to wait."""
    with _open("gate") as gate:
        if not _locked(gate):
            say("another run starts or ends libvirt's daemons: waiting for it")
            while not _locked(gate):
                check()
                time.sleep(POLL_SECONDS)
        yield


# --- the packet filter ---------------------------------------------------------------------------


def saved_rules(tool: str) -> str:
    """Return all rules as `iptables-save` or `ip6tables-save` writes them."""
    return ask([f"{tool}-save"])[1]


def _restore_packet_filter(found: Found) -> None:
    for tool, rules in found.chains.items():
        for command in chain_commands(tool, rules, saved_rules(tool)):
            subprocess.run(command, check=False, stderr=subprocess.DEVNULL)
    if found.ip_forward and FORWARD.read_text().strip() != found.ip_forward:
        FORWARD.write_text(found.ip_forward + "\n")


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
