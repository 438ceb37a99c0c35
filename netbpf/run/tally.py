"""The kernel's own counters beside a result: those of the namespaces that it shows."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from typing import Any

from netbpf.declare.options import NARROWING
from netbpf.declare.tool import Tool
from netbpf.kernel.counters import AllCounters, Counters, Source, increase
from netbpf.run.filters import netns_of

_SOON = 0.05  # seconds between two looks at all namespaces because of new ones, at least


class Tally:
    """How much the kernel's counters grew while a tool ran.

    `source` are those of the namespace that --netns asks for, else of all that can be found. `rise`
    is what they grew by in the end, `own` that of one namespace alone: the one of --netns, else
    that of this process.
    """

    def __init__(
        self, tool: Tool, settings: Mapping[str, Any], apart: Collection[str] = ()
    ) -> None:
        """Look for the first time; with capabilities `apart`, a process of its own looks."""
        self._names = tool.counters
        wanted = (*tool.counters, *tool.interval_counters)
        self._one = Counters(netns_of(settings), wanted)
        everywhere = bool(wanted) and not settings.get("netns")
        self._all = AllCounters(wanted, capabilities=apart) if everywhere else None
        self.source: Source = self._all or self._one
        self._filters = [
            option.flags[-1]
            for option in tool.options
            if option.name in NARROWING and settings.get(option.name)
        ]
        self.rise: dict[str, int] = {}
        self.own: dict[str, int] = {}
        self._looked = 0.0

    @property
    def due(self) -> float:
        """The monotonic time at which to look at all namespaces again, in seconds."""
        return self._all.next_update if self._all else float("inf")

    def begin(self) -> None:
        """Read the counters for the first time."""
        self._before = self.source.read()
        self._own_before = self._one.read()

    def look(self, shown: Collection[int]) -> None:
        """Look at all namespaces if it is time, or if one is shown that was not there before."""
        if not self._all:
            return
        now = time.monotonic()
        fresh = set(shown) - self._all.namespaces - {0}
        if now >= self._all.next_update or (fresh and now >= self._looked + _SOON):
            self._looked = now
            self._all.update()

    def end(self) -> None:
        """Read the counters for the last time."""
        own = self._one.read()
        self.own = increase(self._own_before, own, self._names)
        self.rise = increase(self._before, self.source.read(), self._names)

    def scope(self) -> dict[str, Any]:
        """Return the summary's field on what the counters are of, if there are counters."""
        if not self._names:
            return {}
        namespaces = len(self._all.namespaces) if self._all else bool(self._own_before)
        return {"counted": {"namespaces": int(namespaces), "filtered": bool(self._filters)}}

    def notes(self, shown: Collection[int]) -> list[str]:
        """Return remarks on where the counters and what is shown differ in scope."""
        found = []
        if self._filters and self.rise:
            where = "all network namespaces" if self._all else "the network namespace"
            found.append(
                f"the kernel's counters are of all sockets in {where}, "
                f"{' and '.join(self._filters)} or not"
            )
        if self._all and self.rise:
            absent = len(set(shown) - self._all.namespaces - {0})
            if absent or self._all.unread:
                found.append(
                    f"the kernel's counters lack {max(absent, self._all.unread)} network "
                    "namespaces that no process is in and no mount keeps, or that cannot be read"
                )
            if self._all.ended:
                found.append(
                    f"{self._all.ended} network namespaces ended meanwhile: what they counted in "
                    "their last moments is not in the kernel's counters"
                )
        return found

    def close(self) -> None:
        """Let go of the namespaces."""
        self._one.close()
        if self._all:
            self._all.close()
