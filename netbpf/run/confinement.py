"""What a run may still do once its probes are attached: as little as its tool needs."""

from __future__ import annotations

import os
import resource
import struct
from collections.abc import Callable, Iterable, Mapping
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
    SYMBOLS,
    UNDISTURBED,
    UPROBES,
    UPROBES_BEFORE,
    Need,
    needs_of,
)
from netbpf.declare.tool import Tool
from netbpf.kernel.kallsyms import addresses_visible
from netbpf.kernel.processes import ids_differ
from netbpf.run.program import Attached
from netbpf.run.results.base import Result
from netbpf.system import privileges, syscall_filter

Say = Callable[[str], None]


def lacking(tool: Tool, settings: Mapping[str, Any]) -> list[Need]:
    """Return the privileges that `tool` needs and this process lacks."""
    return [
        need for need in needs_of(tool, settings) if privileges.lacks(need) and not _granted(need)
    ]


def _granted(need: Need) -> bool:
    """Ask the kernel whether it takes less than the capability."""
    if need == UPROBES:
        return not probing_denied()
    return need in (SYMBOLS, PLACES) and addresses_visible()


class Confinement:
    """Gives up the capabilities that a run needs no more, and system calls that it never makes.

    Not `wanted`, it gives up nothing: a program that runs a tool in its own process stays as it is.
    `helper` are the capabilities that go to a process of its own (see system/helper.py).
    """

    def __init__(
        self,
        tool: Optional[Tool] = None,
        settings: Optional[Mapping[str, Any]] = None,
        wanted: bool = False,
    ) -> None:
        """Raise PrivilegeError if the tool cannot do its work without a privilege that is missing.

        Without a tool there is nothing to do.
        """
        self._tool, self._settings, self._wanted = tool, settings or {}, wanted
        self._needs = needs_of(tool, self._settings) if tool else []
        self._lacking = self._checked(tool) if tool else []
        self._filtered = False
        self._kept: dict[str, str] = {}
        self._helped = kept_for(need for need in self._needs if need.helper) if wanted else {}
        self.helper = sorted(self._helped)

    def _checked(self, tool: Tool) -> list[Need]:
        found = lacking(tool, self._settings)
        if any(not need.without for need in found):
            every = [need for need in self._needs if not need.without]
            raise privileges.privilege_error(
                [need for need in found if not need.without], tool.name, every
            )
        return found

    def not_covered(self, attached: Attached, shape: Result) -> int:
        """Return in how many respects, or of how many processes, events were not seen."""
        hidden = {need.without for need in self._lacking if need.hides}
        return len(hidden) + attached.not_covered + shape.lost.get("not_covered", 0)

    def notes(self, attached: Attached) -> list[str]:
        """Return in words what the result lacks without a privilege."""
        denied = [selection for selection in attached.selections if selection.denied]
        found: dict[str, list[str]] = {}
        for need in self._lacking:
            found.setdefault(need.without, []).append(need.name)
        return [
            *(
                f"probe {selection.probe.name} is not used: {selection.denied}"
                for selection in denied
            ),
            *(f"{words}: needs {', '.join(names)}" for words, names in found.items()),
        ]

    def enter(self, maps: Mapping[str, int], say: Say) -> None:
        """Do it: everything is attached. `maps` are descriptors, one of them "losses"."""
        if not self._wanted:
            return
        ids_differ()  # which may take programs that cannot be loaded any more
        needs = [need for need in self._needs if need.running and not need.helper]
        self._keep(needs, maps)
        put_in_force = self._filter(say)
        privileges.drop_capabilities(self._kept)
        if put_in_force:
            try:
                put_in_force()
                self._filtered = True
            except OSError as error:
                say(f"system calls are not filtered: {error.strerror}")
        for name, purpose in self._kept.items():
            say(f"keeps {name} to {purpose}")
        for name, purpose in self._helped.items():
            say(f"a helper process keeps {name} to {purpose}")
        if not self._kept:
            say("keeps no capability")

    def seal(self) -> None:
        """Allow no new file any more, not even the ready file, which is there."""
        if self._filtered and self._settings.get("ready_file"):
            syscall_filter.deny_new_files()

    def described(self) -> dict[str, Any]:
        """Return the summary's field: what the threads of this process may do, as it is."""
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
        path = self._settings.get("ready_file")
        shut = path and not _may_write(os.path.dirname(os.path.abspath(path)))
        self._kept = kept_for([*needs, *[MAPS] * unreadable, *[READY_FILE] * bool(shut)])

    def _filter(self, say: Say) -> Optional[Callable[[], None]]:
        if not syscall_filter.available():
            say("system calls are not filtered: python3-seccomp is not there for this Python")
            return None
        looks = any(need.helper for need in self._needs) and not self.helper
        sign = bool(self._settings.get("ready_file"))
        return syscall_filter.prepare(
            syscall_filter.Allowed(
                namespaces=looks, ready_file=sign, worker=bool(self._tool and self._tool.uprobes)
            )
        )


def confine_finder() -> None:
    """Give up, in the process that finds and probes programs, what that does not take."""
    more = [PROGRAMS, ATTACH] if ids_differ() else []  # which takes programs to match them
    kept = kept_for([*LOOKUPS, MAPS, *more])
    put_in_force = None
    if syscall_filter.available():
        put_in_force = syscall_filter.prepare(syscall_filter.Allowed(probes=True))
    privileges.drop_capabilities(kept)
    if put_in_force:
        with suppress(OSError):  # a kernel without filters
            put_in_force()


def kept_for(needs: Iterable[Need]) -> dict[str, str]:
    """Return the fewest capabilities of this process that give these, and what each is for."""
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
    """Return whether a directory is ours to write to by its mode, without any capability."""
    found = os.stat(directory)
    shift = 6 if found.st_uid == os.geteuid() else 3 if found.st_gid == os.getegid() else 0
    return bool(found.st_mode >> shift & 2)


def _is_denied(losses: int) -> bool:
    try:
        Map(losses, 4, 8, per_cpu=True).get(struct.pack("=I", 0))
    except PermissionError:
        return True
    return False


def _may_preempt() -> bool:
    """Let this process have the lowest real-time priority without a capability, if it may."""
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_RTPRIO, (1, 1))
    return resource.getrlimit(resource.RLIMIT_RTPRIO)[0] >= 1
