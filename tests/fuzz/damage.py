"""Valid input, and damage to it: bits, numbers, text, parts that move or are missing."""

from __future__ import annotations

import atexit
import os
import shutil
import struct
import tempfile
from collections.abc import Sequence
from pathlib import Path

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

NUMBERS = (
    0, 1, 2, 3, 4, 7, 8, 12, 24, 63, 64, 0x7F, 0x80, 0xFF, 0x100, 0xFFF, 0x1000, 0x7FFF, 0x8000,
    0xFFFF, 0x10000, 0xFFFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFF8, 0xFFFFFFFF, 1 << 32,
    (1 << 63) - 1, 1 << 63, (1 << 64) - 4096, (1 << 64) - 1,
)  # fmt: skip
WORDS = (
    b"\0", b"\n", b"\r", b"\t", b" ", b"  ", b":", b";", b",", b"/", b"\\", b"\\012", b"-", b"%s",
    b"\x0b", b"\x0c", b"\x1c", b"\x1e", b"\x7f", b"\x80", b"\xff", b"\xc2\x85", b"\xe2\x80\xa8",
    b"\xd9\xa1", b"\xed\xb0\x80", b"0", b"1", b"-1", b"9" * 30, b"0x1", b"1e9", b"nan", b"[", b"]",
    b"(deleted)", b"'", b'"', b"{", b"}", b"*", b"?", b"!", b"a" * 300,
)  # fmt: skip

# A script: the seed, then for each edit its kind, offset and a number. Hypothesis
# makes bytes three times as fast as lists of numbers.
_EDIT = struct.Struct("=BHBI")
SCRIPT = st.binary(max_size=1 + 4 * _EDIT.size)


def mutated(seeds: Sequence[bytes], spots: Sequence[int] = ()) -> SearchStrategy[bytes]:
    """Return a strategy: one of `seeds`, or a copy with damage, half of it at `spots` (offsets)."""
    return SCRIPT.map(lambda script: damaged(seeds, script, spots))


def damaged(seeds: Sequence[bytes], script: bytes, spots: Sequence[int] = ()) -> bytes:
    """Return the seed that `script` selects, after its edits."""
    data = bytearray(seeds[script[0] % len(seeds) if script else 0])
    edits = script[1 : 1 + len(script[1:]) // _EDIT.size * _EDIT.size]
    for kind, place, chosen, value in _EDIT.iter_unpack(edits):
        if not data:
            break
        at = (spots[place % len(spots)] if spots and chosen & 1 else place) % len(data)
        _edit(data, kind % 10, at, value, seeds)
    return bytes(data)


def _edit(data: bytearray, kind: int, at: int, value: int, seeds: Sequence[bytes]) -> None:
    number = NUMBERS[(value >> 1) % len(NUMBERS)] if value & 1 else value
    run = value % 64 + 1
    if kind == 0:
        data[at] = number & 0xFF
    elif kind == 1:
        data[at] ^= 1 << value % 8
    elif kind in (2, 3, 4):
        code = {2: "=H", 3: "=I", 4: "=Q"}[kind]
        size = struct.calcsize(code)
        at -= at % size
        data[at : at + size] = struct.pack(code, number & (1 << 8 * size) - 1)
    elif kind == 5:
        data[at:at] = WORDS[value % len(WORDS)]
    elif kind == 6:
        data[at : at + run] = WORDS[value // 64 % len(WORDS)]
    elif kind == 7:
        del data[at : at + run]
    elif kind == 8:
        data[at:at] = data[max(0, at - run) : at]
    elif value % 4 == 0:
        del data[at:]
    else:
        other = seeds[value % len(seeds)]
        data[at:] = other[at % (len(other) or 1) :]


def directory() -> Path:
    """Return a new directory in memory, which this process removes when it ends."""
    path = Path(tempfile.mkdtemp(prefix="netbpf-fuzz-", dir="/dev/shm"))
    atexit.register(shutil.rmtree, path, True)
    return path


class File:
    """A file in memory that has a path, for functions that open one."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("case")
        self.path = f"/proc/self/fd/{self.fd}"

    def of(self, data: bytes) -> str:
        """Return the path, with `data` in the file."""
        os.ftruncate(self.fd, 0)
        os.pwrite(self.fd, data, 0)
        return self.path
