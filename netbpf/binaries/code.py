"""The code that a process has mapped: which function an address is in, and what its caller is.

All content belongs to untrusted programs. A file is read once, within the limits of ElfFile and
of its own: what is too large or damaged has no names and no rules.
"""

from __future__ import annotations

import os
import re
import struct
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple, Optional

from netbpf.binaries.binary import identity_of
from netbpf.binaries.eh_frame import UnwindTable
from netbpf.binaries.elf import ElfFile
from netbpf.binaries.frame_rules import Rule
from netbpf.system.untrusted import Budget, Limits, UnreadableBinary

_SYMBOL = struct.Struct("<IBBHQQ")  # Elf64_Sym: name, info, other, section index, value, size
_SYMBOL_SIZE = 300  # bytes that one takes in memory
_FUNCTIONS = (2, 10)  # STT_FUNC, STT_GNU_IFUNC
_MAX_SYMBOLS = 500_000
_MAX_STRINGS = 48 << 20
_MAX_UNWIND = 24 << 20
_MAX_NAME = 1024
_MAX_MAPPINGS = 4096
_MAX_MAPS = 16 << 20  # bytes of text
_LIMITS = Limits(256 << 20, 1.0)
# A device number has 12 bits for the major and 20 for the minor (include/linux/kdev_t.h).
_LINE = re.compile(
    rb"^([0-9a-f]{1,16})-([0-9a-f]{1,16}) ..x. ([0-9a-f]{1,16}) "
    rb"([0-9a-f]{1,3}):([0-9a-f]{1,5}) (\d{1,20})(?: +(.*))?$",
    re.MULTILINE,
)


class Mapping(NamedTuple):
    """A range of executable memory; `path` is "" if it is not of a file."""

    start: int
    end: int
    offset: int
    device: int
    inode: int
    path: str


def read_maps(pid: int, proc: str = "/proc") -> bytes:
    """Return the maps file of a process, b"" if it has ended: quickly, as it may be about to."""
    data = bytearray()
    with suppress(OSError):
        file = os.open(f"{proc}/{pid}/maps", os.O_RDONLY | os.O_CLOEXEC)
        try:
            while len(data) < _MAX_MAPS and (part := os.read(file, 1 << 16)):
                data += part
        finally:
            os.close(file)
    return bytes(data)


def executable_mappings(maps: bytes) -> list[Mapping]:
    """Return the executable mappings in the text of a maps file, by address."""
    found = []
    for match in _LINE.finditer(maps):
        start, end, offset, major, minor = (int(match[n], 16) for n in range(1, 6))
        path = os.fsdecode(match[7]) if (match[7] or b"").startswith(b"/") else ""
        device = os.makedev(major, minor)
        found.append(Mapping(start, end, offset, device, int(match[6]), path))
        if len(found) >= _MAX_MAPPINGS:
            break
    return found


def path_of(pid: int, mapping: Mapping, proc: str = "/proc") -> Optional[str]:
    """Return a path that opens the mapped file, None if there is none.

    If the file is also in this process's root, that path is returned, as the other process may end.
    A file of that name with another inode number is not the mapped one.
    """
    here = identity_of(mapping.path)
    if here and (here.device, here.inode) == (mapping.device, mapping.inode):
        return mapping.path
    mapped = f"{proc}/{pid}/map_files/{mapping.start:x}-{mapping.end:x}"
    for path in (f"{proc}/{pid}/root{mapping.path}", mapped):
        identity = identity_of(path)
        if identity and (path is mapped or identity.inode == mapping.inode):
            return path
    return None


class Code:
    """The functions of one file: names, and rules to find their callers. Raises UnreadableBinary.

    `build_id` is in hexadecimal digits, None without one. `size` is about what it takes in memory.
    """

    def __init__(self, path: str) -> None:
        self.build_id: Optional[str] = None
        self.size = 4096
        self._addresses: list[int] = []
        self._symbols: list[tuple[int, int, int]] = []  # size, string table, offset in it
        self._strings: list[bytes] = []
        self._table: Optional[UnwindTable] = None
        with ElfFile(path, Budget(path, _LIMITS)) as elf:
            self.segments = elf.segments
            if (elf.bits, elf.little_endian) != (64, True):
                return
            self.build_id = _build_id(elf)
            with suppress(UnreadableBinary):
                self._read_unwind_table(elf)
            with suppress(UnreadableBinary):
                self._read_symbols(elf)

    def address(self, offset: int) -> Optional[int]:
        """Return the virtual address of a file offset, None if no segment contains it."""
        for part in self.segments:
            if part.offset <= offset < part.offset + part.size:
                return offset - part.offset + part.address
        return None

    def rule(self, address: int, budget: Budget) -> Optional[Rule]:
        """Return how to find the caller at a virtual address, None if there is no table for it."""
        return self._table.rule(address, budget) if self._table else None

    def function(self, address: int) -> Optional[tuple[str, int]]:
        """Return (function, offset) of a virtual address, None if no symbol covers it."""
        index = bisect_right(self._addresses, address) - 1
        if index < 0:
            return None
        size, table, at = self._symbols[index]
        offset = address - self._addresses[index]
        if offset >= max(size, 1):
            return None
        strings = self._strings[table]
        name = strings[at : strings.find(b"\0", at, at + _MAX_NAME)]
        return name.decode("utf-8", "replace").partition("@")[0], offset

    def _read_unwind_table(self, elf: ElfFile) -> None:
        frames, header = elf.section(".eh_frame"), elf.section(".eh_frame_hdr")
        if elf.machine != "EM_X86_64" or not frames or frames.size > _MAX_UNWIND:
            return
        head = b""
        if header and header.size <= _MAX_UNWIND:
            head = elf.read(header.offset, header.size)
        data = elf.read(frames.offset, frames.size)
        address = header.address if header else 0
        self._table = UnwindTable(data, frames.address, head, address)
        self.size += len(data) + len(head)

    def _read_symbols(self, elf: ElfFile) -> None:
        found: dict[int, tuple[int, int, int]] = {}
        for table in elf.sections:
            if table.kind not in ("SHT_SYMTAB", "SHT_DYNSYM") or table.link >= len(elf.sections):
                continue
            strings = elf.sections[table.link]
            if strings.size > _MAX_STRINGS or table.size > _MAX_SYMBOLS * _SYMBOL.size:
                continue
            self._strings.append(elf.read(strings.offset, strings.size))
            self.size += strings.size
            for address, symbol in self._functions(elf, table.offset, table.size):
                if symbol[0] >= found.get(address, (-1,))[0]:
                    found[address] = symbol
        self._addresses = sorted(found)
        self._symbols = [found[address] for address in self._addresses]
        self.size += _SYMBOL_SIZE * len(found)

    def _functions(
        self, elf: ElfFile, offset: int, size: int
    ) -> Iterator[tuple[int, tuple[int, int, int]]]:
        number = len(self._strings) - 1
        data = elf.read(offset, size - size % _SYMBOL.size)
        for name, info, _, section, address, length in _SYMBOL.iter_unpack(data):
            elf.budget.step()
            if info & 15 in _FUNCTIONS and section and address:
                yield address, (length, number, name)


def _build_id(elf: ElfFile) -> Optional[str]:
    note = elf.section(".note.gnu.build-id")
    if not note or not 16 < note.size <= 256:
        return None
    data = elf.read(note.offset, note.size)
    name, length, kind = struct.unpack_from("<III", data)
    if (name, kind, data[12:16]) != (4, 3, b"GNU\0") or not 0 < length <= 20:
        return None
    return data[16 : 16 + length].hex()
