"""A declared record: what one event or one map entry holds, once for C, JSON, CSV and text.

Columns are class attributes in the order in which they are shown. The C struct has the same
members, those of the widest type first (and in declared order within a width), so that it has no
hole; a contract test compares the two.
"""

from __future__ import annotations

import struct
from collections.abc import Container, Iterator, Sequence
from typing import Any, Callable, ClassVar

from netbpf.declare.columns import Column


class Record:
    """Base of all records; a subclass lists its columns as class attributes.

    `cstruct` is the name of the C struct.
    """

    cstruct: ClassVar[str] = ""
    in_c: ClassVar[bool] = True
    head: ClassVar[tuple[Column, ...]] = ()
    columns: ClassVar[tuple[Column, ...]] = ()
    members: ClassVar[tuple[Column, ...]] = ()
    size: ClassVar[int] = 0

    def __init_subclass__(cls) -> None:
        named = [(n, c) for n, c in vars(cls).items() if isinstance(c, Column)]
        for name, column in named:
            column.name = name.rstrip("_")  # a name may be one of Python's keywords
            column.ctype = column.ctype if cls.in_c else ""
        cls.columns = tuple(column for _, column in named)
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


def _stamp() -> Column:
    column = Column("when it happened", ctype="u64")
    column.name = "time"
    return column


class Event(Record):
    """A record that happened at a moment: its C struct begins with `u64 time`.

    The time is bpf_ktime_get_ns(), CLOCK_MONOTONIC in nanoseconds, taken where the event happened.
    """

    head: ClassVar[tuple[Column, ...]] = (_stamp(),)


def _key() -> Column:
    column = Column("what an amendment refers to", ctype="u64")
    column.name = "key"
    return column


class AmendedEvent(Event):
    """An event whose column `amended` may be found wrong a moment after it was sent.

    The member `key` of its C struct is even, and 0 where nothing can follow. A record with the same
    key plus 1 is no event: its value of that column replaces the one in the latest event with the
    key. The reader holds events back that long. Where the ring has no room for such a record, the
    value is in the BPF map `late` (u8), by key.
    """

    head = (*Event.head, _key())
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
