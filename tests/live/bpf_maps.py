"""What the maps of a running tool hold: what it forgets shows nowhere else."""

from __future__ import annotations

import ctypes
import os
import platform
from pathlib import Path
from typing import NamedTuple

from harness import Run, programs_of

from netbpf.bpf.maps import Map

_SYS_BPF = {"x86_64": 321}
# Commands of bpf(2), and the places of what it tells: enum bpf_cmd, struct bpf_prog_info and
# bpf_map_info in linux/bpf.h.
_PROG_BY_ID, _MAP_BY_ID, _INFO = 13, 14, 15
_MAP_IDS_NUMBER, _MAP_IDS = 52, 56
_MAP_NAME = slice(24, 40)
_MOST = 64
_HASHES = {1, 5, 9, 10}  # enum bpf_map_type: hash, percpu_hash, lru_hash, lru_percpu_hash
_LIBC = ctypes.CDLL(None, use_errno=True)


def keys_of(run: Run, name: str) -> list[bytes]:
    """Return the keys in the map of that name; the kernel knows its first 15 characters."""
    ids = {one for program in programs_of(run.process.pid) for one in _maps(program)}
    found = [fd for fd in (_call(_MAP_BY_ID, one, 0) for one in ids) if _is_named(fd, name)]
    (fd,) = found
    try:
        return list(Map.from_fd(fd).keys())
    finally:
        os.close(fd)


def _call(command: int, first: int, second: int) -> int:
    attributes = (ctypes.c_uint64 * 2)(first, second)
    number = _SYS_BPF.get(platform.machine(), 280)
    result = int(_LIBC.syscall(number, command, attributes, 16))
    assert result >= 0, os.strerror(ctypes.get_errno())
    return result


def _info(fd: int, info: ctypes.Array[ctypes.c_char]) -> bytes:
    _call(_INFO, fd | len(info) << 32, ctypes.addressof(info))
    return info.raw


def _maps(program: int) -> list[int]:
    fd = _call(_PROG_BY_ID, program, 0)
    ids = (ctypes.c_uint32 * _MOST)()
    asked = ctypes.create_string_buffer(128)
    ctypes.c_uint32.from_buffer(asked, _MAP_IDS_NUMBER).value = _MOST
    ctypes.c_uint64.from_buffer(asked, _MAP_IDS).value = ctypes.addressof(ids)
    number = int.from_bytes(_info(fd, asked)[_MAP_IDS_NUMBER : _MAP_IDS_NUMBER + 4], "little")
    os.close(fd)
    return list(ids[:number])


def _is_named(fd: int, name: str) -> bool:
    told = _info(fd, ctypes.create_string_buffer(80))[_MAP_NAME].rstrip(b"\0").decode()
    if told != name[:15]:
        os.close(fd)
    return told == name[:15]


class Held(NamedTuple):
    """A map of a running tool."""

    kind: int
    entries: int
    bytes: int


def maps_of(run: Run) -> dict[str, Held]:
    """Return all maps of a tool by name: bpf_map_type, entries of a hash, bytes that it takes."""
    found = {}
    for one in {one for program in programs_of(run.process.pid) for one in _maps(program)}:
        fd = _call(_MAP_BY_ID, one, 0)
        told = dict(line.split(":") for line in Path(f"/proc/self/fdinfo/{fd}").open())
        name = _info(fd, ctypes.create_string_buffer(80))[_MAP_NAME].rstrip(b"\0").decode()
        kind = int(told["map_type"])
        entries = len(list(Map.from_fd(fd).keys())) if kind in _HASHES else 0
        found[name] = Held(kind, entries, int(told["memlock"]))
        os.close(fd)
    return found
