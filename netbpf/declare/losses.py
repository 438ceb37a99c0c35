"""What BPF programs count as lost, each cause in a slot of the map `losses`."""

from __future__ import annotations

# ring_full: an event found no room in the ring buffer; map_full: something could not be followed,
# as its map had no room.
IN_PROGRAMS = ("ring_full", "map_full")
# No loss: runs whose event another probe had sent already, see include/inflight.bpf.h.
DUPLICATE_MISSES = len(IN_PROGRAMS)
