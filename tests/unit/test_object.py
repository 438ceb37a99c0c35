"""Compiled programs as bytes: map loads are found and renumbered, damage is recognised."""

from __future__ import annotations

import hashlib
import json
import struct

import pytest
from instructions import instruction

from netbpf.bpf.object import MAGIC, BpfObject, MapSpec, map_references, pack, unpack, with_maps


def load_map(number: int, dst: int = 1) -> bytes:
    return instruction(0x18, dst, 1, 0, number) + instruction(0)


MOVE = instruction(0xB7, 0, 0, 0, 3)  # r0 = 3
EXIT = instruction(0x95)
# A 64-bit number whose second half looks like a load of a map.
NUMBER = instruction(0x18, 1, 0, 0, 5) + instruction(0x18, 1, 1, 0, 6)
CODE = MOVE + load_map(7) + NUMBER + load_map(8, 3) + load_map(7) + EXIT
IMAGE = BpfObject(
    (MapSpec("events", 27, 0, 0, 4096, 0), MapSpec("lives", 1, 8, 96, 8192, 1)),
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
    assert unpack(pack(BpfObject((), {}))) == BpfObject((), {})


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


def summed_up(described: object, codes: bytes = b"") -> bytes:
    """Return a file with a right checksum, whatever is in it."""
    text = described if isinstance(described, bytes) else json.dumps(described).encode()
    body = struct.pack("=I", len(text)) + text + codes
    return MAGIC + hashlib.sha256(body).digest() + body


MAP = ["events", 27, 0, 0, 4096, 0]


def saying(**changed: object) -> dict[str, object]:
    return {"maps": [MAP], "programs": {"f": 8}, "seal": "", **changed}


def test_what_is_summed_up_by_hand_is_read_if_it_is_right():
    assert unpack(summed_up(saying(), MOVE)) == BpfObject((MapSpec(*MAP),), {"f": MOVE})


@pytest.mark.parametrize(
    "described",
    [
        b"", b"\xff", b"{", b"[" * 60000, b"9" * 60000, b" " * 70000, b"NaN", 7, None, "maps",
        [], {}, {"maps": [], "programs": {}}, {**saying(), "more": 1},
        saying(maps=None), saying(maps={}), saying(maps="events"), saying(maps=[MAP[:5]]),
        saying(maps=[[*MAP, 1]]), saying(maps=[["events", -1, 0, 0, 1, 0]]), saying(maps=[[1] * 6]),
        saying(maps=[["events", 1 << 32, 0, 0, 1, 0]]), saying(maps=[["events", 27, "0", 0, 1, 0]]),
        saying(maps=[["events", 27, 0.5, 0, 1, 0]]), saying(maps=[["events", True, 0, 0, 1, 0]]),
        saying(maps=[{str(number): 0 for number in range(6)}]), saying(maps=[None]),
        saying(programs=None), saying(programs=[]), saying(programs={"f": "8"}),
        saying(programs={"f": -8}), saying(programs={"f": 16}), saying(programs={"f": 0}),
        saying(programs={"f": 16, "g": -8}), saying(programs={"f": 8.0}),
        saying(programs={"f": [8]}),
    ],
)  # fmt: skip
def test_right_checksum_over_something_else_is_recognised(described):
    assert unpack(summed_up(described, MOVE)) is None


def test_description_that_is_too_long_is_not_read():
    text = json.dumps(saying()).encode()
    assert unpack(summed_up(text + b" " * 1000, MOVE)) is not None
    assert unpack(summed_up(text + b" " * (1 << 16), MOVE)) is None


def test_length_that_lies_is_recognised():
    for length in (0, 5, 1 << 16, 0xFFFFFFFF):
        body = struct.pack("=I", length) + b"{}"
        assert unpack(MAGIC + hashlib.sha256(body).digest() + body) is None
    for body in (b"", b"\0", bytes(3)):
        assert unpack(MAGIC + hashlib.sha256(body).digest() + body) is None


def test_what_was_packed_for_another_key_is_recognised():
    assert unpack(pack(IMAGE, "one"), "one") == IMAGE
    assert unpack(pack(IMAGE, "one")) == IMAGE
    for data in (pack(IMAGE, "other"), pack(IMAGE)):
        assert unpack(data, "one") is None


def test_what_was_changed_and_summed_up_again_is_recognised():
    body = pack(IMAGE, "one")[len(MAGIC) + 32 :]
    (length,) = struct.unpack_from("=I", body)
    described, codes = json.loads(body[4 : 4 + length]), body[4 + length :]
    assert unpack(summed_up(described, codes), "one") == IMAGE
    renamed = {**described, "programs": {"x" + n: s for n, s in described["programs"].items()}}
    larger = {**described, "maps": [[*described["maps"][0][:4], 8192, 0], described["maps"][1]]}
    for other, code in ((described, codes[:-1] + b"x"), (renamed, codes), (larger, codes)):
        assert unpack(summed_up(other, code)) is not None
        assert unpack(summed_up(other, code), "one") is None


def test_code_that_ends_within_an_instruction_is_looked_at_up_to_there():
    for length in range(len(CODE)):
        for offset, _ in map_references(CODE[:length]):
            assert offset + 12 <= length
    assert unpack(summed_up(saying(programs={"f": 7}), MOVE[:7])) is None
