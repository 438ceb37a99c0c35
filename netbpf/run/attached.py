"""Programs in the kernel, what they are attached to, and how they end."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Callable, Optional

from netbpf.bpf.attach import attach, release
from netbpf.bpf.loader import Loaded
from netbpf.declare.probes import Role
from netbpf.errors import AttachRefused
from netbpf.kernel import thread_stacks
from netbpf.kernel.counters import Source
from netbpf.kernel.select import Selection
from netbpf.system.privileges import refusal_reason

Log = Callable[[str], None]


class Attached:
    """Programs in the kernel, their selections, and the descriptors that hold them.

    `counters` reads the kernel's own counters, of the namespaces that the programs trace.
    `left_calls` returns which threads have left their calls (kernel/thread_stacks.py).
    """

    counters: Source

    def __init__(
        self, selections: Sequence[Selection], loaded: Loaded, owners: Optional[Attached] = None
    ) -> None:
        """Take the loaded programs; attach_targets() attaches them.

        `owners` are the programs of the session that find owners, if this tool has none of its own.
        """
        self.selections = tuple(selections)
        self.loaded = loaded
        self.owners = owners
        self.links: dict[str, list[int]] = {}
        self.user_links: list[int] = []
        # Optional probes that this process may not attach: their events are lost.
        self.not_covered = sum(bool(selection.denied) for selection in selections)
        self.left_calls = thread_stacks.left_calls
        self.closers: list[Callable[[], None]] = []

    def with_role(self, role: Role) -> list[int]:
        """Return the links of the probes that have a role."""
        names = [s.probe.name for s in self.selections if s.probe.role is role]
        own = [link for name in names for link in self.links.get(name, ())]
        return [*own, *(self.owners.with_role(role) if self.owners else ())]

    @property
    def missing(self) -> set[str]:
        """The columns that the probes in use cannot fill."""
        own = {name for s in self.selections if s.alternative for name in s.alternative.loses}
        return own | (self.owners.missing if self.owners else set())

    def attach_targets(self, last: bool = False) -> None:
        """Attach every program that has a target in the kernel; raise AttachRefused.

        Those of probes with the role LAST are attached by a call of their own.
        """
        for selection in self.selections:
            kind = selection.alternative.how if selection.alternative else None
            if not kind or kind.user_space or last != (selection.probe.role is Role.LAST):
                continue
            for name, target in ((n, t) for n, targets in selection.programs for t in targets):
                over = self.loaded.maps.get(getattr(selection.alternative, "over", ""))
                try:
                    link = attach(kind, self.loaded.programs[name], target, over)
                except OSError as error:
                    raise AttachRefused(
                        selection.probe.name,
                        refusal_reason("the kernel refused to attach it", error),
                    ) from error
                self.links.setdefault(selection.probe.name, []).append(link)

    def detach(self) -> None:
        """Detach everything; maps stay readable.

        User-space probes and trace events are detached in the background, as each trace event takes
        80 ms, and more on a busy machine: results were read before, and later events are ignored.
        """
        slow, self.user_links = self.user_links, []
        used = [(s.probe.name, s.alternative.how) for s in self.selections if s.alternative]
        names = [name for name, kind in used if kind.attach == "trace_event"]
        release([*slow, *(link for name in names for link in self.links.pop(name, ()))])
        for links in self.links.values():
            for link in links:
                os.close(link)
        self.links = {}

    def close(self) -> None:
        """Detach, and close programs, maps and everything in `closers`."""
        for close in self.closers:
            close()
        self.detach()
        for fd in (*self.loaded.programs.values(), *self.loaded.maps.values()):
            os.close(fd)
        self.loaded.programs.clear()
        self.loaded.maps.clear()

    def log_choice(self, log: Log) -> None:
        """Log the kind and targets of each probe, and why better ones were rejected."""
        for selection in self.selections:
            resolved = "resolved while running" if selection.kind else ""
            where = f"{selection.kind or 'none'} {', '.join(selection.targets) or resolved}"
            log(f"probe {selection.probe.name}: {where}".rstrip())
            for text, why in selection.rejected:
                log(f"  not {text}: {why}")

    def described(self) -> list[dict[str, Any]]:
        """Return the summary's list of probes, without redundant ones."""
        return [
            {
                "name": selection.probe.name,
                "kind": selection.kind or None,
                "targets": list(selection.targets),
                "rejected": [f"{text}: {why}" for text, why in selection.rejected],
            }
            for selection in self.selections
            if not selection.redundant
        ]
