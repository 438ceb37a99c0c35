"""The tables of .eh_frame: where the instructions are that say how to find a function's caller.

Format: "Exception Frames" of the Linux Standard Base. The tables belong to untrusted files: every
read is checked, and all loops count against a budget.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Iterator
from typing import Optional

from netbpf.binaries.frame_rules import (
    NO_RULE,
    NUMBERS,
    RETURN,
    Common,
    Invalid,
    Machine,
    Reader,
    Rule,
)
from netbpf.system.untrusted import Budget, LimitExceeded

_MAX_RULES = 50_000  # that are remembered
_OMIT = 0xFF  # DW_EH_PE_omit
_SORTED = 0x3B  # DW_EH_PE_datarel | DW_EH_PE_sdata4, of the table in .eh_frame_hdr


class UnwindTable:
    """The .eh_frame section `data` at `address`; `header` is .eh_frame_hdr at `header_address`.

    A search counts against the budget that is passed to it.
    """

    def __init__(self, data: bytes, address: int, header: bytes, header_address: int) -> None:
        self._data, self._address = data, address
        self._header, self._base = header, header_address
        self._count = self._sorted_entries()
        self._common: dict[int, Common] = {}
        self._listed: Optional[tuple[list[int], list[int]]] = None
        self._rules: dict[int, Optional[Rule]] = {}

    def rule(self, address: int, budget: Budget) -> Optional[Rule]:
        """Return the rule at a virtual address, None if no function with a table is there."""
        if address not in self._rules:
            self._budget = budget
            if len(self._rules) >= _MAX_RULES:
                self._rules.clear()
            try:
                self._rules[address] = self._find(address)
            except (Invalid, struct.error, LimitExceeded):
                self._rules[address] = NO_RULE
        return self._rules[address]

    def _find(self, address: int) -> Optional[Rule]:
        at = self._entry_before(address)
        if at is None:
            return None
        reader, common = self._open(at)
        if common is None:
            raise Invalid
        begin = reader.pointer(common.encoding)
        size = Reader(reader.data, reader.at, reader.end).pointer(common.encoding & 0x0F)
        reader.take(struct.calcsize(NUMBERS[common.encoding & 0x0F]))
        if not begin <= address < begin + size:
            return None
        if common.has_length:
            reader.take(reader.leb())
        return Machine(common, self._budget).run(reader, begin, address)

    def _sorted_entries(self) -> int:
        """Return the length of the table of .eh_frame_hdr, 0 if it has none."""
        try:
            reader = Reader(self._header, address=self._base)
            version, pointer, count, table = (reader.byte() for _ in range(4))
            if version != 1 or table != _SORTED or count == _OMIT:
                return 0
            reader.pointer(pointer)
            number = reader.pointer(count)
            self._table = reader.at
            return min(number, (len(self._header) - reader.at) // 8)
        except (Invalid, struct.error):
            return 0

    def _entry_before(self, address: int) -> Optional[int]:
        """Return the offset in .eh_frame of the last entry that begins at or before `address`."""
        if not self._count:
            return self._listed_before(address)
        low, high = 0, self._count
        while low < high:
            middle = (low + high) // 2
            (begin,) = struct.unpack_from("<i", self._header, self._table + 8 * middle)
            low, high = (middle + 1, high) if begin + self._base <= address else (low, middle)
        if not low:
            return None
        (where,) = struct.unpack_from("<i", self._header, self._table + 8 * low - 4)
        return int(where) + self._base - self._address

    def _listed_before(self, address: int) -> Optional[int]:
        """Search the entries one by one: .eh_frame of a program without .eh_frame_hdr."""
        if self._listed is None:
            found = sorted(self._entries())
            self._listed = ([begin for begin, _ in found], [at for _, at in found])
        begins, places = self._listed
        index = bisect_right(begins, address)
        return places[index - 1] if index else None

    def _entries(self) -> Iterator[tuple[int, int]]:
        at = 0
        while at + 4 <= len(self._data):
            self._budget.step()
            (length,) = struct.unpack_from("<I", self._data, at)
            if length in (0, 0xFFFFFFFF):
                return
            try:
                reader, common = self._open(at)
                if common:
                    yield reader.pointer(common.encoding), at
            except (Invalid, struct.error):
                pass
            at += 4 + length

    def _open(self, at: int) -> tuple[Reader, Optional[Common]]:
        """Return a reader of an entry after its head, and its CIE; None if it is one itself."""
        reader, back = self._open_any(at)
        if not back:
            return reader, None
        where = at + 4 - back
        if where not in self._common:
            self._common[where] = self._read_common(where)
        return reader, self._common[where]

    def _open_any(self, at: int) -> tuple[Reader, int]:
        """Return a reader of an entry after its head, and how far before it its CIE is, or 0."""
        if not 0 <= at <= len(self._data) - 8:
            raise Invalid
        length, back = struct.unpack_from("<II", self._data, at)
        if not 4 <= length < 1 << 24:
            raise Invalid
        return Reader(self._data, at + 8, at + 4 + length, self._address), int(back)

    def _read_common(self, at: int) -> Common:
        reader, back = self._open_any(at)
        if back:
            raise Invalid
        version, augmentation = reader.byte(), reader.text()
        if version not in (1, 3):
            raise Invalid
        code, data = reader.leb(), reader.leb(signed=True)
        register = reader.byte() if version == 1 else reader.leb()
        if register != RETURN:
            raise Invalid
        encoding = _encoding(reader, augmentation) if augmentation else 0
        instructions = reader.take(reader.end - reader.at)
        return Common(code, data, encoding, augmentation[:1] == b"z", instructions)


def _encoding(reader: Reader, augmentation: bytes) -> int:
    """Return how pointers are encoded, from the augmentation of a CIE."""
    if augmentation[:1] != b"z":
        raise Invalid
    length = reader.leb()
    rest, encoding = reader.at + length, 0
    for letter in augmentation[1:]:
        if letter == ord("R"):
            encoding = reader.byte()
        elif letter == ord("L"):
            reader.byte()
        elif letter == ord("P"):
            reader.take(struct.calcsize(NUMBERS.get(reader.byte() & 0x0F, "<Q")))
        elif letter not in b"SB":
            raise Invalid
    reader.at = rest
    return encoding
