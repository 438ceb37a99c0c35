"""What exists already: BPF iterators, run on demand."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from typing import Any

from netbpf.kernel.attach import open_iterator, run_iterator
from netbpf.run.program import Attached


def take_snapshot(attached: Attached) -> None:
    """Tell the program who owns the sockets that exist now, if it has a probe for that."""
    run_iterators(attached, "snapshot")


def run_iterators(attached: Attached, probe: str) -> None:
    """Run the iterator `probe` for what it does to maps, if it is there."""
    for link in attached.links.get(probe, ()):
        run_iterator(link)


def read_records(
    attached: Attached, probe: str, layout: struct.Struct
) -> Iterator[tuple[Any, ...]]:
    """Run the iterator `probe` and yield the records that it writes."""
    for link in attached.links.get(probe, ()):
        fd = open_iterator(link)
        try:
            data = b""
            while chunk := os.read(fd, 1 << 16):
                data += chunk
        finally:
            os.close(fd)
        yield from layout.iter_unpack(data[: len(data) // layout.size * layout.size])
