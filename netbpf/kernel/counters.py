"""The kernel's own counters of what happened in network namespaces: the second truth.

Names are those of nstat with a dot: "Tcp.RetransSegs" (/proc/net/snmp), "TcpExt.ListenOverflows"
(/proc/net/netstat), "Ip6.InReceives" (/proc/net/snmp6). "Device.eth0.rx_drop" is of /proc/net/dev,
"Softnet.dropped" of /proc/net/softnet_stat, which is the whole machine's. "Netlink.23.drops" is of
the netlink socket with inode 23, "Raw.23.drops" and "Raw6.23.drops" are of raw sockets, and
"Packet.23.drops" of packet sockets.
"""

from __future__ import annotations

import fnmatch
import os
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from typing import Union

from netbpf.kernel.counter_files import HERE, PACKET, file_of, open_files, read_once, values_of
from netbpf.kernel.namespaces import in_namespaces, namespace_of, network_namespaces
from netbpf.kernel.packet_sockets import PacketSockets
from netbpf.system.helper import Helper

_FROM_ZERO = ("Netlink.", "Raw.", "Raw6.", "Packet.")  # whose owners come and go, and begin at zero
_MOST_NAMESPACES = 2048  # that are read; more are counted as unread
_LOOK_SECONDS = 0.1  # that a look may take: the reader of events waits for it
_FIRST_SECONDS = 1.0  # and the first one
_PATIENCE = 0.2  # beyond that, for the answer
_PAUSE = 1.0  # seconds between two looks at all namespaces, at least
_SHARE = 200  # a look may take at most one part in so many of the time between two
# None of these shrinks: by that, a namespace is known from another that got its inode number.
_GROWING = ("Ip.InReceives", "Ip.OutRequests", "Tcp.InSegs", "Tcp.OutSegs", "IpExt.InOctets")


class Counters:
    """The counters of one network namespace: that of this process, or the one with inode `netns`.

    Its files stay open, so that it can be read again after every process has left the namespace.
    One that cannot be found, or a file that is missing, has no counters.
    """

    _packets: Sequence[PacketSockets] = ()

    def __init__(self, netns: int = 0, names: Sequence[str] = ()) -> None:
        """Open them; those of packet sockets only if `names` has one."""
        self._files: list[int] = []
        own = namespace_of("/proc/self")
        where = network_namespaces().get(netns, "") if netns else "/proc/self"
        if where:
            packets = PACKET in {file_of(name) for name in names}
            in_namespaces({netns or own: where}, lambda _: self._open(packets))

    def _open(self, packets: bool) -> None:
        self._files = open_files(HERE)
        if packets:  # these calls are seen by who traces them
            with suppress(OSError):
                self._packets = (PacketSockets(),)

    def read(self) -> Mapping[str, int]:
        """Return {name: value} of all counters."""
        found = values_of(self._files)
        for sockets in self._packets:
            found.update(sockets.read())
        return found

    def close(self) -> None:
        """Let go of the namespace."""
        for file in self._files:
            os.close(file)
        for sockets in self._packets:
            sockets.close()
        self._files, self._packets = [], ()


class Since(dict[str, int]):
    """Increases since a start: what is not there has not grown."""


class AllCounters:
    """The counters of all network namespaces together, as increases since this was made.

    A namespace that is made meanwhile begins at 0. No file stays open between two looks: that would
    keep a namespace alive which ends. Of one that ends, what it counted after the last look is not
    in the sum. `known` are the inodes of those that were read at any time; `ended` and `unread` are
    how many of them ended, and how many there are that could not be read. `due` is the monotonic
    time in seconds of the next look.
    """

    def __init__(
        self,
        names: Sequence[str],
        proc: str = "/proc",
        named: str = "/run/netns",
        apart: Collection[str] = (),
    ) -> None:
        """Look at all namespaces for the first time, for counters with these names.

        With the capabilities `apart`, a process of its own looks, which alone keeps these.
        """
        self.known: set[int] = set()
        self.ended = self.unread = 0
        self.due = 0.0
        self._last: dict[int, Mapping[str, int]] = {}
        self._sum: dict[str, int] = {}
        self._begun = False
        self._look = _Look(names, proc, named)
        self._helper = Helper(self._look, apart) if apart else None
        self.look()
        self._begun = True

    def read(self) -> Mapping[str, int]:
        """Look at all namespaces and return {name: increase since the start} of all counters."""
        self.look()
        return Since(self._sum)

    def look(self) -> None:
        """Add what was counted since the last look, as far as that is read in a moment.

        Users can make thousands of namespaces. What is not read this time is read first the next
        time; `unread` is how many are left in the end.
        """
        began = time.monotonic()
        try:
            found, values = self._ask()
        except TimeoutError:  # the answer is for the next look
            found, values = [*self._last, 0], []
        except OSError:  # the helper is gone: what there is now is not known
            self._last = {}
            found, values = [0], []
        now = {int(inode): counters for inode, counters in values}
        self.unread = len(found) - len(now)
        self.ended += len(self._last.keys() - set(found))
        for inode, counters in now.items():
            self._add(counters, self._last.get(inode))
        self._last = {inode: self._last[inode] for inode in found if inode in self._last}
        self._last.update(now)
        self.known.update(now)
        end = time.monotonic()
        self.due = end + max(_PAUSE, (end - began) * _SHARE)

    def _ask(self) -> tuple[list[int], list[tuple[int, dict[str, int]]]]:
        seconds = _LOOK_SECONDS if self._begun else _FIRST_SECONDS
        if not self._helper:
            return self._look(seconds)
        found, values = self._helper.ask(seconds, seconds + _PATIENCE * (1 if self._begun else 10))
        return found, values

    def _add(self, values: Mapping[str, int], before: Mapping[str, int] | None) -> None:
        if before and any(values.get(name, 0) < before.get(name, 0) for name in _GROWING):
            before = None
        for name, value in values.items():
            if before is not None:
                old = before.get(name, 0 if name.startswith(_FROM_ZERO) else value)
            else:
                # A device may have come from elsewhere, with all that it has counted.
                new = self._begun and not name.startswith("Device.")
                old = 0 if new else value
            self._sum[name] = self._sum.get(name, 0) + max(value - old, 0)

    def close(self) -> None:
        """End the process that looks, if there is one."""
        if self._helper:
            self._helper.close()


class _Look:
    """A look at all network namespaces: what there is, and what their counters have now."""

    def __init__(self, names: Sequence[str], proc: str, named: str) -> None:
        self._files = sorted({file_of(name) for name in names})
        self._where = (proc, named)
        self._wanted = [*names, *_GROWING]
        self._read: dict[int, int] = {}  # by inode, in which look it was read last
        self._looks = 0

    def __call__(self, seconds: float) -> tuple[list[int], list[tuple[int, dict[str, int]]]]:
        """Return the inodes of all that was found, and (inode, {name: value}) of what was read.

        Those that were read longest ago come first; no new one is begun after that many seconds.
        """
        end = time.monotonic() + seconds
        found = network_namespaces(*self._where)
        now = self._read_all(found, end)
        self._looks += 1
        read = {**self._read, **dict.fromkeys(now, self._looks)}
        self._read = {inode: read[inode] for inode in found if inode in read}
        return list(found), [(inode, self._chosen(values)) for inode, values in now.items()]

    def _chosen(self, values: Mapping[str, int]) -> dict[str, int]:
        plain = {name: values[name] for name in self._wanted if name in values}
        patterns = (name for name in self._wanted if "*" in name)
        fit = (name for pattern in patterns for name in fnmatch.filter(values, pattern))
        return {**plain, **{name: values[name] for name in fit}}

    def _read_all(self, found: Mapping[int, str], end: float) -> dict[int, Mapping[str, int]]:
        proc = self._where[0]
        own = namespace_of(f"{proc}/self")
        now: dict[int, Mapping[str, int]] = {}
        mounted: dict[int, str] = {}
        # Those that are known first: one that is not has no count that could get lost.
        order = sorted(found, key=lambda one: self._read.get(one, self._looks + 1))
        for inode in order[:_MOST_NAMESPACES]:
            if time.monotonic() > end:
                break
            where = found[inode]
            # Softnet is the whole machine's: it is taken from one namespace.
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
    """Return how much each of `names` grew; a counter that this kernel lacks is left out.

    A name can be a pattern such as "Device.*.rx_drop": it stands for those that did grow. Sockets
    that were opened meanwhile grew from zero.
    """
    absent = 0 if isinstance(before, Since) else None
    found = {}
    for name in names:
        for fit in fnmatch.filter(after, name) if "*" in name else [name]:
            first = 0 if fit.startswith(_FROM_ZERO) else absent
            old, new = before.get(fit, first), after.get(fit)
            if old is not None and new is not None and (fit == name or new != old):
                found[fit] = new - old
    return found
