"""Find the name lookup functions of Go programs: entries, returns and arguments.

A uretprobe replaces the return address on the stack, which kills a Go program as soon as its
runtime copies or walks that stack. So each return instruction gets a uprobe of its own, and its
address must be certain. The proof needs no disassembler: the table with which Go's runtime unwinds
stacks (pclntab, also in stripped programs) has the SP offset from the entry for each range of
instructions. Where the offset is back to 0 after the prologue, an instruction begins that sees the
caller's stack; if its bytes are RET, it is a return. The entry is proven by the stack check with
which each such function begins. A function with anything unproven is left out: a missed return
would turn finished lookups into hanging ones.

Register ABI, since Go 1.17 on amd64 and 1.18 on arm64 (src/cmd/compile/abi-internal.md): integer
arguments and results are in `REGISTERS`, in order; the goroutine is in R14 on amd64, X28 on arm64.
A string takes two registers (pointer, length), an interface two (type, data), a slice three.

    lookupIPAddr(r, ctx, network, host)   host: registers 5, 6; called by all of
                                          LookupIPAddr, LookupIP, LookupNetIP, Dial, Listen
    lookupHost(r, ctx, host)              host: registers 3, 4; from LookupHost only
    LookupAddr(r, ctx, addr)              addr: registers 3, 4
    at RET                                slice: 0-2; error: 3 (0 = no error), 4 (-> DNSError)

None of the three calls another of them for the same lookup, and all are too large to be inlined
(cost 174 and more, the limit is 80; Go 1.19), so each lookup enters exactly one of them.

Programs attached to them must handle three cases:
- The entry runs again after its stack check has grown the stack: same goroutine, no return in
  between. Key by (process, goroutine, function); a second entry is not a second lookup.
- lookupIPAddr also handles IP literals, for example in Go's own dial to the name server during a
  lookup. They are not name lookups: ignore names that parse as addresses.
- With cgo, Go may call libc. The function in `libc_calls` runs first, with the first argument of
  libc's function on the stack, above the return address. libc's call with the same pointer belongs
  to the lookup already seen.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from netbpf.binaries.elf import ElfFile
from netbpf.binaries.pclntab import GoFunctionTable
from netbpf.binaries.returns import MAX_RETURNS
from netbpf.system.untrusted import OutOfScope, UnreadableBinary

if TYPE_CHECKING:
    from collections.abc import Iterator

    from netbpf.binaries.pclntab import GoFunctionEntry
    from netbpf.system.untrusted import Budget

Version = tuple[int, int]

REGISTERS = {
    "EM_X86_64": ("ax", "bx", "cx", "di", "si", "r8", "r9", "r10", "r11"),
    "EM_AARCH64": tuple(f"x{number}" for number in range(16)),
}

HOST_REGISTER = {
    "net.(*Resolver).lookupIPAddr": 5,
    "net.(*Resolver).lookupHost": 3,
    "net.(*Resolver).LookupAddr": 3,
}
LIBC_CALLS = ("net._C2func_getaddrinfo", "net._C2func_getnameinfo")

# RET after any NOPs: the compiler leaves NOPs where it inlined a call.
_RETURN = {
    "EM_X86_64": re.compile(
        rb"(?:\x90|\x66\x90|\x66?\x0f\x1f(?:\0|\x40\0|\x44\0\0|\x80\0{4}|\x84\0{5}))*()\xc3"
    ),
    "EM_AARCH64": re.compile(rb"(?:\x1f\x20\x03\xd5)*()\xc0\x03\x5f\xd6"),
}
# CMPQ SP, 16(R14); LEAQ -n(SP), R12 (large frame); MOVD 16(g), R16 on arm64.
_STACK_CHECK = {
    "EM_X86_64": (b"\x49\x3b\x66\x10", b"\x4c\x8d\x64\x24", b"\x4c\x8d\xa4\x24"),
    "EM_AARCH64": (b"\x90\x0b\x40\xf9",),
}
_REGISTER_ABI: dict[str, Version] = {"EM_X86_64": (1, 17), "EM_AARCH64": (1, 18)}


@dataclass(frozen=True)
class GoFunction:
    """A function of a Go program: file offsets (bytes) of its entry and of all proven RETs.

    `host` is the index in `REGISTERS` of the pointer to the name; its length is in the next one.
    """

    name: str
    offset: int
    returns: tuple[int, ...]
    size: int
    host: int


@dataclass(frozen=True)
class DnsError:
    """Offsets in bytes in *net.DNSError: `text` and `name` are strings, the rest one-byte bools.

    The first one set gives the result: not_found: EAI_NONAME (no such host, or no address: Go does
    not distinguish them); timeout or temporary (also SERVFAIL): EAI_AGAIN; none: EAI_FAIL, which
    includes a cancelled context. Go never returns EAI_NODATA.
    """

    text: int
    name: int
    timeout: int
    temporary: int
    not_found: int


@dataclass(frozen=True)
class GoProgram:
    """What can be probed in a Go program; `version` is None if the program does not record it.

    `error` is None if the layout of its errors is unknown: then a result is success or failure
    only. `libc_calls` maps a function that calls into libc to the file offset of its entry.
    `unproven` are lookup functions of the program that cannot be probed.
    """

    version: Version | None
    version_text: str
    machine: str
    lookups: tuple[GoFunction, ...]
    libc_calls: dict[str, int]
    error: DnsError | None
    unproven: tuple[str, ...] = ()


def dns_error(version: Version | None) -> DnsError | None:
    """Return the layout of net.DNSError in this Go version (src/net/net.go).

    Go 1.23 added `UnwrapErr error` in front (go.dev/issue/63116), Go 1.13 added IsNotFound.
    """
    if version is None or version < (1, 13):
        return None
    base = 16 if version >= (1, 23) else 0
    return DnsError(base, base + 16, base + 48, base + 49, base + 50)


def lookups(path: str, budget: Budget | None = None) -> GoProgram:
    """Return the lookup functions of the Go program at `path`; raises UnreadableBinary.

    `lookups` is empty for a program without the net package. A program that cannot be probed (too
    old, other processor, nothing provable) raises an error with the reason.
    """
    with ElfFile(path, budget) as elf:
        try:
            return _lookups(elf)
        except (struct.error, IndexError, ValueError, OverflowError) as error:
            raise UnreadableBinary(path, "malformed Go tables") from error


def _lookups(elf: ElfFile) -> GoProgram:
    if elf.machine not in REGISTERS or elf.bits != 64 or not elf.little_endian:
        raise OutOfScope(elf.path, f"Go on {elf.machine} is not supported")
    text = build_version(elf)
    version = parse_version(text)
    table = GoFunctionTable(elf)
    if table.old or (version and version < _REGISTER_ABI[elf.machine]):
        raise OutOfScope(elf.path, f"{text or 'Go'}: arguments are not in registers")
    entries = table.find((*HOST_REGISTER, *LIBC_CALLS))
    wanted = {name: entry for name, entry in entries.items() if name in HOST_REGISTER}
    start, proven = _prove(elf, table, wanted)
    if wanted and not proven:
        raise UnreadableBinary(elf.path, "no provable return instruction")
    calls = [(name, entries[name].entry) for name in LIBC_CALLS if name in entries and proven]
    offsets = {name: elf.file_offset(start + entry) for name, entry in calls}
    libc_calls = {name: offset for name, offset in offsets.items() if offset is not None}
    unproven = tuple(sorted(set(wanted) - {function.name for function in proven}))
    error = dns_error(version)
    return GoProgram(version, text, elf.machine, proven, libc_calls, error, unproven)


def _prove(
    elf: ElfFile, table: GoFunctionTable, wanted: dict[str, GoFunctionEntry]
) -> tuple[int, tuple[GoFunction, ...]]:
    """Return the first start of the text that proves any function, and these functions."""
    for start in _text_starts(elf, table):
        elf.budget.check()
        tried = (_proven(elf, table, start, name, entry) for name, entry in wanted.items())
        proven = tuple(function for function in tried if function)
        if proven or not wanted:
            return start, proven
    return 0, ()


def _text_starts(elf: ElfFile, table: GoFunctionTable) -> Iterator[int]:
    """Yield possible start addresses of the text, the most likely first.

    The header has it up to Go 1.25, and 0 from 1.26 on. Then the text starts at .text, except with
    cgo, whose start-up code comes first: a few hundred bytes of C, so the next 64 KiB are tried.
    """
    if not table.relative:
        yield 0
        return
    if table.text_start:
        yield table.text_start
    text = elf.section(".text")
    if text:
        yield from range(text.address, text.address + 65536, 16)


def _proven(
    elf: ElfFile, table: GoFunctionTable, start: int, name: str, function: GoFunctionEntry
) -> GoFunction | None:
    offset = elf.file_offset(start + function.entry)
    size = function.end - function.entry
    if offset is None or not 0 < size < 1 << 20:
        return None
    if elf.read(offset, 4) not in _STACK_CHECK[elf.machine]:
        return None
    code, ret = elf.read(offset, size), _RETURN[elf.machine]
    returns = []
    for begin, end, depth in table.depths(function):
        if depth == 0 and begin > function.entry:
            match = ret.match(code, begin - function.entry, end - function.entry)
            if match:
                returns.append(offset + match.start(1))
                if len(returns) > MAX_RETURNS:
                    return None
            elif not _grows_stack(code, end - function.entry, elf.machine):
                return None
    if not returns:
        return None
    return GoFunction(name, offset, tuple(returns), size, HOST_REGISTER[name])


def _grows_stack(code: bytes, end: int, machine: str) -> bool:
    """Return whether the code that ends at `end` ends with a jump back to the entry.

    Each function's call to runtime.morestack ends so; except for returns, nothing else has the
    caller's SP. Any other code with that SP would be an unknown exit of the function.
    """
    if machine == "EM_AARCH64":
        while end > 4 and code[end - 4 : end] == bytes(4):  # padding before the next function
            end -= 4
        word = int.from_bytes(code[end - 4 : end], "little")
        return word >> 26 == 0b000101 and word & 0x3FFFFFF == (4 - end) // 4 & 0x3FFFFFF
    near = code[end - 5] == 0xE9 and code[end - 4 : end] == struct.pack("<i", -end)
    return near or (code[end - 2] == 0xEB and code[end - 1] == -end & 0xFF and end <= 128)


def build_version(elf: ElfFile) -> str:
    """Return the Go version that built the file ("go1.24.3"), or "" (src/debug/buildinfo)."""
    section = elf.section(".go.buildinfo")
    if section is None or section.size < 32:
        return ""
    data = elf.read(section.offset, min(section.size, 256))
    if not data.startswith(b"\xff Go buildinf:"):
        return ""
    if data[15] & 2:  # since Go 1.18: an inline string with its length in front
        return data[33 : 33 + (data[32] & 127)].decode("latin-1")
    return _pointed_string(elf, struct.unpack_from("<Q", data, 16)[0])


def _pointed_string(elf: ElfFile, address: int) -> str:
    header = elf.file_offset(address, executable=False)
    if header is None:
        return ""
    pointer, length = struct.unpack("<QQ", elf.read(header, 16))
    offset = elf.file_offset(pointer, executable=False)
    return elf.read(offset, min(length, 128)).decode("latin-1") if offset is not None else ""


def parse_version(text: str) -> Version | None:
    """Return (major, minor) of "go1.24.3", "go1.25-20250209-RC00 ..." or "devel go1.26-..."."""
    match = re.search(r"\bgo(\d{1,3})\.(\d{1,3})", text)
    return (int(match[1]), int(match[2])) if match else None
