"""Keys of --by: the columns by whose values events are counted together."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from typing import Any, NamedTuple, Optional

from netbpf.declare.cgroup_names import NAMES, name_columns
from netbpf.declare.column import Column
from netbpf.declare.columns import Addr
from netbpf.declare.record import Row
from netbpf.declare.stacks import StackEnd, UserStack, end_of, stacks_last

# Column names that identify something, and take few values compared with the number of events.
VOCABULARY = tuple(
    """
    comm pid uid cgroup container container_name pod pod_uid unit user_unit netns owner family
    proto op host service func result dir flags laddr lport listener raddr rport saddr sport daddr
    dport state oldstate newstate role close end kind handle reason location errno err dev queue cpu
    stack
    """.split()
)


class Key(NamedTuple):
    """A column, and for an address the length of the prefix that counts as one, if any."""

    name: str
    prefix: Optional[int] = None

    def value(self, values: Mapping[str, Any]) -> Any:
        """Return the key's value of an event."""
        found = values.get(self.name)
        return found if self.prefix is None or found is None else block(found, self.prefix)


def block(address: str, prefix: int) -> str:
    """Return the block of `prefix` bits that an address is in, "10.1.0.0/16"; a path as it is."""
    try:
        most = ipaddress.ip_address(address).max_prefixlen
    except ValueError:
        return address  # the path of a unix socket
    return str(ipaddress.ip_network(f"{address}/{min(prefix, most)}", strict=False))


def keys_of(columns: Iterable[Column]) -> tuple[str, ...]:
    """Return the keys that events with these columns have."""
    names = [column.name for column in columns]
    names += NAMES if "cgroup" in names else ()
    return tuple(name for name in VOCABULARY if name in names)


def parse_keys(text: str, columns: Sequence[Column]) -> tuple[Key, ...]:
    """Parse "comm,raddr/24"; raise ValueError, to which the option adds the keys that there are."""
    known = keys_of(columns)
    addresses = {column.name for column in columns if isinstance(column, Addr)}
    found = []
    for word in filter(None, text.split(",")):
        name, slash, length = word.partition("/")
        if name not in known:
            raise ValueError(f"'{name}' is not a key of this tool")
        if not slash:
            found.append(Key(name))
        elif name in addresses and length.isdigit() and int(length) <= 128:
            found.append(Key(name, int(length)))
        else:
            raise ValueError(f"'{word}': only addresses have blocks, such as raddr/24")
    if len({key.name for key in found}) != len(found) or not found:
        raise ValueError(f"'{text}' is not a list of different keys")
    return tuple(found)


def key_columns(keys: Sequence[Key], columns: Sequence[Column]) -> list[Column]:
    """Return the columns in which rows by these keys show them, all of them in text."""
    by_name = {column.name: column for column in columns}
    found = []
    for key in keys:
        shown = by_name.get(key.name)
        column = copy(shown) if shown else name_columns()[key.name]
        column.name = key.name
        column.wide, column.in_text, column.option = False, True, ""
        if key.prefix is not None:
            column.width += 3
        found.append(plain(column))
    return found


def row_columns(
    keys: Sequence[Key], columns: Sequence[Column], sums: Sequence[Column]
) -> tuple[Column, ...]:
    """Return the columns of a row: those of the keys, then `sums`, then stacks."""
    found = [*key_columns(keys, columns), *sums]
    ends = [StackEnd() for column in found if isinstance(column, UserStack)]
    return tuple(stacks_last([*found, *ends]))


def with_end(row: dict[str, Any], columns: Iterable[Column]) -> dict[str, Any]:
    """Return a row of a record with `columns`, with how its user stack ends."""
    if not any(isinstance(column, UserStack) for column in columns):
        return row
    return {**row, "stack_end": end_of(row["stack"])}


def key_record(
    keys: Sequence[Key], columns: Sequence[Column], more: Optional[Mapping[str, Column]] = None
) -> type[Row]:
    """Return a row of the columns of these keys, and of `more` columns."""
    named = {column.name: column for column in key_columns(keys, columns)}
    return type("Keys", (Row,), {"__doc__": "Rows by --by.", **named, **(more or {})})


def plain(column: Column) -> Column:
    """Return a column without what its text joins from other columns, such as a port."""
    if type(column).cell is Column.cell:
        return column
    alone = copy(column)
    alone.header = ""
    if isinstance(column, Addr):
        alone.width = max(column.width, Addr.width)
    alone.cell = lambda values: alone.text(values[alone.name])  # type: ignore[method-assign]
    return alone
