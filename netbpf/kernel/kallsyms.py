"""Names of places in the kernel's text, from /proc/kallsyms."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from functools import cached_property
from pathlib import Path


class KernelSymbols:
    """The kernel's functions by address; read when first asked (some 0.1 s), and only once."""

    def __init__(self, path: str = "/proc/kallsyms") -> None:
        """Read from `path`, when it comes to that."""
        self._path = Path(path)

    @cached_property
    def _table(self) -> tuple[array[int], list[str]]:
        # "ffffffff81000000 T _stext" or, of a module, "... t fn [module]".
        found = []
        with self._path.open() as file:
            for line in file:
                address, kind, name = line.split(None, 3)[:3]
                if kind in "tTwW":
                    found.append((int(address, 16), name))
        found.sort()
        if not found or not found[-1][0]:  # kernel.kptr_restrict shows zeros
            return array("Q"), []
        return array("Q", [address for address, _ in found]), [name for _, name in found]

    @property
    def hidden(self) -> bool:
        """Tell whether the kernel keeps its addresses to itself."""
        return not self._table[1]

    def name(self, address: int) -> str:
        """Return "function+0x1a" for a return address, or the address if it is in no function."""
        addresses, names = self._table
        # The call may be a function's last instruction: what it returns to is the next function.
        index = bisect_right(addresses, address - 1) - 1
        if index < 0:
            return f"0x{address:x}"
        return f"{names[index]}+0x{address - addresses[index]:x}"

    def span(self, function: str) -> tuple[int, int]:
        """Return the first address of `function` and that of the next symbol, or (0, 0)."""
        addresses, names = self._table
        if function not in names:
            return 0, 0
        start = addresses[names.index(function)]
        after = bisect_right(addresses, start)
        return start, addresses[after] if after < len(addresses) else start + 1
