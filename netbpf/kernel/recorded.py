"""A kernel that is not booted: it answers from a recording (see `netbpf.doctor.recording`).

A recording holds whole systems: each trace event of a system, each function whose name matches a
pattern. The kernel does not have what the recording covers but does not hold. A query for something
that it does not cover raises NotRecorded.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import translate
from functools import lru_cache
from typing import Any, Optional

from netbpf.kernel.btf import Field
from netbpf.kernel.cgroups import hook_arguments

SIZE, AT = "sizeof", "offsetof"  # C keywords and macros, so no member has such a name
UNNAMED = "."


class NotRecorded(KeyError):
    """The recording does not cover the query."""


def covers(patterns: Iterable[str], name: str) -> bool:
    """Return whether one of the shell `patterns` matches `name`."""
    return bool(_matcher(tuple(patterns)).match(name))


@lru_cache(maxsize=32)
def _matcher(patterns: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(map(translate, patterns)) or "(?!)")


class RecordedKernel:
    """A kernel recorded by `netbpf.doctor.recording`."""

    def __init__(self, recording: Mapping[str, Any]) -> None:
        """Answer from a recording, decoded from JSON; raises ValueError if it is invalid."""
        wrong = [part for part, form in _FORMS.items() if not _has_form(recording, part, form)]
        if wrong or "release" not in recording:
            raise ValueError(f"not a recording of a kernel: {', '.join(wrong) or 'release'}")
        self.release = str(recording["release"])
        self._recording = recording

    def _part(self, part: str, name: str) -> Mapping[str, Any]:
        """Return the recorded `part`; raise NotRecorded if it does not cover `name`."""
        recorded: Mapping[str, Any] = self._recording.get(part, {})
        patterns = self._recording.get("covers", {}).get(part, ())
        if name not in recorded and not covers(patterns, name):
            raise NotRecorded(f"{part} {name}")
        return recorded

    def tracepoint(self, name: str) -> Optional[tuple[str, ...]]:
        """Return the field names of trace event "system:name"."""
        system, _, event = name.partition(":")
        fields = self._part("tracepoint", system).get(system, {}).get(event)
        if fields is None:
            return None
        return (*self._recording.get("common_fields", "").split(), *fields.split())

    def raw_tracepoint(self, name: str) -> Optional[tuple[str, ...]]:
        """Return the C parameter names of the tracepoint `name`."""
        return split_names(self._part("raw_tracepoint", name).get(name))

    def function(self, name: str) -> Optional[tuple[str, ...]]:
        """Return the parameter names of a kernel function that can be probed."""
        return split_names(self._part("function", name).get(name))

    def typed(self, name: str) -> bool:
        """Return whether a function's parameters have types that fentry programs can read."""
        self._part("function", name)
        return name not in self._recording.get("untyped", ())

    def iterator(self, name: str) -> bool:
        """Return whether there is a BPF iterator `name`: all are recorded."""
        return name in self._recording.get("iterator", ())

    def cgroup_hook(self, name: str) -> Optional[tuple[str, ...]]:
        """Return the arguments of a hook of cgroups."""
        return hook_arguments(self, name)

    def dynamic(self, kind: str) -> bool:
        """Return whether the kernel accepts "kprobe", "uprobe" or "fentry" programs."""
        return bool(self._part("dynamic", kind).get(kind))

    def preempts(self, programs: str) -> bool:
        """Return whether programs of that kind are preemptible."""
        return bool(self._part("preempts", programs).get(programs))

    def field(self, struct: str, path: str) -> Optional[Field]:
        """Return the layout of a field; a dotted path leads through nested structs."""
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
        """Return the layout of a member, and its own members."""
        if not isinstance(member, str):  # an anonymous struct
            return Field(member[AT], f"u8 %s[{member[SIZE]}]"), member
        at, _, ctype = member.partition(" ")
        offset, _, bits = at.partition(":")
        inner: Any = {}
        if "%s" not in ctype:  # a named struct
            inner = self._part("struct", ctype).get(ctype)
            if inner is None:
                raise NotRecorded(f"struct {ctype}")
            ctype = f"u8 %s[{inner[SIZE]}]"
        return Field(int(offset), ctype, int(bits or 0)), inner

    def size(self, struct: str) -> Optional[int]:
        """Return the size of a struct in bytes."""
        size: Optional[int] = self._part("struct", struct).get(struct, {}).get(SIZE)
        return size

    def enumerator(self, enum: str, name: str) -> Optional[int]:
        """Return the value of an enumerator."""
        value: Optional[int] = self._part("enum", enum).get(enum, {}).get(name)
        return value


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
    """Return whether `value` describes a struct; an inner struct also has its offset."""
    if not isinstance(value, Mapping):
        return False
    members = {name: one for name, one in value.items() if name not in (SIZE, AT)}
    numbers = [value.get(SIZE), value.get(AT) if inner else 0]
    return all(type(number) is int and number >= 0 for number in numbers) and all(
        bool(_MEMBER.fullmatch(one)) if isinstance(one, str) else _is_struct(one, True)
        for one in members.values()
    )


def split_names(text: Optional[str]) -> Optional[tuple[str, ...]]:
    """Return the names in a text made by join_names()."""
    return None if text is None else tuple(w if w != UNNAMED else "" for w in text.split())


def join_names(names: Optional[Sequence[str]]) -> str:
    """Return names as one text; "..." and some parameters have no name."""
    return " ".join(name or UNNAMED for name in names or ())
