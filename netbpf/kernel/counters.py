"""The kernel's own counters of what happened in a network namespace: the second truth.

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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from glob import glob
from threading import Thread

from netbpf.kernel.packet_sockets import PacketSockets
from netbpf.kernel.syscalls import enter_network

_FILES = ("snmp", "netstat", "snmp6", "dev", "softnet_stat", "netlink", "raw", "raw6")
_FROM_ZERO = ("Netlink.", "Raw.", "Raw6.", "Packet.")  # whose owners come and go, and begin at zero


class Counters:
    """The counters of one network namespace: that of this process, or the one with inode `netns`.

    Its files stay open, so that it can be read again whoever has left the namespace. One that
    cannot be found, or a file that is missing, has no counters.
    """

    _packets: Sequence[PacketSockets] = ()

    def __init__(self, netns: int = 0) -> None:
        self._files: list[int] = []
        if not netns:
            self._open()
            return
        thread = Thread(target=self._open_in, args=(netns,))  # only that thread changes over
        thread.start()
        thread.join()

    def read(self) -> dict[str, int]:
        """Return {name: value} of all protocol counters."""
        found: dict[str, int] = {}
        for lines in map(_lines, self._files):
            if lines and lines[0].startswith("Ip6"):
                found.update(_single(lines))
            elif lines and lines[0].startswith("Inter-"):
                found.update(_devices(lines))
            elif lines and "inode" in lines[0].lower():
                found.update(_sockets(lines))
            elif lines and re.match(r"[0-9a-f]{8} ", lines[0]):
                found.update(_softnet(lines))
            else:
                found.update(_paired(lines))
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

    def _open(self) -> None:
        with suppress(OSError):
            self._packets = (PacketSockets(),)
        for name in _FILES:
            with suppress(OSError):
                path = f"/proc/thread-self/net/{name}"
                self._files.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))

    def _open_in(self, netns: int) -> None:
        for path in (*glob("/run/netns/*"), *glob("/proc/[0-9]*/ns/net")):
            with suppress(OSError):
                if os.stat(path).st_ino == netns:
                    namespace = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                    try:
                        enter_network(namespace)
                    finally:
                        os.close(namespace)
                    return self._open()


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
        for name, value in zip(names, values.split()):
            yield f"Device.{device.strip()}.{name}", int(value)


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
    found = {}
    for name in names:
        fits = fnmatch.filter(after, name) if "*" in name else [name]
        for fit in fits:
            start = before.get(fit, 0 if fit.startswith(_FROM_ZERO) else None)
            if fit in after and start is not None and (fit == name or after[fit] != start):
                found[fit] = after[fit] - start
    return found


def _lines(file: int) -> list[str]:
    os.lseek(file, 0, os.SEEK_SET)
    text = b""
    while part := os.read(file, 1 << 16):
        text += part
    return text.decode().splitlines()
