"""How to find the caller of a function: the call frame instructions of DWARF, for x86-64.

Format: DWARF 4 section 6.4. The instructions belong to untrusted files: every read is checked, all
loops count against a budget, and whatever is not understood has no rule.
"""

from __future__ import annotations

import struct
from typing import NamedTuple, Optional

from netbpf.system.untrusted import Budget

SP, BP, DEREF, END, NONE = 1, 2, 3, 4, 5  # RULE_* in include/user_stacks.bpf.h
_RBP, _RSP, RETURN = 6, 7, 16  # DWARF numbers of registers, System V ABI for x86-64
_BREG_RBP, _DEREF = 0x76, 0x06  # DW_OP_breg6, DW_OP_deref
_MAX_STATES = 64  # that are remembered
_INDIRECT, _PCREL = 0x80, 0x10  # DW_EH_PE_*
NUMBERS = {0: "<Q", 2: "<H", 3: "<I", 4: "<Q", 10: "<h", 11: "<i", 12: "<q"}


class Rule(NamedTuple):
    """How to find the caller, as struct unwind_rule: `cfa` is added to the register of `kind`.

    `bp` is where the caller's rbp is saved, from the CFA, 0 if it is unchanged.
    """

    kind: int
    cfa: int = 0
    bp: int = 0


BY_POINTER = Rule(BP, 16, -16)
OUTERMOST = Rule(END)
NO_RULE = Rule(NONE)


class Invalid(Exception):
    """The table is damaged, or of a form that compilers do not produce."""


class Common(NamedTuple):
    """A common information entry (CIE)."""

    code: int
    data: int
    encoding: int
    has_length: bool
    instructions: bytes


class Reader:
    """Reads numbers of a table; `address` is that of its first byte."""

    def __init__(self, data: bytes, at: int = 0, end: Optional[int] = None, address: int = 0):
        self.data, self.at, self.address = data, at, address
        self.end = len(data) if end is None else min(end, len(data))

    def take(self, size: int) -> bytes:
        """Return the next `size` bytes; raises Invalid."""
        if size < 0 or self.at + size > self.end:
            raise Invalid
        self.at += size
        return self.data[self.at - size : self.at]

    def number(self, form: str) -> int:
        """Return a number in a format of the struct module."""
        return int(struct.unpack(form, self.take(struct.calcsize(form)))[0])

    def byte(self) -> int:
        """Return the next byte."""
        return self.take(1)[0]

    def leb(self, signed: bool = False) -> int:
        """Return a LEB128 number."""
        value = shift = 0
        while shift < 70:
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            shift += 7
            if not byte & 0x80:
                return value - (1 << shift) if signed and byte & 0x40 else value
        raise Invalid

    def pointer(self, encoding: int) -> int:
        """Return a pointer in a DW_EH_PE_* encoding."""
        form = NUMBERS.get(encoding & 0x0F)
        if form is None or encoding & 0x70 not in (0, _PCREL) or encoding & _INDIRECT:
            raise Invalid
        base = self.address + self.at if encoding & 0x70 == _PCREL else 0
        return (base + self.number(form)) & (1 << 64) - 1

    def text(self) -> bytes:
        """Return a short string that ends with a zero."""
        end = self.data.find(b"\0", self.at, min(self.at + 32, self.end))
        if end < 0:
            raise Invalid
        return self.take(end + 1 - self.at)[:-1]


class _Row(NamedTuple):
    """The rules that hold at an address: register and offset of the CFA, or an expression.

    `saved` are offsets from the CFA by register, or an expression; None is undefined.
    """

    register: int = -1
    offset: int = 0
    expression: bytes = b""
    saved: tuple[tuple[int, object], ...] = ()

    def with_saved(self, register: int, rule: object) -> _Row:
        if register not in (_RBP, RETURN):
            return self
        return self._replace(saved=(*((r, s) for r, s in self.saved if r != register),
                                    (register, rule)))  # fmt: skip

    def without(self, register: int, initial: _Row) -> _Row:
        kept = tuple((r, s) for r, s in self.saved if r != register)
        return self._replace(saved=kept + tuple(one for one in initial.saved if one[0] == register))


class Machine:
    """Runs the call frame instructions of one function up to an address."""

    def __init__(self, common: Common, budget: Budget) -> None:
        self._common, self._budget = common, budget
        self._row, self._initial = _Row(), _Row()
        self._states: list[_Row] = []

    def run(self, reader: Reader, begin: int, address: int) -> Rule:
        """Return the rule at `address` of the function that begins at `begin`."""
        self._location, self._wanted = begin, address
        first = Reader(self._common.instructions)
        while first.at < first.end:
            self._step(first)
        self._initial = self._row
        while reader.at < reader.end:
            before = self._row
            self._step(reader)
            if self._location > address:
                return _rule_of(before)
        return _rule_of(self._row)

    def _step(self, reader: Reader) -> None:
        self._budget.step()
        byte = reader.byte()
        kind, low = byte & 0xC0, byte & 0x3F
        if kind == 0x40:
            self._location += low * self._common.code
        elif kind == 0x80:
            self._save(low, reader.leb())
        elif kind == 0xC0:
            self._row = self._row.without(low, self._initial)
        elif low in (0x00, 0x2D):
            pass
        elif low <= 0x04:
            self._advance(low, reader)
        elif low in (0x0A, 0x0B):
            self._keep_row(low == 0x0A)
        elif low <= 0x0B or low in (0x10, 0x11, 0x14, 0x15, 0x16):
            self._set_register(low, reader)
        else:
            self._set_cfa(low, reader)

    def _advance(self, low: int, reader: Reader) -> None:
        if low == 0x01:
            self._location = reader.pointer(self._common.encoding)
        else:
            form = {0x02: "<B", 0x03: "<H", 0x04: "<I"}[low]
            self._location += reader.number(form) * self._common.code

    def _save(self, register: int, factored: int) -> None:
        self._row = self._row.with_saved(register, factored * self._common.data)

    def _keep_row(self, remember: bool) -> None:
        if remember and len(self._states) < _MAX_STATES:
            self._states.append(self._row)
        elif not remember and self._states:
            self._row = self._states.pop()
        else:
            raise Invalid

    def _set_register(self, low: int, reader: Reader) -> None:
        register = reader.leb()
        if low == 0x05:
            self._save(register, reader.leb())
        elif low == 0x11:
            self._save(register, reader.leb(signed=True))
        elif low == 0x06:
            self._row = self._row.without(register, self._initial)
        elif low == 0x07:
            self._row = self._row.with_saved(register, None)
        elif low == 0x08:
            self._row = self._row.without(register, _Row())
        elif low in (0x10, 0x16):
            rule = reader.take(reader.leb())
            self._row = self._row.with_saved(register, rule if low == 0x10 else b"?")
        else:  # in another register, or a value instead of a place
            reader.leb()
            self._row = self._row.with_saved(register, b"?")

    def _set_cfa(self, low: int, reader: Reader) -> None:
        row = self._row
        if low == 0x0C:
            row = row._replace(register=reader.leb(), offset=reader.leb(), expression=b"")
        elif low == 0x12:
            row = row._replace(register=reader.leb(), expression=b"",
                               offset=reader.leb(signed=True) * self._common.data)  # fmt: skip
        elif low == 0x0D:
            row = row._replace(register=reader.leb(), expression=b"")
        elif low == 0x0E:
            row = row._replace(offset=reader.leb())
        elif low == 0x13:
            row = row._replace(offset=reader.leb(signed=True) * self._common.data)
        elif low == 0x0F:
            row = row._replace(expression=reader.take(reader.leb()))
        elif low == 0x2E:  # DW_CFA_GNU_args_size
            reader.leb()
        else:
            raise Invalid
        self._row = row


def _rule_of(row: _Row) -> Rule:
    saved = dict(row.saved)
    if RETURN in saved and saved[RETURN] is None:
        return OUTERMOST
    if saved.get(RETURN) != -8:
        return NO_RULE
    bp = saved.get(_RBP, 0)
    if row.expression:
        # A function that aligns its stack: the CFA is saved below the frame, rbp where it points.
        reader = Reader(row.expression)
        aligned = reader.byte() == _BREG_RBP
        offset = reader.leb(signed=True)
        if aligned and row.expression[reader.at :] == bytes([_DEREF]) and bp == b"\x76\0":
            return _bounded(Rule(DEREF, offset))
        return NO_RULE
    if not isinstance(bp, int) or row.register not in (_RSP, _RBP):
        return NO_RULE
    return _bounded(Rule(SP if row.register == _RSP else BP, row.offset, bp))


def _bounded(rule: Rule) -> Rule:
    """Return the rule if its numbers fit into struct unwind_rule."""
    fits = abs(rule.cfa) < 1 << 31 and abs(rule.bp) < 1 << 15
    return rule if fits else NO_RULE
