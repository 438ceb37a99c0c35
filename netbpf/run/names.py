"""What only the running kernel can name: reasons, places in its text, stacks."""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from difflib import get_close_matches
from functools import cached_property

from netbpf.bpf.maps import Map
from netbpf.declare.network import KernelStack, Resolved
from netbpf.declare.record import Record
from netbpf.declare.tool import Tool
from netbpf.errors import UsageError
from netbpf.kernel.drop_reasons import DropReasons
from netbpf.kernel.inspect import LiveKernel
from netbpf.kernel.kallsyms import KernelSymbols

_HIDDEN = "places are shown as addresses: the kernel hides its symbols (kernel.kptr_restrict)"


class Names:
    """Puts numbers of the kernel into words; everything is read when it is first needed."""

    def __init__(self, kernel: LiveKernel) -> None:
        """Speak for `kernel`."""
        self._kernel = kernel
        self._symbols = KernelSymbols()
        self._looked = False
        self._stacks: dict[int, list[str]] = {}
        self._map: Map | None = None

    def bind(self, tool: Tool, maps: dict[str, int]) -> None:
        """Let the tool's columns speak; `maps` are descriptors of its BPF maps."""
        records: list[type[Record]] = [tool.event] if tool.event else []
        for table in tool.tables:
            records += [table.key, table.sums, table.row]
        for record in records:
            for column in record.columns:
                if isinstance(column, Resolved):
                    column.bind(getattr(self, column.source))
                    if column.source in ("symbol", "stack"):
                        self._symbols.open()  # that may be forbidden later
        if KernelStack.map in maps:
            self._map = Map.from_fd(maps[KernelStack.map])

    @cached_property
    def _reasons(self) -> DropReasons:
        return DropReasons(self._kernel.btf)

    @property
    def reasons(self) -> dict[str, int]:
        """Return {name: number} of the kernel's drop reasons, empty if it has none."""
        return self._reasons.known

    def numbers(self, words: Sequence[str]) -> list[int]:
        """Return the numbers of drop reasons given by name or number; UsageError if unknown."""
        if not self.reasons:
            raise UsageError(
                "--reason: this kernel drops packets without giving reasons",
                "reasons are there since 5.17",
            )
        return [self._number(word.upper()) for word in words]

    def _number(self, word: str) -> int:
        found = self.reasons.get(word.removeprefix("SKB_DROP_REASON_"))
        if found is None and re.fullmatch(r"[0-9]{1,9}", word):
            return int(word)
        if found is None:
            close = get_close_matches(word, self.reasons, 3) or sorted(self.reasons)[:5]
            raise UsageError(
                f"--reason: this kernel knows no reason '{word}'", f"such as {', '.join(close)}"
            )
        return found

    def offers(self, tracepoint: str, argument: str) -> bool:
        """Tell whether a raw tracepoint has that argument."""
        return argument in (self._kernel.raw_tracepoint(tracepoint) or ())

    def span(self, function: str) -> tuple[int, int]:
        """Return first and following address of a function, (0, 0) if that is not known."""
        return self._symbols.span(function)

    def reason(self, number: int) -> str:
        """Return the name of a drop reason."""
        return self._reasons.name(number)

    def symbol(self, address: int) -> str:
        """Return symbol+offset."""
        self._looked = True
        return self._symbols.name(address)

    def stack(self, ident: int) -> list[str] | None:
        """Return the functions of a stack, the innermost first; None if there is none."""
        if ident < 0 or not self._map:
            return None
        if ident not in self._stacks:
            raw = self._map.get(struct.pack("=I", ident)) or b""
            places = struct.unpack(f"={len(raw) // 8}Q", raw)
            self._stacks[ident] = [self.symbol(place) for place in places if place]
        return self._stacks[ident]

    def notes(self) -> list[str]:
        """Return remarks for the summary."""
        return [_HIDDEN] if self._looked and self._symbols.hidden else []
