"""Rows by the keys of --by, counted in the kernel: for what happens too often to be an event."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from typing import Any, Callable, Optional

from netbpf.declare.column import Column, prefer
from netbpf.declare.columns import Addr
from netbpf.declare.constants import load_constant
from netbpf.declare.keys import Key, key_columns, key_record, keys_of, parse_keys
from netbpf.declare.options import Option, count, nonempty
from netbpf.declare.record import Record
from netbpf.declare.table import Entry, Table, sorted_rows

# Adds up entries: returns a row for each combination of values of the named columns.
Fold = Callable[[Sequence[Entry], Sequence[str]], list[dict[str, Any]]]


class KeyedTable(Table):
    """The rows of a tool by the keys of --by, instead of its other tables.

    The columns of `key` are the possible keys, except those in `fixed`, which the program always
    fills. It fills the others by the generated macros SET_BY_<column>(key, value), and
    SET_BY_<column>(key, value, family) for addresses, which do nothing if the key is not in --by.
    BY_KEY is defined if --by is given, BY_<COLUMN> for each of its keys: for addresses it is the
    length of the prefix. `counts` are the columns of a row after the keys, `order` is the one by
    which rows are sorted unless --sort is given. `more` is as in Table. `fold` adds up entries, by
    default their sums.
    """

    def __init__(
        self,
        map: str,
        key: type[Record],
        sums: type[Record],
        counts: Sequence[Column],
        order: str,
        *,
        fold: Optional[Fold] = None,
        fixed: Sequence[str] = (),
        **more: Any,
    ) -> None:
        self.parts = tuple(column for column in key.columns if column.name not in fixed)
        self.keys = keys_of(self.parts)
        self.counts = tuple(counts)
        prefer(counts, order)
        copies = {column.name: copy(column) for column in counts}
        row = key_record([Key(name) for name in self.keys], self.parts, copies)
        super().__init__(
            map, key, sums, row, self._by_keys, option="by", forget=True, order=order, **more
        )
        self.fold = fold or add_up
        self.most = order

    def columns(self, settings: Mapping[str, Any]) -> Sequence[Column]:
        """Return the columns of rows by the keys of --by."""
        return (*key_columns(settings["by"], self.parts), *self.counts)

    def options(self) -> tuple[Option, ...]:
        """Return the options that select and sort the rows."""
        return (
            Option(
                "--by", metavar="LIST", parse=lambda text: parse_keys(text, self.parts),
                help=f"a row for each value of these: {', '.join(self.keys)}; blocks: raddr/24",
            ),
            Option("--top", metavar="N", parse=count, help="only the first N rows"),
            Option("--sort", metavar="COLUMN", parse=nonempty,
                   help=f"sort rows by this column, the most first (default {self.most})"),
        )  # fmt: skip

    def constants(self, by: Sequence[Key]) -> dict[str, object]:
        """Return the C constants that say which keys to fill."""
        if not by:
            return {}
        prefixes = {key.name: 128 if key.prefix is None else key.prefix for key in by}
        addresses = {c.name for c in self.parts if isinstance(c, Addr)} & prefixes.keys()
        names = {"cgroup" if name == "container" else name for name in prefixes}
        names |= {"family"} if addresses else set()  # says whether there is an address
        parts = {name: load_constant(prefixes[name]) if name in addresses else 1 for name in names}
        return {"BY_KEY": 1, **{f"BY_{name.upper()}": parts[name] for name in sorted(parts)}}

    def setters(self) -> Iterator[str]:
        """Yield the C macros that fill the members of the key."""
        for column in self.parts:
            name, by = column.name, f"BY_{column.name.upper()}"
            if isinstance(column, Addr):
                args, does = "key, value, family", f"set_block((key)->{name}, value, family, {by})"
            else:
                copies = f"__builtin_memcpy((key)->{name}, value, sizeof((key)->{name}))"
                assigns = f"((key)->{name} = (value))"
                args, does = "key, value", copies if "[" in column.ctype else assigns
            yield f"#ifdef {by}\n#define SET_BY_{name}({args}) {does}"
            yield f"#else\n#define SET_BY_{name}({args})\n#endif"

    def _by_keys(
        self, entries: Sequence[Entry], settings: Mapping[str, Any]
    ) -> Sequence[dict[str, Any]]:
        by: Sequence[Key] = settings["by"]
        groups = [
            ({**key, **{one.name: one.value(key) for one in by}}, sums)
            for key, sums in map(self._without_addresses, entries)
        ]
        rows = self.fold(groups, [one.name for one in by])
        rows = sorted_rows(rows, settings["sort"] or self.most)
        unused = dict.fromkeys(self.keys)
        return [{**unused, **row} for row in rows[: settings["top"] or None]]

    def _without_addresses(self, entry: Entry) -> Entry:
        key, sums = entry
        if key.get("family") in ("ipv4", "ipv6"):
            return entry
        no = {column.name: None for column in self.parts if isinstance(column, Addr)}
        return {**key, **no}, sums


def add_up(entries: Sequence[Entry], names: Sequence[str]) -> list[dict[str, Any]]:
    """Return a row with the sums for each combination of values of the columns `names`."""
    rows: dict[tuple[object, ...], dict[str, Any]] = {}
    for key, sums in entries:
        row = rows.setdefault(
            tuple(key[name] for name in names),
            {**{name: key[name] for name in names}, **dict.fromkeys(sums, 0)},
        )
        for name, value in sums.items():
            row[name] += value
    return list(rows.values())
