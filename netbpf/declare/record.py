"""A declared record: what one event or one map entry holds, once for C, JSON, CSV and text.

Columns are class attributes in the order in which they are shown. The C struct has the same
members, those of the widest type first (and in declared order within a width), so that it has no
hole; a contract test compares the two.
"""

from __future__ import annotations

import struct
from collections.abc import Container, Iterator, Sequence
from copy import copy
from typing import Any, Callable, ClassVar

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
    """Base of all records; a subclass lists its columns as class attributes.

    `cstruct` is the name of the C struct. `shared` are columns of a base class, before and behind a
    subclass's own; an own column of the same name takes the place of a shared one.
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
            column.name = name.rstrip("_")  # a name may be one of Python's keywords
            column.ctype = column.ctype if cls.in_c else ""
        first, last = (
            {c.name: copy(c) for c in columns if c.name not in own} for columns in cls.shared
        )
        named = {**first, **own, **last}
        for name in first.keys() | last.keys():
            setattr(cls, name, named[name])
        cls.columns = tuple(named.values())
        inside = [*cls.head, *(column for column in cls.columns if column.ctype)]
        cls.members = tuple(sorted(inside, key=lambda column: -column.alignment))
        used = sum(column.size for column in cls.members)
        widest = max((column.alignment for column in cls.members), default=1)
        cls.size = -(-used // widest) * widest

    @classmethod
    def layout(cls) -> struct.Struct:
        """Return the struct module's view of the C struct, trailing padding skipped."""
        codes = "".join(column.format for column in cls.members)
        used = struct.calcsize("=" + codes)
        return struct.Struct(f"={codes}{cls.size - used}x")

    @classmethod
    def decoder(cls) -> Callable[[Sequence[Any]], dict[str, Any]]:
        """Return a function from one unpacked C struct to {name: value} in shown order."""
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
    """Return columns with their names, for a base class."""
    for name, column in columns.items():
        column.name = name
    return tuple(columns.values())


def sums(cstruct: str, names: str, gauges: str = "", shown: str = "", **more: Any) -> type[Record]:
    """Return a record of u64 members, by their names, and of `more` columns.

    `names` are sums, `gauges` and `shown` are gauges (see `netbpf.declare.columns.Gauge`).
    """
    members: dict[str, object] = {name: Count(name) for name in names.split()}
    members.update({name: Gauge(name) for name in gauges.split()})
    members.update({name: Gauge(name, shown=True) for name in shown.split()})
    return type("Sums", (Record,), {"cstruct": cstruct, **members, **more})


class Event(Record):
    """A record that happened at a moment: its C struct begins with `u64 time`.

    The time is bpf_ktime_get_ns(), CLOCK_MONOTONIC in nanoseconds, taken where the event happened.
    """

    head: ClassVar[tuple[Column, ...]] = named(time=Column("when it happened", ctype="u64"))


class SocketEvent(Event):
    """An event of a socket: its owner, both ends, and its network namespace.

    SET_OWNER and SET_ENDS of the C headers fill these columns.
    """

    shared = (
        named(
            pid=Pid("process that owns the socket"),
            comm=Comm("its name"),
            owner=Owner("how the owner is known: exact, snapshot or unknown", wide=True),
            family=Family("address family, IPv4-mapped counts as ipv4", wide=True),
            laddr=Addr("local address"),
            lport=Port("local port"),
            raddr=Addr("remote address"),
            rport=Port("remote port"),
        ),
        named(uid=Uid("user id of the owner", wide=True), netns=Netns(), cgroup=Cgroup()),
    )


class AmendedEvent(Event):
    """An event whose column `amended` may be found wrong a moment after it was sent.

    The member `key` of its C struct is even, and 0 where nothing can follow. A record with the same
    key plus 1 is no event: its value of that column replaces the one in the latest event with the
    key. The reader holds events back that long. Where the ring has no room for such a record, the
    value is in the BPF map `late` (u8), by key.
    """

    head = (*Event.head, *named(key=Column("what an amendment refers to", ctype="u64")))
    amended: ClassVar[str] = ""


class Row(Record):
    """A line of a table, made in user space: its columns have no C type."""

    in_c = False


def text_columns(
    columns: tuple[Column, ...], wide: bool, given: Container[str] = ()
) -> Iterator[Column]:
    """Yield the columns that text output shows; `given` are the options that were given."""
    for column in columns:
        asked = not column.option or column.option in given
        if column.in_text and asked and (wide or not column.wide):
            yield column
