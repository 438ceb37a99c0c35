"""What fills up in a network namespace, beside its limits: TIME_WAIT, local ports, connections.

Names: "tcp.tw" sockets in TIME_WAIT and "tcp.orphan" those that no process has, of
/proc/net/sockstat; "ports" of net.ipv4.ip_local_port_range; "conntrack" connections that the kernel
tracks. "max_" before a name is the limit, which several namespaces may share. "carrier.eth0" is how
often a device lost or got its carrier since the start; "syncookies" is net.ipv4.tcp_syncookies.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Optional

from netbpf.kernel.carriers import Carriers
from netbpf.kernel.namespaces import in_namespaces, namespace_of, network_namespaces

_SOCKSTAT = "/proc/thread-self/net/sockstat"
_SYSCTL = "/proc/sys/net"
_TRACKED = f"{_SYSCTL}/netfilter/nf_conntrack_count"
_LIMITS = {
    "max_tcp.tw": f"{_SYSCTL}/ipv4/tcp_max_tw_buckets",
    "max_tcp.orphan": f"{_SYSCTL}/ipv4/tcp_max_orphans",
    "syncookies": f"{_SYSCTL}/ipv4/tcp_syncookies",
    "max_conntrack": f"{_SYSCTL}/netfilter/nf_conntrack_max",
}


class Levels:
    """The levels of one network namespace: this process's, or the one with inode `netns`.

    The files stay open, so that they can be read without the right to enter it. What the kernel
    does not have is left out.
    """

    def __init__(self, netns: int = 0) -> None:
        self._files: dict[str, int] = {}
        self._limits: dict[str, int] = {}
        self._carriers: Optional[Carriers] = None
        own = namespace_of("/proc/self")
        where = network_namespaces().get(netns, "") if netns else "/proc/self"
        if where:
            in_namespaces({netns or own: where}, lambda _: self._open())

    def _open(self) -> None:
        for path in (_SOCKSTAT, _TRACKED):
            with suppress(OSError):
                self._files[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        for name, path in _LIMITS.items():
            with suppress(OSError, ValueError):
                self._limits[name] = int(Path(path).read_text())
        with suppress(OSError, ValueError):
            low, high = Path(f"{_SYSCTL}/ipv4/ip_local_port_range").read_text().split()
            self._limits["ports"] = int(high) - int(low) + 1
        with suppress(OSError):
            self._carriers = Carriers()

    def read(self) -> Mapping[str, int]:
        """Return {name: value} of the levels now, and of the limits at the start."""
        found = dict(self._limits)
        for path, file in self._files.items():
            with suppress(OSError, ValueError):
                text = os.pread(file, 4096, 0).decode("ascii", "replace")
                found.update([("conntrack", int(text))] if path == _TRACKED else sockets_of(text))
        if self._carriers:
            changes = self._carriers.read()
            found.update({f"carrier.{dev}": count for dev, count in changes.items()})
        return found

    def close(self) -> None:
        """Close the files, which keep the namespace alive."""
        for file in self._files.values():
            os.close(file)
        if self._carriers:
            self._carriers.close()
        self._files, self._carriers = {}, None


def sockets_of(text: str) -> Iterator[tuple[str, int]]:
    """Yield (name, number) of the sockets in TIME_WAIT and without a process, of sockstat."""
    found = re.search(r"^TCP: inuse \d+ orphan (\d{1,10}) tw (\d{1,10})", text, re.MULTILINE)
    if found:
        yield "tcp.orphan", int(found[1])
        yield "tcp.tw", int(found[2])
