"""Records: the columns of an event or a map entry, declared once for C, JSON, CSV and text.

Columns are class attributes in display order. The generated C struct has the same members, sorted
by decreasing alignment (declaration order for equal alignment), so that it has no holes.
"""

from __future__ import annotations

import struct
from collections.abc import Container, Iterator, Sequence
from copy import copy
from typing import Any, Callable, ClassVar

from netbpf.declare.batch import Columns
from netbpf.declare.cgroup_names import names_beside
from netbpf.declare.columns import (
    Addr,
    Cgroup,
    Column,
    Comm,
    Count,
    Family,
    Gauge,
    Netns,
    Owner,
    Pid,
    Port,
    Uid,
)


class Record:
    """Base class of records; a subclass lists its columns as class attributes.

    `cstruct` is the name of the C struct. `shared` are the columns that a base class puts before
    and after those of its subclasses; a subclass replaces a shared column by one of the same name.
    """

    cstruct: ClassVar[str] = ""
    in_c: ClassVar[bool] = True
    shared: ClassVar[tuple[tuple[Column, ...], tuple[Column, ...]]] = ((), ())
    head: ClassVar[tuple[Column, ...]] = ()
    columns: ClassVar[tuple[Column, ...]] = ()
    members: ClassVar[tuple[Column, ...]] = ()
    size: ClassVar[int] = 0

    def __init_subclass__(cls) -> None:
        own = {n: c for n, c in vars(cls).items() if isinstance(c, Column)}
        for name, column in own.items():
            column.name = name.rstrip("_")  # "_" is appended to names that are Python keywords
            column.ctype = column.ctype if cls.in_c else ""
        first, last = (
            {c.name: copy(c) for c in columns if c.name not in own} for columns in cls.shared
        )
        named = {**first, **own, **last}
        added = cls.added(tuple(named.values()))
        named.update(added)
        for name in first.keys() | last.keys() | added.keys():
            setattr(cls, name, named[name])
        cls.columns = tuple(named.values())
        inside = [*cls.head, *(column for column in cls.columns if column.ctype)]
        cls.members = tuple(sorted(inside, key=lambda column: -column.alignment))
        used = sum(column.size for column in cls.members)
        widest = max((column.alignment for column in cls.members), default=1)
        cls.size = -(-used // widest) * widest

    @classmethod
    def added(cls, columns: tuple[Column, ...]) -> dict[str, Column]:
        """Return further columns of a record with these columns, by name."""
        return {}

    @classmethod
    def layout(cls) -> struct.Struct:
        """Return the layout of the C struct; trailing padding is skipped."""
        codes = "".join(column.format for column in cls.members)
        used = struct.calcsize("=" + codes)
        return struct.Struct(f"={codes}{cls.size - used}x")

    @classmethod
    def batch_decoder(cls) -> Callable[[Sequence[Sequence[Any]]], Columns]:
        """Return decoder() for many unpacked C structs, at least one; the result is by column."""
        names = [column.name for column in cls.members]
        steps = [(i, f) for i, c in enumerate(cls.members) if (f := c.batch_converter())]
        shown = [(c.name, names.index(c.name) if c.ctype else -1) for c in cls.columns]

        def decode(raws: Sequence[Sequence[Any]]) -> Columns:
            columns: list[Sequence[Any]] = list(zip(*raws))
            for index, convert in steps:
                columns[index] = convert(columns[index])
            unknown = (None,) * len(raws)
            return {name: columns[i] if i >= 0 else unknown for name, i in shown}

        return decode

    @classmethod
    def decoder(cls) -> Callable[[Sequence[Any]], dict[str, Any]]:
        """Return a function from an unpacked C struct to {name: value} in display order."""
        names = [column.name for column in cls.members]
        steps = [(i, f) for i, c in enumerate(cls.members) if (f := c.converter())]
        shown = [(c.name, names.index(c.name) if c.ctype else -1) for c in cls.columns]

        def decode(raw: Sequence[Any]) -> dict[str, Any]:
            values = list(raw)
            for index, convert in steps:
                values[index] = convert(values[index])
            return {name: values[i] if i >= 0 else None for name, i in shown}

        return decode


def named(**columns: Column) -> tuple[Column, ...]:
    """Return `columns` as a tuple, with their names set."""
    for name, column in columns.items():
        column.name = name
    return tuple(columns.values())


def sums(cstruct: str, names: str, gauges: str = "", shown: str = "", **extra: Any) -> type[Record]:
    """Return a record of u64 members, given as space-separated names, and `extra` columns.

    `names` are sums, `gauges` and `shown` are gauges (see netbpf.declare.columns.Gauge).
    """
    members: dict[str, object] = {name: Count(name) for name in names.split()}
    members.update({name: Gauge(name) for name in gauges.split()})
    members.update({name: Gauge(name, shown=True) for name in shown.split()})
    return type("Sums", (Record,), {"cstruct": cstruct, **members, **extra})


def key(cstruct: str, **columns: Column) -> type[Record]:
    """Return a record of `columns`: the key of a map."""
    return type("Key", (Record,), {"cstruct": cstruct, **columns})


def copied(record: type[Record], names: str) -> dict[str, Any]:
    """Return {name: copy} of the columns of `record` in `names`, which are space-separated."""
    columns = {column.name: column for column in record.columns}
    return {name: copy(columns[name]) for name in names.split()}


class Event(Record):
    """A record with a time: its C struct begins with `u64 time`.

    The time is bpf_ktime_get_ns(), CLOCK_MONOTONIC in nanoseconds, read by the probe.
    """

    head: ClassVar[tuple[Column, ...]] = named(time=Column("when it happened", ctype="u64"))

    @classmethod
    def added(cls, columns: tuple[Column, ...]) -> dict[str, Column]:
        """Return the names of the cgroup, if there is one."""
        return names_beside(columns)


class SocketEvent(Event):
    """An event of a socket: owner, endpoints and network namespace.

    The C macros SET_OWNER and SET_ENDS fill these columns.
    """

    shared = (
        named(
            pid=Pid("process that owns the socket"),
            comm=Comm("its name"),
            owner=Owner("how the owner was found: exact, snapshot or unknown", wide=True),
            family=Family("address family, IPv4-mapped counts as ipv4", wide=True),
            laddr=Addr("local address", priority=28),
            lport=Port("local port", priority=32),
            raddr=Addr("remote address"),
            rport=Port("remote port"),
        ),
        named(uid=Uid("user id of the owner", wide=True), netns=Netns(), cgroup=Cgroup()),
    )


class AmendedEvent(Event):
    """An event whose column `amended` may be corrected shortly after the event was emitted.

    The C struct has a member `key`: an even number, or 0 if no correction can follow. A record with
    `key` + 1 is not an event: its value of the column replaces that of the latest event with `key`.
    The reader delays events accordingly. If the ring is full, the value is stored in the BPF map
    `late` (u8), by key.
    """

    head = (*Event.head, *named(key=Column("what an amendment refers to", ctype="u64")))
    amended: ClassVar[str] = ""


class Row(Record):
    """A row of a table, computed in user space: its columns have no C type."""

    in_c = False


def text_columns(
    columns: tuple[Column, ...], wide: bool, given: Container[str] = ()
) -> Iterator[Column]:
    """Yield the columns of text output; `given` are the names of the options given."""
    for column in columns:
        enabled = not column.option or column.option in given
        if column.in_text and enabled and (wide or not column.wide):
            yield column
