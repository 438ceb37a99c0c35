"""Files of /proc and /sys with names that users choose: processes, mounts, devices, symbols."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from hypothesis import strategies as st

from netbpf.binaries.scan import Coverage
from netbpf.errors import UsageError
from netbpf.kernel import cgroups, clock, counter_files, counters, namespaces, packet_sockets
from netbpf.kernel.device_counters import Devices
from netbpf.kernel.inspect import parse_format
from netbpf.kernel.kallsyms import KernelSymbols
from netbpf.kernel.netlink import messages
from netbpf.kernel.processes import kernel_pid
from netbpf.system.lines import lines_of
from tests.fuzz.damage import File, directory, mutated
from tests.fuzz.target import Target
from tests.unit.test_counters import NETSTAT, SNMP, SNMP6

FILE = File()
PID = 4711


def made(status: bytes = b"", maps: bytes = b"") -> str:
    """Return a proc tree with one process."""
    (PROC / str(PID) / "status").write_bytes(status)
    (PROC / str(PID) / "maps").write_bytes(maps)
    return str(PROC)


PROC = directory()
(PROC / str(PID) / "map_files").mkdir(parents=True)
(PROC / str(PID) / "exe").symlink_to("/proc/self/exe")
(PROC / str(PID) / "root").symlink_to("/")
(PROC / str(PID) / "comm").write_bytes(b"n\xff\x1b[1m\n")

STATUS = [
    b"Name:\tcat\nUmask:\t0022\nState:\tR (running)\nTgid:\t%d\nNSpid:\t9\t1\n" % PID,
    b"Name:\ta\\nb\nState:\tZ (zombie)\nTgid:\t%d\n" % PID,
    b"Name:\tthread\nState:\tS (sleeping)\nTgid:\t1\n",
]


def process(data: bytes) -> None:
    assert kernel_pid(PID, made(status=data)) == PID


LIBC = next((line.split()[-1] for line in open("/proc/self/maps") if "libc" in line), "/libc.so.6")
MAPS = [
    b"5000-6000 r-xp 00000000 3f:01 9  /usr/bin/name\n"
    b"7f01-7f02 r-xp 00026000 %02x:%02x %d   %s\n7ff0-7ff1 rw-p 0 00:00 0 [stack]\n"
    % (os.major(1), 1, os.stat(LIBC).st_ino if os.path.exists(LIBC) else 7, LIBC.encode()),
    b"7f01-7f02 r-xp 00026000 08:01 77   /lib/libc.so.6 (deleted)\n",
    b"7f01-7f02 r-xp 00026000 08:01 77   /opt/a b/ld-musl-x86_64.so.1\n",
]


COVERAGE = Coverage(str(PROC))  # it keeps the result of each file


def mapped(data: bytes) -> None:
    made(maps=data)
    COVERAGE.rescan(PID)
    assert COVERAGE.covered + len(COVERAGE.uncovered) <= 1
    assert COVERAGE.summary()


MOUNTS = [
    b"proc /proc proc rw 0 0\nx /a\\040b fuse rw 0 0\nnone /sys/fs/cgroup cgroup2 rw 0 0\n",
    b"36 35 98:0 / /sys/fs/cgroup rw - cgroup2 none rw\n"
    b"37 35 0:4 net:[4026532] /run/netns/a\\040b rw shared:1 - nsfs nsfs rw\n",
]


def mounts(data: bytes) -> None:
    root = cgroups._mounted_at(data)
    assert cgroups._is_whole(data, root or "/sys/fs/cgroup") in (True, False)
    for path in namespaces._mounted(Path(FILE.of(data))):
        assert isinstance(path, str)
        with suppress(OSError, ValueError):
            os.stat(path)


DEV = b"Inter-| Receive | Transmit\n face |bytes packets errs|bytes packets\n"
NET = [
    SNMP.encode(), NETSTAT.encode(), SNMP6.encode(), DEV + b"    lo: 1 2 3 4 5\n  a:b: 1 2 3 4 5\n",
    b"00000001 00000002 00000003 0 0 0 0 0 0 0 0000000a\n" * 2,
    b"sk               Eth Pid        Groups   Rmem     Wmem     Dump  Locks    Drops    Inode\n"
    b"0000000012345678 0   1          00000000 0        0        0     2        5        23\n",
    b"  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout"
    b" inode ref pointer drops\n  1: 00000000:0001 00000000:0000 07 00000000:00000000 00:00000000"
    b" 00000000 0 0 99 2 000000001234 3\n",
]  # fmt: skip


def network(data: bytes) -> None:
    FILE.of(data)
    found = counter_files.values_of([FILE.fd])
    assert all(isinstance(value, int) for value in found.values())
    if found:
        same = counters.increase(found, found, [*found, "Device.*", "*.drops"])
        assert not any(same.values())


def devices(data: bytes) -> None:
    FILE.of(data)
    read = Devices.__new__(Devices)
    read._files = {7: FILE.fd}
    for (netns, name), numbers in read.read().items():
        assert netns == 7 and "\n" not in name and all(isinstance(one, int) for one in numbers)


# The kernel allows all bytes in a device's name but zero, slash, colon and white space.
DEVICE = st.binary(min_size=1, max_size=15).map(
    lambda name: bytes(b for b in name if b not in b"\0/: \t\n\x0b\x0c\r\xa0") or b"x"
)
ROWS = st.lists(st.tuples(DEVICE, st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1)), max_size=6)
HEAD = b"Inter-| Receive | Transmit\n face |b p e d f f c m|b p e d f c c c\n"


def named(rows: list[tuple[bytes, int, int]]) -> None:
    """Each device has its numbers under its name, as events show it."""
    line = b"%s: 0 %d 0 0 0 0 0 0 0 %d 0 0 0 0 0 0\n"
    FILE.of(HEAD + b"".join(line % (name.rjust(6), *numbers) for name, *numbers in rows))
    read = Devices.__new__(Devices)
    read._files = {7: FILE.fd}
    wanted = {(7, n.decode(errors="backslashreplace")): (rx, tx) for n, rx, tx in rows}
    assert read.read() == wanted


SYMBOLS = [
    b"ffffffff81000000 T _stext\nffffffff81000010 t tcp_v4_rcv\nffffffff81000100 W kfree_skb\n"
    b"ffffffffc0000000 t fn\t[module]\n",
    b"0000000000000000 T _stext\n0000000000000000 t tcp_v4_rcv\n",
]


def symbols(data: bytes) -> None:
    found = KernelSymbols(FILE.of(data))
    for address in (0, 0xFFFFFFFF81000011, (1 << 64) - 1):
        assert found.name(address)
    for name in ("tcp_v4_rcv", "fn", "absent"):
        low, high = found.span(name)
        assert 0 <= low and 0 <= high
    assert found.hidden in (True, False)


FORMATS = [
    b"name: inet_sock_set_state\nID: 1\nformat:\n"
    b"\tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;\n\n"
    b"\tfield:const void * skaddr;\toffset:8;\tsize:8;\tsigned:0;\n"
    b"\tfield:__u8 saddr[4];\toffset:28;\tsize:4;\tsigned:0;\n"
    b'\tfield:__data_loc char[] name;\toffset:4;\tsize:4;\tsigned:1;\n\nprint fmt: "%d", REC->a\n'
]


def event_format(data: bytes) -> None:
    for name, field in parse_format(data.decode(errors="replace")).items():
        assert name.isidentifier() or name.isalnum() or "_" in name
        assert field.bit_offset >= 0 and field.ctype.count("%s") == 1


MESSAGE = b"\x20\0\0\0\x14\0\0\0" + bytes(8) + bytes(16)
MEMINFO = b"\x50\0\0\0\x14\0\0\0" + bytes(8) + bytes(4) + b"\x17\0\0\0" + bytes(8)
MEMINFO += b"\x28\0\x06\0" + bytes(32) + b"\x05\0\0\0"


def netlink(data: bytes) -> None:
    for _, body in messages(data):
        with suppress(packet_sockets.struct.error):  # like its caller
            for name, drops in packet_sockets._drops(body):
                assert name.startswith("Packet.") and 0 <= drops < 1 << 32


SHIFTS = [b"monotonic       500000         0\nboottime 0 0\n", b"1 -5 999999999\n7 0 0\n"]


def shift(data: bytes) -> None:
    assert isinstance(clock._listed_shift(data.decode(errors="replace")), int)


def split(data: bytes) -> None:
    lines = lines_of(data, "surrogateescape")
    assert lines == data.decode(errors="surrogateescape").removesuffix("\n").split("\n") or not data
    whole = "\n".join(lines) + ("\n" if data.endswith(b"\n") else "")
    assert whole.encode(errors="surrogateescape") == data


TARGETS = (
    Target("proc-status", mutated(STATUS), process, (UsageError,)),
    Target("proc-maps", mutated(MAPS), mapped),
    Target("proc-mounts", mutated(MOUNTS), mounts),
    Target("proc-net", mutated(NET), network),
    Target("proc-net-dev", mutated([HEAD + b"lo: 0 1 0 0 0 0 0 0 0 2 0 0\n", NET[3]]), devices),
    Target("device-names", ROWS, named),
    Target("proc-timens", mutated(SHIFTS), shift),
    Target("lines", mutated([b"a\nb\n", b"x", b"a\x1cb\n\xff"]), split),
    Target("kallsyms", mutated(SYMBOLS), symbols),
    Target("event-format", mutated(FORMATS), event_format),
    Target("sock-diag", mutated([MESSAGE, MEMINFO, MEMINFO + MESSAGE]), netlink),
)
