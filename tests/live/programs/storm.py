"""Make a known number of things happen: storm.py WHAT NUMBER [ADDRESS PORT]; prints how many did.

connections  over loopback, each closed by the client, then by the server
resets       the same, but the client resets them
connects     begun and left open for SECONDS (the port), to where nothing answers
datagrams    sent
lookups      of names that are in /etc/hosts
"""

from __future__ import annotations

import contextlib
import ctypes
import socket
import struct
import sys
import time

PR_SET_NAME = 15
PORTS = 10_000  # of each address of the server, far below what there are


def connections(number: int, reset: bool = False) -> int:
    listeners = []
    for last in range(1, 2 + number // PORTS):
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listener.bind((f"127.0.0.{last}", 4711))
        listener.listen(8)
        listeners.append(listener)
    for made in range(number):
        listener = listeners[made % len(listeners)]
        client = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        client.connect(listener.getsockname())
        server = listener.accept()[0]
        if reset:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("=ii", 1, 0))
        client.close()
        with contextlib.suppress(ConnectionResetError):
            server.recv(1)
        server.close()
    return number


def resets(number: int) -> int:
    return connections(number, reset=True)


def connects(number: int, address: str, port: int) -> int:
    opened = []
    for _ in range(number):
        client = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        client.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            client.connect((address, port))
        opened.append(client)
    time.sleep(1.5)  # the second SYN of each leaves after 1 s, a third one after 3 s
    return number


def datagrams(number: int, address: str, port: int) -> int:
    sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    for _ in range(number):
        sender.sendto(b"x", (address, port))
    return number


def lookups(number: int) -> int:
    for _ in range(number):
        socket.getaddrinfo("localhost", None, socket.AF_INET)
    return number


def main() -> None:
    ctypes.CDLL(None).prctl(PR_SET_NAME, b"nb-storm", 0, 0, 0)
    what, number, *where = sys.argv[1:]
    target = [where[0], int(where[1])] if where else []
    print(globals()[what](int(number), *target))


if __name__ == "__main__":
    main()
