"""The columns that name the cgroup of a process: every event with a cgroup has them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from netbpf.declare.column import Column
from netbpf.declare.columns import Cgroup, Container
from netbpf.declare.values import escape


class OfCgroup(Column):
    """A name of the process's cgroup, which the reader of events fills in; None if unknown."""

    ctype = ""
    width = 24
    priority = 35
    json_type = "string"

    def __init__(self, help: str, **more: Any) -> None:
        super().__init__(help, **{"wide": True, **more})

    def text(self, value: Any) -> str:
        """Escape control characters."""
        return "-" if value is None else escape(value)


class ContainerName(OfCgroup):
    """The name of a container; in text "namespace/pod/name", or the id where there is no name."""

    priority = 40

    def cell(self, values: Mapping[str, Any]) -> str:
        """Join the names of pod and container."""
        parts = [values.get(name) for name in ("pod", self.name)]
        names = [name for name in parts if name]
        return self.text("/".join(names) or (values.get("container") or "")[:12] or None)


class UnitName(OfCgroup):
    """A systemd unit; in text with that of a user's service manager."""

    def cell(self, values: Mapping[str, Any]) -> str:
        """Join the names of both units."""
        parts = [values.get(name) for name in (self.name, "user_unit")]
        return self.text("/".join(name for name in parts if name) or None)


def name_columns() -> dict[str, Column]:
    """Return new columns, by name."""
    columns: dict[str, Column] = {
        "container": Container("container of the process", ctype="", text=False),
        "container_name": ContainerName("name of the container"),
        "pod": OfCgroup("Kubernetes pod, as namespace/name", text=False),
        "pod_uid": OfCgroup("uid of the Kubernetes pod", text=False),
        "unit": UnitName("systemd unit of the process"),
        "user_unit": OfCgroup("unit of a user's service manager in that unit", text=False),
    }
    for name, column in columns.items():
        column.name = name
    return columns


NAMES = tuple(name_columns())


def names_beside(columns: Iterable[Column]) -> dict[str, Column]:
    """Return the columns to add to an event with these columns, by name.

    A tool that already shows the container keeps its text.
    """
    there = {column.name: column for column in columns}
    in_c = isinstance(there.get("container"), Container)
    if not in_c and not isinstance(there.get("cgroup"), Cgroup):
        return {}
    found = {name: column for name, column in name_columns().items() if name not in there}
    for column in found.values() if in_c else ():
        column.in_text = False
    return found


def cgroup_column(columns: Iterable[Column]) -> str:
    """Return the name of the column that holds the id of the process's cgroup in C, "" if none."""
    for column in columns:
        if isinstance(column, Cgroup) or (isinstance(column, Container) and column.ctype):
            return column.name
    return ""
