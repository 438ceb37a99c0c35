"""BPF links and iterators: attach a loaded program, or run it on demand."""

from __future__ import annotations

import ctypes
import os
import struct
from pathlib import Path
from typing import Optional

from netbpf.system.lines import read_all
from netbpf.system.syscalls import bpf

# Commands of bpf(2), include/uapi/linux/bpf.h
LINK_CREATE, _ENABLE_STATS, _ITER_CREATE = 28, 32, 33
_BPF_TRACE_ITER = 28


def run_iterator(link: int) -> None:
    """Run an attached iterator to its end and discard its output; it fills maps."""
    iterator = open_iterator(link)
    try:
        while os.read(iterator, 65536):
            pass
    finally:
        os.close(iterator)


def read_iterator(link: int) -> bytes:
    """Run an attached iterator to its end and return its output."""
    iterator = open_iterator(link)
    try:
        return read_all(iterator)
    finally:
        os.close(iterator)


def open_iterator(link: int) -> int:
    """Return a descriptor; reading it runs the iterator and returns its output."""
    return bpf(_ITER_CREATE, struct.pack("=II", link, 0))


def enable_statistics() -> int:
    """Have the kernel count runs and run time of BPF programs until the result is closed (5.8)."""
    return bpf(_ENABLE_STATS, struct.pack("=I", 0))  # BPF_STATS_RUN_TIME


def fdinfo(program: int) -> dict[str, int]:
    """Return the numbers in the fdinfo of a program's descriptor, such as {"run_cnt": 23}."""
    lines = Path(f"/proc/self/fdinfo/{program}").read_text().splitlines()
    pairs = [line.partition(":") for line in lines]
    return {key: int(value) for key, _, value in pairs if value.strip().isdigit()}


def attach_iterator(program: int, over: Optional[int] = None) -> int:
    """Attach an iterator; `over` is the descriptor of the map that it iterates over, if any."""
    attributes = struct.pack("=IIII", program, 0, _BPF_TRACE_ITER, 0)
    if over is None:
        return bpf(LINK_CREATE, attributes)
    # union bpf_iter_link_info: the map's descriptor (since a5cbe05a6673, 5.9).
    info = ctypes.create_string_buffer(struct.pack("=I", over), 4)
    return bpf(LINK_CREATE, attributes + struct.pack("=QI4x", ctypes.addressof(info), 4))
