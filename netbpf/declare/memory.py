"""Kernel memory that a tool uses, computed before compilation."""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from typing import Any, NamedTuple, Optional

_CPUS = (8, 64)  # examples in the manual
_RATE = 30_000  # events per second under a high rate of connections


class Memory(NamedTuple):
    """Upper bound, in bytes, of a tool's maps with all options, without its ring buffer.

    `fixed`, plus `cpu` per possible CPU, plus for each of --map-entries `entry` and, per CPU,
    `entry_cpu`. A live test compares them with the maps of a run.
    """

    fixed: int
    cpu: int
    entry: int
    entry_cpu: int = 0

    def bound(self, entries: int, cpus: int) -> int:
        """Return the bytes for `entries`; hash tables are rounded up to a power of two."""
        rounded = 1 << (entries - 1).bit_length()
        return self.fixed + self.cpu * cpus + rounded * (self.entry + self.entry_cpu * cpus)


class Ring(NamedTuple):
    """A ring buffer: its size in bytes, and how many events it holds."""

    size: int
    events: int


def ring_size(wanted: int) -> int:
    """Return `wanted` bytes rounded up to a power of two of at least one page."""
    return max(1 << (wanted - 1).bit_length(), mmap.PAGESIZE)


def ring_of(tool: Any, settings: Mapping[str, Any]) -> Optional[Ring]:
    """Return the ring buffer of `tool` with `settings`, or None if it has no events."""
    if not tool.event:
        return None
    size = ring_size(settings["buffer"])
    record = 8 + -(-tool.event.layout().size // 8) * 8  # struct bpf_ringbuf_hdr comes first
    return Ring(size, size // record)


def by_default(tool: Any, cpus: int) -> dict[str, Optional[int]]:
    """Return the size in bytes of maps and ring buffer with default options, and its events."""
    settings = {option.name: option.value(option.default) for option in tool.options}
    ring = ring_of(tool, settings)
    return {
        "maps": tool.memory.bound(settings["map_entries"], cpus) if tool.memory else None,
        "buffer": ring.size if ring else None,
        "buffer_events": ring.events if ring else None,
    }


def describe(sizes: Mapping[str, Any]) -> str:
    """Return the result of by_default() as text."""
    parts = []
    if sizes["maps"]:
        parts.append(f"at most {format_size(sizes['maps'])} of kernel memory for maps")
    if sizes["buffer"]:
        buffer = format_size(sizes["buffer"])
        parts.append(f"{buffer} for a buffer of {sizes['buffer_events']} events")
    return "uses " + ", ".join(parts or ["kernel memory that -v shows"])


def in_manual(tool: Any) -> str:
    """Return the manual's paragraph on the memory of `tool`."""
    settings = {option.name: option.value(option.default) for option in tool.options}
    entries = settings["map_entries"]
    text = "Maps are allocated at the start and do not grow"
    if tool.memory:
        few, many = (format_size(tool.memory.bound(entries, cpus)) for cpus in _CPUS)
        text += (
            f": with --map-entries {entries} they use at most {few} of kernel memory on a machine "
            f"with {_CPUS[0]} CPUs, and {many} with {_CPUS[1]}"
        )
    text += ". "
    ring = ring_of(tool, settings)
    if ring:
        text += (
            f"The ring buffer of {format_size(ring.size)} holds {ring.events} events: "
            f"{ring.events / _RATE:.1f} s of {_RATE} events per second while the reader does not "
            "run. Events that do not fit are counted as ring_full. "
        )
    return text + "-v shows the memory of a run, 'netbpf doctor' that of each tool here."


def format_size(size: float) -> str:
    """Format a size in bytes, such as "512 KiB" or "3.4 MiB"."""
    if size < 1 << 20:
        return f"{size / 1024:.0f} KiB"
    return f"{size / (1 << 20):.1f} MiB"
