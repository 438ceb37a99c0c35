"""Find functions in ELF files, and the file offsets for uprobes on them.

The files belong to untrusted processes and containers: every size and count is bounded, every read
is checked, all work on one file has one budget of bytes and time, and any defect raises
`UnreadableBinary`. pyelftools reads headers, sections and segments. Symbol tables are searched here
in bulk, because one pyelftools object per symbol takes seconds for a large static program, and its
SysV hash lookup does not end on a chain that points to itself. Files are not mapped: truncating one
would raise SIGBUS here.
"""

from __future__ import annotations

import os
import re
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from netbpf.system.untrusted import (
    MAX_FILE,
    Budget,
    LimitExceeded,
    OutOfScope,
    UnreadableBinary,
    open_regular,
    reason,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import TracebackType
    from typing import Any

MAX_SEGMENTS = 512
MAX_SECTIONS = 20_000
MAX_TABLE = 96 << 20  # bytes held in memory at once
_PIECE = 4 << 20  # bytes of a table searched at once
_MAX_NAME = 256  # bytes of a section's name
_MAX_DYNAMIC = 1 << 16
_MAX_HITS = 4096  # offsets of the wanted names in a string table

_UNDEFINED = 0
_FUNC = 2
_IFUNC = 10
_SYMBOL = struct.Struct("<IBBHQQ")  # Elf64_Sym: name, info, other, section index, value, size

_Part = tuple[int, int]  # offset in the file, and size in bytes


@dataclass(frozen=True)
class Function:
    """A function of an ELF file.

    `offset` is the file offset in bytes, as perf_event_open takes it for a uprobe, `address` the
    virtual address in the file, `size` the length in bytes, 0 if unknown. With `ifunc` the code is
    a resolver that runs once and returns the address of the function in use. `returns` are the file
    offsets of all its return instructions, () if unknown (binaries/returns.py).
    """

    name: str
    offset: int
    address: int
    size: int
    ifunc: bool = False
    returns: tuple[int, ...] = ()


@dataclass(frozen=True)
class Segment:
    """A PT_LOAD segment: virtual address, file offset and length in the file, all in bytes."""

    address: int
    offset: int
    size: int
    executable: bool


@dataclass(frozen=True)
class Section:
    """A section: name, type as pyelftools names it, address, file offset, size and link."""

    name: str
    kind: str
    address: int
    offset: int
    size: int
    link: int


class ElfFile:
    """An ELF file, open for reading; a context manager. Raises UnreadableBinary.

    `machine` is the ELF name of the processor ("EM_X86_64"), `bits` 32 or 64, `interpreted` whether
    a dynamic loader starts the file (PT_INTERP), `dynamic` offset and size of PT_DYNAMIC or None.
    """

    def __init__(self, path: str, budget: Budget | None = None) -> None:
        self.path = path
        self.budget = budget or Budget(path)
        self._file = open_regular(path)
        self.status = os.fstat(self._file.fileno())
        try:
            self._load()
        except UnreadableBinary:
            self.close()
            raise
        except Exception as error:  # pyelftools raises a dozen types for broken files
            self.close()
            raise UnreadableBinary(path, f"not a readable ELF file ({reason(error)})") from error

    def _load(self) -> None:
        from elftools.elf.elffile import ELFFile

        if self._file.read(4) != b"\x7fELF":
            raise OutOfScope(self.path, "not an ELF file")
        elf = ELFFile(self._file)
        self.bits: int = elf.elfclass
        self.little_endian: bool = elf.little_endian
        self.machine = str(elf["e_machine"])
        if elf.num_segments() > MAX_SEGMENTS or elf.num_sections() > MAX_SECTIONS:
            raise UnreadableBinary(self.path, "too many segments or sections")
        self._read_segments(elf)
        self.sections = tuple(self._read_sections(elf)) if elf["e_shoff"] else ()

    def _read_segments(self, elf: Any) -> None:
        loads = []
        self.interpreted = False
        self.dynamic: tuple[int, int] | None = None
        for number in range(elf.num_segments()):
            # get_segment() would read what the segment points to.
            header = elf._get_segment_header(number)  # noqa: SLF001
            kind, size = header["p_type"], header["p_filesz"]
            if kind == "PT_LOAD":
                executable = bool(header["p_flags"] & 1)
                loads.append(Segment(header["p_vaddr"], header["p_offset"], size, executable))
            elif kind == "PT_INTERP":
                self.interpreted = True
            elif kind == "PT_DYNAMIC":
                self.dynamic = (header["p_offset"], size)
        self.segments = tuple(loads)

    def _read_sections(self, elf: Any) -> Iterator[Section]:
        headers = []
        for number in range(elf.num_sections()):
            self.budget.step()
            headers.append(elf._get_section_header(number))  # noqa: SLF001
        index = elf.get_shstrndx()
        names = b""
        if index < len(headers):
            names = self.read(headers[index]["sh_offset"], headers[index]["sh_size"])
        for header in headers:
            self.budget.step()
            start = header["sh_name"]
            name = names[start : start + _MAX_NAME].partition(b"\0")[0].decode("latin-1")
            kind, link = str(header["sh_type"]), header["sh_link"]
            extent = header["sh_addr"], header["sh_offset"], header["sh_size"]
            yield Section(name, kind, *extent, link)

    def __enter__(self) -> ElfFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def read(self, offset: int, size: int) -> bytes:
        """Return exactly `size` bytes of the file at `offset`; raises UnreadableBinary."""
        if not (0 <= size <= MAX_FILE and 0 <= offset <= MAX_FILE):
            raise UnreadableBinary(self.path, "impossible offset or size")
        if size > MAX_TABLE:
            raise LimitExceeded(self.path, f"given up: a table of more than {MAX_TABLE >> 20} MB")
        self.budget.spend(size)
        try:
            data = os.pread(self._file.fileno(), size, offset)
        except (OSError, MemoryError) as error:
            raise UnreadableBinary(self.path, reason(error)) from error
        if len(data) != size:
            raise UnreadableBinary(self.path, "truncated")
        return data

    def pieces(self, offset: int, size: int, more: int = 0) -> Iterator[tuple[int, bytes]]:
        """Yield (relative offset, bytes) of a range, each piece with `more` bytes of the next."""
        for start in range(0, size, _PIECE):
            yield start, self.read(offset + start, min(_PIECE + more, size - start))

    def section(self, name: str) -> Section | None:
        """Return the first section of that name that has content in the file, or None."""
        matches = (s for s in self.sections if s.name == name and s.kind != "SHT_NOBITS")
        return next(matches, None)

    def file_offset(self, address: int, executable: bool = True) -> int | None:
        """Return the file offset of a virtual address, or None if no segment contains it.

        With `executable`, only executable segments count.
        """
        self.budget.step()
        for part in self.segments:
            inside = part.address <= address < part.address + part.size
            if inside and (part.executable or not executable):
                return address - part.address + part.offset
        return None

    def functions(self, wanted: Iterable[str]) -> dict[str, Function]:
        """Return the wanted functions that this file defines, by name; raises UnreadableBinary.

        For 64-bit little-endian files only.
        Both symbol tables are searched, .dynsym first; versions ("@GLIBC_2.2.5") are ignored.
        """
        names = {name.partition("@")[0].encode() for name in wanted}
        result: dict[str, Function] = {}
        for symbols, strings in self._symbol_tables():
            offsets = self._name_offsets(strings, names)
            for function in self._search(symbols, offsets) if offsets else ():
                result.setdefault(function.name, function)
        return result

    def _symbol_tables(self) -> Iterator[tuple[_Part, _Part]]:
        tables = [s for s in self.sections if s.kind in ("SHT_DYNSYM", "SHT_SYMTAB")]
        for table in sorted(tables, key=lambda s: s.kind):
            if table.link < len(self.sections):
                strings = self.sections[table.link]
                yield (table.offset, table.size), (strings.offset, strings.size)
        if self.dynamic and not any(s.kind == "SHT_DYNSYM" for s in self.sections):
            yield from self._dynamic_tables(*self.dynamic)

    def _dynamic_tables(self, offset: int, size: int) -> Iterator[tuple[_Part, _Part]]:
        """Yield .dynsym without section headers, assuming that it ends before .dynstr."""
        size = min(size, _MAX_DYNAMIC) & ~15
        tags = dict(struct.iter_unpack("<QQ", self.read(offset, size)))
        strings, symbols, length = (tags.get(tag, 0) for tag in (5, 6, 10))
        at_strings = self.file_offset(strings, executable=False)
        at_symbols = self.file_offset(symbols, executable=False)
        if at_strings is not None and at_symbols is not None and at_symbols < at_strings:
            yield (at_symbols, at_strings - at_symbols), (at_strings, length)

    def _name_offsets(self, strings: _Part, names: set[bytes]) -> dict[int, str]:
        """Return {offset in the string table: name} of the wanted names.

        A name may be the tail of a longer one: linkers merge "getaddrinfo" into
        "__wrap_getaddrinfo".
        """
        # A common prefix ("get") makes the search fast.
        low, high = min(names), max(names)
        same = next((n for n, (a, b) in enumerate(zip(low, high)) if a != b), len(low))
        rest = b"|".join(re.escape(name[same:]) for name in names)
        pattern = re.compile(re.escape(low[:same]) + rb"(?:" + rest + rb")(?=[\0@])")
        offsets = {}
        for start, piece in self.pieces(*strings, more=max(map(len, names)) + 1):
            for match in pattern.finditer(piece):
                offsets[start + match.start()] = match[0].decode()
                if len(offsets) > _MAX_HITS:
                    raise LimitExceeded(self.path, f"given up: too many {match[0].decode()}")
        return offsets

    def _search(self, symbols: _Part, names: dict[int, str]) -> Iterator[Function]:
        step = _SYMBOL.size
        offset, size = symbols
        for start in range(0, size // step * step, step << 14):
            piece = self.read(offset + start, min(step << 14, size // step * step - start))
            for entry in _SYMBOL.iter_unpack(piece):
                if entry[0] in names:
                    yield from self._function(names[entry[0]], entry)

    def _function(self, name: str, entry: tuple[int, ...]) -> Iterator[Function]:
        _, info, _, index, address, size = entry
        offset = self.file_offset(address)
        if index != _UNDEFINED and info & 15 in (_FUNC, _IFUNC) and offset is not None:
            yield Function(name, offset, address, size, info & 15 == _IFUNC)


def functions(path: str, wanted: Iterable[str]) -> dict[str, Function]:
    """Return the wanted functions that the ELF file at `path` defines, by name.

    Undefined symbols (imports) are left out. Raises UnreadableBinary.
    """
    with ElfFile(path) as elf:
        return elf.functions(wanted)
