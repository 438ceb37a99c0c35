"""Memory of maps: estimates compared with counts of kernels, and what tools state."""

from __future__ import annotations

import pytest

from netbpf.bpf.map_memory import bytes_of
from netbpf.bpf.object import MapSpec
from netbpf.declare import memory
from netbpf.declare.tool import all_tools, find_tool
from netbpf.run.program import memory_text

# memlock of maps on a 6.18 kernel with 2 CPUs.
COUNTED = [
    (MapSpec("hash", 1, 8, 32, 16384, 0), 1_705_024),
    (MapSpec("hash", 1, 16, 16, 65536, 0), 6_292_528),
    (MapSpec("array", 2, 4, 440, 1, 0), 752),
    (MapSpec("percpu_hash", 5, 28, 336, 16384, 0), 12_714_880),
    (MapSpec("percpu_array", 6, 4, 2048, 1, 0), 4_416),
    (MapSpec("lru_hash", 9, 8, 1, 16896, 0), 1_606_528),
    (MapSpec("ring", 27, 0, 0, 1 << 20, 0), 1_065_288),
]


@pytest.mark.parametrize(("shape", "counted"), COUNTED)
def test_estimate_is_at_or_slightly_above_the_kernels_count(shape: MapSpec, counted: int) -> None:
    stated = bytes_of(shape, 2)
    assert counted <= stated <= counted + 4096


def test_per_cpu_values_are_counted_per_cpu():
    shape = MapSpec("percpu_hash", 5, 8, 100, 1024, 0)
    assert bytes_of(shape, 9) - bytes_of(shape, 8) >= 1024 * 104
    assert bytes_of(shape._replace(kind=1), 9) - bytes_of(shape._replace(kind=1), 8) < 1024


def test_buckets_of_a_hash_table_are_a_power_of_two():
    one, more = (bytes_of(MapSpec("hash", 1, 8, 8, n, 0), 2) for n in (1024, 1025))
    assert more - one == 64 + 16 * 1024


def test_stack_maps_count_their_frames():
    assert bytes_of(MapSpec("stacks", 7, 4, 127 * 8, 4096, 0), 2) >= 4096 * 127 * 8


def test_a_bound_grows_with_entries_rounded_up_and_with_cpus():
    stated = memory.Memory(1000, cpu=10, entry=3, entry_cpu=2)
    assert stated.bound(1024, 4) == 1000 + 40 + 1024 * 11
    assert stated.bound(1025, 4) == stated.bound(2048, 4)


def test_the_buffer_holds_whole_records_with_their_headers():
    tool = find_tool("tcplife")
    size = tool.event.layout().size
    ring = memory.ring_of(tool, {"buffer": 1 << 20})
    assert ring == (1 << 20, (1 << 20) // (8 + -(-size // 8) * 8))
    assert memory.ring_of(find_tool("sockstat"), {"buffer": 1 << 20}) is None


def test_manuals_state_memory_and_what_the_buffer_holds():
    for tool in (tool for tool in all_tools() if tool.memory):
        words = memory.in_manual(tool)
        assert "--map-entries" in words and "MiB" in words
        found = memory.by_default(tool, 8)
        assert (f"holds {found['buffer_events']} events" in words) is (tool.event is not None)


def test_default_buffers_hold_two_seconds_of_connections():
    # 30,000 connections a second; tcplife has an event for each end, and both may be here.
    for name, each in (("tcplife", 2), ("soconnect", 1), ("soaccept", 1)):
        assert memory.by_default(find_tool(name), 8)["buffer_events"] >= each * 60_000


def test_largest_maps_are_named():
    sizes = {"a": 5 << 20, "b": 1 << 20, "c": 3 << 20, "d": 100, "e": 2 << 20}
    words = memory_text(sizes)
    assert "11.0 MiB" in words
    assert words.endswith(", and 1 more") and "more" not in memory_text({"a": 1 << 20})
    assert words.index("a 5.0") < words.index("c 3.0") < words.index("e 2.0") < words.index("b 1.0")
