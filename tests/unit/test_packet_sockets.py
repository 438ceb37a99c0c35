"""Parsing of sock_diag's messages about packet sockets."""

import struct

from netbpf.kernel.netlink import messages
from netbpf.kernel.packet_sockets import _drops


def attribute(kind, body):
    return struct.pack("=HH", 4 + len(body), kind) + body.ljust(-(-len(body) // 4) * 4, b"\0")


def message(kind, body):
    return struct.pack("=IHHII", 16 + len(body), kind, 2, 1, 0) + body


def test_drops_are_the_ninth_number_of_a_sockets_memory():
    head = struct.pack("=BBHIII", 17, 3, 3, 4711, 1, 0)
    body = head + attribute(5, b"\1\2\3") + attribute(6, struct.pack("=9I", *range(1, 10)))
    found = list(messages(message(20, body) + message(3, bytes(4))))
    assert [kind for kind, _ in found] == [20, 3]
    assert dict(_drops(found[0][1])) == {"Packet.4711.drops": 9}


def test_message_without_memory_or_with_damage_is_ignored():
    head = struct.pack("=BBHIII", 17, 3, 3, 4711, 1, 0)
    assert dict(_drops(head)) == {}
    assert dict(_drops(head + attribute(6, bytes(32)))) == {}  # a kernel without a drop counter
    assert dict(_drops(head + struct.pack("=HH", 0, 6))) == {}
    assert list(messages(struct.pack("=IHHII", 0, 20, 0, 0, 0))) == [(20, b"")]
