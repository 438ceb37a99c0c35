"""Stand-ins for what the unit tests must not need: a kernel, and raw BTF made by hand."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Optional

from netbpf.kernel.btf import Field
from netbpf.kernel.cgroups import hook_arguments

INT, PTR, ARRAY, STRUCT, UNION, ENUM, FWD, TYPEDEF, VOLATILE, CONST = range(1, 11)
FUNC, FUNC_PROTO, ENUM64 = 12, 13, 19


class FakeKernel:
    """A kernel that has just what it is told to have."""

    release = "1.2.3-fake"

    def __init__(
        self,
        tracepoints: Optional[Mapping[str, Sequence[str]]] = None,
        raw: Optional[Mapping[str, Sequence[str]]] = None,
        functions: Optional[Mapping[str, Sequence[str]]] = None,
        iterators: Sequence[str] = (),
        takes: Sequence[str] = (),
        fields: Optional[Mapping[tuple[str, str], Field]] = None,
        sizes: Optional[Mapping[str, int]] = None,
        enums: Optional[Mapping[tuple[str, str], int]] = None,
        opaque: Sequence[str] = (),
        preempted: Sequence[str] = (),
    ) -> None:
        self.tracepoints = dict(tracepoints or {})
        self.raw = dict(raw or {})
        self.functions = dict(functions or {})
        self.iterators = iterators
        self.takes = takes
        self.fields = dict(fields or {})
        self.sizes = dict(sizes or {})
        self.enums = dict(enums or {})
        self.opaque = opaque
        self.preempted = preempted

    def tracepoint(self, name: str):
        return _tuple(self.tracepoints.get(name))

    def raw_tracepoint(self, name: str):
        return _tuple(self.raw.get(name))

    def function(self, name: str):
        return _tuple(self.functions.get(name))

    def typed(self, name: str) -> bool:
        return name not in self.opaque

    def iterator(self, name: str) -> bool:
        return name in self.iterators

    def cgroup_hook(self, name: str):
        return hook_arguments(self, name)

    def dynamic(self, kind: str) -> bool:
        return kind in self.takes

    def preempts(self, programs: str) -> bool:
        return programs in self.preempted

    def field(self, name: str, path: str):
        return self.fields.get((name, path))

    def size(self, name: str):
        return self.sizes.get(name)

    def enumerator(self, enum: str, name: str):
        return self.enums.get((enum, name))


def _tuple(names: Optional[Sequence[str]]) -> Optional[tuple[str, ...]]:
    return None if names is None else tuple(names)


class BtfBlob:
    """Raw BTF (Documentation/bpf/btf.rst), a type at a time; each method returns the type's id."""

    def __init__(self) -> None:
        self.types: list[bytes] = []
        self.strings = b"\0"

    def _name(self, name: str) -> int:
        if not name:
            return 0
        self.strings += name.encode() + b"\0"
        return len(self.strings) - len(name) - 1

    def add(
        self, name: str, kind: int, size: int, extra: bytes = b"", count: int = 0, flag: int = 0
    ) -> int:
        info = count | kind << 24 | flag << 31
        self.types.append(struct.pack("=III", self._name(name), info, size) + extra)
        return len(self.types)

    def integer(self, name: str, size: int, signed: bool = False) -> int:
        return self.add(name, INT, size, struct.pack("=I", signed << 24 | size * 8))

    def pointer(self, target: int) -> int:
        return self.add("", PTR, target)

    def array(self, element: int, length: int, index: int) -> int:
        return self.add("", ARRAY, 0, struct.pack("=III", element, index, length))

    def compound(self, kind: int, name: str, size: int, members: Sequence[tuple]) -> int:
        """Add a struct or union; a member is (name, type, bit offset[, bits])."""
        flag = any(len(member) > 3 for member in members)
        extra = b""
        for member, type_id, offset, *bits in members:
            at = offset | (bits[0] if bits else 0) << 24
            extra += struct.pack("=III", self._name(member), type_id, at)
        return self.add(name, kind, size, extra, len(members), flag)

    def enum(self, name: str, values: Mapping[str, int], signed: bool = False) -> int:
        extra = b"".join(struct.pack("=Ii", self._name(n), v) for n, v in values.items())
        return self.add(name, ENUM, 4, extra, len(values), signed)

    def enum64(self, name: str, values: Mapping[str, int], signed: bool = False) -> int:
        extra = b"".join(struct.pack("=Iq", self._name(n), v) for n, v in values.items())
        return self.add(name, ENUM64, 8, extra, len(values), signed)

    def function(self, name: str, result: int, parameters: Mapping[str, int]) -> int:
        extra = b"".join(struct.pack("=II", self._name(n), t) for n, t in parameters.items())
        proto = self.add("", FUNC_PROTO, result, extra, len(parameters))
        return self.add(name, FUNC, proto, count=1)

    def bytes(self) -> bytes:
        """Return the file."""
        types = b"".join(self.types)
        head = struct.pack(
            "=HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(self.strings)
        )
        return head + types + self.strings
