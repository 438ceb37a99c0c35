"""Single types of a kernel as libbpf returns them, with each reference checked.

A file may hold anything. Inconsistent types are an error that names the file, and a name must be a
C identifier, as it becomes part of a program.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator
from typing import NamedTuple, Optional

from netbpf.errors import NetbpfError, Unsupported
from netbpf.kernel import btf_file

VMLINUX = "/sys/kernel/btf/vmlinux"

# BTF kinds: include/uapi/linux/btf.h
INT, PTR, ARRAY, STRUCT, UNION, ENUM, FWD, TYPEDEF, VOLATILE, CONST, RESTRICT = range(1, 12)
FUNC, FUNC_PROTO, VAR, FLOAT, TYPE_TAG, ENUM64 = 12, 13, 14, 16, 18, 19
_TRANSPARENT = (TYPEDEF, VOLATILE, CONST, RESTRICT, TYPE_TAG)
_SIZED = (INT, STRUCT, UNION, ENUM, FLOAT, ENUM64)

# Kernels have at most 12 types in a chain, 9 nested structs, 6,000 members in a struct including
# nested ones, and 360 KB in a struct.
_MAX_DEPTH, _MAX_MEMBERS, _MAX_SIZE = 64, 1 << 17, 1 << 26


class Type(NamedTuple):
    """A struct btf_type; the data that follow it in memory are at `address`."""

    name: str
    kind: int
    vlen: int
    kflag: bool
    size: (
        int  # of structs, ints and enums in bytes; for other kinds the id of the type they refer to
    )
    address: int


class Types:
    """The types of one kernel, by id. Each method raises the error of `damaged`."""

    def __init__(self, lib: ctypes.CDLL, path: str, btf: Optional[int]) -> None:
        """Wrap `btf`, the result of the library `lib` for the file `path`; it may be an error."""
        self._lib = lib
        self._path = path
        self._ids: dict[tuple[str, int], int] = {}  # by name and kind, see Btf.names()
        self._read: dict[int, Type] = {}
        self._walked = 0  # members visited by the current query
        # libbpf 0.x returns an error as a pointer near the top of the address space, 1.x as NULL.
        self._btf = btf if btf and btf <= 2**64 - 4096 else 0

    def __del__(self) -> None:
        if getattr(self, "_btf", 0):
            self._lib.btf__free(self._btf)

    def damaged(self, why: str) -> NetbpfError:
        """Return the error for inconsistent types."""
        if self._path.startswith(os.path.dirname(VMLINUX) + "/"):
            return Unsupported(f"this kernel's BTF is invalid: {why}")
        return btf_file.damaged(self._path, why)

    def find(self, name: str, *kinds: int) -> int:
        """Return the id of the type `name` of one of `kinds`, or 0."""
        for kind in kinds:
            if self._ids:
                type_id = self._ids.get((name, kind), 0)
            else:
                type_id = int(self._lib.btf__find_by_name_kind(self._btf, name.encode(), kind))
            if type_id > 0:
                return type_id
        return 0

    def _type(self, type_id: int) -> Type:
        known = self._read.get(type_id)
        if not known:
            known = self._read[type_id] = self._fetch(type_id)
        return known

    def _fetch(self, type_id: int) -> Type:
        # struct btf_type: name_off, info (vlen 0-15, kind 24-28, kind_flag 31), size or type.
        address = self._lib.btf__type_by_id(self._btf, type_id)
        if not address:
            raise self.damaged(f"there is no type {type_id}")
        name, info, size = struct.unpack("=III", ctypes.string_at(address, 12))
        return Type(
            self._name(name), info >> 24 & 0x1F, info & 0xFFFF, bool(info >> 31), size, address + 12
        )

    def _name(self, offset: int) -> str:
        raw = self._lib.btf__name_by_offset(self._btf, offset)
        if raw is None:
            raise self.damaged(f"there is no name {offset}")
        name: str = raw.decode("ascii", "backslashreplace")
        return name

    def _identifier(self, offset: int) -> str:
        return self._checked(self._name(offset))

    def _checked(self, name: str) -> str:
        if name and not (name.isascii() and name.isidentifier()):
            raise self.damaged(f"not a C identifier: '{name[:60]}'")
        return name

    def _check_depth(self, depth: int) -> None:
        if depth > _MAX_DEPTH:
            raise self.damaged("a type is part of itself")

    def _strip(self, type_id: int) -> int:
        depth = 0
        while type_id and (kind := self._type(type_id)).kind in _TRANSPARENT:
            type_id, depth = kind.size, depth + 1
            self._check_depth(depth)
        return type_id

    def _size(self, type_id: int, depth: int = 0) -> int:
        """Return the size in bytes of a type without typedefs."""
        kind = self._type(type_id)
        self._check_depth(depth)
        size = 8 if kind.kind == PTR else kind.size
        if kind.kind == ARRAY:
            element, length = self._array(kind)
            size = length if length > _MAX_SIZE else self._size(element, depth + 1) * length
        elif kind.kind not in (PTR, *_SIZED):
            raise self.damaged(f"type {type_id} has no size")
        if size > _MAX_SIZE:
            raise self.damaged(f"type {type_id} has {size} bytes")
        return size

    def _array(self, kind: Type) -> tuple[int, int]:
        # struct btf_array: type, index_type, nelems
        element, _, length = struct.unpack("=III", ctypes.string_at(kind.address, 12))
        return self._strip(element), length

    def _members(self, type_id: int) -> Iterator[tuple[str, int, int, int]]:
        kind = self._type(type_id)
        if kind.kind not in (STRUCT, UNION):
            return
        self._walked += kind.vlen
        if self._walked > _MAX_MEMBERS:
            raise self.damaged("a struct has too many members")
        raw = ctypes.string_at(kind.address, kind.vlen * 12)
        for name, member, offset in struct.iter_unpack("=III", raw):
            bits = offset >> 24 if kind.kflag else 0
            start = offset & 0xFFFFFF if kind.kflag else offset
            yield self._identifier(name), member, start, bits

    def _ctype(self, type_id: int) -> str:
        kind = self._type(type_id)
        self._size(type_id)
        if kind.kind in (INT, ENUM, ENUM64, FLOAT) and kind.size in (1, 2, 4, 8):
            return f"{'s' if self._signed(kind) else 'u'}{kind.size * 8} %s"
        if kind.kind == PTR:
            target_id = self._strip(kind.size)
            target = self._type(target_id) if target_id else None
            named = target and target.kind == STRUCT and self._checked(target.name)
            return f"struct {named} *%s" if named else "void *%s"
        if kind.kind == ARRAY:
            element, length = self._array(kind)
            return self._ctype(element).replace("%s", f"%s[{length}]", 1)
        return f"u8 %s[{kind.size}]"

    def _signed(self, kind: Type) -> bool:
        if kind.kind == INT:
            encoding = struct.unpack("=I", ctypes.string_at(kind.address, 4))[0] >> 24
            return bool(encoding & 1)  # BTF_INT_SIGNED
        return kind.kind in (ENUM, ENUM64) and kind.kflag
