"""Find the name lookups of Go programs: where they begin, where they return, what they carry.

A uretprobe replaces the return address on the stack, which kills a Go program as soon as its
runtime copies or walks that stack. So each return instruction gets a uprobe of its own, and it
must be certain that it is one. The proof needs no disassembler: the table that Go's runtime
unwinds with (pclntab, there in stripped programs too) says for each range of instructions how far
SP has moved since the entry. Where it is back to 0 after the prologue, an instruction begins that
sees the caller's stack; if the bytes there are RET, it is one. The entry is proven by the stack
check that each such function begins with. A function with anything unproven is left out: a return
that is missed would turn finished lookups into hanging ones.

Register ABI, since Go 1.17 on amd64 and 1.18 on arm64 (src/cmd/compile/abi-internal.md): integer
arguments and results are in `REGISTERS`, in order, the goroutine is in `GOROUTINE`. A string takes
two registers (pointer, length), an interface two (type, data), a slice three.

    lookupIPAddr(r, ctx, network, host)   host: registers 5, 6; every other way in ends here:
                                          LookupIPAddr, LookupIP, LookupNetIP, Dial, Listen
    lookupHost(r, ctx, host)              host: registers 3, 4; from LookupHost only
    LookupAddr(r, ctx, addr)              addr: registers 3, 4
    at RET                                slice: 0-2; error: 3 (0 = no error), 4 (-> DNSError)

None of the three calls another of them for the same lookup, and all are too large to be inlined
(cost 174 and more, the limit is 80; Go 1.19), so there is one entry per lookup of the program.

Three traps for whoever attaches:
- The entry runs again after its stack check has grown the stack: same goroutine, nothing returned
  in between. Key by (process, goroutine, function); a second entry is not a second lookup.
- lookupIPAddr also answers IP literals, among them Go's own dial to the name server from inside a
  lookup. Those are no name lookups: leave out what parses as an address.
- With cgo, Go may ask libc: `libc_calls` are entered before, with the first argument of libc's
  function on the stack, above the return address. libc's call with the same pointer belongs to the
  lookup already seen.
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
GOROUTINE = {"EM_X86_64": "r14", "EM_AARCH64": "x28"}
ERROR_TYPE = 3
ERROR_DATA = 4

HOST_REGISTER = {
    "net.(*Resolver).lookupIPAddr": 5,
    "net.(*Resolver).lookupHost": 3,
    "net.(*Resolver).LookupAddr": 3,
}
LIBC_CALLS = ("net._C2func_getaddrinfo", "net._C2func_getnameinfo")


# RET, behind NOPs if any: the compiler leaves some where a call was inlined.
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

    `host` is the number in `REGISTERS` of the pointer to the name; its length is in the next one.
    """

    name: str
    offset: int
    returns: tuple[int, ...]
    size: int
    host: int


@dataclass(frozen=True)
class DnsError:
    """Offsets in bytes in *net.DNSError: `text` and `name` are strings, the rest one-byte bools.

    The first that holds decides: not_found: EAI_NONAME (no such host, or no address: Go doesn't
    tell them apart); timeout or temporary (also SERVFAIL): EAI_AGAIN; none: EAI_FAIL, which
    includes a cancelled context. EAI_NODATA never comes from Go.
    """

    text: int
    name: int
    timeout: int
    temporary: int
    not_found: int


@dataclass(frozen=True)
class GoProgram:
    """What a Go program offers to probe; `version` is None where the program does not tell.

    `error` is None where the layout of its errors is unknown: then only success can be told from
    failure. `libc_calls` maps a function that is about to call into libc to its entry's offset.
    `unproven` are lookups that the program has, but that cannot be probed.
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

    Go 1.23 put `UnwrapErr error` in front (go.dev/issue/63116); IsNotFound is there since 1.13.
    """
    if version is None or version < (1, 13):
        return None
    base = 16 if version >= (1, 23) else 0
    return DnsError(base, base + 16, base + 48, base + 49, base + 50)


def lookups(path: str, budget: Budget | None = None) -> GoProgram:
    """Return the lookups of the Go program at `path`; raises UnreadableBinary.

    A program without any (no net package) has empty `lookups`. Everything that keeps a program
    from being covered (too old, other processor, nothing provable) is an error with its reason.
    """
    with ElfFile(path, budget) as image:
        try:
            return _lookups(image)
        except (struct.error, IndexError, ValueError, OverflowError) as error:
            raise UnreadableBinary(path, "malformed Go tables") from error


def _lookups(image: ElfFile) -> GoProgram:
    if image.machine not in REGISTERS or image.bits != 64 or not image.little_endian:
        raise OutOfScope(image.path, f"Go on {image.machine} is not supported")
    text = build_version(image)
    version = parse_version(text)
    table = GoFunctionTable(image)
    if table.old or (version and version < _REGISTER_ABI[image.machine]):
        raise OutOfScope(image.path, f"{text or 'Go'}: arguments are not in registers")
    found = table.find((*HOST_REGISTER, *LIBC_CALLS))
    wanted = {name: at for name, at in found.items() if name in HOST_REGISTER}
    start, proven = _prove(image, table, wanted)
    if wanted and not proven:
        raise UnreadableBinary(image.path, "no provable return instruction")
    calls = {
        n: image.file_offset(start + found[n].entry) for n in LIBC_CALLS if n in found and proven
    }
    libc_calls = {name: offset for name, offset in calls.items() if offset is not None}
    unproven = tuple(sorted(set(wanted) - {function.name for function in proven}))
    error = dns_error(version)
    return GoProgram(version, text, image.machine, proven, libc_calls, error, unproven)


def _prove(
    image: ElfFile, table: GoFunctionTable, wanted: dict[str, GoFunctionEntry]
) -> tuple[int, tuple[GoFunction, ...]]:
    """Return the text's start and the functions proven with it: the first start that proves any."""
    for start in _text_starts(image, table):
        image.budget.check()
        tried = (_proven(image, table, start, name, at) for name, at in wanted.items())
        proven = tuple(function for function in tried if function)
        if proven or not wanted:
            return start, proven
    return 0, ()


def _text_starts(image: ElfFile, table: GoFunctionTable) -> Iterator[int]:
    """Yield where the text may begin, likeliest first.

    The header tells up to Go 1.25 and holds 0 from 1.26 on. Then it is .text, but for cgo, whose
    start-up code comes first: some hundred bytes of C, so the next 64 KiB are tried.
    """
    if not table.relative:
        yield 0
        return
    if table.text_start:
        yield table.text_start
    text = image.section(".text")
    if text:
        yield from range(text.address, text.address + 65536, 16)


def _proven(
    image: ElfFile, table: GoFunctionTable, start: int, name: str, found: GoFunctionEntry
) -> GoFunction | None:
    offset = image.file_offset(start + found.entry)
    size = found.end - found.entry
    if offset is None or not 0 < size < 1 << 20:
        return None
    if image.read(offset, 4) not in _STACK_CHECK[image.machine]:
        return None
    code, ret = image.read(offset, size), _RETURN[image.machine]
    returns = []
    for begin, end, depth in table.depths(found):
        if depth == 0 and begin > found.entry:
            match = ret.match(code, begin - found.entry, end - found.entry)
            if match:
                returns.append(offset + match.start(1))
                if len(returns) > MAX_RETURNS:
                    return None
            elif not _grows_stack(code, end - found.entry, image.machine):
                return None
    if not returns:
        return None
    return GoFunction(name, offset, tuple(returns), size, HOST_REGISTER[name])


def _grows_stack(code: bytes, end: int, machine: str) -> bool:
    """Return whether the code that ends at `end` jumps back to the entry as its last act.

    That is how each function's call to runtime.morestack ends, the one place besides returns where
    SP is back at the caller's. Another one would be a way out that is not understood.
    """
    if machine == "EM_AARCH64":
        while end > 4 and code[end - 4 : end] == bytes(4):  # padding up to the next function
            end -= 4
        word = int.from_bytes(code[end - 4 : end], "little")
        return word >> 26 == 0b000101 and word & 0x3FFFFFF == (4 - end) // 4 & 0x3FFFFFF
    near = code[end - 5] == 0xE9 and code[end - 4 : end] == struct.pack("<i", -end)
    return near or (code[end - 2] == 0xEB and code[end - 1] == -end & 0xFF and end <= 128)


def build_version(image: ElfFile) -> str:
    """Return the Go version that built the file ("go1.24.3"), or "" (src/debug/buildinfo)."""
    section = image.section(".go.buildinfo")
    if section is None or section.size < 32:
        return ""
    data = image.read(section.offset, min(section.size, 256))
    if not data.startswith(b"\xff Go buildinf:"):
        return ""
    if data[15] & 2:  # since Go 1.18: the string itself, its length in front
        return data[33 : 33 + (data[32] & 127)].decode("latin-1")
    return _pointed_string(image, struct.unpack_from("<Q", data, 16)[0])


def _pointed_string(image: ElfFile, address: int) -> str:
    header = image.file_offset(address, executable=False)
    if header is None:
        return ""
    pointer, length = struct.unpack("<QQ", image.read(header, 16))
    offset = image.file_offset(pointer, executable=False)
    return image.read(offset, min(length, 128)).decode("latin-1") if offset is not None else ""


def parse_version(text: str) -> Version | None:
    """Return (major, minor) of "go1.24.3", "go1.25-20250209-RC00 ..." or "devel go1.26-..."."""
    match = re.search(r"\bgo(\d{1,3})\.(\d{1,3})", text)
    return (int(match[1]), int(match[2])) if match else None
