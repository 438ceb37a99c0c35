"""The kernel's own counters per network namespace, to compare results with.

Names are nstat's with a dot: "Tcp.RetransSegs" (/proc/net/snmp), "TcpExt.ListenOverflows"
(/proc/net/netstat), "Ip6.InReceives" (/proc/net/snmp6). "Device.eth0.rx_drop" is from
/proc/net/dev, "Softnet.dropped" from /proc/net/softnet_stat, which covers the whole machine;
"Softnet.0.dropped" is that of CPU 0.
"Netlink.23.drops" is for the netlink socket with inode 23, "Raw.23.drops" and "Raw6.23.drops" for
raw sockets, "Packet.23.drops" for packet sockets.
"""

from __future__ import annotations

import fnmatch
import os
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any, Callable, Optional, Union

from netbpf.kernel.counter_files import HERE, PACKET, file_of, open_files, read_once, values_of
from netbpf.kernel.namespaces import in_namespaces, namespace_of, network_namespaces
from netbpf.kernel.packet_sockets import PacketSockets
from netbpf.system.helper import Helper

_TASK = "counters"  # of the helper process
_FROM_ZERO = ("Netlink.", "Raw.", "Raw6.", "Packet.")  # per socket: new ones start at zero
_MAX_NAMESPACES = 2048  # to read; the others count as unread
_UPDATE_SECONDS = 0.1  # for an update, which delays the reader of events
_FIRST_SECONDS = 1.0  # for the first update
_GRACE_SECONDS = 0.2  # beyond that, for the helper's answer
_PAUSE = 1.0  # minimum seconds between two updates
_SHARE = 200  # an update may take 1/200 of the time until the next one
# These never decrease; if one does, another namespace has the same inode number.
_GROWING = ("Ip.InReceives", "Ip.OutRequests", "Tcp.InSegs", "Tcp.OutSegs", "IpExt.InOctets")


class Counters:
    """The counters of one network namespace: this process's, or the one with inode `netns`.

    Its files stay open, so that it can be read again after every process has left the namespace. A
    namespace that cannot be found, or a missing file, has no counters.
    """

    _packets: Sequence[PacketSockets] = ()

    def __init__(self, netns: int = 0, names: Sequence[str] = ()) -> None:
        """Open the files; read packet sockets only if `names` has a counter of them."""
        self._files: list[int] = []
        own = namespace_of("/proc/self")
        where = network_namespaces().get(netns, "") if netns else "/proc/self"
        if where:
            packets = PACKET in {file_of(name) for name in names}
            in_namespaces({netns or own: where}, lambda _: self._open(packets))

    def _open(self, packets: bool) -> None:
        self._files = open_files(HERE)
        if packets:  # not always: tracers see these calls
            with suppress(OSError):
                self._packets = (PacketSockets(),)

    def read(self) -> Mapping[str, int]:
        """Return {name: value} of all counters."""
        values = values_of(self._files)
        for sockets in self._packets:
            values.update(sockets.read())
        return values

    def close(self) -> None:
        """Close the files, which keep the namespace alive."""
        for file in self._files:
            os.close(file)
        for sockets in self._packets:
            sockets.close()
        self._files, self._packets = [], ()


class Increases(dict[str, int]):
    """Increases since a start: a missing counter has not grown."""


class AllCounters:
    """The counters of all network namespaces added up, as increases since the construction.

    A new namespace begins at 0. No file stays open between updates, as it would keep the namespace
    alive. Counts of a namespace after the last update before its end are not included. `namespaces`
    are the inodes of all that were ever read, `ended` is how many of them ended, and `unread` how
    many exist that could not be read. `next_update` is the monotonic time in seconds of the next
    update.
    """

    def __init__(
        self,
        names: Sequence[str],
        proc: str = "/proc",
        named: str = "/run/netns",
        capabilities: Collection[str] = (),
        tasks: Optional[Mapping[str, Callable[[Any], Any]]] = None,
    ) -> None:
        """Read the counters `names` of all namespaces for the first time.

        With `capabilities`, a process that keeps them reads: the `helper`, which has other `tasks`,
        too.
        """
        self.namespaces: set[int] = set()
        self.ended = self.unread = 0
        self.next_update = 0.0
        self._last: dict[int, Mapping[str, int]] = {}
        self._sum: dict[str, int] = {}
        self._begun = False
        self._reader = _Reader(names, proc, named)
        own: dict[str, Callable[[Any], Any]] = {_TASK: self._reader}
        self.helper = Helper({**(tasks or {}), **own}, capabilities) if capabilities else None
        self.update()
        self._begun = True

    def read(self) -> Mapping[str, int]:
        """Update and return {name: increase since the start} of all counters."""
        self.update()
        return Increases(self._sum)

    def update(self) -> None:
        """Add the increases since the last update, for the namespaces that can be read in time.

        Users can create thousands of namespaces. The ones not read now come first in the next
        update; `unread` is their number.
        """
        began = time.monotonic()
        try:
            inodes, values = self._ask()
        except TimeoutError:  # the next update gets the answer
            inodes, values = [*self._last, 0], []
        except OSError:  # the helper has ended: the current state is unknown
            self._last = {}
            inodes, values = [0], []
        now = {int(inode): counters for inode, counters in values}
        self.unread = len(inodes) - len(now)
        self.ended += len(self._last.keys() - set(inodes))
        for inode, counters in now.items():
            self._add(counters, self._last.get(inode))
        self._last = {inode: self._last[inode] for inode in inodes if inode in self._last}
        self._last.update(now)
        self.namespaces.update(now)
        end = time.monotonic()
        self.next_update = end + max(_PAUSE, (end - began) * _SHARE)

    def _ask(self) -> tuple[list[int], list[tuple[int, dict[str, int]]]]:
        seconds = _UPDATE_SECONDS if self._begun else _FIRST_SECONDS
        if not self.helper:
            return self._reader(seconds)
        timeout = seconds + _GRACE_SECONDS * (1 if self._begun else 10)
        inodes, values = self.helper.ask(_TASK, seconds, timeout)
        return inodes, values

    def _add(self, values: Mapping[str, int], before: Mapping[str, int] | None) -> None:
        if before and any(values.get(name, 0) < before.get(name, 0) for name in _GROWING):
            before = None
        for name, value in values.items():
            if before is not None:
                old = before.get(name, 0 if name.startswith(_FROM_ZERO) else value)
            else:
                # A device may have moved in from another namespace, with its counts.
                new = self._begun and not name.startswith("Device.")
                old = 0 if new else value
            self._sum[name] = self._sum.get(name, 0) + max(value - old, 0)

    def close(self) -> None:
        """End the helper process, if there is one."""
        if self.helper:
            self.helper.close()


class _Reader:
    """Finds all network namespaces and reads their counters."""

    def __init__(self, names: Sequence[str], proc: str, named: str) -> None:
        self._files = sorted({file_of(name) for name in names})
        self._where = (proc, named)
        self._wanted = [*names, *_GROWING]
        self._read: dict[int, int] = {}  # inode -> number of the call that read it last
        self._calls = 0

    def __call__(self, seconds: float) -> tuple[list[int], list[tuple[int, dict[str, int]]]]:
        """Return the inodes of all namespaces, and (inode, {name: value}) of those that were read.

        The ones read longest ago come first; none is begun after `seconds`.
        """
        end = time.monotonic() + seconds
        paths = network_namespaces(*self._where)
        now = self._read_all(paths, end)
        self._calls += 1
        read = {**self._read, **dict.fromkeys(now, self._calls)}
        self._read = {inode: read[inode] for inode in paths if inode in read}
        return list(paths), [(inode, self._select(values)) for inode, values in now.items()]

    def _select(self, values: Mapping[str, int]) -> dict[str, int]:
        plain = {name: values[name] for name in self._wanted if name in values}
        patterns = (name for name in self._wanted if "*" in name)
        matches = (name for pattern in patterns for name in fnmatch.filter(values, pattern))
        return {**plain, **{name: values[name] for name in matches}}

    def _read_all(self, paths: Mapping[int, str], end: float) -> dict[int, Mapping[str, int]]:
        proc = self._where[0]
        own = namespace_of(f"{proc}/self")
        now: dict[int, Mapping[str, int]] = {}
        mounted: dict[int, str] = {}
        # Known namespaces first: a new one has no earlier count that could be lost.
        order = sorted(paths, key=lambda inode: self._read.get(inode, self._calls + 1))
        for inode in order[:_MAX_NAMESPACES]:
            if time.monotonic() > end:
                break
            where = paths[inode]
            # softnet_stat covers the whole machine: read it in one namespace only.
            names = [name for name in self._files if inode == own or name != "softnet_stat"]
            if where.startswith(f"{proc}/") and PACKET not in names:
                values = read_once(f"{where}/net", names)
                if values and namespace_of(where) == inode:
                    now[inode] = values
            else:
                mounted[inode] = where
        names = [name for name in self._files if name != "softnet_stat"]

        def visit(inode: int) -> None:
            if time.monotonic() > end:
                return
            values = read_once(HERE, names)
            if values:
                now[inode] = values

        if mounted:
            in_namespaces(mounted, visit)
        return now


Source = Union[Counters, AllCounters]


def increase(
    before: Mapping[str, int], after: Mapping[str, int], names: Sequence[str]
) -> dict[str, int]:
    """Return {name: increase} of `names`; counters that this kernel does not have are left out.

    A name can be a pattern such as "Device.*.rx_drop", for the matching counters that did grow.
    Counters of sockets opened in between grow from zero.
    """
    absent = 0 if isinstance(before, Increases) else None
    increases = {}
    for name in names:
        for match in fnmatch.filter(after, name) if "*" in name else [name]:
            first = 0 if match.startswith(_FROM_ZERO) else absent
            old, new = before.get(match, first), after.get(match)
            if old is not None and new is not None and (match == name or new != old):
                increases[match] = new - old
    return increases
