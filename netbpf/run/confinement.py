"""Restrict a run, once probes are attached, to the capabilities and system calls that it needs."""

from __future__ import annotations

import os
import resource
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Optional

from netbpf.bpf.attach import probing_denied
from netbpf.bpf.maps import Map
from netbpf.declare.needs import (
    ATTACH,
    LOOKUPS,
    MAPS,
    PLACES,
    PROGRAMS,
    READY_FILE,
    STACKS,
    SYMBOLS,
    UNDISTURBED,
    UPROBES,
    UPROBES_BEFORE,
    Need,
    needs_of,
)
from netbpf.declare.stacks import user_stacks
from netbpf.declare.tool import Tool
from netbpf.kernel.kallsyms import addresses_visible
from netbpf.kernel.processes import ids_differ
from netbpf.run.attached import Attached
from netbpf.run.results.base import Result
from netbpf.system import privileges, syscall_filter

Log = Callable[[str], None]
Settings = Mapping[str, Any]


def missing_needs(tool: Tool, settings: Mapping[str, Any]) -> list[Need]:
    """Return the privileges that `tool` needs and this process does not have."""
    return [
        need for need in needs_of(tool, settings) if privileges.lacks(need) and not _granted(need)
    ]


def _granted(need: Need) -> bool:
    """Return whether this kernel grants what `need` is for without the capability."""
    if need == UPROBES:
        return not probing_denied()
    return need in (SYMBOLS, PLACES) and addresses_visible()


class Confinement:
    """Drops the capabilities that a run no longer needs, and denies unused system calls.

    Unless `wanted`, it does neither: a program that runs a tool in its own process is not changed.
    `helper` lists the capabilities that a separate process keeps (see system/helper.py).
    """

    def __init__(self, members: Sequence[tuple[Tool, Settings]] = (), wanted: bool = False) -> None:
        """Check the privileges of each tool with its settings.

        PrivilegeError if one lacks a required privilege.
        """
        self._members, self.wanted = members, wanted
        self._needs = list(dict.fromkeys(need for one in members for need in needs_of(*one)))
        self._missing = {tool.name: self._checked(tool, given) for tool, given in members}
        self._path = members[0][1].get("ready_file") if members else None
        self._filtered = False
        self._kept: dict[str, str] = {}
        self._helped = kept_for(need for need in self._needs if need.helper) if wanted else {}
        self.helper = sorted(self._helped)

    def _checked(self, tool: Tool, settings: Settings) -> list[Need]:
        missing = missing_needs(tool, settings)
        if any(not need.without for need in missing):
            every = [need for need in needs_of(tool, settings) if not need.without]
            raise privileges.privilege_error(
                [need for need in missing if not need.without], tool.name, every
            )
        return missing

    def not_covered(self, tool: Tool, attached: Attached, result: Result) -> int:
        """Return the number of probes, privileges or processes whose events could not be seen."""
        hidden = {need.without for need in self._missing.get(tool.name, ()) if need.hides}
        return len(hidden) + attached.not_covered + result.lost.get("not_covered", 0)

    def notes(self, tool: Tool, attached: Attached) -> list[str]:
        """Return a note for each part of the result that is missing for lack of a privilege."""
        denied = [selection for selection in attached.selections if selection.denied]
        missing: dict[str, list[str]] = {}
        for need in self._missing.get(tool.name, ()):
            missing.setdefault(need.without, []).append(need.name)
        return [
            *(
                f"probe {selection.probe.name} is not used: {selection.denied}"
                for selection in denied
            ),
            *(f"{without}: needs {', '.join(names)}" for without, names in missing.items()),
        ]

    def enter(self, maps: Mapping[str, int], log: Log) -> None:
        """Drop and deny, after attaching. `maps` are descriptors by name, including "losses"."""
        if not self.wanted:
            return
        ids_differ()  # cached from here on: it may load a program, which is denied later
        needs = [need for need in self._needs if need.running and not need.helper]
        self._keep(needs, maps)
        put_in_force = self._filter(log)
        privileges.drop_capabilities(self._kept)
        if put_in_force:
            try:
                put_in_force()
                self._filtered = True
            except OSError as error:
                log(f"system calls are not filtered: {error.strerror}")
        for name, purpose in self._kept.items():
            log(f"keeps {name} to {purpose}")
        for name, purpose in self._helped.items():
            log(f"a helper process keeps {name} to {purpose}")
        if not self._kept:
            log("keeps no capability")

    def seal(self) -> None:
        """Deny creating files; the ready file exists by now."""
        if self._filtered and self._path:
            syscall_filter.deny_new_files()

    def described(self) -> dict[str, Any]:
        """Return the summary's field: the actual privileges of this process's threads."""
        return {
            "kept": sorted(privileges.capabilities_of_all_threads()),
            "helper": self.helper,
            "no_new_privs": privileges.no_new_privileges(),
            "seccomp": self._filtered,
        }

    def _keep(self, needs: list[Need], maps: Mapping[str, int]) -> None:
        if not _may_preempt():
            needs.append(UNDISTURBED)
        self._kept = kept_for(needs)
        with privileges.limited_to(self._kept):
            unreadable = _is_denied(maps["losses"])
        path = self._path
        protected = path and not _may_write(os.path.dirname(os.path.abspath(path)))
        self._kept = kept_for([*needs, *[MAPS] * unreadable, *[READY_FILE] * bool(protected)])

    def _filter(self, log: Log) -> Optional[Callable[[], None]]:
        if not syscall_filter.available():
            log(
                "system calls are not filtered: this Python has no module seccomp (python3-seccomp)"
            )
            return None
        enters = any(need.helper for need in self._needs) and not self.helper
        worker = any(t.uprobes or user_stacks(t.records, given) for t, given in self._members)
        return syscall_filter.prepare(
            syscall_filter.Allowed(namespaces=enters, ready_file=bool(self._path), worker=worker)
        )


def confine_finder() -> None:
    """Drop, in the process that finds and probes programs, what it does not need."""
    _confine_worker(LOOKUPS, syscall_filter.Allowed(probes=True))


def confine_unwinder() -> None:
    """Drop, in the process that unwinds user stacks, what it does not need."""
    _confine_worker(STACKS, syscall_filter.Allowed(probes=ids_differ(), files=True))


def _confine_worker(needs: Sequence[Need], allowed: syscall_filter.Allowed) -> None:
    # Processes of another PID namespace are identified by a BPF program.
    extra = [PROGRAMS, ATTACH] if ids_differ() else []
    kept = kept_for([*needs, MAPS, *extra])
    put_in_force = None
    if syscall_filter.available():
        put_in_force = syscall_filter.prepare(allowed)
    privileges.drop_capabilities(kept)
    if put_in_force:
        with suppress(OSError):  # a kernel without filters
            put_in_force()


def kept_for(needs: Iterable[Need]) -> dict[str, str]:
    """Return the fewest capabilities of this process that satisfy `needs`, with their purpose."""
    held = privileges.capabilities()
    kept: dict[str, str] = {}
    for need in needs:
        if need == UPROBES:
            with privileges.limited_to(ATTACH.any_of[:1]):
                need = UPROBES if probing_denied() else UPROBES_BEFORE
        if not set(need.any_of) & set(kept):
            kept.update([(name, need.to) for name in need.any_of if name in held][:1])
    return kept


def _may_write(directory: str) -> bool:
    """Return whether the mode of a directory lets this user write to it."""
    status = os.stat(directory)
    shift = 6 if status.st_uid == os.geteuid() else 3 if status.st_gid == os.getegid() else 0
    return bool(status.st_mode >> shift & 2)


def _is_denied(losses: int) -> bool:
    try:
        Map(losses, 4, 8, per_cpu=True).get(struct.pack("=I", 0))
    except PermissionError:
        return True
    return False


def _may_preempt() -> bool:
    """Allow the lowest real-time priority without a capability; return whether that worked."""
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_RTPRIO, (1, 1))
    return resource.getrlimit(resource.RLIMIT_RTPRIO)[0] >= 1
