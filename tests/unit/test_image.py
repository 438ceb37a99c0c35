"""Compiled programs as bytes: map loads are found and renumbered, damage is recognised."""

from __future__ import annotations

import pytest
from instructions import instruction

from netbpf.kernel.image import MAGIC, Image, MapShape, map_references, pack, unpack, with_maps


def load_map(number: int, dst: int = 1) -> bytes:
    return instruction(0x18, dst, 1, 0, number) + instruction(0)


MOVE = instruction(0xB7, 0, 0, 0, 3)  # r0 = 3
EXIT = instruction(0x95)
# A 64-bit number whose second half looks like a load of a map.
NUMBER = instruction(0x18, 1, 0, 0, 5) + instruction(0x18, 1, 1, 0, 6)
CODE = MOVE + load_map(7) + NUMBER + load_map(8, 3) + load_map(7) + EXIT
IMAGE = Image(
    (MapShape("events", 27, 0, 0, 4096, 0), MapShape("lives", 1, 8, 96, 8192, 1)),
    {"state_tp": CODE, "empty": b"", "accept_tp": MOVE + EXIT},
)


def test_loads_of_maps_are_found_and_nothing_else():
    assert list(map_references(CODE)) == [(12, 7), (44, 8), (60, 7)]


def test_renumbering_changes_the_numbers_of_maps_only():
    changed = with_maps(CODE, {7: 123456, 8: 0})
    assert changed == MOVE + load_map(123456) + NUMBER + load_map(0, 3) + load_map(123456) + EXIT
    assert with_maps(changed, {123456: 7, 0: 8}) == CODE


def test_a_map_that_nobody_knows_is_an_error_and_no_program():
    with pytest.raises(KeyError):
        with_maps(CODE, {7: 1})


def test_an_image_comes_back_as_it_was():
    found = unpack(pack(IMAGE))
    assert found == IMAGE
    assert found and list(found.programs) == list(IMAGE.programs)
    assert unpack(pack(Image((), {}))) == Image((), {})


def test_the_same_image_gives_the_same_bytes():
    assert pack(IMAGE) == pack(IMAGE) and pack(IMAGE).startswith(MAGIC)


def test_any_changed_bit_is_recognised():
    data = pack(IMAGE)
    for place in range(len(data)):
        for bit in (1, 0x80):
            damaged = bytearray(data)
            damaged[place] ^= bit
            assert unpack(bytes(damaged)) is None, place


@pytest.mark.parametrize("length", [0, 1, 8, 39, 40, 41, 44, 100, -1])
def test_a_file_that_ends_early_is_recognised(length):
    assert unpack(pack(IMAGE)[:length]) is None


def test_bytes_at_the_end_are_recognised():
    assert unpack(pack(IMAGE) + b"\0") is None


def test_another_format_is_not_read():
    other = MAGIC.replace(b"\x01", b"\x02")
    assert unpack(pack(IMAGE).replace(MAGIC, other)) is None
