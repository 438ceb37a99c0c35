"""What network devices count themselves, in each network namespace."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from glob import glob
from threading import Thread

from netbpf.kernel.syscalls import enter_network

_NAMESPACES = ("/run/netns/*", "/proc/[0-9]*/ns/net")

Packets = tuple[int, int]  # received and sent


class Devices:
    """The packet counters of all devices, of one namespace (its inode number) or of all.

    /proc/net/dev of each namespace stays open, so that it can be read again. A namespace that is
    made later, or that neither a process nor /run/netns leads to, is not there.
    """

    def __init__(self, netns: int = 0) -> None:
        self._files: dict[int, int] = {}
        thread = Thread(target=self._open, args=(netns,))  # only that thread changes over
        thread.start()
        thread.join()

    def read(self) -> dict[tuple[int, str], Packets]:
        """Return {(namespace, device): packets received and sent}."""
        found = {}
        for netns, file in self._files.items():
            for line in _text(file).splitlines()[2:]:
                device, _, values = line.rpartition(":")
                numbers = values.split()
                found[netns, device.strip()] = (int(numbers[0 + 1]), int(numbers[8 + 1]))
        return found

    def close(self) -> None:
        """Let go of the namespaces."""
        for file in self._files.values():
            os.close(file)
        self._files = {}

    def _open(self, wanted: int) -> None:
        for path in _paths():
            with suppress(OSError):
                netns = os.stat(path).st_ino
                if netns in self._files or wanted not in (0, netns):
                    continue
                namespace = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    enter_network(namespace)
                    file = os.open("/proc/thread-self/net/dev", os.O_RDONLY | os.O_CLOEXEC)
                    self._files[netns] = file
                finally:
                    os.close(namespace)


def _paths() -> Iterable[str]:
    for pattern in _NAMESPACES:
        yield from glob(pattern)


def _text(file: int) -> str:
    os.lseek(file, 0, os.SEEK_SET)
    text = b""
    while part := os.read(file, 1 << 16):
        text += part
    return text.decode(errors="replace")
