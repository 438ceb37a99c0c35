"""How much memory of the kernel a BPF map takes at most, by what it is made of.

Counted as kernel/bpf/hashtab.c, arraymap.c, stackmap.c and ringbuf.c allocate it. All maps here are
allocated when they are made and grow no more, so that this is the bound and what they take. The
kernel's own number (`memlock` in fdinfo) leaves out a map's head and lists before 90a5527d7686
("bpf: add new map ops ->map_mem_usage", 6.4).
"""

from __future__ import annotations

from netbpf.bpf.object import MapSpec

# enum bpf_map_type, include/uapi/linux/bpf.h
_HASH, _PERCPU_HASH, _PERCPU_ARRAY, _STACKS, _LRU_HASH, _RING = 1, 5, 6, 7, 9, 27
_ELEMENT = 48  # struct htab_elem without key and value
_BUCKET = 16
_HEAD = 1024  # struct bpf_htab with its locks, struct bpf_array: more than any of them has
_PAGE = 4096


def bytes_of(shape: MapSpec, cpus: int) -> int:
    """Return how many bytes the map takes at most on a machine with `cpus` possible CPUs."""
    key, value, entries = _whole(shape.key_size), _whole(shape.value_size), shape.max_entries
    if shape.kind in (_HASH, _LRU_HASH, _PERCPU_HASH):
        each = key + (8 + value * cpus if shape.kind == _PERCPU_HASH else value)
        spare = entries + cpus
        return _HEAD + 64 * cpus + (_ELEMENT + each) * spare + _BUCKET * _power(entries)
    if shape.kind == _PERCPU_ARRAY:
        return _HEAD + (8 + value * cpus) * entries
    if shape.kind == _STACKS:
        return _HEAD + (8 + 24 + value) * _power(entries)
    if shape.kind == _RING:
        return 4 * _PAGE + entries + entries // _PAGE * 2 * 8
    return _HEAD + value * entries


def _whole(size: int) -> int:
    return -(-size // 8) * 8


def _power(entries: int) -> int:
    return 1 << (entries - 1).bit_length()
