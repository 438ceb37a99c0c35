"""Hold open TCP connections over loopback until standard input ends: sockets.py NUMBER ADDRESS."""

from __future__ import annotations

import resource
import socket
import struct
import sys

_PORT = 4712
_RESET = struct.pack("=ii", 1, 0)  # linger 0: leave no TIME_WAIT


def main(number: int, address: str) -> None:
    """Open them, say "ready", and wait."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    listener = socket.create_server((address, _PORT), backlog=64)
    ends = []
    for _ in range(number):
        client = socket.create_connection((address, _PORT))
        ends += [client, listener.accept()[0]]
    print("ready", flush=True)
    sys.stdin.read()
    for end in ends:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        end.close()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
