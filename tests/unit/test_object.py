"""Compiled programs as bytes: map loads are found and renumbered, damage is detected."""

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


def test_only_loads_of_maps_are_found():
    assert list(map_references(CODE)) == [(12, 7), (44, 8), (60, 7)]


def test_renumbering_changes_only_map_numbers():
    changed = with_maps(CODE, {7: 123456, 8: 0})
    assert changed == MOVE + load_map(123456) + NUMBER + load_map(0, 3) + load_map(123456) + EXIT
    assert with_maps(changed, {123456: 7, 0: 8}) == CODE


def test_unknown_map_is_an_error():
    with pytest.raises(KeyError):
        with_maps(CODE, {7: 1})


def test_unpack_returns_the_packed_object():
    found = unpack(pack(IMAGE))
    assert found == IMAGE
    assert found and list(found.programs) == list(IMAGE.programs)
    assert unpack(pack(BpfObject((), {}))) == BpfObject((), {})


def test_packing_is_deterministic():
    assert pack(IMAGE) == pack(IMAGE) and pack(IMAGE).startswith(MAGIC)


def test_any_changed_bit_is_detected():
    data = pack(IMAGE)
    for place in range(len(data)):
        for bit in (1, 0x80):
            damaged = bytearray(data)
            damaged[place] ^= bit
            assert unpack(bytes(damaged)) is None, place


@pytest.mark.parametrize("length", [0, 1, 8, 39, 40, 41, 44, 100, -1])
def test_truncated_data_are_rejected(length):
    assert unpack(pack(IMAGE)[:length]) is None


def test_trailing_bytes_are_rejected():
    assert unpack(pack(IMAGE) + b"\0") is None


def test_other_format_is_rejected():
    other = MAGIC.replace(b"\x01", b"\x02")
    assert unpack(pack(IMAGE).replace(MAGIC, other)) is None


def summed_up(described: object, codes: bytes = b"") -> bytes:
    """Return a file with a valid checksum for any content."""
    text = described if isinstance(described, bytes) else json.dumps(described).encode()
    body = struct.pack("=I", len(text)) + text + codes
    return MAGIC + hashlib.sha256(body).digest() + body


MAP = ["events", 27, 0, 0, 4096, 0]


def header(**changed: object) -> dict[str, object]:
    return {"maps": [MAP], "programs": {"f": 8}, "seal": "", **changed}


def test_valid_file_with_a_checksum_made_here_is_read():
    assert unpack(summed_up(header(), MOVE)) == BpfObject((MapSpec(*MAP),), {"f": MOVE})


@pytest.mark.parametrize(
    "described",
    [
        b"", b"\xff", b"{", b"[" * 60000, b"9" * 60000, b" " * 70000, b"NaN", 7, None, "maps",
        [], {}, {"maps": [], "programs": {}}, {**header(), "more": 1},
        header(maps=None), header(maps={}), header(maps="events"), header(maps=[MAP[:5]]),
        header(maps=[[*MAP, 1]]), header(maps=[["events", -1, 0, 0, 1, 0]]), header(maps=[[1] * 6]),
        header(maps=[["events", 1 << 32, 0, 0, 1, 0]]), header(maps=[["events", 27, "0", 0, 1, 0]]),
        header(maps=[["events", 27, 0.5, 0, 1, 0]]), header(maps=[["events", True, 0, 0, 1, 0]]),
        header(maps=[{str(number): 0 for number in range(6)}]), header(maps=[None]),
        header(programs=None), header(programs=[]), header(programs={"f": "8"}),
        header(programs={"f": -8}), header(programs={"f": 16}), header(programs={"f": 0}),
        header(programs={"f": 16, "g": -8}), header(programs={"f": 8.0}),
        header(programs={"f": [8]}),
    ],
)  # fmt: skip
def test_invalid_content_with_a_valid_checksum_is_rejected(described):
    assert unpack(summed_up(described, MOVE)) is None


def test_description_that_is_too_long_is_rejected():
    text = json.dumps(header()).encode()
    assert unpack(summed_up(text + b" " * 1000, MOVE)) is not None
    assert unpack(summed_up(text + b" " * (1 << 16), MOVE)) is None


def test_wrong_length_is_rejected():
    for length in (0, 5, 1 << 16, 0xFFFFFFFF):
        body = struct.pack("=I", length) + b"{}"
        assert unpack(MAGIC + hashlib.sha256(body).digest() + body) is None
    for body in (b"", b"\0", bytes(3)):
        assert unpack(MAGIC + hashlib.sha256(body).digest() + body) is None


def test_object_packed_with_another_key_is_rejected():
    assert unpack(pack(IMAGE, "one"), "one") == IMAGE
    assert unpack(pack(IMAGE, "one")) == IMAGE
    for data in (pack(IMAGE, "other"), pack(IMAGE)):
        assert unpack(data, "one") is None


def test_changed_object_with_a_new_checksum_is_rejected():
    body = pack(IMAGE, "one")[len(MAGIC) + 32 :]
    (length,) = struct.unpack_from("=I", body)
    described, codes = json.loads(body[4 : 4 + length]), body[4 + length :]
    assert unpack(summed_up(described, codes), "one") == IMAGE
    renamed = {**described, "programs": {"x" + n: s for n, s in described["programs"].items()}}
    larger = {**described, "maps": [[*described["maps"][0][:4], 8192, 0], described["maps"][1]]}
    for other, code in ((described, codes[:-1] + b"x"), (renamed, codes), (larger, codes)):
        assert unpack(summed_up(other, code)) is not None
        assert unpack(summed_up(other, code), "one") is None


def test_code_that_ends_within_an_instruction_is_read_up_to_there():
    for length in range(len(CODE)):
        for offset, _ in map_references(CODE[:length]):
            assert offset + 12 <= length
    assert unpack(summed_up(header(programs={"f": 7}), MOVE[:7])) is None
