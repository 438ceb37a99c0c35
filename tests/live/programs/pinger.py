"""Sends echo requests and reads replies with raw sockets: see tests/live/pings.py.

usage: pinger.py COMM UID

Each line on stdin is a command, answered by "done" on stdout: `ping ADDRESS IDENT FIRST NUMBER`
sends requests and reads the reply to each, `send` sends only, `read NUMBER` reads that many replies
with IPv4 that come to any process of the namespace.
"""

import ctypes
import os
import socket
import struct
import sys

PR_SET_NAME = 15
FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
PROTOCOLS = {4: socket.IPPROTO_ICMP, 6: socket.IPPROTO_ICMPV6}
ECHO, REPLY = {4: 8, 6: 128}, {4: 0, 6: 129}


def checksum(message):
    total = sum(struct.unpack(f"!{len(message) // 2}H", message))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF


def request(version, ident, seq):
    message = struct.pack("!BBHHH", ECHO[version], 0, 0, ident, seq)
    if version == 6:
        return message
    return message[:2] + struct.pack("!H", checksum(message)) + message[4:]


def read_reply(version, sock):
    """Return identifier and number of the next reply."""
    while True:
        message = sock.recv(65536)
        if version == 4:
            message = message[(message[0] & 15) * 4 :]
        if message[0] == REPLY[version]:
            return struct.unpack_from("!HH", message, 4)


def main():
    ctypes.CDLL(None).prctl(PR_SET_NAME, sys.argv[1].encode(), 0, 0, 0)
    socks = {}
    for version, family in FAMILIES.items():
        socks[version] = socket.socket(family, socket.SOCK_RAW, PROTOCOLS[version])
        socks[version].settimeout(10)
    os.setuid(int(sys.argv[2]))
    for line in sys.stdin:
        word, *rest = line.split()
        if word in ("ping", "send"):
            version = 6 if ":" in rest[0] else 4
            ident, first, number = map(int, rest[1:])
            for seq in range(first, first + number):
                socks[version].sendto(request(version, ident, seq), (rest[0], 0))
                while word == "ping" and read_reply(version, socks[version]) != (ident, seq):
                    pass
        elif word == "read":
            for _ in range(int(rest[0])):
                read_reply(4, socks[4])
        print("done", flush=True)


main()
