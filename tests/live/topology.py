"""Network namespaces for tests: nothing outside of them changes, and all are removed."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import json
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import SLOW

_CLONE_NEWNET = 0x40000000

_numbers = itertools.count()


def _unique(prefix: str) -> str:
    # A device's name has at most 15 bytes, and most columns have a width of ten: with hexadecimal
    # digits, two of the prefix, five of a pid below a million, an x and two of a number fit.
    return f"{prefix}{os.getpid():x}x{next(_numbers):x}"


def must(*args: object, **options: Any) -> str:
    """Run a command, which must succeed, and return its output."""
    options = {"text": True, "timeout": 30 * SLOW, **options}
    done = subprocess.run([str(word) for word in args], capture_output=True, check=False, **options)
    assert done.returncode == 0, f"{' '.join(map(str, args))}: {done.stderr}"
    return str(done.stdout)


@dataclass(frozen=True)
class Host:
    """A network namespace with one device to the outside; `device` is lo if there is none."""

    namespace: str
    device: str = "lo"
    ipv4: str = "127.0.0.1"
    ipv6: str = "::1"

    @property
    def inode(self) -> int:
        """The inode number of the namespace."""
        return os.stat(f"/run/netns/{self.namespace}").st_ino

    def inside(self, *args: object) -> list[str]:
        """Return the command line that runs a program in the namespace, under its own pid."""
        return ["nsenter", f"--net=/run/netns/{self.namespace}", *map(str, args)]

    def run(self, *args: object, **options: Any) -> str:
        """Run a program in the namespace, which must succeed, and return its output."""
        return must(*self.inside(*args), **options)

    def sysctl(self, **values: object) -> None:
        """Set kernel parameters of the namespace; `__` in a name stands for a dot."""
        args = [f"{name.replace('__', '.')}={value}" for name, value in values.items()]
        self.run("sysctl", "-qw", *args)

    def snmp(self) -> dict[str, int]:
        """Return the namespace's protocol counters, such as {"TcpActiveOpens": 23}."""
        text = self.run("cat", "/proc/self/net/snmp", "/proc/self/net/netstat")
        lines = text.splitlines()
        counters = {}
        for names, values in zip(lines[::2], lines[1::2]):
            group, _, words = names.partition(":")
            pairs = zip(words.split(), values.partition(":")[2].split())
            counters.update({group + name: int(value) for name, value in pairs})
        return counters

    def device_counters(self, device: str = "") -> dict[str, int]:
        """Return the counters of a device: {rx_bytes, rx_packets, tx_bytes, tx_packets}."""
        for line in self.run("cat", "/proc/self/net/dev").splitlines():
            name, _, values = line.partition(":")
            if name.strip() == (device or self.device):
                v = [int(value) for value in values.split()]
                return {"rx_bytes": v[0], "rx_packets": v[1], "tx_bytes": v[8], "tx_packets": v[9]}
        raise AssertionError(f"no device {device or self.device}")

    def socket(self, family: int, kind: int, protocol: int = 0) -> socket.socket:
        """Return a socket of the namespace, which a thread opens there."""
        sockets: list[socket.socket] = []

        def make() -> None:
            with open(f"/run/netns/{self.namespace}") as handle:
                if ctypes.CDLL(None).setns(handle.fileno(), _CLONE_NEWNET) == 0:
                    sockets.append(socket.socket(family, kind, protocol))

        thread = threading.Thread(target=make)
        thread.start()
        thread.join()
        assert sockets, f"cannot open a socket in {self.namespace}"
        return sockets[0]

    @contextlib.contextmanager
    def dropping(self, *rules: str) -> Iterator[Drops]:
        """Drop incoming packets that match one of these nftables expressions, within the block."""
        table = _unique("netbpf")
        body = ["type filter hook input priority 0", *(f"{rule} counter drop" for rule in rules)]
        chain = "\n".join(["chain incoming {", *body, "}"])
        self.run("nft", "-f", "-", input=f"table inet {table} {{\n{chain}\n}}\n")
        drops = Drops(self, table)
        try:
            yield drops
        finally:
            drops.end()


class Drops:
    """A rule that drops packets, with its counter."""

    def __init__(self, host: Host, table: str) -> None:
        self._host = host
        self._table = table
        self._active = True

    def count(self) -> int:
        """Return the number of packets dropped so far."""
        words = self._host.run("nft", "list", "table", "inet", self._table).split()
        return sum(int(words[i + 1]) for i, word in enumerate(words) if word == "packets")

    def end(self) -> None:
        """Stop dropping packets."""
        if self._active:
            self._host.run("nft", "delete", "table", "inet", self._table)
            self._active = False


@contextlib.contextmanager
def namespace() -> Iterator[str]:
    """Create a network namespace with lo up; yield its name."""
    name = _unique("netbpf-")
    must("ip", "netns", "add", name)
    try:
        must("ip", "-n", name, "link", "set", "lo", "up")
        yield name
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=False)


@contextlib.contextmanager
def one_host() -> Iterator[Host]:
    """Create a namespace with only lo."""
    with namespace() as name:
        yield Host(name)


@contextlib.contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Create two namespaces connected by a veth pair, each with an IPv4 and an IPv6 address."""
    with namespace() as first, namespace() as second:
        left = Host(first, _unique("nl"), "10.91.0.1", "fd00:91::1")
        right = Host(second, _unique("nr"), "10.91.0.2", "fd00:91::2")
        peer = ["peer", "name", right.device, "netns", second]
        must("ip", "-n", first, "link", "add", left.device, "type", "veth", *peer)
        for host in (left, right):
            _configure(host)
        for host, other in ((left, right), (right, left)):
            _introduce(host, other)
        yield left, right


def _configure(host: Host) -> None:
    # Only packets of tests may pass: no router solicitations (type 133), and no reports of the
    # multicast group of an IPv6 address (143).
    silence = "chain outgoing {\ntype filter hook output priority 0\nicmpv6 type {133, 143} drop\n}"
    host.run("nft", "-f", "-", input=f"table inet netbpf-silence {{\n{silence}\n}}\n")
    ip = ["ip", "-n", host.namespace]
    must(*ip, "link", "set", host.device, "addrgenmode", "none")
    must(*ip, "address", "add", f"{host.ipv4}/24", "dev", host.device)
    must(*ip, "address", "add", f"{host.ipv6}/64", "dev", host.device, "nodad")
    must(*ip, "link", "set", host.device, "up")


def _introduce(host: Host, other: Host) -> None:
    # So that no neighbour discovery is needed.
    (link,) = json.loads(must("ip", "-n", other.namespace, "-j", "link", "show", other.device))
    for address in (other.ipv4, other.ipv6):
        args = ["lladdr", link["address"], "dev", host.device, "nud", "permanent"]
        must("ip", "-n", host.namespace, "neighbour", "replace", address, *args)


def cgroup2_mount() -> Path:
    """Return the mount point of the version 2 cgroup hierarchy."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, directory, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(directory)
    raise AssertionError("no cgroup2 mounted: mount -t cgroup2 none /sys/fs/cgroup/unified")


def own_cgroup(pid: int) -> Path:
    """Return the directory of a process's cgroup of version 2."""
    lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    (path,) = [line.split(":", 2)[2] for line in lines if line.startswith("0:")]
    return cgroup2_mount() / path.lstrip("/")


def cgroup_of(pid: int) -> int:
    """Return the id of a process's cgroup of version 2, the inode of its directory."""
    return own_cgroup(pid).stat().st_ino


@contextlib.contextmanager
def cgroup(*names: str) -> Iterator[Path]:
    """Create a cgroup, and cgroups `names` nested below it; yield the lowest."""
    path = cgroup2_mount() / _unique("netbpf-")
    made = []
    try:
        for name in ("", *names):
            path = path / name
            path.mkdir()
            made.append(path)
        yield path
    finally:
        for path in reversed(made):
            path.rmdir()
