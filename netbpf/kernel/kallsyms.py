"""Kernel function names by address, from /proc/kallsyms."""

from __future__ import annotations

import re
from array import array
from bisect import bisect_right
from contextlib import suppress
from functools import cached_property
from typing import BinaryIO, Optional

_LINE = re.compile(rb"^([0-9a-f]{1,16}) [tTwW] (\S+)", re.M)


def addresses_visible(path: str = "/proc/kallsyms") -> bool:
    """Return whether the kernel shows this process the addresses of its functions."""
    with suppress(OSError), open(path, "rb") as file:
        return any(line.split()[0].strip(b"0") for line in file.read(4096).splitlines()[:-1])
    return False


class KernelSymbols:
    """The kernel's functions by address; the first query reads the file (about 0.1 s)."""

    def __init__(self, path: str = "/proc/kallsyms") -> None:
        """Read from `path` at the first query."""
        self._path = path
        self._file: Optional[BinaryIO] = None

    def open(self) -> None:
        """Open the file now: it shows addresses if the opener has CAP_SYSLOG."""
        if self._file is None and "_text" not in self.__dict__:
            self._file = open(self._path, "rb")

    @cached_property
    def _text(self) -> bytes:
        self.open()
        assert self._file
        with self._file as file:
            return file.read()

    @cached_property
    def _table(self) -> tuple[array[int], list[str]]:
        # "ffffffff81000000 T _stext", or "... t fn [module]" for modules.
        lines = _LINE.findall(self._text)
        table = sorted((int(address, 16), name.decode(errors="replace")) for address, name in lines)
        if not table or not table[-1][0]:  # kernel.kptr_restrict shows zeros
            return array("Q"), []
        return array("Q", [address for address, _ in table]), [name for _, name in table]

    @property
    def hidden(self) -> bool:
        """Whether the kernel hides its addresses from this process."""
        return not self._table[1]

    def name(self, address: int) -> str:
        """Return "function+0x1a" for a return address, or the address if it is in no function."""
        addresses, names = self._table
        # A call may be a function's last instruction; its return address is in the next function.
        index = bisect_right(addresses, address - 1) - 1
        if index < 0:
            return f"0x{address:x}"
        return f"{names[index]}+0x{address - addresses[index]:x}"

    def span(self, function: str) -> tuple[int, int]:
        """Return the first address of `function` and the address of the next symbol, or (0, 0).

        Searching the text takes a tenth of the time that building the table of names takes.
        """
        text, name = self._text, function.encode()
        end = text.find(b" %s\n" % name) + 1  # among vmlinux symbols, which are sorted
        if not end:
            return self._span(function) if b" %s\t" % name in text else (0, 0)
        match = _LINE.match(text, text.rfind(b"\n", 0, end) + 1)
        if not match or not int(match[1], 16):
            return self._span(function)
        start = int(match[1], 16)
        for line in _LINE.finditer(text, end):
            if int(line[1], 16) > start:
                return start, int(line[1], 16)
        return start, start + 1

    def _span(self, function: str) -> tuple[int, int]:
        addresses, names = self._table
        if function not in names:
            return 0, 0
        start = addresses[names.index(function)]
        after = bisect_right(addresses, start)
        return start, addresses[after] if after < len(addresses) else start + 1
