"""The kernel's own counters, for comparison with a result: of the namespaces that it covers."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from typing import Any

from netbpf.declare.options import NARROWING
from netbpf.declare.tool import Tool
from netbpf.kernel.counters import AllCounters, Counters, Source, increase
from netbpf.run.filters import netns_of

_SOON = 0.05  # minimum seconds between two searches for namespaces because of new ones


class KernelCounters:
    """The increase of the kernel's counters while a tool runs.

    `source` reads those of the namespace given by --netns, else of all that can be found. After
    end(), `rise` is their increase, and `own` the increase in one namespace: the one given by
    --netns, else the one of this process.
    """

    def __init__(
        self, tool: Tool, settings: Mapping[str, Any], helper: Collection[str] = ()
    ) -> None:
        """Find the namespaces; with capabilities `helper`, a helper process with these does it."""
        self._names, self._scoped = tool.counters, bool(tool.namespace_counters)
        wanted = tool.all_counters
        self._one = Counters(netns_of(settings), wanted)
        everywhere = bool(tool.namespace_counters) and not settings.get("netns")
        self._all = AllCounters(wanted, capabilities=helper) if everywhere else None
        self.source: Source = self._all or self._one
        self._filters = [
            option.flags[-1]
            for option in tool.options
            if option.name in NARROWING and settings.get(option.name)
        ]
        self.rise: dict[str, int] = {}
        self.own: dict[str, int] = {}
        self._updated = 0.0

    @property
    def due(self) -> float:
        """The monotonic time in seconds at which to search for namespaces again."""
        return self._all.next_update if self._all else float("inf")

    def begin(self) -> None:
        """Read the counters for the first time."""
        self._before = self.source.read()
        self._own_before = self._one.read()

    def update(self, shown: Collection[int]) -> None:
        """Search for namespaces if it is due, or if one of `shown` is not known yet."""
        if not self._all:
            return
        now = time.monotonic()
        unknown = set(shown) - self._all.namespaces - {0}
        if now >= self._all.next_update or (unknown and now >= self._updated + _SOON):
            self._updated = now
            self._all.update()

    def end(self) -> None:
        """Read the counters for the last time."""
        own = self._one.read()
        self.own = increase(self._own_before, own, self._names)
        self.rise = increase(self._before, self.source.read(), self._names)

    def scope(self) -> dict[str, Any]:
        """Return the summary's field on the scope of the counters, if there are any."""
        if not self._names or not self._scoped:
            return {}
        namespaces = len(self._all.namespaces) if self._all else bool(self._own_before)
        return {"counted": {"namespaces": int(namespaces), "filtered": bool(self._filters)}}

    def notes(self, shown: Collection[int]) -> list[str]:
        """Return notes on differences in scope between the counters and what is shown."""
        notes = []
        if self._filters and self.rise:
            where = "all network namespaces" if self._all else "the network namespace"
            notes.append(
                f"the kernel's counters are of all sockets in {where}, "
                f"{' and '.join(self._filters)} or not"
            )
        if self._all and self.rise:
            absent = len(set(shown) - self._all.namespaces - {0})
            if absent or self._all.unread:
                notes.append(
                    f"the kernel's counters lack {max(absent, self._all.unread)} network "
                    "namespaces that have no process and no mount, or that cannot be read"
                )
            if self._all.ended:
                notes.append(
                    f"{self._all.ended} network namespaces ended meanwhile: the last moments of "
                    "these are not in the kernel's counters"
                )
        return notes

    def close(self) -> None:
        """Close the descriptors of the namespaces."""
        self._one.close()
        if self._all:
            self._all.close()
