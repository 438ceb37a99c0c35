"""A kernel that is not booted: its answers come from a recording (see `netbpf.doctor.recording`).

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
    """A kernel as `netbpf.doctor.recording` wrote it down."""

    def __init__(self, recording: Mapping[str, Any]) -> None:
        """Answer from the members of a recording's JSON; ValueError if it is none."""
        wrong = [part for part, form in _FORMS.items() if not _has_form(recording, part, form)]
        if wrong or "release" not in recording:
            raise ValueError(f"this is no recording of a kernel: {', '.join(wrong) or 'release'}")
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
        return (*self._recording.get("common_fields", "").split(), *fields.split())

    def raw_tracepoint(self, name: str) -> Optional[tuple[str, ...]]:
        """Return the C parameter names of the tracepoint `name`."""
        return words(self._part("raw_tracepoint", name).get(name))

    def function(self, name: str) -> Optional[tuple[str, ...]]:
        """Return the parameter names of a kernel function that can be probed."""
        return words(self._part("function", name).get(name))

    def typed(self, name: str) -> bool:
        """Tell whether a function's parameters have types that fentry programs can read."""
        self._part("function", name)
        return name not in self._recording.get("untyped", ())

    def iterator(self, name: str) -> bool:
        """Tell whether there is a BPF iterator `name`: all are recorded."""
        return name in self._recording.get("iterator", ())

    def dynamic(self, kind: str) -> bool:
        """Tell whether the kernel takes "kprobe", "uprobe" or "fentry" programs."""
        return bool(self._part("dynamic", kind).get(kind))

    def preempts(self, programs: str) -> bool:
        """Tell whether other tasks get a CPU that is amid a program of that kind."""
        return bool(self._part("preempts", programs).get(programs))

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
            inner = self._part("struct", ctype).get(ctype)
            if inner is None:
                raise NotRecorded(f"struct {ctype}")
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


_FORMS: Mapping[str, Any] = {
    "release": str,
    "common_fields": str,
    "covers": {"": [str]},
    "tracepoint": {"": {"": str}},
    "raw_tracepoint": {"": str},
    "function": {"": str},
    "untyped": [str],
    "iterator": [str],
    "dynamic": {"": bool},
    "preempts": {"": bool},
    "enum": {"": {"": int}},
    "struct": {"": Mapping},
}
_MEMBER = re.compile(r"[0-9]{1,10}(:[0-9]{1,3})? \S.*", re.ASCII)


def _has_form(recording: Any, part: str, form: Any) -> bool:
    if not isinstance(recording, Mapping) or part not in recording:
        return isinstance(recording, Mapping)
    return _is_of(recording[part], form)


def _is_of(value: Any, form: Any) -> bool:
    if isinstance(form, dict):
        names = isinstance(value, Mapping)
        return names and all(_is_of(one, form[""]) for one in value.values())
    if isinstance(form, list):
        return isinstance(value, list) and all(_is_of(one, form[0]) for one in value)
    return _is_struct(value) if form is Mapping else type(value) is form


def _is_struct(value: Any, inner: bool = False) -> bool:
    """Return whether these are members; those of an inner struct have its offset."""
    if not isinstance(value, Mapping):
        return False
    members = {name: one for name, one in value.items() if name not in (SIZE, AT)}
    numbers = [value.get(SIZE), value.get(AT) if inner else 0]
    return all(type(number) is int and number >= 0 for number in numbers) and all(
        bool(_MEMBER.fullmatch(one)) if isinstance(one, str) else _is_struct(one, True)
        for one in members.values()
    )


def words(text: Optional[str]) -> Optional[tuple[str, ...]]:
    """Return names from one text; the reverse of joined()."""
    return None if text is None else tuple(w if w != UNNAMED else "" for w in text.split())


def joined(names: Optional[Sequence[str]]) -> str:
    """Return names as one text; "..." and some parameters have none."""
    return " ".join(name or UNNAMED for name in names or ())
