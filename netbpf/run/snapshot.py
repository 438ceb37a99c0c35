"""Run BPF iterators, which read or record kernel objects that exist already."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from glob import glob
from threading import Thread

from netbpf.declare.probes import Role
from netbpf.run.attached import Attached
from netbpf.system.links import open_iterator, run_iterator
from netbpf.system.syscalls import enter_network


def take_snapshot(attached: Attached) -> None:
    """Record the owners of existing sockets, if the tool has a probe with the role SNAPSHOT."""
    run_iterators(attached.with_role(Role.SNAPSHOT))


def run_iterators(links: Iterable[int]) -> None:
    """Run iterators for their effect on maps."""
    for link in links:
        run_iterator(link)


def run_in_namespaces(links: Sequence[int], netns: int = 0) -> None:
    """Run iterators over sockets in each network namespace, or only in `netns` (an inode).

    An iterator covers the namespace in which it is opened, listeners first, and ends when it writes
    something.
    """
    for namespace in _namespaces(netns) if links else ():
        thread = Thread(target=_run_inside, args=(namespace, links))  # only this thread moves
        thread.start()
        thread.join()


def _namespaces(netns: int) -> list[str]:
    paths: dict[int, str] = {}
    for path in (*glob("/run/netns/*"), *glob("/proc/[0-9]*/ns/net")):
        with suppress(OSError):
            paths.setdefault(os.stat(path).st_ino, path)
    return [path for inode, path in paths.items() if not netns or inode == netns]


def _run_inside(path: str, links: Sequence[int]) -> None:
    with suppress(OSError):  # the process has ended, or the file is not a namespace
        namespace = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            enter_network(namespace)
        finally:
            os.close(namespace)
        for link in links:
            iterator = open_iterator(link)
            try:
                os.read(iterator, 1)
            finally:
                os.close(iterator)
