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
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Union

from netbpf.kernel.lines import lines_of
from netbpf.kernel.namespaces import in_namespaces, namespace_of, network_namespaces
from netbpf.kernel.packet_sockets import PacketSockets

_HERE = "/proc/thread-self/net"
_PACKET = "packet"  # no file: asked for by sock_diag
_FILES = ("snmp", "netstat", "snmp6", "dev", "softnet_stat", "netlink", "raw", "raw6")
_GROUPS = {
    "TcpExt": "netstat", "IpExt": "netstat", "MPTcpExt": "netstat", "Device": "dev",
    "Softnet": "softnet_stat", "Netlink": "netlink", "Raw": "raw", "Raw6": "raw6",
    "Packet": _PACKET,
}  # fmt: skip
_FROM_ZERO = ("Netlink.", "Raw.", "Raw6.", "Packet.")  # whose owners come and go, and begin at zero
_MOST_NAMESPACES = 2048  # that are read; more are counted as unread
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
            packets = _PACKET in {_file_of(name) for name in names}
            in_namespaces({netns or own: where}, lambda _: self._open(packets))

    def _open(self, packets: bool) -> None:
        self._files = _open_files(_HERE)
        if packets:  # these calls are seen by who traces them
            with suppress(OSError):
                self._packets = (PacketSockets(),)

    def read(self) -> Mapping[str, int]:
        """Return {name: value} of all counters."""
        found = _values(self._files)
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
        self, names: Sequence[str], proc: str = "/proc", named: str = "/run/netns"
    ) -> None:
        """Look at all namespaces for the first time, for counters with these names."""
        self.known: set[int] = set()
        self.ended = self.unread = 0
        self.due = 0.0
        self._files = sorted({_file_of(name) for name in names})
        self._where = (proc, named)
        self._last: dict[int, Mapping[str, int]] = {}
        self._sum: dict[str, int] = {}
        self._begun = False
        self.look()
        self._begun = True

    def read(self) -> Mapping[str, int]:
        """Look at all namespaces and return {name: increase since the start} of all counters."""
        self.look()
        return Since(self._sum)

    def look(self) -> None:
        """Add what was counted since the last look."""
        began = time.monotonic()
        found = network_namespaces(*self._where)
        now = self._read_all(found)
        self.unread = len(found) - len(now)
        self.ended += len(self._last.keys() - found.keys())
        for inode, values in now.items():
            self._add(values, self._last.get(inode))
        self._last = now
        self.known.update(now)
        end = time.monotonic()
        self.due = end + max(_PAUSE, (end - began) * _SHARE)

    def _read_all(self, found: Mapping[int, str]) -> dict[int, Mapping[str, int]]:
        proc = self._where[0]
        own = namespace_of(f"{proc}/self")
        now: dict[int, Mapping[str, int]] = {}
        mounted: dict[int, str] = {}
        for inode in sorted(found, key=lambda one: one not in self._last)[:_MOST_NAMESPACES]:
            where = found[inode]
            # Softnet is the whole machine's: it is taken from one namespace.
            names = [name for name in self._files if inode == own or name != "softnet_stat"]
            if where.startswith(f"{proc}/") and _PACKET not in names:
                values = _read_once(f"{where}/net", names)
                if values and namespace_of(where) == inode:
                    now[inode] = values
            else:
                mounted[inode] = where
        names = [name for name in self._files if name != "softnet_stat"]

        def visit(inode: int) -> None:
            values = _read_once(_HERE, names)
            if values:
                now[inode] = values

        if mounted:
            in_namespaces(mounted, visit)
        return now

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
        """Let go of nothing: it holds nothing."""


Source = Union[Counters, AllCounters]


def _file_of(name: str) -> str:
    group = name.partition(".")[0]
    if group in _GROUPS:
        return _GROUPS[group]
    return "snmp6" if group.endswith("6") else "snmp"


def _open_files(directory: str, names: Sequence[str] = _FILES) -> list[int]:
    files = []
    for name in names:
        with suppress(OSError):
            files.append(os.open(f"{directory}/{name}", os.O_RDONLY | os.O_CLOEXEC))
    return files


def _read_once(directory: str, names: Sequence[str]) -> dict[str, int]:
    files = _open_files(directory, [name for name in names if name != _PACKET])
    try:
        found = _values(files)
        if _PACKET in names:
            sockets = PacketSockets()
            found.update(sockets.read())
            sockets.close()
        return found
    except OSError:
        return {}
    finally:
        for file in files:
            os.close(file)


def _values(files: Sequence[int]) -> dict[str, int]:
    found: dict[str, int] = {}
    for lines in map(_lines, files):
        with suppress(ValueError, IndexError):  # a file of another form has no counters
            found.update(dict(_counted(lines)))
    return found


def _counted(lines: Sequence[str]) -> Iterator[tuple[str, int]]:
    first = lines[0]
    if first.startswith("Ip6"):
        return _single(lines)
    if first.startswith("Inter-"):
        return _devices(lines)
    if "inode" in first.lower():
        return _sockets(lines)
    return _softnet(lines) if re.match(r"[0-9a-f]{8} ", first) else _paired(lines)


def _paired(lines: Sequence[str]) -> Iterator[tuple[str, int]]:
    for head, values in zip(lines[::2], lines[1::2]):
        group, _, names = head.partition(":")
        numbers = values.partition(":")[2].split()
        yield from ((f"{group}.{key}", int(value)) for key, value in zip(names.split(), numbers))


def _single(lines: Sequence[str]) -> Iterator[tuple[str, int]]:
    for line in lines:
        match = re.match(r"(Ip6|Icmp6|Udp6|UdpLite6)(\w+)\s+(\d+)", line)
        if match:
            yield f"{match[1]}.{match[2]}", int(match[3])


def _devices(lines: Sequence[str]) -> Iterator[tuple[str, int]]:
    # "Inter-| Receive | Transmit", " face |bytes packets ...|bytes packets ...", "  lo: 1 2 ...".
    receive, send = (part.split() for part in lines[1].split("|")[1:])
    names = [f"rx_{name}" for name in receive] + [f"tx_{name}" for name in send]
    for line in lines[2:]:
        device, _, values = line.rpartition(":")
        device = device.strip(" ")
        for name, value in zip(names, values.split()):
            yield f"Device.{device}.{name}", int(value)


def _softnet(lines: Sequence[str]) -> Iterator[tuple[str, int]]:
    # A line per CPU, hexadecimal: processed, dropped, time_squeeze ... flow_limit_count (3.11).
    rows = [[int(word, 16) for word in line.split()] for line in lines]
    yield "Softnet.dropped", sum(row[1] for row in rows)
    yield "Softnet.flow_limit", sum(row[10] for row in rows if len(row) > 10)


def _sockets(lines: Sequence[str]) -> Iterator[tuple[str, int]]:
    # Numbers stand under their names from the right, but for "tx_queue rx_queue tr tm->when" of raw
    # sockets: two words. Only raw6 has room for IPv6 addresses.
    heads = lines[0].lower().split()
    kind = "Netlink" if "groups" in heads else "Raw6" if lines[0].index(" st") > 40 else "Raw"
    for line in lines[1:]:
        values = line.split()
        inode, drops = (values[heads.index(name) - len(heads)] for name in ("inode", "drops"))
        yield f"{kind}.{inode}.drops", int(drops)


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


def _lines(file: int) -> list[str]:
    os.lseek(file, 0, os.SEEK_SET)
    text = b""
    while part := os.read(file, 1 << 16):
        text += part
    return lines_of(text)
