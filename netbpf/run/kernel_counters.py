"""The kernel's own counters, for comparison with a result: of the namespaces that it covers."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from typing import Any, Callable, NamedTuple, Optional

from netbpf.declare.options import NARROWING
from netbpf.declare.tool import Tool
from netbpf.kernel.counters import AllCounters, Counters, Source, increase
from netbpf.run.filters import netns_of
from netbpf.system.helper import Helper

_SOON = 0.05  # minimum seconds between two searches for namespaces because of new ones


class Readings(NamedTuple):
    """Values of counters: of all namespaces that a session covers, and of one."""

    every: Mapping[str, int]
    one: Mapping[str, int]


class Sources:
    """Reads the counters that the tools of a session need, each file once.

    `source` reads those of the namespace given by --netns, else of all that can be found. `one`
    reads those of the one given by --netns, else of this process's.
    """

    def __init__(
        self,
        tools: Collection[Tool],
        settings: Mapping[str, Any],
        helper: Collection[str] = (),
        more: Collection[str] = (),
        tasks: Optional[Mapping[str, Callable[[Any], Any]]] = None,
    ) -> None:
        """Find the namespaces, to read the counters of the `tools` and `more` of them.

        With capabilities `helper`, a helper process that keeps these does it, and other `tasks`.
        """
        wanted = sorted({*more, *(name for tool in tools for name in tool.all_counters)})
        counted = any(tool.namespace_counters for tool in tools) or bool(more)
        anywhere = counted and not settings.get("netns")
        self.one = Counters(netns_of(settings), wanted)
        self.all = AllCounters(wanted, capabilities=helper, tasks=tasks) if anywhere else None
        self.source: Source = self.all or self.one
        self.helper = self.all.helper if self.all else None
        # User-space probes run rarely, and have processes of their own that keep capabilities.
        if not self.all and helper and tasks and not any(tool.uprobes for tool in tools):
            self.helper = Helper(tasks, helper)
        self._updated = 0.0

    @property
    def due(self) -> float:
        """The monotonic time in seconds at which to search for namespaces again."""
        return self.all.next_update if self.all else float("inf")

    def read(self) -> Readings:
        """Read all counters."""
        return Readings(self.source.read(), self.one.read())

    def read_last(self) -> Readings:
        """Read them as read() does; this process's namespace first."""
        one = self.one.read()
        return Readings(self.source.read(), one)

    def update(self, shown: Collection[int]) -> None:
        """Search for namespaces if it is due, or if one of `shown` is not known yet."""
        if not self.all:
            return
        now = time.monotonic()
        unknown = set(shown) - self.all.namespaces - {0}
        if now >= self.all.next_update or (unknown and now >= self._updated + _SOON):
            self._updated = now
            self.all.update()

    def close(self) -> None:
        """Close the descriptors of the namespaces, and end the helper process."""
        self.one.close()
        if self.all:
            self.all.close()
        elif self.helper:
            self.helper.close()


class KernelCounters:
    """The increase of the kernel's counters while a tool runs.

    After end(), `rise` is the increase of what `sources` cover, and `own` that in one namespace.
    """

    def __init__(self, tool: Tool, settings: Mapping[str, Any], sources: Sources) -> None:
        self._names, self._scoped = tool.counters, bool(tool.namespace_counters)
        everywhere = self._scoped and not settings.get("netns")
        self._all = sources.all if everywhere else None
        self.source: Source = self._all or sources.one
        self._filters = [
            option.flags[-1]
            for option in tool.options
            if option.name in NARROWING and settings.get(option.name)
        ]
        self.rise: dict[str, int] = {}
        self.own: dict[str, int] = {}

    def begin(self, readings: Readings) -> None:
        """Take the counters at the start."""
        self._before, self._own_before = self._of(readings), readings.one

    def _of(self, readings: Readings) -> Mapping[str, int]:
        return readings.every if self._all else readings.one

    def end(self, readings: Readings) -> None:
        """Take the counters at the end."""
        self.own = increase(self._own_before, readings.one, self._names)
        self.rise = increase(self._before, self._of(readings), self._names)

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
