"""Columns: every class converts its raw C value into a decoded value and into text."""

from __future__ import annotations

import os
import random
import socket
import struct

import pytest

from netbpf.declare import columns, names
from netbpf.declare.columns import (
    Addr,
    Bytes,
    Cgroup,
    Column,
    Comm,
    Container,
    Count,
    Duration,
    Enum,
    Errno,
    Family,
    Gauge,
    Latest,
    Micros,
    Netns,
    Owner,
    Pid,
    Port,
    TcpState,
    Text,
    Uid,
)
from netbpf.declare.names import Cut, HostName, LookupResult

U64_MAX, U32_MAX = 2**64 - 1, 2**32 - 1


def mapped(ipv4: str) -> bytes:
    return b"\0" * 10 + b"\xff\xff" + socket.inet_aton(ipv4)


def value_of(column: Column, raw: object) -> object:
    convert = column.converter()
    return convert(raw) if convert else raw


CASES = [
    # column, raw value, machine value, text
    (Column("x"), 7, 7, "7"),
    (Column("x", null=0), 0, None, "-"),
    (Column("x", null=0), 1, 1, "1"),
    (Count("x"), 0, 0, "0"),
    (Count("x"), U64_MAX, U64_MAX, str(U64_MAX)),
    (Gauge("x"), 7, 7, "7"),
    (Latest("x", "read_ns"), 7, 7, "7"),
    (Bytes("x"), 0, 0, "0.00"),
    (Bytes("x"), 1536, 1536, "1.50"),
    (Bytes("x"), 1258291, 1258291, "1229"),
    (Duration("x"), 0, 0, "0.00"),
    (Duration("x"), 999, 0, "0.00"),
    (Duration("x"), 12_345_678, 12_345, "12.35"),
    (Duration("x"), U64_MAX, None, "-"),
    (Micros("x"), 0, None, "-"),
    (Micros("x"), 41, 41, "41"),
    (Pid("x"), 0, None, "-"),
    (Pid("x"), 4194304, 4194304, "4194304"),
    (Uid("x"), 0, 0, "0"),
    (Uid("x"), U32_MAX, None, "-"),
    (Comm("x"), b"curl\0garbage!!!", "curl", "curl"),
    (Comm("x"), b"\0" * 16, None, "-"),
    (Comm("x"), b"sixteen bytes ok", "sixteen bytes ok", "sixteen bytes ok"),
    (Cut("x", ctype="char[8]"), b"http\0\0\0\0", "http", "http"),
    (HostName("x"), b"example.com".ljust(256, b"\0"), "example.com", "example.com"),
    (HostName("x"), mapped("10.0.0.1").ljust(255, b"\0") + b"\1", "10.0.0.1", "10.0.0.1"),
    (HostName("x"), bytes(256), None, "-"),
    (Enum("x", {0: None, 1: "one"}), 0, None, "-"),
    (Enum("x", {0: None, 1: "one"}), 1, "one", "one"),
    (Enum("x", {0: None, 1: "one"}), 9, "9", "9"),
    (Owner("x"), 0, "unknown", "unknown"),
    (Owner("x"), 1, "exact", "exact"),
    (Owner("x"), 2, "snapshot", "snapshot"),
    (Family("x"), 0, None, "-"),
    (Family("x"), socket.AF_UNIX, "unix", "unix"),
    (Family("x"), socket.AF_INET, "ipv4", "ipv4"),
    (Family("x"), socket.AF_INET6, "ipv6", "ipv6"),
    (Family("x"), 40, "40", "40"),
    (Addr("x"), mapped("127.0.0.1"), "127.0.0.1", "127.0.0.1"),
    (Addr("x"), mapped("0.0.0.0"), "0.0.0.0", "0.0.0.0"),
    (Addr("x"), bytes(16), "::", "::"),
    (Addr("x"), bytes(15) + b"\1", "::1", "::1"),
    (Port("x"), 0, 0, "0"),
    (Port("x"), 65535, 65535, "65535"),
    (Errno("x"), 0, None, "-"),
    (Errno("x"), 111, "ECONNREFUSED", os.strerror(111)),
    (Errno("x"), 4095, "4095", "4095"),
    (TcpState("x"), 1, "ESTABLISHED", "ESTABLISHED"),
    (TcpState("x"), 12, "NEW_SYN_RECV", "NEW_SYN_RECV"),
    (TcpState("x"), 99, "99", "99"),
    (Container("x"), "0123456789abcdef" * 4, "0123456789abcdef" * 4, "0123456789ab"),
    (Container("x"), None, None, "-"),
    (Netns("x"), 4026531840, 4026531840, "4026531840"),
    (Netns("x"), 0, None, "-"),
    (Cgroup("x"), 1, 1, "1"),
    (LookupResult("x"), 0, "OK", ""),
    (LookupResult("x"), -2, "EAI_NONAME", "no such name"),
    (LookupResult("x"), -99, "-99", "-99"),
    (LookupResult("x"), 1, None, "still waiting"),
    (LookupResult("x", none="-"), 1, None, "-"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("column", "raw", "value", "text"),
    CASES,
    ids=[f"{type(case[0]).__name__}-{case[1]!r:.40}" for case in CASES],
)
def test_raw_becomes_value_becomes_text(column, raw, value, text):
    assert value_of(column, raw) == value
    assert column.text(value) == text


def test_every_column_class_is_tested():
    classes = {
        c
        for module in (columns, names)
        for c in vars(module).values()
        if isinstance(c, type) and issubclass(c, Column)
    } - {Text}
    assert classes == {type(case[0]) for case in CASES}


HOSTILE = {
    "escape sequence": b"\x1b[2J\x1b]0;x\x07",
    "line break": b"a\nb\r\nc",
    "right to left override": "a\u202eb".encode(),
    "invisible characters": "a\u200b\u2066b\ufeff".encode(),
    "C1 control": "a\x9bb".encode(),
    "invalid UTF-8": b"a\xff\xfe\x80b",
    "encoded surrogate": b"\xed\xa0\x80",
    "cut character": "\u00e9".encode()[:1],
    "delete": b"\x7f",
    "line separator": "a\u2028b".encode(),
    "tag characters": "a\U000e0041".encode(),
}


@pytest.mark.parametrize("raw", HOSTILE.values(), ids=HOSTILE)
def test_untrusted_name_is_escaped_in_text(raw):
    # GIVEN a name with something that a terminal would obey or hide
    value = value_of(Comm("x"), raw.ljust(16, b"\0"))
    # THEN it is valid Unicode, and the terminal gets printable characters only
    assert value.encode("utf-8")
    assert Comm("x").text(value).isprintable()


def test_random_bytes_never_make_a_control_character():
    chance = random.Random(23)
    for _ in range(2000):
        raw = bytes(chance.randrange(256) for _ in range(16))
        value = value_of(Comm("x"), raw)
        assert Comm("x").text(value).isprintable()


@pytest.mark.parametrize("ctype", ["u64", "s64", "u32", "s32", "u16", "s16", "u8"])
def test_scalars_have_the_size_and_alignment_of_c(ctype):
    column = Column("x", ctype=ctype)
    assert column.size * 8 == int(ctype[1:])
    assert column.alignment == column.size
    assert struct.calcsize(column.format) == column.size


def test_arrays_of_bytes_have_their_length_and_no_alignment():
    column = Column("x", ctype="u8[16]")
    assert (column.size, column.alignment) == (16, 1)


def test_only_byte_arrays_are_supported():
    with pytest.raises(ValueError, match="u32"):
        Column("x", ctype="u32[4]")


def test_title_is_the_header_or_the_name():
    column = Bytes("x")
    column.name = "tx_bytes"
    assert column.title == "TX_BYTES"
    assert Bytes("x", header="TX_KB").title == "TX_KB"


@pytest.mark.parametrize("column", [case[0] for case in CASES], ids=lambda c: type(c).__name__)
def test_schema_allows_null_and_has_a_description(column):
    schema = column.schema()
    assert "null" in schema["type"]
    assert schema["description"] == "x"


def test_schema_of_an_enum_lists_its_strings():
    assert Owner("x").schema()["examples"] == ["exact", "listener", "snapshot", "unknown"]


@pytest.mark.parametrize(
    ("truncated", "text"),
    [(None, "abc"), ("host", "abc..."), ("host,service", "abc..."), ("service", "abc")],
)
def test_truncated_string_is_marked(truncated, text):
    column = HostName("x")
    column.name = "host"
    assert column.cell({"host": "abc", "truncated": truncated}) == text
