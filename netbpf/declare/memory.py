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
    `entry_cpu`. A live test compares MAPS with the maps of a run.
    """

    fixed: int
    cpu: int
    entry: int
    entry_cpu: int = 0

    def bound(self, entries: int, cpus: int) -> int:
        """Return the bytes for `entries`; hash tables are rounded up to a power of two."""
        rounded = 1 << (entries - 1).bit_length()
        return self.fixed + self.cpu * cpus + rounded * (self.entry + self.entry_cpu * cpus)


MAPS = {
    "gethostlatency": Memory(2_700_000, cpu=51_000, entry=520),
    "netsize": Memory(5_000, cpu=202_000, entry=96, entry_cpu=392),
    "skbdrop": Memory(5_900_000, cpu=55_000, entry=145, entry_cpu=7),
    "soaccept": Memory(450_000, cpu=30_000, entry=168),
    "sockstat": Memory(110_000, cpu=34_000, entry=632, entry_cpu=64),
    "soconnect": Memory(2_100_000, cpu=60_000, entry=976),
    "tcplife": Memory(3_520_000, cpu=50_000, entry=224),
    "tcpnagle": Memory(1_610_000, cpu=215_000, entry=840),
    "tcpretrans": Memory(1_600_000, cpu=27_000, entry=616),
    "tcpsynbl": Memory(2_000_000, cpu=520_000, entry=472, entry_cpu=21),
}


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
        "maps": _maps_of(tool).bound(settings["map_entries"], cpus),
        "buffer": ring.size if ring else None,
        "buffer_events": ring.events if ring else None,
    }


def describe(sizes: Mapping[str, Any]) -> str:
    """Return the result of by_default() as text."""
    text = f"uses at most {format_size(sizes['maps'])} of kernel memory for maps"
    if sizes["buffer"]:
        buffer = format_size(sizes["buffer"])
        text += f", {buffer} for a buffer of {sizes['buffer_events']} events"
    return text


def in_manual(tool: Any) -> str:
    """Return the manual's paragraph on the memory of `tool`."""
    settings = {option.name: option.value(option.default) for option in tool.options}
    entries = settings["map_entries"]
    few, many = (format_size(_maps_of(tool).bound(entries, cpus)) for cpus in _CPUS)
    text = (
        f"Maps are allocated at the start and do not grow: with --map-entries {entries} they use "
        f"at most {few} of kernel memory on a machine with {_CPUS[0]} CPUs, and {many} with "
        f"{_CPUS[1]}. "
    )
    ring = ring_of(tool, settings)
    if ring:
        text += (
            f"The ring buffer of {format_size(ring.size)} holds {ring.events} events: "
            f"{ring.events / _RATE:.1f} s of {_RATE} events per second while the reader does not "
            "run. Events that do not fit are counted as ring_full. "
        )
    return text + "-v shows the memory of a run, 'netbpf doctor' that of each tool here."


def _maps_of(tool: Any) -> Memory:
    return MAPS.get(tool.name) or Memory(0, 0, 0)


def format_size(size: float) -> str:
    """Format a size in bytes, such as "512 KiB" or "3.4 MiB"."""
    if size < 1 << 20:
        return f"{size / 1024:.0f} KiB"
    return f"{size / (1 << 20):.1f} MiB"
