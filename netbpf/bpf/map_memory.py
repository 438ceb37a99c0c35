"""Compute the kernel memory of a BPF map from its specification.

It follows the allocations in kernel/bpf/hashtab.c, arraymap.c, stackmap.c and ringbuf.c. netbpf's
maps are preallocated and do not grow, so this is both the bound and the actual size. The kernel's
own number (`memlock` in fdinfo) excludes a map's header and lists before 90a5527d7686 ("bpf: add
new map ops ->map_mem_usage", 6.4).
"""

from __future__ import annotations

from netbpf.bpf.object import MapSpec

# enum bpf_map_type, include/uapi/linux/bpf.h
_HASH, _PERCPU_HASH, _PERCPU_ARRAY, _STACKS, _LRU_HASH, _RING = 1, 5, 6, 7, 9, 27
_ELEMENT = 48  # struct htab_elem without key and value
_BUCKET = 16
_HEAD = 1024  # an upper bound for struct bpf_htab with its locks and struct bpf_array
_PAGE = 4096


def bytes_of(spec: MapSpec, cpus: int) -> int:
    """Return the maximum size of the map in bytes on a machine with `cpus` possible CPUs."""
    key, value, entries = _whole(spec.key_size), _whole(spec.value_size), spec.max_entries
    if spec.kind in (_HASH, _LRU_HASH, _PERCPU_HASH):
        each = key + (8 + value * cpus if spec.kind == _PERCPU_HASH else value)
        spare = entries + cpus
        return _HEAD + 64 * cpus + (_ELEMENT + each) * spare + _BUCKET * _power(entries)
    if spec.kind == _PERCPU_ARRAY:
        return _HEAD + (8 + value * cpus) * entries
    if spec.kind == _STACKS:
        return _HEAD + (8 + 24 + value) * _power(entries)
    if spec.kind == _RING:
        return 4 * _PAGE + entries + entries // _PAGE * 2 * 8
    return _HEAD + value * entries


def _whole(size: int) -> int:
    return -(-size // 8) * 8


def _power(entries: int) -> int:
    return 1 << (entries - 1).bit_length()
