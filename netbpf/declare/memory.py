"""How much memory a tool takes in the kernel, before anything is compiled."""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from typing import Any, NamedTuple, Optional

_CPUS = (8, 64)  # of the machines that the manual speaks of
_RATE = 30_000  # events a second of a storm of connections


class Memory(NamedTuple):
    """What a tool's maps take at most, in bytes, with all of its options; its ring buffer apart.

    `fixed`, `cpu` for each CPU that may come up, and for each of --map-entries `entry` and, per
    CPU, `entry_cpu`. A live test compares those of all tools, in MAPS, with the maps of a run.
    """

    fixed: int
    cpu: int
    entry: int
    entry_cpu: int = 0

    def bound(self, entries: int, cpus: int) -> int:
        """Return the bytes for --map-entries `entries`: hash tables have a power of two places."""
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
    """A ring buffer: its bytes, and how many events it holds while nothing reads it."""

    size: int
    events: int


def ring_size(wanted: int) -> int:
    """Return the ring's size in bytes for `wanted`: the next power of two, at least a page."""
    return max(1 << (wanted - 1).bit_length(), mmap.PAGESIZE)


def ring_of(tool: Any, settings: Mapping[str, Any]) -> Optional[Ring]:
    """Return the ring buffer of `tool` with these settings, or None if it has no events."""
    if not tool.event:
        return None
    size = ring_size(settings["buffer"])
    record = 8 + -(-tool.event.layout().size // 8) * 8  # struct bpf_ringbuf_hdr is in front
    return Ring(size, size // record)


def by_default(tool: Any, cpus: int) -> dict[str, Optional[int]]:
    """Return the bytes of `tool`'s maps and ring buffer with its defaults, and the events held."""
    settings = {option.name: option.value(option.default) for option in tool.options}
    ring = ring_of(tool, settings)
    return {
        "maps": _maps_of(tool).bound(settings["map_entries"], cpus),
        "buffer": ring.size if ring else None,
        "buffer_events": ring.events if ring else None,
    }


def in_sentence(found: Mapping[str, Any]) -> str:
    """Return what by_default() found, for people."""
    words = f"takes at most {in_words(found['maps'])} of kernel memory for maps"
    if found["buffer"]:
        words += f", {in_words(found['buffer'])} for a buffer of {found['buffer_events']} events"
    return words


def in_manual(tool: Any) -> str:
    """Return a paragraph on the memory of `tool`, and on what its ring buffer holds."""
    settings = {option.name: option.value(option.default) for option in tool.options}
    entries = settings["map_entries"]
    few, many = (in_words(_maps_of(tool).bound(entries, cpus)) for cpus in _CPUS)
    words = (
        f"Maps are allocated at the start and do not grow: with --map-entries {entries} they take "
        f"at most {few} of the kernel's memory on a machine with {_CPUS[0]} CPUs, {many} with "
        f"{_CPUS[1]}. "
    )
    ring = ring_of(tool, settings)
    if ring:
        words += (
            f"The ring buffer of {in_words(ring.size)} holds {ring.events} events, which is what "
            f"may come while the reader does not run: {ring.events / _RATE:.1f} s of {_RATE} "
            "events a second. What finds no room counts as ring_full. "
        )
    return words + "-v shows what a run takes, 'netbpf doctor' what each tool takes here."


def _maps_of(tool: Any) -> Memory:
    return MAPS.get(tool.name) or Memory(0, 0, 0)


def in_words(size: float) -> str:
    """Return a size such as "512 KiB" or "3.4 MiB"."""
    if size < 1 << 20:
        return f"{size / 1024:.0f} KiB"
    return f"{size / (1 << 20):.1f} MiB"
