"""Answer name lookups in a network namespace of its own, with known delays and known failures.

`with resolver.namespace() as ns:` makes a network namespace with a DNS server on 127.0.0.1:53 in
it; `ns.run([...])` and `ns.popen([...])` start programs that use it: a private mount namespace
shows them a resolv.conf (one try of 2 s), hosts and nsswitch.conf of its own. Needs root and the
programs `ip`, `unshare` and `mount`. Nothing outside of the namespace changes.

Names: known ones (`KNOWN`), `slow-NNN.test` (answers after NNN ms), `tenth-NNN.test` (likewise, but
every tenth lookup only, the others at once), `fail.test` (SERVFAIL),
`never.test` (no answer), `empty.test` (exists, no address: NOERROR without answers), PTR of
`REVERSE`; everything else is NXDOMAIN.
"""

from __future__ import annotations

import contextlib
import ctypes
import ipaddress
import os
import re
import shlex
import socket
import struct
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

KNOWN = {
    "one.test": ("192.0.2.1", "2001:db8::1"),
    "four.test": ("192.0.2.4", None),
    "six.test": (None, "2001:db8::6"),
    "local.test": ("127.0.0.1", None),
}
REVERSE = {"192.0.2.1": "one.test", "2001:db8::1": "one.test"}
SLOW = re.compile(r"(slow|tenth)-(\d+)\.test")

_CLONE_NEWNET = 0x40000000
_A, _PTR, _AAAA = 1, 12, 28
_SERVFAIL, _NXDOMAIN = 2, 3
_FILES = {
    "resolv.conf": "nameserver 127.0.0.1\noptions timeout:2 attempts:1\n",
    "hosts": "127.0.0.1 localhost\n",
    "nsswitch.conf": "hosts: files dns\n",
}


class Server:
    """A DNS server over UDP; each slow answer waits in a thread of its own."""

    def __init__(self, sock: socket.socket) -> None:
        self._queries: list[tuple[str, int]] = []
        self._socket = sock
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self) -> None:
        """Stop and close the socket."""
        # A blocked recvfrom does not end when its socket is closed; shutdown wakes it.
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(timeout=2)
        self._socket.close()

    def lookups(self, name: str) -> int:
        """Return how many lookups have come that far: each asks for an IPv4 address once."""
        return self._queries.count((name, _A))

    def _serve(self) -> None:
        while True:
            try:
                data, peer = self._socket.recvfrom(4096)
            except OSError:
                return
            if not data:
                return
            name, kind = question(data)
            self._queries.append((name, kind))
            slow = SLOW.fullmatch(name)
            waits = slow and (slow[1] == "slow" or self.lookups(name) % 10 == 0)
            delay = int(slow[2]) / 1000 if slow and waits else 0.0
            if name != "never.test":
                threading.Timer(delay, self._send, (answer(data, name, kind), peer)).start()

    def _send(self, data: bytes, peer: Any) -> None:
        with contextlib.suppress(OSError):
            self._socket.sendto(data, peer)


def question(data: bytes) -> tuple[str, int]:
    """Return the name (lower case, no final dot) and type that a DNS query asks for."""
    labels, at = [], 12
    while data[at]:
        labels.append(data[at + 1 : at + 1 + data[at]].decode("latin-1"))
        at += 1 + data[at]
    return ".".join(labels).lower(), struct.unpack_from("!H", data, at + 1)[0]


def answer(query: bytes, name: str, kind: int) -> bytes:
    """Return the reply to a query, by the rules in this module's docstring."""
    asked = query[12 : query.index(b"\0", 12) + 5]
    data = _record(name, kind)
    exists = data is not None or name in KNOWN or name == "empty.test" or SLOW.fullmatch(name)
    code = _SERVFAIL if name == "fail.test" else 0 if exists else _NXDOMAIN
    head = query[:2] + struct.pack("!5H", 0x8180 | code, 1, 1 if data else 0, 0, 0)
    if not data:
        return head + asked
    return head + asked + struct.pack("!HHHIH", 0xC00C, kind, 1, 1, len(data)) + data


def _record(name: str, kind: int) -> bytes | None:
    if kind == _PTR:
        for address, target in REVERSE.items():
            if ipaddress.ip_address(address).reverse_pointer == name:
                labels = target.encode().split(b".")
                return b"".join(bytes([len(part)]) + part for part in labels) + b"\0"
    four, six = ("192.0.2.9", None) if SLOW.fullmatch(name) else KNOWN.get(name, (None, None))
    address = {_A: four, _AAAA: six}.get(kind)
    return ipaddress.ip_address(address).packed if address else None


class Namespace:
    """A network namespace whose programs ask `server`."""

    def __init__(self, name: str, server: Server, files: Path) -> None:
        self.name = name
        self.server = server
        self._files = files

    def command(self, command: list[str]) -> list[str]:
        """Return the command line that runs `command` inside; its pid is the command's own."""
        mounts = "; ".join(
            f"mount --bind {shlex.quote(str(self._files / name))} /etc/{name}" for name in _FILES
        )
        script = f"set -e; mount --make-rprivate /; {mounts}; exec " + shlex.join(command)
        network = f"--net=/run/netns/{self.name}"
        return ["nsenter", network, "unshare", "--mount", "sh", "-c", script]

    def run(self, command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a program inside and return its output; 30 s at most."""
        options = {"capture_output": True, "text": True, "timeout": 30, **options}
        return subprocess.run(self.command(command), check=False, **options)

    def popen(self, command: list[str], **options: Any) -> subprocess.Popen[str]:
        """Start a program inside with pipes to its stdin and stdout."""
        options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, **options}
        return subprocess.Popen(self.command(command), **options)


def _socket_inside(name: str) -> socket.socket:
    """Open the server's socket in the namespace: a thread of its own goes there and ends."""
    made: list[socket.socket] = []

    def make() -> None:
        handle = os.open(f"/run/netns/{name}", os.O_RDONLY | os.O_CLOEXEC)
        if ctypes.CDLL(None, use_errno=True).setns(handle, _CLONE_NEWNET) == 0:
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            sock.bind(("127.0.0.1", 53))
            made.append(sock)
        os.close(handle)

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    if not made:
        raise OSError("cannot open a socket in the network namespace")
    return made[0]


@contextlib.contextmanager
def namespace(name: str = "") -> Iterator[Namespace]:
    """Make the namespace, serve in it, and remove it at the end."""
    name = name or f"netbpf-dns-{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
        with tempfile.TemporaryDirectory() as directory:
            os.chmod(directory, 0o755)
            for file, text in _FILES.items():
                Path(directory, file).write_text(text)
            server = Server(_socket_inside(name))
            server.start()
            try:
                yield Namespace(name, server, Path(directory))
            finally:
                server.stop()
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=False)
