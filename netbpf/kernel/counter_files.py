"""Read the kernel's counters of one network namespace from its files in /proc.

netbpf.kernel.counters explains the names.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress

from netbpf.kernel.packet_sockets import PacketSockets
from netbpf.system.lines import lines_of, read_all

HERE = "/proc/thread-self/net"
PACKET = "packet"  # not a file: read through sock_diag
FILES = ("snmp", "netstat", "snmp6", "dev", "softnet_stat", "netlink", "raw", "raw6")
_GROUPS = {
    "TcpExt": "netstat", "IpExt": "netstat", "MPTcpExt": "netstat", "Device": "dev",
    "Softnet": "softnet_stat", "Netlink": "netlink", "Raw": "raw", "Raw6": "raw6",
    "Packet": PACKET,
}  # fmt: skip


def file_of(name: str) -> str:
    """Return the file that has the counter `name`."""
    group = name.partition(".")[0]
    if group in _GROUPS:
        return _GROUPS[group]
    return "snmp6" if group.endswith("6") else "snmp"


def open_files(directory: str, names: Sequence[str] = FILES) -> list[int]:
    """Open files of a directory such as /proc/PID/net; missing files are left out."""
    files = []
    for name in names:
        with suppress(OSError):
            files.append(os.open(f"{directory}/{name}", os.O_RDONLY | os.O_CLOEXEC))
    return files


def read_once(directory: str, names: Sequence[str]) -> dict[str, int]:
    """Return {name: value} of the counters in these files, {} on an error."""
    files = open_files(directory, [name for name in names if name != PACKET])
    try:
        values = values_of(files)
        if PACKET in names:
            sockets = PacketSockets()
            values.update(sockets.read())
            sockets.close()
        return values
    except OSError:
        return {}
    finally:
        for file in files:
            os.close(file)


def values_of(files: Sequence[int]) -> dict[str, int]:
    """Return {name: value} of the counters in open files, read from the start."""
    values: dict[str, int] = {}
    for lines in map(_lines, files):
        with suppress(ValueError, IndexError):  # a file in another format has no counters
            values.update(dict(_counted(lines)))
    return values


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
        match = re.match(r"(Ip6|Icmp6|Udp6|UdpLite6)(\w+)\s+(\d{1,20})", line)
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
    # One line per CPU, hexadecimal: processed, dropped, time_squeeze ... flow_limit_count (3.11).
    rows = [[int(field, 16) for field in line.split()] for line in lines]
    yield "Softnet.dropped", sum(row[1] for row in rows)
    yield "Softnet.flow_limit", sum(row[10] for row in rows if len(row) > 10)


def _sockets(lines: Sequence[str]) -> Iterator[tuple[str, int]]:
    # Values match their names counted from the right: "tx_queue rx_queue tr tm->when" of raw
    # sockets are only two fields. raw6 has wider address columns.
    heads = lines[0].lower().split()
    kind = "Netlink" if "groups" in heads else "Raw6" if lines[0].index(" st") > 40 else "Raw"
    for line in lines[1:]:
        values = line.split()
        inode, drops = (values[heads.index(name) - len(heads)] for name in ("inode", "drops"))
        yield f"{kind}.{inode}.drops", int(drops)


def _lines(file: int) -> list[str]:
    os.lseek(file, 0, os.SEEK_SET)
    return lines_of(read_all(file))
