"""Values: untrusted strings and addresses are converted to safe text."""

from __future__ import annotations

import random
import socket

from netbpf.declare.values import TCP_STATES, address, clean, escape


def test_harmless_names_stay_as_they_are():
    for name in ("nginx: worker", "caf\u00e9", "\u65e5\u672c", "a\\b"):
        assert escape(name) == name


def test_escape_makes_characters_visible():
    assert escape("a\x1b[1mb\n") == "a\\x1b[1mb\\n"
    assert escape("a\u202eb") == "a\\u202eb"


def test_clean_stops_at_the_nul_and_shows_undecodable_bytes():
    assert clean(b"ab\0cd") == "ab"
    assert clean(b"a\xffb") == "a\\xffb"


def test_address_agrees_with_the_c_library():
    chance = random.Random(29)
    for _ in range(500):
        raw = bytes(chance.choice((0, 0, 255, chance.randrange(256))) for _ in range(16))
        if not raw.startswith(b"\0" * 10 + b"\xff\xff"):
            assert address(raw) == socket.inet_ntop(socket.AF_INET6, raw)
        assert address(bytes(10) + b"\xff\xff" + raw[:4]) == socket.inet_ntoa(raw[:4])


def test_tcp_states_are_those_of_the_c_library():
    named = {number: name for number, name in TCP_STATES.items() if hasattr(socket, f"TCP_{name}")}
    for number, name in named.items():
        assert getattr(socket, f"TCP_{name}") == number
