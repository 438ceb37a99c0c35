"""The BPF programs of a device, as a column of what they dropped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from netbpf.declare.column import Column
from netbpf.declare.table import Rows
from netbpf.declare.values import escape

# Drop reason -> how the attach points of the programs begin that cause it: DeviceProgram.way.
_WAYS = {"XDP": "xdp", "TC_INGRESS": "tcx/ingress", "TC_EGRESS": "tcx/egress"}


class _Program(dict[str, Any]):
    def __str__(self) -> str:
        """Return the program in one line, for text and CSV."""
        name = escape(self["name"]) or "without a name"
        return f"program {self['id']} {name} ({self['attached']}), runs: {self['runs']}"


class AttachedPrograms(Column):
    """The programs attached to the row's device: a list, null if none is known."""

    width = 1
    below = True
    json_type = "array"

    def __init__(self) -> None:
        help = "programs of the device, for the reasons XDP, TC_INGRESS and TC_EGRESS"
        super().__init__(help, header=" ")

    def text(self, value: Any) -> str:
        """Format as one indented line per program."""
        return "".join(f"\n    {program}" for program in value or ())

    def schema(self) -> dict[str, Any]:
        """Return the JSON Schema of the list."""
        text, number = {"type": "string"}, {"type": "integer"}
        fields = {"id": number, "name": text, "attached": text, "runs": number}
        items = {
            "type": "object",
            "properties": fields,
            "required": list(fields),
            "additionalProperties": False,
        }
        return {**super().schema(), "items": items}


def may_blame(settings: Mapping[str, Any]) -> bool:
    """Return whether the reasons of --reason may be those of programs: by name, or any number."""
    names = (settings.get("reason") or "").split(",")
    return any(name in _WAYS or name.isdigit() or not name for name in names)


def name_programs(rows: Rows, runs: Mapping[Any, int]) -> Rows:
    """Add the programs to rows of packets that programs drop; `runs` has them by DeviceProgram."""
    for row in rows:
        way = _WAYS.get(row["reason"])
        found = [
            _Program(id=one.id, name=one.name, attached=one.way, runs=number)
            for one, number in runs.items()
            if way
            and one.way.startswith(way)
            and (one.netns, one.dev) == (row["netns"], row["dev"])
        ]
        row["programs"] = found or None
    return rows
