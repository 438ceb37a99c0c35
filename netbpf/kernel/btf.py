"""Kernel types from BTF, read through libbpf: where a field is, and what a function takes.

libbpf does the parsing (9-18 ms for a whole vmlinux); this module only walks its types. Layouts
come out as offsets and C types of single fields, never as whole structs: see
`netbpf.kernel.layout` for why.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple, Optional

from netbpf.errors import Unsupported, UsageError

VMLINUX = "/sys/kernel/btf/vmlinux"

# BTF kinds: include/uapi/linux/btf.h
INT, PTR, ARRAY, STRUCT, UNION, ENUM, FWD, TYPEDEF, VOLATILE, CONST, RESTRICT = range(1, 12)
FUNC, FUNC_PROTO, VAR, FLOAT, TYPE_TAG, ENUM64 = 12, 13, 14, 16, 18, 19
_TRANSPARENT = (TYPEDEF, VOLATILE, CONST, RESTRICT, TYPE_TAG)


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


class _Type(NamedTuple):
    name: str
    kind: int
    vlen: int
    kflag: bool
    size: int  # of structs, ints and enums in bytes; the id of the type behind all others
    address: int  # of what follows struct btf_type


class Btf:
    """The types of one kernel."""

    def __init__(self, path: str = VMLINUX) -> None:
        """Read BTF from `path`: raw BTF or an ELF file with a .BTF section.

        Raises Unsupported if the running kernel has none, UsageError if a given file is no BTF.
        """
        self._lib = _libbpf()
        self._base: Optional[Btf] = None  # of a module's types, which refer to it
        self._ids: dict[tuple[str, int], int] = {}  # by name and kind, see names()
        self._btf = self._lib.btf__parse(path.encode(), None)
        # libbpf 0.x returns an error as a pointer near the top of the address space, 1.x as NULL.
        if not self._btf or self._btf > 2**64 - 4096:
            self._btf = 0
            raise _unreadable(path)

    def __del__(self) -> None:
        if getattr(self, "_btf", 0):
            self._lib.btf__free(self._btf)

    def find(self, name: str, *kinds: int) -> int:
        """Return the id of the type `name` of one of `kinds`, or 0."""
        for kind in kinds:
            if self._ids:
                found = self._ids.get((name, kind), 0)
            else:
                found = int(self._lib.btf__find_by_name_kind(self._btf, name.encode(), kind))
            if found > 0:
                return found
        return 0

    def parameters(self, function: str) -> Optional[tuple[str, ...]]:
        """Return the parameter names of a kernel function, or None if BTF has no such function."""
        found = self.find(function, FUNC)
        if not found:
            return None
        proto = self._type(self._type(found).size)
        raw = ctypes.string_at(proto.address, proto.vlen * 8)
        return tuple(self._name(name) for name, _ in struct.iter_unpack("=II", raw))

    def typed(self, function: str) -> bool:
        """Tell whether the types of all parameters of a kernel function are known.

        fentry programs may not even read a pointer to a struct that is only declared (verifier:
        "type FWD is not a struct"). Such is struct pt_regs, and with it each __x64_sys_*, in 5.10.
        """
        proto = self._type(self._type(self.find(function, FUNC)).size)
        raw = ctypes.string_at(proto.address, proto.vlen * 8)
        kinds = [self._type(self._strip(id_)) for _, id_ in struct.iter_unpack("=II", raw) if id_]
        targets = [self._strip(kind.size) for kind in kinds if kind.kind == PTR]
        return all(self._type(target).kind != FWD for target in targets if target)

    def size(self, name: str) -> Optional[int]:
        """Return the size of struct or union `name` in bytes, or None if there is none."""
        found = self.find(name, STRUCT, UNION)
        return self._type(found).size if found else None

    def field(self, name: str, path: str) -> Optional[Field]:
        """Return the field `path` ("a" or "a.b.c") of struct `name`, or None if there is none.

        Members of anonymous structs and unions are found as in C.
        """
        type_id, offset, bits = self.find(name, STRUCT, UNION), 0, 0
        for part in path.split("."):
            found = self._member(type_id, part) if type_id else None
            if found is None:
                return None
            member_id, member_offset, bits = found
            type_id, offset = self._strip(member_id), offset + member_offset
        return Field(offset, self._ctype(type_id), bits)

    def members(self, name: str) -> dict[str, Member]:
        """Return {name: member} of struct `name`, those of anonymous structs among them."""
        return self._layout(self.find(name, STRUCT, UNION))

    def _layout(self, type_id: int, base: int = 0) -> dict[str, Member]:
        found: dict[str, Member] = {}
        for name, member, offset, bits in self._members(type_id):
            inner_id = self._strip(member)
            if not name:
                found = {**self._layout(inner_id, base + offset), **found}
                continue
            kind = self._type(inner_id)
            whole = kind.kind in (STRUCT, UNION)
            known = whole and kind.name and self.find(kind.name, STRUCT, UNION) == inner_id
            inner = self._layout(inner_id) if whole and not known else None
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
        return {self._name(row[0]): row[1] for row in struct.iter_unpack(code, raw)}

    def module(self, name: str) -> Optional[Btf]:
        """Return the types of a loaded module together with these, None if it has none."""
        path = f"{os.path.dirname(VMLINUX)}/{name}"
        parse = getattr(self._lib, "btf__parse_split", None)  # since libbpf 0.2
        if not parse or not os.path.exists(path):
            return None
        parse.argtypes, parse.restype = [ctypes.c_char_p, ctypes.c_void_p], ctypes.c_void_p
        other = Btf.__new__(Btf)
        other._lib, other._base, other._ids = self._lib, self, {}
        other._btf = parse(path.encode(), self._btf) or 0
        return other if 0 < other._btf <= 2**64 - 4096 else None

    def _type(self, type_id: int) -> _Type:
        # struct btf_type: name_off, info (vlen 0-15, kind 24-28, kind_flag 31), size or type.
        address = self._lib.btf__type_by_id(self._btf, type_id)
        name, info, size = struct.unpack("=III", ctypes.string_at(address, 12))
        return _Type(
            self._name(name), info >> 24 & 0x1F, info & 0xFFFF, bool(info >> 31), size, address + 12
        )

    def _name(self, offset: int) -> str:
        raw = self._lib.btf__name_by_offset(self._btf, offset)
        return raw.decode() if raw else ""

    def _strip(self, type_id: int) -> int:
        while type_id and (kind := self._type(type_id)).kind in _TRANSPARENT:
            type_id = kind.size
        return type_id

    def _members(self, type_id: int) -> Iterator[tuple[str, int, int, int]]:
        kind = self._type(type_id)
        if kind.kind not in (STRUCT, UNION):
            return
        raw = ctypes.string_at(kind.address, kind.vlen * 12)
        for name, member, offset in struct.iter_unpack("=III", raw):
            bits = offset >> 24 if kind.kflag else 0
            yield self._name(name), member, offset & 0xFFFFFF if kind.kflag else offset, bits

    def _member(self, type_id: int, wanted: str) -> Optional[tuple[int, int, int]]:
        for name, member, offset, bits in self._members(type_id):
            if name == wanted:
                return member, offset, bits
            if not name:
                inner = self._member(self._strip(member), wanted)
                if inner:
                    return inner[0], offset + inner[1], inner[2]
        return None

    def _ctype(self, type_id: int) -> str:
        kind = self._type(type_id)
        if kind.kind in (INT, ENUM, ENUM64, FLOAT) and kind.size in (1, 2, 4, 8):
            return f"{'s' if self._signed(kind) else 'u'}{kind.size * 8} %s"
        if kind.kind == PTR:
            target = self._type(self._strip(kind.size)) if self._strip(kind.size) else None
            named = target and target.kind == STRUCT and target.name
            return f"struct {target.name} *%s" if target and named else "void *%s"
        if kind.kind == ARRAY:
            # struct btf_array: type, index_type, nelems
            element, _, length = struct.unpack("=III", ctypes.string_at(kind.address, 12))
            return self._ctype(self._strip(element)).replace("%s", f"%s[{length}]", 1)
        return f"u8 %s[{kind.size}]"

    def _signed(self, kind: _Type) -> bool:
        if kind.kind == INT:
            encoding = struct.unpack("=I", ctypes.string_at(kind.address, 4))[0] >> 24
            return bool(encoding & 1)  # BTF_INT_SIGNED
        return kind.kind in (ENUM, ENUM64) and kind.kflag


def _unreadable(path: str) -> Exception:
    if path == VMLINUX:
        return Unsupported(
            "this kernel has no BTF (/sys/kernel/btf/vmlinux)",
            "use a kernel with CONFIG_DEBUG_INFO_BTF=y, or give its types with --btf FILE",
        )
    return UsageError(
        f"cannot read kernel types from '{path}'",
        "--btf takes raw BTF or an ELF file with a .BTF section, made from this very kernel",
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
            lib.btf__parse.restype = ctypes.c_void_p
        except (OSError, AttributeError):
            continue
        _declare(lib)
        return lib
    raise Unsupported("libbpf is missing", "install it: apt install libbpf1, or dnf install libbpf")


def _declare(lib: ctypes.CDLL) -> None:
    pointer = ctypes.c_void_p
    lib.btf__parse.argtypes = [ctypes.c_char_p, pointer]
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
