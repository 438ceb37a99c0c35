"""A kernel that is not booted: its answers come from a recording (see `netbpf.recording`).

A recording holds whole systems: each trace event of a system, each function whose name matches a
pattern. What it covers and does not hold, that kernel does not have. What it does not cover is an
error, never a no.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import translate
from functools import lru_cache
from typing import Any, Optional

from netbpf.kernel.btf import Field

SIZE, AT = "sizeof", "offsetof"  # C keywords and macros, so no member has such a name
UNNAMED = "."


class NotRecorded(KeyError):
    """The question is about something that the recording does not cover."""


def covers(patterns: Iterable[str], name: str) -> bool:
    """Return whether one of `patterns`, as a shell has them, matches the whole of `name`."""
    return bool(_matcher(tuple(patterns)).match(name))


@lru_cache(maxsize=32)
def _matcher(patterns: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(map(translate, patterns)) or "(?!)")


class RecordedKernel:
    """A kernel as `netbpf.recording` wrote it down."""

    def __init__(self, recording: Mapping[str, Any]) -> None:
        """Answer from the members of a recording's JSON."""
        self.release = str(recording["release"])
        self._recording = recording

    def _part(self, part: str, name: str) -> Mapping[str, Any]:
        """Return what is recorded under `part`; raise NotRecorded unless it covers `name`."""
        found: Mapping[str, Any] = self._recording.get(part, {})
        if name not in found and not covers(self._recording.get("covers", {}).get(part, ()), name):
            raise NotRecorded(f"{part} {name}")
        return found

    def tracepoint(self, name: str) -> Optional[tuple[str, ...]]:
        """Return the field names of trace event "system:name"."""
        system, _, event = name.partition(":")
        fields = self._part("tracepoint", system).get(system, {}).get(event)
        if fields is None:
            return None
        return (*self._recording["common_fields"].split(), *fields.split())

    def raw_tracepoint(self, name: str) -> Optional[tuple[str, ...]]:
        """Return the C parameter names of the tracepoint `name`."""
        return words(self._part("raw_tracepoint", name).get(name))

    def function(self, name: str) -> Optional[tuple[str, ...]]:
        """Return the parameter names of a kernel function that can be probed."""
        return words(self._part("function", name).get(name))

    def typed(self, name: str) -> bool:
        """Tell whether a function's parameters have types that fentry programs can read."""
        self._part("function", name)
        return name not in self._recording["untyped"]

    def iterator(self, name: str) -> bool:
        """Tell whether there is a BPF iterator `name`: all are recorded."""
        return name in self._recording["iterator"]

    def dynamic(self, kind: str) -> bool:
        """Tell whether the kernel takes "kprobe", "uprobe" or "fentry" programs."""
        return bool(self._part("dynamic", kind)[kind])

    def preempts(self, programs: str) -> bool:
        """Tell whether other tasks get a CPU that is amid a program of that kind."""
        return bool(self._part("preempts", programs)[programs])

    def field(self, struct: str, path: str) -> Optional[Field]:
        """Return where a field is: a dotted path goes through the structs that a struct holds."""
        members: Any = self._part("struct", struct).get(struct, {})
        offset, field = 0, None
        for part in path.split("."):
            member = members.get(part) if part not in (SIZE, AT) else None
            if member is None:
                return None
            field, members = self._member(member)
            offset, field = offset + field.bit_offset, field._replace(bit_offset=0)
        return field._replace(bit_offset=offset) if field else None

    def _member(self, member: Any) -> tuple[Field, Any]:
        """Return where a member is in its struct, and the members that it has itself."""
        if not isinstance(member, str):  # a struct without a name
            return Field(member[AT], f"u8 %s[{member[SIZE]}]"), member
        at, _, ctype = member.partition(" ")
        offset, _, bits = at.partition(":")
        inner: Any = {}
        if "%s" not in ctype:  # a struct with one
            inner = self._part("struct", ctype)[ctype]
            ctype = f"u8 %s[{inner[SIZE]}]"
        return Field(int(offset), ctype, int(bits or 0)), inner

    def size(self, struct: str) -> Optional[int]:
        """Return the size of a struct in bytes."""
        found: Optional[int] = self._part("struct", struct).get(struct, {}).get(SIZE)
        return found

    def enumerator(self, enum: str, name: str) -> Optional[int]:
        """Return the value of an enumerator."""
        found: Optional[int] = self._part("enum", enum).get(enum, {}).get(name)
        return found


def words(text: Optional[str]) -> Optional[tuple[str, ...]]:
    """Return names from one text; the reverse of joined()."""
    return None if text is None else tuple(w if w != UNNAMED else "" for w in text.split())


def joined(names: Optional[Sequence[str]]) -> str:
    """Return names as one text; "..." and some parameters have none."""
    return " ".join(name or UNNAMED for name in names or ())
