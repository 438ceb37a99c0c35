"""Generate a small, bounded amount of loopback traffic for the demonstration.

Three child processes generate it and exit with their parent. `demo-serve` answers requests.
`demo-ask` requests answers of several sizes, sends small writes, connects to a closed port, sends
UDP datagrams (some to a closed port) and looks up names. `demo-full` overflows the accept queue of
a listener, in a network namespace of its own so that the counters of others do not change. Only
the lookup of a nonexistent name (RFC 2606: .invalid) may leave the machine.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Callable

_SIZES = (211, 4_093, 65_521, 1_048_573)  # bytes per answer
_PAUSE = 0.05  # seconds between rounds
_MAX_SECONDS = 120  # children exit after this in any case
_TIMEOUT = 2.0
_ROUNDS = 10  # requests per connection in small writes: 40 ms each, due to Nagle and delayed ACKs
_NEW_NETWORK = 0x40000000  # CLONE_NEWNET, include/uapi/linux/sched.h
_SET_FLAGS, _UP = 0x8914, 1  # SIOCSIFFLAGS, IFF_UP


@contextlib.contextmanager
def flowing() -> Iterator[None]:
    """Generate traffic for the duration of the block."""
    listeners = list(_listeners())
    ports = [listener.getsockname() for listener in listeners]
    children: list[int] = []
    try:
        children.append(_fork("demo-serve", lambda: _serve(listeners)))
        children.append(_fork("demo-ask", lambda: _ask(ports)))
        children.append(_fork("demo-full", _overflow))
        for listener in listeners:
            listener.close()
        yield
    finally:
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        for child in children:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(child, 0)


def _listeners() -> Iterator[socket.socket]:
    yield socket.create_server(("127.0.0.1", 0))
    with contextlib.suppress(OSError):  # no IPv6 here
        yield socket.create_server(("::1", 0), family=socket.AF_INET6)


def _fork(name: str, work: Callable[[], None]) -> int:
    parent = os.getpid()
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    try:
        # The parent handles Ctrl-C and then kills its children.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        Path("/proc/self/comm").write_text(name)
        threading.Thread(target=_guard, args=(parent,), daemon=True).start()
        work()
    finally:
        os._exit(0)


def _guard(parent: int) -> None:
    """Exit when the parent has exited or _MAX_SECONDS have passed."""
    end = time.monotonic() + _MAX_SECONDS
    while os.getppid() == parent and time.monotonic() < end:
        time.sleep(0.2)
    os._exit(0)


# --- the server -----------------------------------------------------------------------------------


def _serve(listeners: Sequence[socket.socket]) -> None:
    threads = [threading.Thread(target=_accept, args=(one,), daemon=True) for one in listeners]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _accept(listener: socket.socket) -> None:
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=_answer, args=(connection,), daemon=True).start()


def _answer(connection: socket.socket) -> None:
    """Answer one "GET SIZE" with SIZE bytes, or each other pair of lines with a line."""
    connection.settimeout(_TIMEOUT)
    with connection, contextlib.suppress(OSError), connection.makefile("rb") as lines:
        for line in lines:
            if line.startswith(b"GET "):
                connection.sendall(b"x" * int(line[4:]))
                return
            if lines.readline():
                connection.sendall(b"well\n")


# --- the client -----------------------------------------------------------------------------------


def _ask(addresses: Sequence[tuple[str, int]]) -> None:
    # A lookup may block for long without a name server, so it has its own thread.
    threading.Thread(target=_look_up, daemon=True).start()
    threading.Thread(target=_talk, args=(addresses[0],), daemon=True).start()
    closed = _closed_port()
    while True:
        for address in addresses:
            for size in _SIZES:
                with contextlib.suppress(OSError):
                    _fetch(address[:2], size)
                time.sleep(_PAUSE)
        with contextlib.suppress(OSError):
            _fetch(("127.0.0.1", closed), 1)  # refused
        _datagrams(closed)


def _fetch(address: tuple[str, int], size: int) -> None:
    with _connected(address) as connection:
        connection.sendall(b"GET %d\n" % size)
        while connection.recv(1 << 16):
            pass


def _connected(address: tuple[str, int]) -> socket.socket:
    # create_connection() would call getaddrinfo() even for a numeric address.
    connection = socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET)
    connection.settimeout(_TIMEOUT)
    try:
        connection.connect(address)
    except OSError:
        connection.close()
        raise
    return connection


def _talk(address: tuple[str, int]) -> None:
    """Send each request in two small writes, the pattern that Nagle's algorithm delays."""
    while True:
        with contextlib.suppress(OSError), _connected(address) as connection:
            for _ in range(_ROUNDS):
                connection.sendall(b"head\n")
                connection.sendall(b"body\n")
                connection.recv(16)
        time.sleep(_PAUSE)


def _datagrams(closed: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for size in (31, 503, 1_399):
                sender.sendto(b"x" * size, receiver.getsockname())
                receiver.recv(size)
                sender.sendto(b"x" * size, ("127.0.0.1", closed))


def _closed_port() -> int:
    """Return a port without listener: bind to a free port and close the socket again."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _look_up() -> None:
    while True:
        for name in ("localhost", "netbpf-demo.invalid"):
            with contextlib.suppress(OSError):
                socket.getaddrinfo(name, 80)
        time.sleep(10 * _PAUSE)


# --- the listener that does not accept ------------------------------------------------------------


def _overflow() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_NEW_NETWORK):
        return  # not permitted: do without this part
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, _SET_FLAGS, struct.pack("=16sh14x", b"lo", _UP))
    while True:
        with contextlib.ExitStack() as stack:
            listener = stack.enter_context(socket.socket())
            listener.bind(("127.0.0.1", 0))
            listener.listen(1)
            for _ in range(5):
                client = stack.enter_context(socket.socket())
                client.setblocking(False)
                client.connect_ex(listener.getsockname())
            # The queue holds two; the other SYNs are retransmitted after a second.
            time.sleep(1.2)
