"""Kernel types from BTF, read through libbpf: where a field is, and what a function takes.

libbpf does the parsing (9-18 ms for a whole vmlinux); this module only walks its types. Layouts
come out as offsets and C types of single fields, never as whole structs: see
`netbpf.bpf.layout` for why.
"""

from __future__ import annotations

import ctypes
import os
import struct
from functools import lru_cache
from typing import NamedTuple, Optional

from netbpf.errors import Unsupported
from netbpf.kernel import btf_file
from netbpf.kernel.btf_types import (
    ENUM,
    ENUM64,
    FUNC,
    FUNC_PROTO,
    FWD,
    INT,
    PTR,
    STRUCT,
    UNION,
    VAR,
    VMLINUX,
    Types,
)

__all__ = ["ENUM", "ENUM64", "FUNC", "STRUCT", "UNION", "VAR", "VMLINUX", "Btf", "Field", "Member"]


class Field(NamedTuple):
    """One field of a kernel struct: its offset in bits, its C type, and bits if a bit field.

    `ctype` is written with a "%s" where the name goes: "u32 %s", "u8 %s[16]", "struct sock *%s".
    """

    bit_offset: int
    ctype: str
    bit_size: int = 0


class Member(NamedTuple):
    """One member of a struct: where it is, and the struct that it is itself.

    `struct` names that struct ("" for none); one without a name has its members in `inner`.
    """

    field: Field
    struct: str
    inner: Optional[dict[str, Member]]


class Btf(Types):
    """The types of one kernel."""

    _base: Optional[Btf] = None  # of a module's types, which refer to it

    def __init__(self, path: str = VMLINUX) -> None:
        """Read BTF from `path`: raw BTF or an ELF file with a .BTF section.

        Raises Unsupported if the running kernel has none, UsageError if a given file is no BTF. So
        do all other methods where they meet damage.
        """
        lib, own = _libbpf(), path == VMLINUX
        data = b"" if own else btf_file.read(path)
        found = lib.btf__parse(path.encode(), None) if own else lib.btf__new(data, len(data))
        super().__init__(lib, path, found)
        if not self._btf:
            raise _no_types() if own else self.damaged("libbpf refuses it")
        if not own:
            self._check_pointers()

    def _check_pointers(self) -> None:
        # In C of Linux, long has the size of a pointer.
        found = self.find("long unsigned int", INT) or self.find("unsigned long", INT)
        size = self._type(found).size if found else 8
        if size == 4:
            raise btf_file.unreadable(self._path, "it is of a machine with pointers of 4 bytes")
        if size != 8:
            raise self.damaged(f"long has {size} bytes")

    def parameters(self, function: str) -> Optional[tuple[str, ...]]:
        """Return the parameter names of a kernel function, or None if BTF has no such function."""
        found = self.find(function, FUNC)
        if not found:
            return None
        return tuple(self._identifier(name) for name, _ in self._parameters(found))

    def _parameters(self, function: int) -> list[tuple[int, int]]:
        proto = self._type(self._type(function).size)
        if proto.kind != FUNC_PROTO:
            raise self.damaged(f"function {function} has no prototype")
        raw = ctypes.string_at(proto.address, proto.vlen * 8)
        return list(struct.iter_unpack("=II", raw))

    def typed(self, function: str) -> bool:
        """Tell whether the types of all parameters of a kernel function are known.

        fentry programs may not even read a pointer to a struct that is only declared (verifier:
        "type FWD is not a struct"). Such is struct pt_regs, and with it each __x64_sys_*, in 5.10.
        """
        parameters = self._parameters(self.find(function, FUNC))
        kinds = [self._type(self._strip(type_id)) for _, type_id in parameters if type_id]
        targets = [self._strip(kind.size) for kind in kinds if kind.kind == PTR]
        return all(self._type(target).kind != FWD for target in targets if target)

    def size(self, name: str) -> Optional[int]:
        """Return the size of struct or union `name` in bytes, or None if there is none."""
        found = self.find(name, STRUCT, UNION)
        return self._size(found) if found else None

    def field(self, name: str, path: str) -> Optional[Field]:
        """Return the field `path` ("a" or "a.b.c") of struct `name`, or None if there is none.

        Members of anonymous structs and unions are found as in C.
        """
        type_id, offset, bits = self.find(name, STRUCT, UNION), 0, 0
        for part in path.split("."):
            self._walked = 0
            found = self._member(type_id, part, set()) if type_id else None
            if found is None:
                return None
            member_id, member_offset, bits = found
            outer, type_id, offset = type_id, self._strip(member_id), offset + member_offset
            self._check_place(outer, member_offset, bits or self._size(type_id) * 8, bool(bits))
        return Field(offset, self._ctype(type_id), bits)

    def _check_place(self, outer: int, offset: int, size: int, is_bits: bool) -> None:
        # All in bits. A bit field is read as one number of at most 64 bits.
        shift = offset % 8
        if offset + size > self._size(outer) * 8 or (shift + size > 64 if is_bits else shift):
            raise self.damaged(f"a member of type {outer} lies outside of it")

    def members(self, name: str) -> dict[str, Member]:
        """Return {name: member} of struct `name`, those of anonymous structs among them."""
        self._walked = 0
        return self._layout(self.find(name, STRUCT, UNION))

    def _layout(self, type_id: int, base: int = 0, depth: int = 0) -> dict[str, Member]:
        found: dict[str, Member] = {}
        self._check_depth(depth)
        for name, member, offset, bits in self._members(type_id):
            inner_id = self._strip(member)
            if not name:
                for below, one in self._layout(inner_id, base + offset, depth + 1).items():
                    found.setdefault(below, one)
                continue
            kind = self._type(inner_id)
            whole = kind.kind in (STRUCT, UNION)
            known = whole and kind.name and self.find(kind.name, STRUCT, UNION) == inner_id
            inner = self._layout(inner_id, 0, depth + 1) if whole and not known else None
            field = Field(base + offset, self._ctype(inner_id), bits)
            found.setdefault(name, Member(field, kind.name if known else "", inner))
        return found

    def names(self, *kinds: int) -> set[str]:
        """Return the names of all types of `kinds`.

        The first call walks all types, which takes half a second; find() is faster from then on.
        """
        type_id = 1
        while not self._ids.get(("", 0)) and (at := self._lib.btf__type_by_id(self._btf, type_id)):
            name, info, _ = struct.unpack("=III", ctypes.string_at(at, 12))
            if name:
                self._ids.setdefault((self._name(name), info >> 24 & 0x1F), type_id)
            type_id += 1
        self._ids["", 0] = type_id
        return {name for name, kind in self._ids if kind in kinds}

    def enumerator(self, enum: str, name: str) -> Optional[int]:
        """Return the value of `name` in `enum`, or None."""
        return self.enumerators(enum).get(name)

    def enumerators(self, enum: str) -> dict[str, int]:
        """Return {name: value} of an enum, empty if there is none."""
        found = self.find(enum, ENUM, ENUM64)
        if not found:
            return {}
        kind = self._type(found)
        code, width = ("=Ii", 8) if kind.kind == ENUM else ("=Iq", 12)
        raw = ctypes.string_at(kind.address, kind.vlen * width)
        return {self._identifier(row[0]): row[1] for row in struct.iter_unpack(code, raw)}

    def module(self, name: str) -> Optional[Btf]:
        """Return the types of a loaded module together with these, None if it has none."""
        path = f"{os.path.dirname(VMLINUX)}/{name}"
        parse = getattr(self._lib, "btf__parse_split", None)  # since libbpf 0.2
        if not parse or not os.path.exists(path):
            return None
        parse.argtypes, parse.restype = [ctypes.c_char_p, ctypes.c_void_p], ctypes.c_void_p
        other = Btf.__new__(Btf)
        Types.__init__(other, self._lib, path, parse(path.encode(), self._btf))
        other._base = self
        return other if other._btf else None

    def _member(
        self, type_id: int, wanted: str, seen: set[int], depth: int = 0
    ) -> Optional[tuple[int, int, int]]:
        self._check_depth(depth)
        for name, member, offset, bits in self._members(type_id):
            if name == wanted:
                return member, offset, bits
            inner_id = self._strip(member) if not name else 0
            if inner_id and inner_id not in seen:
                seen.add(inner_id)
                inner = self._member(inner_id, wanted, seen, depth + 1)
                if inner:
                    return inner[0], offset + inner[1], inner[2]
        return None


def _no_types() -> Unsupported:
    return Unsupported(
        "this kernel has no BTF (/sys/kernel/btf/vmlinux)",
        "use a kernel with CONFIG_DEBUG_INFO_BTF=y, or give its types with --btf FILE",
    )


def library() -> str:
    """Return which library reads BTF and its version, "libbpf.so.1 v1.1"; Unsupported without."""
    lib = _libbpf()
    try:
        lib.libbpf_version_string.restype = ctypes.c_char_p  # since libbpf 0.6
        return f"{lib._name} {lib.libbpf_version_string().decode()}"
    except AttributeError:
        return lib._name


@lru_cache(maxsize=1)
def _libbpf() -> ctypes.CDLL:
    # libbcc links libbpf on Debian and carries a copy of it elsewhere: one of these is there.
    for name in ("libbpf.so.1", "libbpf.so.0", "libbcc.so.0"):
        try:
            lib = ctypes.CDLL(name)
            lib.btf__parse.restype = lib.btf__new.restype = ctypes.c_void_p
        except (OSError, AttributeError):
            continue
        _declare(lib)
        return lib
    raise Unsupported("libbpf is missing", "install it: apt install libbpf1, or dnf install libbpf")


def _declare(lib: ctypes.CDLL) -> None:
    pointer = ctypes.c_void_p
    lib.btf__parse.argtypes = [ctypes.c_char_p, pointer]
    lib.btf__new.argtypes = [ctypes.c_char_p, ctypes.c_uint32]
    lib.btf__free.argtypes = [pointer]
    lib.btf__free.restype = None
    lib.btf__find_by_name_kind.argtypes = [pointer, ctypes.c_char_p, ctypes.c_uint32]
    lib.btf__type_by_id.argtypes = [pointer, ctypes.c_uint32]
    lib.btf__type_by_id.restype = pointer
    lib.btf__name_by_offset.argtypes = [pointer, ctypes.c_uint32]
    lib.btf__name_by_offset.restype = ctypes.c_char_p
    # libbpf prints its own complaints to stderr; ours says more and says it once.
    lib.libbpf_set_print.argtypes = [pointer]
    lib.libbpf_set_print.restype = pointer
    lib.libbpf_set_print(None)
