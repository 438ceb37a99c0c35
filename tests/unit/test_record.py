"""Records: C layout, decoder and display order follow from one declaration."""

from __future__ import annotations

import ctypes
import struct

import pytest

from netbpf.declare.columns import Addr, Comm, Count, Duration, Pid, Port, Text, Uid
from netbpf.declare.record import Event, Record, copied, key, text_columns


class Sample(Event):
    """Columns in an order that C would fill with holes."""

    cstruct = "sample"

    pid = Pid("process")
    comm = Comm("name", wide=True)
    lport = Port("port")
    tx = Count("bytes")
    laddr = Addr("address")
    span_us = Duration("time", text=False)
    uid = Uid("user")
    host = Text("made in user space", ctype="")


class CSample(ctypes.Structure):
    """The same struct as laid out by a C compiler."""

    _fields_ = (
        ("time", ctypes.c_uint64),
        ("tx", ctypes.c_uint64),
        ("span_us", ctypes.c_uint64),
        ("pid", ctypes.c_uint32),
        ("uid", ctypes.c_uint32),
        ("lport", ctypes.c_uint16),
        ("comm", ctypes.c_char * 16),
        ("laddr", ctypes.c_uint8 * 16),
        ("pad", ctypes.c_uint8 * 6),
    )


class SampleKey(Record):
    """A key with padding at its end."""

    inode = Count("inode", ctype="u32")
    point = Count("point", ctype="u8")


def test_members_are_sorted_by_alignment_and_declaration():
    names = [name for name, _ in CSample._fields_[:-1]]
    assert [column.name for column in Sample.members] == names


def test_offsets_are_those_of_the_compiler():
    at = 0
    for column in Sample.members:
        assert at == getattr(CSample, column.name).offset, column.name
        at += column.size
    assert Sample.size == ctypes.sizeof(CSample)


def test_padding_at_the_end_belongs_to_the_record():
    assert SampleKey.size == 8
    assert SampleKey.layout().size == 8
    assert SampleKey.layout().unpack(struct.pack("=IB3x", 7, 2)) == (7, 2)


def test_columns_are_shown_in_declared_order_without_the_time():
    names = ["pid", "comm", "lport", "tx", "laddr", "span_us", "uid", "host"]
    assert [column.name for column in Sample.columns] == names


def test_c_struct_is_decoded():
    # GIVEN the bytes that a program would write
    written = CSample(99, 5, 12_345_678, 41, 1000, 8080, b"curl")
    written.laddr[10:16] = (255, 255, 10, 0, 0, 1)
    # WHEN it is unpacked and decoded
    values = Sample.decoder()(Sample.layout().unpack(bytes(written)))
    # THEN every value is there, in display order, with null for unknown values
    assert values == {
        "pid": 41,
        "comm": "curl",
        "lport": 8080,
        "tx": 5,
        "laddr": "10.0.0.1",
        "span_us": 12_345,
        "uid": 1000,
        "host": None,
    }
    assert list(values) == [column.name for column in Sample.columns]


def test_unknown_values_are_none():
    written = CSample(99, 0, 2**64 - 1, 0, 2**32 - 1, 0, b"")
    values = Sample.decoder()(Sample.layout().unpack(bytes(written)))
    assert {name for name, value in values.items() if value is None} == {
        "pid", "comm", "span_us", "uid", "host",
    }  # fmt: skip


def test_decoding_does_not_change_the_next_one():
    decode, layout = Sample.decoder(), Sample.layout()
    first = layout.unpack(bytes(CSample(1, 2, 3000, 4, 5, 6, b"a")))
    second = layout.unpack(bytes(CSample(1, 2, 4000, 4, 5, 6, b"b")))
    assert decode(first)["span_us"] == 3
    assert decode(second)["span_us"] == 4
    assert decode(first)["comm"] == "a"


def test_a_record_without_columns_is_empty():
    class Nothing(Record):
        pass

    assert Nothing.size == 0
    assert Nothing.decoder()(Nothing.layout().unpack(b"")) == {}


def test_two_events_have_each_their_own_columns():
    class Other(Event):
        pid = Pid("process")

    assert [column.name for column in Other.members] == ["time", "pid"]
    assert len(Sample.members) == 8


@pytest.mark.parametrize("wide", [False, True])
def test_text_has_wide_columns_only_with_wide(wide):
    shown = [column.name for column in text_columns(Sample.columns, wide)]
    assert ("comm" in shown) is wide
    assert "span_us" not in shown


def test_a_key_has_copies_of_columns():
    made = key("sample_key", **copied(Sample, "lport pid"), other=Count("other"))
    assert [(c.name, c.c_member) for c in made.members] == [
        ("other", "u64 other"), ("pid", "u32 pid"), ("lport", "u16 lport"),
    ]  # fmt: skip
    assert made.cstruct == "sample_key"
    assert all(column is not vars(Sample).get(column.name) for column in made.columns)
