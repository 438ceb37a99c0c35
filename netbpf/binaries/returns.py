"""Find the return instructions of a C function, to put a uprobe on each.

A uretprobe replaces the return address on the stack. That ends a program with SIGILL if it uses two
stacks: when a probed function is entered on the higher one, the kernel assumes that the frames
below were left by longjmp, and drops their return addresses (cleanup_return_instances() in
kernel/events/uprobes.c). It also hides the caller from stack unwinding, which C++ destructors need
when a thread is cancelled. A uprobe on a RET changes nothing.

This decodes the lengths of x86-64 instructions from the first to the last of a function (Intel's
manual, volume 2, appendix A), and follows jumps out of it: to its cold part, which compilers put
elsewhere, or to a tail-called function. An unknown instruction makes the whole function unproven: a
missed return would turn finished lookups into hanging ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from netbpf.system.untrusted import LimitExceeded, UnreadableBinary

if TYPE_CHECKING:
    from netbpf.binaries.elf import ElfFile, Function

MAX_RETURNS = 256  # per function: each gets a uprobe
_MAX_SIZE = 1 << 15  # bytes of a function
_MAX_OUTSIDE = 1 << 10  # instructions outside of the function, in total
_LONGEST = 15  # bytes of an instruction

_PREFIXES = b"\x26\x2e\x36\x3e\x64\x65\x66\xf0\xf2\xf3"
_INVALID = b"\x06\x07\x0e\x16\x17\x1e\x1f\x27\x2f\x37\x3f\x60\x61\x67\x82\x9a\xce\xd4\xd5\xd6\xea"
_UNUSUAL = b"\xca\xcb\xd7"  # far returns, XLAT: compilers do not emit them
_VECTOR = {0xC5: 1, 0xC4: 2, 0x62: 3}  # VEX and EVEX, and how many bytes follow
_SHORT = (*range(0x70, 0x80), *range(0xE0, 0xE4))  # branches
# Bytes after the opcode, if no prefix or operand changes the number.
_PLAIN = {
    **dict.fromkeys((*range(0x50, 0x60), *range(0x6C, 0x70), *range(0x90, 0xA0)), 0),
    **dict.fromkeys((*range(0xA4, 0xA8), *range(0xAA, 0xB0), *range(0xF8, 0xFE)), 0),
    **dict.fromkeys(b"\xc3\xc9\xcc\xcf\xec\xed\xee\xef\xf1\xf4\xf5", 0),
    **dict.fromkeys((*range(4, 0x40, 8), 0x6A, 0xA8, 0xCD, 0xEB), 1),
    **dict.fromkeys((*_SHORT, *range(0xB0, 0xB8), *range(0xE4, 0xE8)), 1),
    **dict.fromkeys(range(0xA0, 0xA4), 8),
    0xC2: 2,
    0xC8: 3,
}
_WORD = {*range(5, 0x40, 8), 0x68, 0xA9, *range(0xB8, 0xC0), 0xE8, 0xE9}  # 4 bytes, 2 after 66
_FLOW = {0xC3: "ret", 0xC2: "ret", 0xF4: "end", 0xEB: "jump", 0xE9: "jump"}
_FLOW.update(dict.fromkeys(_SHORT, "branch"))
_NO_MORE_0F = {*b"\x05\x06\x08\x09\x0b\x77\xa0\xa1\xa2\xa8\xa9\xaa", *range(0x30, 0x38),
               *range(0xC8, 0xD0)}  # fmt: skip
_BYTE_0F = b"\x70\x71\x72\x73\xa4\xac\xba\xc2\xc4\xc5\xc6"


class Step(NamedTuple):
    """An instruction: length in bytes, control flow, and jump target relative to its start.

    `flow` is "" (to the next instruction), "ret", "jump" (to `to`), "branch" (to `to` or the next
    one), "switch" (within the same function), "end" (no successor) or "away" (unknown).
    """

    length: int
    flow: str = ""
    to: int = 0


class Unproven(Exception):
    """An instruction that is unknown or whose target is."""


def returns(elf: ElfFile, function: Function) -> tuple[int, ...]:
    """Return the file offsets (bytes) of all returns of a function, () if not certain."""
    if elf.machine != "EM_X86_64" or function.ifunc or not 0 < function.size <= _MAX_SIZE:
        return ()
    try:
        offsets = tuple(sorted(_returns(elf, function)))
        return offsets if len(offsets) <= MAX_RETURNS else ()
    except LimitExceeded:
        raise
    except (Unproven, UnreadableBinary, IndexError):
        return ()


def _returns(elf: ElfFile, function: Function) -> set[int]:
    begin, end = function.offset, function.offset + function.size
    code = elf.read(begin, function.size) + bytes(_LONGEST)
    steps: dict[int, Step] = {}
    at = begin
    while at < end:
        steps[at] = decode(code, at - begin)
        at += steps[at].length
    jumps = {at + step.to for at, step in steps.items() if step.flow in ("jump", "branch")}
    outside = {to for to in jumps if not begin <= to < end}
    if at != end or not jumps - outside <= set(steps):
        raise Unproven  # decoded at wrong boundaries
    if any(step.flow == "away" for step in steps.values()):
        raise Unproven
    inside = {at for at, step in steps.items() if step.flow == "ret"}
    return inside | _outside(elf, outside, begin, end)


def _outside(elf: ElfFile, targets: set[int], begin: int, end: int) -> set[int]:
    """Follow the flow from jump targets outside of a function; return the offsets of returns."""
    found: set[int] = set()
    seen: set[int] = set()
    while targets:
        at = targets.pop()
        if at in seen or begin <= at < end:
            continue
        seen.add(at)
        if len(seen) > _MAX_OUTSIDE:
            raise Unproven
        step = decode(elf.read(at, _LONGEST), 0)
        if step.flow in ("away", "switch"):
            raise Unproven
        if step.flow == "ret":
            found.add(at)
        if step.flow in ("jump", "branch"):
            targets.add(at + step.to)
        if step.flow in ("", "branch"):
            targets.add(at + step.length)
    return found


def decode(code: bytes, start: int) -> Step:
    """Decode the x86-64 instruction at `start`; raises Unproven, IndexError."""
    at = start
    while code[at] in _PREFIXES:
        at += 1
    prefixes = code[start:at]
    wide = code[at] & 0xF8 == 0x48
    rex = code[at] & 0xF0 == 0x40  # valid only directly before the opcode
    at += rex
    op = code[at]
    at += 1
    if op in _INVALID or op in _UNUSUAL or (rex and (op in _PREFIXES or op & 0xF0 == 0x40)):
        raise Unproven
    if op == 0x0F:
        return _two_bytes(code, start, at)
    if op in _VECTOR:
        return _vector(code, start, at, op)
    word = 2 if 0x66 in prefixes and not wide else 4
    if op not in _PLAIN and op not in _WORD:
        return _with_operand(code, start, at, op, word, 0x3E in prefixes)
    if word == 2 and op in (0xE8, 0xE9):
        raise Unproven  # the length differs between Intel and AMD
    end = at + (_PLAIN[op] if op in _PLAIN else 8 if wide and 0xB8 <= op <= 0xBF else word)
    flow = _FLOW.get(op, "")
    far = int.from_bytes(code[at:end], "little", signed=True)
    return Step(end - start, flow, end - start + far if flow in ("jump", "branch") else 0)


def _two_bytes(code: bytes, start: int, at: int) -> Step:
    op = code[at]
    at += 1
    if 0x80 <= op < 0x90 and 0x66 in code[start : at - 2]:
        raise Unproven  # as for E9
    if 0x80 <= op < 0x90:
        length = at + 4 - start
        return Step(
            length, "branch", length + int.from_bytes(code[at : at + 4], "little", signed=True)
        )
    if op == 0x0B:
        return Step(at - start, "end")
    if op in (0x04, 0x07, 0x0A, 0x0C, 0x0E, 0x0F, *range(0x20, 0x28)):
        raise Unproven
    if op in _NO_MORE_0F:
        return Step(at - start)
    if op in (0x38, 0x3A):
        return Step(_operand(code, at + 1) + (op == 0x3A) - start)
    return Step(_operand(code, at) + (op in _BYTE_0F) - start)


def _vector(code: bytes, start: int, at: int, op: int) -> Step:
    """Decode an instruction with the prefix VEX or EVEX."""
    kind = 1 if op == 0xC5 else code[at] & (7 if op == 0x62 else 31)
    at += _VECTOR[op]
    if kind not in (1, 2, 3):
        raise Unproven
    op = code[at]
    at += 1
    if kind == 1 and op == 0x77:
        return Step(at - start)
    more = kind == 3 or (kind == 1 and op in _BYTE_0F)
    return Step(_operand(code, at) + more - start)


def _with_operand(code: bytes, start: int, at: int, op: int, word: int, notrack: bool) -> Step:
    end, which = _operand(code, at), code[at] >> 3 & 7
    if op == 0xFF and which in (4, 5):
        # Compilers mark jumps through a switch table with notrack (-fcf-protection).
        return Step(end - start, "switch" if notrack and which == 4 else "away")
    if op in (0x69, 0x81, 0xC7) or (op == 0xF7 and which < 2):
        end += word
    elif op in (0x6B, 0x80, 0x83, 0xC0, 0xC1, 0xC6) or (op == 0xF6 and which < 2):
        end += 1
    return Step(end - start)


def _operand(code: bytes, at: int) -> int:
    """Return the index after ModRM, SIB and displacement at `at`."""
    mode, base = code[at] >> 6, code[at] & 7
    at += 1
    if mode == 3:
        return at
    if base == 4:
        base = code[at] & 7
        at += 1
    if mode == 0:
        return at + 4 * (base == 5)
    return at + (1 if mode == 1 else 4)
