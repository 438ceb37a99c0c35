"""The running kernel's types, as far as an earlier start asked for them.

Reading BTF takes 10 ms and 8 MB, and looking up the fields of a tool as long again. The answers are
a few KB, which `netbpf.bpf.cache` keeps until the machine boots another kernel.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, Optional, Union

from netbpf.kernel.btf import Btf, Field

Answer = Union[None, int, list[Any], dict[str, int]]


class KnownTypes:
    """Answers the queries of Btf from `answers`; the kernel's BTF is read for those not in there.

    `answers` has plain data by query and arguments: "size sock", and gets the new ones.
    """

    def __init__(self, answers: dict[str, Answer]) -> None:
        """Raises Unsupported if nothing is known and the kernel has no BTF."""
        self.answers = answers
        self.known = len(answers)  # before the first query
        if not answers:
            self.btf  # noqa: B018

    @cached_property
    def btf(self) -> Btf:
        """The types as the kernel has them."""
        return Btf()

    def _answer(self, query: str, *words: Any) -> Any:
        name = " ".join(map(str, (query, *words)))
        if name not in self.answers:
            found = getattr(self.btf, query)(*words)
            self.answers[name] = list(found) if isinstance(found, tuple) else found
        return self.answers[name]

    def find(self, name: str, *kinds: int) -> int:
        """See Btf.find."""
        return int(self._answer("find", name, *kinds))

    def parameters(self, function: str) -> Optional[tuple[str, ...]]:
        """See Btf.parameters."""
        names = self._answer("parameters", function)
        return None if names is None else tuple(names)

    def typed(self, function: str) -> bool:
        """See Btf.typed."""
        return bool(self._answer("typed", function))

    def size(self, name: str) -> Optional[int]:
        """See Btf.size."""
        size: Optional[int] = self._answer("size", name)
        return size

    def field(self, name: str, path: str) -> Optional[Field]:
        """See Btf.field."""
        field = self._answer("field", name, path)
        return Field(*field) if field else None

    def enumerator(self, enum: str, name: str) -> Optional[int]:
        """See Btf.enumerator."""
        return self.enumerators(enum).get(name)

    def enumerators(self, enum: str) -> dict[str, int]:
        """See Btf.enumerators."""
        numbers: dict[str, int] = self._answer("enumerators", enum)
        return numbers

    def module(self, name: str) -> Optional[Btf]:
        """See Btf.module."""
        return self.btf.module(name)
