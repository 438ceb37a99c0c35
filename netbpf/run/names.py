"""Resolve numbers of the running kernel: drop reasons, code addresses, stacks."""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from difflib import get_close_matches
from functools import cached_property

from netbpf.bpf.maps import Map
from netbpf.declare.network import KernelStack, Resolved
from netbpf.declare.record import Record
from netbpf.declare.stacks import Functions
from netbpf.declare.tool import Tool
from netbpf.errors import UsageError
from netbpf.kernel.drop_reasons import DropReasons
from netbpf.kernel.inspect import LiveKernel
from netbpf.kernel.kallsyms import KernelSymbols

_HIDDEN = "locations are shown as addresses: the kernel hides its symbols (kernel.kptr_restrict)"


class Names:
    """Resolves numbers of the kernel to names; everything is read when first needed."""

    def __init__(self, kernel: LiveKernel) -> None:
        """Resolve names of `kernel`."""
        self._kernel = kernel
        self._symbols = KernelSymbols()
        self._used = False
        self._stacks: dict[int, Functions] = {}
        self._map: Map | None = None

    def bind(self, tool: Tool, maps: dict[str, int]) -> None:
        """Bind the tool's columns to their resolvers; `maps` are descriptors of its BPF maps."""
        records: list[type[Record]] = [tool.event] if tool.event else []
        for table in tool.tables:
            records += [table.key, table.sums, table.row]
        for record in records:
            for column in record.columns:
                if isinstance(column, Resolved):
                    column.bind(getattr(self, column.source))
                    if column.source in ("symbol", "stack"):
                        self._symbols.open()  # which may be denied later
        if KernelStack.map in maps:
            self._map = Map.from_fd(maps[KernelStack.map])

    @cached_property
    def _reasons(self) -> DropReasons:
        return DropReasons(self._kernel.btf)

    @property
    def reasons(self) -> dict[str, int]:
        """Return {name: number} of the kernel's drop reasons, empty if it has none."""
        return self._reasons.known

    def numbers(self, names: Sequence[str]) -> list[int]:
        """Return the numbers of drop reasons given by name or number; UsageError if unknown."""
        if not self.reasons:
            raise UsageError(
                "--reason: this kernel drops packets without giving reasons",
                "drop reasons exist since Linux 5.17",
            )
        return [self._number(name.upper()) for name in names]

    def _number(self, name: str) -> int:
        number = self.reasons.get(name.removeprefix("SKB_DROP_REASON_"))
        if number is None and re.fullmatch(r"[0-9]{1,9}", name):
            return int(name)
        if number is None:
            close = get_close_matches(name, self.reasons, 3) or sorted(self.reasons)[:5]
            raise UsageError(
                f"--reason: this kernel has no reason '{name}'", f"for example {', '.join(close)}"
            )
        return number

    def offers(self, tracepoint: str, argument: str) -> bool:
        """Return whether a raw tracepoint has that argument."""
        return argument in (self._kernel.raw_tracepoint(tracepoint) or ())

    def span(self, function: str) -> tuple[int, int]:
        """Return a function's address and the one after its end, (0, 0) if unknown."""
        return self._symbols.span(function)

    def reason(self, number: int) -> str:
        """Return the name of a drop reason."""
        return self._reasons.name(number)

    def symbol(self, address: int) -> str:
        """Return symbol+offset."""
        self._used = True
        return self._symbols.name(address)

    def stack(self, ident: int) -> Functions | None:
        """Return the functions of a stack, innermost first; None if it was not recorded."""
        if ident < 0 or not self._map:
            return None
        if ident not in self._stacks:
            raw = self._map.get(struct.pack("=I", ident)) or b""
            addresses = struct.unpack(f"={len(raw) // 8}Q", raw)
            names = (self.symbol(address) for address in addresses if address)
            self._stacks[ident] = Functions(names)
        return self._stacks[ident]

    def notes(self) -> list[str]:
        """Return notes for the summary."""
        return [_HIDDEN] if self._used and self._symbols.hidden else []
