"""Causes of loss that BPF programs count, each in a slot of the map `losses`."""

from __future__ import annotations

# ring_full: an event did not fit into the ring buffer; map_full: an entry did not fit into a map,
# so its object was not traced.
IN_PROGRAMS = ("ring_full", "map_full")
# Not a loss: missed runs whose event another probe had reported already, see
# include/inflight.bpf.h.
DUPLICATE_MISSES = len(IN_PROGRAMS)
