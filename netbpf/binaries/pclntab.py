"""Read the function table (pclntab) that every Go program carries, stripped or not.

Go's runtime unwinds stacks with it. Formats: debug/gosym/pclntab.go, internal/abi/symtab.go and
runtime/symtab.go of Go; a table begins with a magic that names its format (Go 1.2, 1.16, 1.18,
1.20). All numbers come from an untrusted file: callers turn struct.error, IndexError, ValueError
and OverflowError into UnreadableBinary.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from netbpf.binaries.elf import MAX_TABLE
from netbpf.system.untrusted import UnreadableBinary

if TYPE_CHECKING:
    from collections.abc import Iterator

    from netbpf.binaries.elf import ElfFile, Segment

MAX_FUNCTIONS = 4_000_000
MAX_STEPS = 200_000

_MAGIC = re.compile(rb"[\xfb\xfa\xf0\xf1]\xff\xff\xff\0\0[\x01\x04]\x08")
_RELATIVE = (0xF0, 0xF1)  # first magic byte since Go 1.18, 1.20: 32-bit offsets from the text
_CHUNK = 4 << 20


@dataclass(frozen=True)
class GoFunctionEntry:
    """A function in the table: entry and end relative to the text's start, offset of its record."""

    entry: int
    end: int
    record: int


class GoFunctionTable:
    """A pclntab of Go 1.16 and later (src/internal/abi/symtab.go, debug/gosym/pclntab.go)."""

    def __init__(self, image: ElfFile) -> None:
        self._data = find_table(image)
        self._budget = image.budget
        magic = self._data[0]
        self.old = magic == 0xFB
        self.quantum = self._data[6]
        self.relative = magic in _RELATIVE
        words = struct.unpack_from("<9Q", self._data)
        self.count = 0 if self.old else words[1]
        self.text_start = words[3] if self.relative else 0
        first = _names(self._data)
        self._names, _, _, self._steps, self._records = words[first : first + 5]
        if self.old:
            return
        if self.count > MAX_FUNCTIONS or max(words[first : first + 5]) > len(self._data):
            raise UnreadableBinary(image.path, "malformed Go function table")

    def find(self, wanted: tuple[str, ...]) -> dict[str, GoFunctionEntry]:
        """Return the wanted functions that are in the table."""
        names = {}
        for name in wanted:
            self._budget.check()
            at = self._data.find(b"\0" + name.encode() + b"\0", self._names)
            if at >= 0:
                names[at + 1 - self._names] = name
        return dict(self._entries(names)) if names else {}

    def _entries(self, names: dict[int, str]) -> Iterator[tuple[str, GoFunctionEntry]]:
        start, size = self._records, 4 if self.relative else 8
        raw = memoryview(self._data)[start : start + (self.count * 2 + 1) * size]
        raw = raw[: len(raw) // size * size]  # a table may end early
        # Native byte order is the program's too: both are little-endian 64-bit.
        functab = raw.cast("I") if self.relative else raw.cast("Q")
        at_name = 4 if self.relative else 8
        unpack = struct.Struct("<i").unpack_from
        for number in range(self.count):
            self._budget.step()
            record = start + functab[2 * number + 1]
            name = names.get(unpack(self._data, record + at_name)[0])
            if name is not None:
                yield name, GoFunctionEntry(functab[2 * number], functab[2 * number + 2], record)

    def depths(self, function: GoFunctionEntry) -> Iterator[tuple[int, int, int]]:
        """Yield (start, end, depth): how far SP has moved in each range, relative to the text."""
        at_steps = 16 if self.relative else 20
        at = self._steps + int(struct.unpack_from("<I", self._data, function.record + at_steps)[0])
        value, pc = -1, function.entry
        for number in range(MAX_STEPS):
            self._budget.step()
            delta, at = self._varint(at)
            if delta == 0 and number:
                return
            value += -(delta >> 1) - 1 if delta & 1 else delta >> 1
            length, at = self._varint(at)
            end = pc + length * self.quantum
            if end > function.end or end <= pc:
                return
            yield pc, end, value
            pc = end

    def _varint(self, at: int) -> tuple[int, int]:
        value = 0
        for shift in range(0, 35, 7):
            byte = self._data[at]
            at += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value, at
        raise ValueError("varint too long")


def find_table(image: ElfFile) -> bytes:
    """Return the pclntab: its section, or for other linkers its header in a data segment."""
    for section in image.sections:
        if section.name.endswith(".gopclntab"):
            data = image.read(section.offset, section.size)
            if _MAGIC.match(data):
                return data
    for segment in image.segments:
        data = b"" if segment.executable else _search_segment(image, segment)
        if data:
            return data
    raise UnreadableBinary(image.path, "no Go function table")


def _search_segment(image: ElfFile, segment: Segment) -> bytes:
    end = segment.offset + segment.size
    for start in range(segment.offset, end, _CHUNK):
        chunk = image.read(start, min(_CHUNK + 72, end - start))
        for match in _MAGIC.finditer(chunk):
            image.budget.step()
            header = chunk[match.start() : match.start() + 72]
            # The names follow the header, padded to 32 bytes: nothing else looks like that.
            if len(header) == 72 and 64 <= struct.unpack_from("<9Q", header)[_names(header)] <= 128:
                at = start + match.start()
                return image.read(at, min(end - at, MAX_TABLE))
    return b""


def _names(header: bytes) -> int:
    """Return which 8-byte word of the header holds the offset of the names (Go 1.18 added one)."""
    return 4 if header[0] in _RELATIVE else 3
