"""Kernel types from BTF, read through libbpf: field offsets and function parameters.

libbpf does the parsing (9-18 ms for a whole vmlinux); this module only walks its types. Layouts are
returned as offsets and C types of single fields, not as whole structs: `netbpf.bpf.layout` has the
reason.
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
    """A field of a kernel struct: offset in bits, C type, and width in bits if it is a bit field.

    `ctype` has "%s" for the name: "u32 %s", "u8 %s[16]", "struct sock *%s".
    """

    bit_offset: int
    ctype: str
    bit_size: int = 0


class Member(NamedTuple):
    """A member of a struct, and its type if that is a struct.

    `struct` is the name of that struct, "" if it has none; then `inner` has its members.
    """

    field: Field
    struct: str
    inner: Optional[dict[str, Member]]


class Btf(Types):
    """The types of one kernel."""

    _base: Optional[Btf] = None  # vmlinux types, to which a module's types refer

    def __init__(self, path: str = VMLINUX) -> None:
        """Read BTF from `path`: raw BTF or an ELF file with a .BTF section.

        Raises Unsupported if the running kernel has none, UsageError if the file has no valid BTF.
        All other methods raise the same errors for damaged types.
        """
        lib, own = _libbpf(), path == VMLINUX
        data = b"" if own else btf_file.read(path)
        btf = lib.btf__parse(path.encode(), None) if own else lib.btf__new(data, len(data))
        super().__init__(lib, path, btf)
        if not self._btf:
            raise _no_types() if own else self.damaged("libbpf rejects it")
        if not own:
            self._check_pointers()

    def _check_pointers(self) -> None:
        # On Linux long has the size of a pointer.
        type_id = self.find("long unsigned int", INT) or self.find("unsigned long", INT)
        size = self._type(type_id).size if type_id else 8
        if size == 4:
            raise btf_file.unreadable(self._path, "it is for a machine with 4-byte pointers")
        if size != 8:
            raise self.damaged(f"long has {size} bytes")

    def parameters(self, function: str) -> Optional[tuple[str, ...]]:
        """Return the parameter names of a kernel function, or None if BTF has no such function."""
        type_id = self.find(function, FUNC)
        if not type_id:
            return None
        return tuple(self._identifier(name) for name, _ in self._parameters(type_id))

    def _parameters(self, function: int) -> list[tuple[int, int]]:
        proto = self._type(self._type(function).size)
        if proto.kind != FUNC_PROTO:
            raise self.damaged(f"function {function} has no prototype")
        raw = ctypes.string_at(proto.address, proto.vlen * 8)
        return list(struct.iter_unpack("=II", raw))

    def typed(self, function: str) -> bool:
        """Return whether the types of all parameters of a kernel function are defined.

        fentry programs may not read a pointer to a struct that is only declared (verifier: "type
        FWD is not a struct"). In 5.10 struct pt_regs is such, and so all __x64_sys_* are affected.
        """
        parameters = self._parameters(self.find(function, FUNC))
        kinds = [self._type(self._strip(type_id)) for _, type_id in parameters if type_id]
        targets = [self._strip(kind.size) for kind in kinds if kind.kind == PTR]
        return all(self._type(target).kind != FWD for target in targets if target)

    def size(self, name: str) -> Optional[int]:
        """Return the size of struct or union `name` in bytes, or None if there is none."""
        type_id = self.find(name, STRUCT, UNION)
        return self._size(type_id) if type_id else None

    def field(self, name: str, path: str) -> Optional[Field]:
        """Return the field `path` ("a" or "a.b.c") of struct `name`, or None if there is none.

        As in C, members of anonymous structs and unions count as members of the outer struct.
        """
        type_id, offset, bits = self.find(name, STRUCT, UNION), 0, 0
        for part in path.split("."):
            self._walked = 0
            member = self._member(type_id, part, set()) if type_id else None
            if member is None:
                return None
            member_id, member_offset, bits = member
            outer, type_id, offset = type_id, self._strip(member_id), offset + member_offset
            self._check_extent(outer, member_offset, bits or self._size(type_id) * 8, bool(bits))
        return Field(offset, self._ctype(type_id), bits)

    def _check_extent(self, outer: int, offset: int, size: int, is_bits: bool) -> None:
        # All in bits. A bit field is read as one number of at most 64 bits.
        shift = offset % 8
        if offset + size > self._size(outer) * 8 or (shift + size > 64 if is_bits else shift):
            raise self.damaged(f"a member of type {outer} is outside of it")

    def members(self, name: str) -> dict[str, Member]:
        """Return {name: member} of struct `name`, including members of anonymous structs."""
        self._walked = 0
        return self._layout(self.find(name, STRUCT, UNION))

    def _layout(self, type_id: int, base: int = 0, depth: int = 0) -> dict[str, Member]:
        members: dict[str, Member] = {}
        self._check_depth(depth)
        for name, member, offset, bits in self._members(type_id):
            inner_id = self._strip(member)
            if not name:
                for below, one in self._layout(inner_id, base + offset, depth + 1).items():
                    members.setdefault(below, one)
                continue
            kind = self._type(inner_id)
            whole = kind.kind in (STRUCT, UNION)
            known = whole and kind.name and self.find(kind.name, STRUCT, UNION) == inner_id
            inner = self._layout(inner_id, 0, depth + 1) if whole and not known else None
            field = Field(base + offset, self._ctype(inner_id), bits)
            members.setdefault(name, Member(field, kind.name if known else "", inner))
        return members

    def names(self, *kinds: int) -> set[str]:
        """Return the names of all types of `kinds`.

        The first call walks all types, which takes half a second; find() is faster afterwards.
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
        type_id = self.find(enum, ENUM, ENUM64)
        if not type_id:
            return {}
        kind = self._type(type_id)
        code, width = ("=Ii", 8) if kind.kind == ENUM else ("=Iq", 12)
        raw = ctypes.string_at(kind.address, kind.vlen * width)
        return {self._identifier(row[0]): row[1] for row in struct.iter_unpack(code, raw)}

    def module(self, name: str) -> Optional[Btf]:
        """Return the types of a loaded module, with these as its base, or None."""
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
        "use a kernel with CONFIG_DEBUG_INFO_BTF=y, or pass its types with --btf FILE",
    )


def library() -> str:
    """Return the library that reads BTF and its version, "libbpf.so.1 v1.1"; raises Unsupported."""
    lib = _libbpf()
    try:
        lib.libbpf_version_string.restype = ctypes.c_char_p  # since libbpf 0.6
        return f"{lib._name} {lib.libbpf_version_string().decode()}"
    except AttributeError:
        return lib._name


@lru_cache(maxsize=1)
def _libbpf() -> ctypes.CDLL:
    # libbcc links libbpf on Debian and contains a copy of it elsewhere.
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
    # libbpf prints errors to stderr; netbpf reports them itself.
    lib.libbpf_set_print.argtypes = [pointer]
    lib.libbpf_set_print.restype = pointer
    lib.libbpf_set_print(None)
