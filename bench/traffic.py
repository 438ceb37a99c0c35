"""Make a number of operations of one kind for each line read: WHAT NUMBER.

The answer is a line: CPU time of this process and wall time, in ns. Both ends of each connection
are in this process, so its CPU time holds what the kernel does for either, as loopback delivers in
the sender's context.

connections  short TCP connections, each closed by the client, then by the server
requests     64 bytes and an answer of 64 bytes, over a TCP connection that stays open
megabytes    sent over a TCP connection that stays open
datagrams    of 64 bytes, sent over UDP and read
lookups      of a name that is in /etc/hosts
"""

from __future__ import annotations

import ctypes
import socket
import sys
import time
from collections.abc import Callable

COMM = b"nb-traffic"
PORT = 4711
SMALL, CHUNK, MEGABYTE = 64, 1 << 16, 1 << 20
_PR_SET_NAME = 15
_LISTENERS = 200  # so that a port in TIME_WAIT is not needed again soon


class Traffic:
    """The sockets that operations use."""

    def __init__(self) -> None:
        """Open all sockets but those of `connections`."""
        self._listeners = [
            socket.create_server((f"127.0.1.{last}", PORT), backlog=8)
            for last in range(1, _LISTENERS + 1)
        ]
        self._next = 0
        self._client = socket.create_connection(self._listeners[0].getsockname())
        self._server = self._listeners[0].accept()[0]
        for end in (self._client, self._server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for buffer in (socket.SO_SNDBUF, socket.SO_RCVBUF):  # hold a whole chunk
                end.setsockopt(socket.SOL_SOCKET, buffer, MEGABYTE)
        self._receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._receiver.settimeout(5.0)  # for one that was lost
        self._receiver.bind(("127.0.1.1", PORT))
        self._sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._sender.connect(self._receiver.getsockname())

    def connections(self, number: int) -> None:
        """Open and close TCP connections."""
        for _ in range(number):
            listener = self._listeners[self._next % _LISTENERS]
            self._next += 1
            client = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            client.connect(listener.getsockname())
            server = listener.accept()[0]
            client.close()
            server.recv(1)
            server.close()

    def requests(self, number: int) -> None:
        """Send requests and answers over one connection."""
        message = bytes(SMALL)
        for _ in range(number):
            self._client.send(message)
            self._server.recv(SMALL)
            self._server.send(message)
            self._client.recv(SMALL)

    def megabytes(self, number: int) -> None:
        """Send megabytes over one connection."""
        chunk, buffer = bytes(CHUNK), bytearray(CHUNK)
        for _ in range(number * (MEGABYTE // CHUNK)):
            self._client.sendall(chunk)
            left = CHUNK
            while left:
                left -= self._server.recv_into(buffer, left)

    def datagrams(self, number: int) -> None:
        """Send datagrams and read them."""
        message = bytes(SMALL)
        for _ in range(number):
            self._sender.send(message)
            self._receiver.recv(SMALL)

    def lookups(self, number: int) -> None:
        """Look up a name."""
        for _ in range(number):
            socket.getaddrinfo("localhost", None, socket.AF_INET)


LOADS: dict[str, Callable[[Traffic, int], None]] = {
    "connections": Traffic.connections,
    "requests": Traffic.requests,
    "megabytes": Traffic.megabytes,
    "datagrams": Traffic.datagrams,
    "lookups": Traffic.lookups,
}


def main() -> None:
    """Answer each line of standard input."""
    ctypes.CDLL(None).prctl(_PR_SET_NAME, COMM, 0, 0, 0)
    traffic = Traffic()
    print("ready", flush=True)
    for line in sys.stdin:
        what, number = line.split()
        load = LOADS[what]
        cpu, wall = time.process_time_ns(), time.monotonic_ns()
        load(traffic, int(number))
        print(time.process_time_ns() - cpu, time.monotonic_ns() - wall, flush=True)


if __name__ == "__main__":
    main()
