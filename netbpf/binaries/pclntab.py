"""Read the function table (pclntab) of Go programs, which stripped programs also have.

Go's runtime unwinds stacks with it. Formats: debug/gosym/pclntab.go, internal/abi/symtab.go and
runtime/symtab.go of Go. A table begins with the magic of its format (Go 1.2, 1.16, 1.18, 1.20). All
numbers come from an untrusted file: callers turn struct.error, IndexError, ValueError and
OverflowError into UnreadableBinary.
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
_RELATIVE = (0xF0, 0xF1)  # first magic byte since Go 1.18, 1.20: 32-bit offsets from the text start
_CHUNK = 4 << 20


@dataclass(frozen=True)
class GoFunctionEntry:
    """A function: entry and end relative to the text start, offset of its record in the table."""

    entry: int
    end: int
    record: int


class GoFunctionTable:
    """A pclntab of Go 1.16 and later (src/internal/abi/symtab.go, debug/gosym/pclntab.go)."""

    def __init__(self, elf: ElfFile) -> None:
        self._data = find_table(elf)
        self._budget = elf.budget
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
            raise UnreadableBinary(elf.path, "malformed Go function table")

    def find(self, wanted: tuple[str, ...]) -> dict[str, GoFunctionEntry]:
        """Return the wanted functions that the table has, by name."""
        names = {}
        for name in wanted:
            self._budget.check()
            offset = self._data.find(b"\0" + name.encode() + b"\0", self._names)
            if offset >= 0:
                names[offset + 1 - self._names] = name
        return dict(self._entries(names)) if names else {}

    def _entries(self, names: dict[int, str]) -> Iterator[tuple[str, GoFunctionEntry]]:
        start, size = self._records, 4 if self.relative else 8
        raw = memoryview(self._data)[start : start + (self.count * 2 + 1) * size]
        raw = raw[: len(raw) // size * size]  # a table may end early
        # Native byte order fits: the program is for this machine, little-endian and 64-bit.
        functab = raw.cast("I") if self.relative else raw.cast("Q")
        name_field = 4 if self.relative else 8
        unpack = struct.Struct("<i").unpack_from
        for number in range(self.count):
            self._budget.step()
            record = start + functab[2 * number + 1]
            name = names.get(unpack(self._data, record + name_field)[0])
            if name is not None:
                yield name, GoFunctionEntry(functab[2 * number], functab[2 * number + 2], record)

    def depths(self, function: GoFunctionEntry) -> Iterator[tuple[int, int, int]]:
        """Yield (start, end, depth): a range relative to the text start, and its SP offset."""
        pcsp = function.record + (16 if self.relative else 20)
        at = self._steps + int(struct.unpack_from("<I", self._data, pcsp)[0])
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


def find_table(elf: ElfFile) -> bytes:
    """Return the pclntab, from its section or else by its header in a data segment."""
    for section in elf.sections:
        if section.name.endswith(".gopclntab"):
            data = elf.read(section.offset, section.size)
            if _MAGIC.match(data):
                return data
    for segment in elf.segments:
        data = b"" if segment.executable else _search_segment(elf, segment)
        if data:
            return data
    raise UnreadableBinary(elf.path, "no Go function table")


def _search_segment(elf: ElfFile, segment: Segment) -> bytes:
    end = segment.offset + segment.size
    for start in range(segment.offset, end, _CHUNK):
        chunk = elf.read(start, min(_CHUNK + 72, end - start))
        for match in _MAGIC.finditer(chunk):
            elf.budget.step()
            header = chunk[match.start() : match.start() + 72]
            # The names follow the header, padded to 32 bytes, which no other data does.
            if len(header) == 72 and 64 <= struct.unpack_from("<9Q", header)[_names(header)] <= 128:
                offset = start + match.start()
                return elf.read(offset, min(end - offset, MAX_TABLE))
    return b""


def _names(header: bytes) -> int:
    """Return the index of the header's 8-byte word for the names offset (Go 1.18 added a word)."""
    return 4 if header[0] in _RELATIVE else 3
