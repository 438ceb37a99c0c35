"""Packet counters of network devices in each network namespace."""

from __future__ import annotations

import os
import re
from contextlib import suppress

from netbpf.kernel.namespaces import in_namespaces, network_namespaces
from netbpf.system.lines import lines_of, read_all

# The second of eight numbers for receive, and of those for transmit.
_COUNTS = re.compile(r" *[0-9]+ +([0-9]+)(?: +[0-9]+){7} +([0-9]+)(?: +[0-9]+)*")
Packets = tuple[int, int]  # received and sent


class Devices:
    """The packet counters of all devices of one namespace (its inode number) or of all (0).

    /proc/net/dev of each namespace stays open, so that it can be read again. Namespaces created
    later, or without a process or mount, are not included.
    """

    def __init__(self, netns: int = 0) -> None:
        self._files: dict[int, int] = {}
        paths = network_namespaces()
        in_namespaces({n: path for n, path in paths.items() if netns in (0, n)}, self._open)

    def read(self) -> dict[tuple[int, str], Packets]:
        """Return {(namespace, device): packets received and sent}."""
        counts = {}
        for netns, file in self._files.items():
            for line in lines_of(_content(file))[2:]:
                device, _, values = line.rpartition(":")
                numbers = _COUNTS.fullmatch(values)
                if numbers:
                    counts[netns, device.strip(" ")] = (int(numbers[1]), int(numbers[2]))
        return counts

    def close(self) -> None:
        """Close the files, which keep the namespaces alive."""
        for file in self._files.values():
            os.close(file)
        self._files = {}

    def _open(self, netns: int) -> None:
        with suppress(OSError):
            path = "/proc/thread-self/net/dev"
            self._files[netns] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def _content(file: int) -> bytes:
    os.lseek(file, 0, os.SEEK_SET)
    return read_all(file)
