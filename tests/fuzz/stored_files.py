"""Stored files: compiled programs and types in the cache, and recordings of kernels."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from netbpf.bpf import type_answers
from netbpf.bpf.constants import with_constants
from netbpf.bpf.object import MAGIC, BpfObject, MapSpec, map_references, pack, unpack, with_maps
from netbpf.kernel.recorded import AT, SIZE, NotRecorded, RecordedKernel
from tests.fuzz.damage import mutated
from tests.fuzz.target import Target

MOVE = bytes.fromhex("b700000003000000")  # r0 = 3
EXIT = bytes.fromhex("9500000000000000")
LOAD = bytes.fromhex("1811000007000000") + bytes(8)  # r1 = map 7
CODE = MOVE + LOAD + bytes.fromhex("1801000066706e62") + bytes(8) + EXIT
IMAGE = BpfObject(
    (MapSpec("events", 27, 0, 0, 4096, 0), MapSpec("lives", 1, 8, 96, 8192, 1)),
    {"state_tp": CODE, "empty": b"", "accept_tp": MOVE + EXIT},
)
KEY = "0" * 64
PACKED = [pack(IMAGE, KEY), pack(IMAGE), pack(BpfObject((), {"f": MOVE + EXIT}), KEY)]


def with_checksum(data: bytes) -> bytes:
    """Return a cache file with a valid checksum for any content."""
    body = data[len(MAGIC) + 32 :]
    return MAGIC + hashlib.sha256(body).digest() + body


def cache_file(data: bytes) -> None:
    """A file is unpacked to what was packed, or to None; reading the result does no harm."""
    for file in (data, with_checksum(data)):
        image = unpack(file)
        if image is None:
            assert unpack(file, KEY) is None
            continue
        assert all(isinstance(shape, MapSpec) for shape in image.maps)
        places = {n for code in image.programs.values() for _, n in map_references(code)}
        for code in image.programs.values():
            assert len(with_maps(code, dict.fromkeys(places, 7))) == len(code)
            assert len(with_constants(code, [1] * 256)) == len(code) or len(code) < 16
        if unpack(file, KEY):
            assert file in PACKED, "the seal is another one's"


SHAPES = st.lists(
    st.builds(MapSpec, st.text(max_size=8), *[st.integers(0, 2**32 - 1)] * 5), max_size=4
)
PROGRAMS = st.dictionaries(
    st.text(max_size=8), st.sampled_from([b"", MOVE, CODE, EXIT]), max_size=4
)


def round_trip(case: tuple[list[MapSpec], dict[str, bytes], str]) -> None:
    image = BpfObject(tuple(case[0]), case[1])
    data = pack(image, case[2])
    assert unpack(data) == unpack(data, case[2]) == image
    assert unpack(data, case[2] + "x") is None


def codes(data: bytes) -> None:
    """Instructions that end anywhere are read up to there."""
    for offset, _ in map_references(data):
        assert 0 <= offset <= len(data) - 4
    struct.pack("=I", len(with_constants(data, [1] * 256)))


ANSWERS: dict[str, type_answers.Answer] = {
    "size sock": 760, "field sock sk_x": [64, "u32 %s", 0], "parameters tcp_close": ["sk"],
    "size absent": None, "enumerators mode": {"ON": 1},
}  # fmt: skip
STORED = type_answers.pack(ANSWERS, KEY)


def types_file(data: bytes) -> None:
    """A file is unpacked to answers of the right types, or to None."""
    text = data[32:]
    for file in (data, hashlib.sha256(KEY.encode() + text).digest() + text):
        answers = type_answers.unpack(file, KEY)
        assert type_answers.unpack(file, "1" * 64) is None
        for query, answer in (answers or {}).items():
            assert isinstance(query, str)
            assert answer is None or isinstance(answer, (int, list, dict))


RECORDING: dict[str, Any] = {
    "release": "6.1.0",
    "covers": {"struct": ["sock*"], "tracepoint": ["tcp"], "function": ["tcp_*"]},
    "common_fields": "common_type common_pid", "tracepoint": {"tcp": {"tcp_probe": "sport dport"}},
    "raw_tracepoint": {"tcp_probe": "sk skb"}, "function": {"tcp_close": "sk timeout"},
    "untyped": ["tcp_x"], "iterator": ["tcp"], "dynamic": {"kprobe": True, "fentry": False},
    "preempts": {"rawtp": False, "syscalls": True},
    "struct": {
        "sock": {SIZE: 760, "x": "0 u32 %s", "bits": "35:7 u32 %s", "common": "64 sock_common",
                 "inner": {SIZE: 8, AT: 128, "y": "0 u16 %s"}},
        "sock_common": {SIZE: 136, "z": "8 u8 %s[4]"},
    },
    "enum": {"mode": {"ON": 1}},
}  # fmt: skip
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6)
ODD = (
    LEAVES | st.lists(LEAVES, max_size=2) | st.dictionaries(st.text(max_size=4), LEAVES, max_size=2)
)
CHANGES = st.lists(st.tuples(st.integers(0, 1000), ODD), max_size=3)


def changed(value: Any, number: list[int], new: Any) -> Any:
    """Return a recording with its part number `number` replaced."""
    number[0] -= 1
    if number[0] < 0:
        number[0] = 10**9
        return new
    if isinstance(value, dict):
        return {name: changed(one, number, new) for name, one in value.items()}
    if isinstance(value, list):
        return [changed(one, number, new) for one in value]
    return value


def recorded(changes: list[tuple[int, Any]]) -> None:
    """A recording is rejected as a whole, or answers."""
    made: Any = RECORDING
    for number, new in changes:
        made = changed(made, [number % 50], new)
    try:
        kernel = RecordedKernel(made)
    except ValueError:
        assert changes
        return
    questions: list[Callable[[], Any]] = [
        lambda: kernel.tracepoint("tcp:tcp_probe"), lambda: kernel.raw_tracepoint("tcp_probe"),
        lambda: kernel.function("tcp_close"), lambda: kernel.typed("tcp_x"),
        lambda: kernel.iterator("tcp"), lambda: kernel.dynamic("kprobe"),
        lambda: kernel.preempts("rawtp"), lambda: kernel.size("sock"),
        lambda: kernel.enumerator("mode", "ON"),
    ]  # fmt: skip
    paths = ("x", "bits", "common", "common.z", "inner", "inner.y", "x.y", "absent")
    questions += [lambda path=path: kernel.field("sock", path) for path in paths]
    for question in questions:
        answered(question)


def answered(question: Callable[[], Any]) -> None:
    """Make a query that a recording may not cover."""
    try:
        question()
    except NotRecorded:
        pass


TARGETS = (
    Target("cache-file", mutated(PACKED, range(600)), cache_file),
    Target("cache-object", st.tuples(SHAPES, PROGRAMS, st.text(max_size=4)), round_trip),
    Target("cache-types", mutated([STORED], range(200)), types_file),
    Target("cache-code", mutated([CODE, MOVE + EXIT]), codes),
    Target("recording", CHANGES, recorded),
)
