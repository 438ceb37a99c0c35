"""Keys of --by that are filled in the kernel, for what happens too often to be an event."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from typing import Any, Callable, Optional, Union

from netbpf.declare.column import Column, prefer
from netbpf.declare.columns import Addr
from netbpf.declare.constants import load_constant
from netbpf.declare.keys import Key, key_record, keys_of, parse_keys, row_columns, with_end
from netbpf.declare.options import Option, count, nonempty
from netbpf.declare.record import Record, Row
from netbpf.declare.stacks import StackEnd, UserStack
from netbpf.declare.table import Entry, Table, sorted_rows

# Adds up entries: returns a row for each combination of values of the named columns.
Fold = Callable[[Sequence[Entry], Sequence[str]], list[dict[str, Any]]]


class Keyed:
    """The members of a map's key that are possible keys of --by: all but those in `fixed`.

    Those in `filled` are filled in any case; for the others the program has the generated macros
    SET_BY_<column>(key, value), and SET_BY_<column>(key, value, family) for addresses, which do
    nothing if the key is not in --by. BY_KEY is defined if --by is given, BY_<COLUMN> for each of
    its keys: for addresses it is the length of the prefix. `default` are the keys without --by.
    """

    def __init__(
        self,
        key: type[Record],
        fixed: Sequence[str] = (),
        filled: Sequence[str] = (),
        default: Sequence[str] = (),
    ) -> None:
        self.parts = tuple(column for column in key.columns if column.name not in fixed)
        self.filled = tuple(filled)
        self.default = tuple(Key(name) for name in default)
        self.keys = keys_of(self.parts)

    def option(self) -> Option:
        """Return the option --by."""
        return Option(
            "--by", metavar="LIST", parse=lambda text: parse_keys(text, self.parts),
            help=f"a row for each value of these: {', '.join(self.keys)}{self._more()}",
        )  # fmt: skip

    def _more(self) -> str:
        addresses = [column.name for column in self.parts if isinstance(column, Addr)]
        blocks = f"; blocks: {addresses[-1]}/24" if addresses else ""
        default = ",".join(key.name for key in self.default)
        return blocks + (f" (default {default})" if default else "")

    def constants(self, by: Sequence[Key]) -> dict[str, object]:
        """Return the C constants that say which keys to fill."""
        by = by or self.default
        if not by:
            return {}
        prefixes = {key.name: 128 if key.prefix is None else key.prefix for key in by}
        addresses = {c.name for c in self.parts if isinstance(c, Addr)} & prefixes.keys()
        names = {"cgroup" if name == "container" else name for name in prefixes}
        names |= {"family"} if addresses else set()  # says whether there is an address
        if "stack" in names and any(column.name == "location" for column in self.parts):
            names.add("location")  # where the stack begins
        names -= set(self.filled)
        parts = {name: load_constant(prefixes[name]) if name in addresses else 1 for name in names}
        defined = {f"BY_{name.upper()}": parts[name] for name in sorted(parts)}
        return {"BY_KEY": 1, **defined} if defined else {}

    def setters(self) -> Iterator[str]:
        """Yield the C macros that fill the members of the key."""
        for column in self.parts:
            name, by = column.name, f"BY_{column.name.upper()}"
            if name in self.filled:
                continue
            if isinstance(column, Addr):
                args, does = "key, value, family", f"set_block((key)->{name}, value, family, {by})"
            else:
                copies = f"__builtin_memcpy((key)->{name}, value, sizeof((key)->{name}))"
                assigns = f"((key)->{name} = (value))"
                args, does = "key, value", copies if "[" in column.ctype else assigns
            yield f"#ifdef {by}\n#define SET_BY_{name}({args}) {does}"
            yield f"#else\n#define SET_BY_{name}({args})\n#endif"

    def values(self, key: Mapping[str, Any], by: Sequence[Key]) -> dict[str, Any]:
        """Return a decoded key with the blocks of addresses; null for what has no address."""
        found = {**key}
        if "family" in key and key["family"] not in ("ipv4", "ipv6"):
            found.update({c.name: None for c in self.parts if isinstance(c, Addr)})
        return {**found, **{one.name: one.value(found) for one in by}}


class KeyedTable(Table):
    """The rows of a tool by the keys of --by, instead of its other tables.

    `counts` are the columns of a row after the keys, `order` is the one by which rows are sorted
    unless --sort is given. `fold` adds up entries, by default their sums; `fixed` are members of
    the key that it needs and that are no keys (see `Keyed`). `implies` names a switch of the tool
    that --by sets. `more` is as in Table.
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
        keyed: Optional[Keyed] = None,
        implies: str = "",
        forget: Union[bool, str] = True,
        **more: Any,
    ) -> None:
        self.keyed = keyed or Keyed(key, fixed)
        self.counts = tuple(counts)
        prefer(counts, order)
        self.fold = fold or add_up
        self.most = order
        self.implies = implies
        row = row_of(self.keyed, counts)
        super().__init__(
            map, key, sums, row, self._by_keys, option="by", forget=forget, order=order, **more
        )

    def columns(self, settings: Mapping[str, Any]) -> Sequence[Column]:
        """Return the columns of rows by the keys of --by."""
        return row_columns(settings["by"], self.keyed.parts, self.counts)

    def options(self) -> tuple[Option, ...]:
        """Return the options that select and sort the rows."""
        by = self.keyed.option()
        by.sets = {self.implies: True} if self.implies else {}
        return (
            by,
            Option("--top", metavar="N", parse=count, help="show the first N rows only"),
            Option("--sort", metavar="COLUMN", parse=nonempty,
                   help=f"sort rows by this column, the most first (default {self.most})"),
        )  # fmt: skip

    def _groups(self, entries: Sequence[Entry], settings: Mapping[str, Any]) -> Sequence[Entry]:
        return entries

    def _by_keys(
        self, entries: Sequence[Entry], settings: Mapping[str, Any]
    ) -> Sequence[dict[str, Any]]:
        by: Sequence[Key] = settings["by"]
        found = self._groups(entries, settings)
        groups = [(self.keyed.values(key, by), sums) for key, sums in found]
        rows = self.fold(groups, [one.name for one in by])
        rows = sorted_rows(rows, settings["sort"] or self.most)
        unused = dict.fromkeys(self.keyed.keys)
        shown = rows[: settings["top"] or None]
        return [with_end({**unused, **row}, self.keyed.parts) for row in shown]


class RowsByKey(KeyedTable):
    """The rows of another table, added up by the keys of --by, which are some of its columns.

    `keys` are the names of these columns; `add` is as `fold` in `KeyedTable`, but takes the rows.
    """

    def __init__(
        self,
        table: Table,
        keys: Sequence[str],
        counts: Sequence[str],
        order: str,
        add: Fold,
    ) -> None:
        self.table = table
        named = {column.name: column for column in table.row.columns}
        own = type("Keys", (Row,), {name: copy(named[name]) for name in keys})
        columns = [named[name] for name in counts]
        super().__init__(
            table.map, table.key, table.sums, columns, order, fold=add,
            keyed=Keyed(own, filled=keys), per_cpu=table.per_cpu, refresh=table.refresh,
            first=table.first, warn=None, forget=table.forget,
        )  # fmt: skip

    def _groups(self, entries: Sequence[Entry], settings: Mapping[str, Any]) -> Sequence[Entry]:
        return [(row, row) for row in self.table.build(entries, settings)]


def row_of(keyed: Keyed, counts: Sequence[Column]) -> Any:
    """Return a row of all keys, and of copies of the columns `counts`."""
    copies = {column.name: copy(column) for column in counts}
    if any(isinstance(column, UserStack) for column in keyed.parts):
        copies["stack_end"] = StackEnd()
    return key_record([Key(name) for name in keyed.keys], keyed.parts, copies)


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
