"""Which columns a line of text has, and how wide each is.

Without a limit, as in a pipe, the columns are fixed and each grows with its content. On a terminal,
the line fits: columns are left out or added by their priority, and text is cut.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Callable, Optional

from netbpf.declare.batch import Columns, Memo, rows_of
from netbpf.declare.columns import Column
from netbpf.declare.values import cut, width_of

# Characters by which columns grow, so that headings are seldom repeated.
_STEP_OF_TEXT, _STEP_OF_ADDRESSES = 8, 4
_LONGEST = 50  # characters of a column that is not cut: an IPv6 address with a port
_SHORTEST = 8  # characters of a column that is cut


class Layout:
    """The columns `shown`, for lines of at most `limit` characters; `taken` are those of times.

    `base` columns are shown if they fit, `extra` columns if there is room, both in the `order` of
    these columns. Columns that are `pinned` are never left out. Without a limit, `roomy` columns
    begin at their full width.
    """

    def __init__(
        self,
        base: Sequence[Column],
        extra: Sequence[Column] = (),
        *,
        order: Sequence[Column] = (),
        limit: Optional[int] = None,
        taken: int = 0,
        pinned: bool = False,
        roomy: bool = False,
    ) -> None:
        below = [column for column in base if column.below]
        self._base = [column for column in base if not column.below]
        self._extra = [column for column in extra if not column.below]
        self._below = below
        self._pinned, self._roomy = pinned, roomy
        self._taken = taken
        self._seen: dict[str, int] = {}  # characters of the longest text of each column
        self._order = [c for c in order or base if c in self._base or c in self._extra]
        self.limit = limit
        self.shown: list[Column] = []
        self.widths: list[int] = []
        self.choose()

    def resize(self, limit: Optional[int]) -> bool:
        """Fit lines into `limit` characters; return whether that changes the layout."""
        if limit == self.limit:
            return False
        self.limit = limit
        return self.choose()

    def choose(self) -> bool:
        """Choose columns and widths; return whether they differ from the last choice."""
        before = self.shown, self.widths
        chosen = {column: self._least(column) for column in self._base}
        if self.limit is not None:
            self._leave_out(chosen)
            self._widen(chosen, self._usual)
            self._widen(chosen, lambda column: max(self._usual(column), column.full))
            if len(chosen) == len(self._base):
                self._add(chosen, self._extra)
            self._widen(chosen, lambda column: self._seen.get(column.name, 0))
        self.shown = [*(column for column in self._order if column in chosen), *self._below]
        self.widths = [chosen.get(column, 0) for column in self.shown]
        self._give_rest_to_last()
        return before != (self.shown, self.widths)

    def grow(self, texts: Sequence[str], exactly: bool = False) -> bool:
        """Make room for `texts` of the columns shown; return whether the layout changed.

        Columns get more than they need, as longer texts may follow, unless it is `exactly`.
        """
        grown = False
        for column, width, text in zip(self.shown, self.widths, texts):
            taken = width_of(text)
            if taken > width and taken > self._seen.get(column.name, 0):
                exact = exactly or self.limit is None or column.is_number
                self._seen[column.name] = taken if exact else _stepped(column, taken)
                grown = grown or not column.below
        return grown and self.choose()

    def cells(self, texts: Sequence[str]) -> list[str]:
        """Return `texts` cut or padded to the widths."""
        return [
            text if column.below else self._cell(column, width, text)
            for column, width, text in zip(self.shown, self.widths, texts)
        ]

    def template(self) -> str:
        """Return the "%" format of a line, for ASCII texts that fit."""
        return " ".join(
            "%s" if column.below else f"%{width}s" if column.is_number else f"%-{width}s"
            for column, width in zip(self.shown, self.widths)
        )

    def _cell(self, column: Column, width: int, text: str) -> str:
        taken = width_of(text)
        if self.limit is not None and taken > width:
            if column.is_cut or (taken > _LONGEST and not column.is_number):
                text = cut(text, width - 1) + "~"
        padding = " " * (width - width_of(text))
        return padding + text if column.is_number else text + padding

    def _total(self, chosen: Mapping[Column, int]) -> int:
        return self._taken + sum(width + 1 for width in chosen.values()) - 1

    def _room(self, chosen: Mapping[Column, int]) -> int:
        assert self.limit is not None
        return self.limit - self._total(chosen)

    def _usual(self, column: Column) -> int:
        return max(column.width, len(column.title))

    def _least(self, column: Column) -> int:
        """Return the characters that a column takes at least."""
        usual, seen = self._usual(column), self._seen.get(column.name, 0)
        if self.limit is None:
            return max(usual, seen, column.full if self._roomy else 0)
        if column.is_cut:
            return max(len(column.title), min(column.width, _SHORTEST))
        return max(usual, seen if column.is_number else min(seen, _LONGEST))

    def _leave_out(self, chosen: dict[Column, int]) -> None:
        dropped = []
        while not self._pinned and len(chosen) > 1 and self._room(chosen) < 0:
            # Of equal ones the last: columns are declared in the order of what they tell.
            least = min(reversed(list(chosen)), key=lambda column: column.priority)
            dropped.append(least)
            del chosen[least]
        self._add(chosen, dropped)

    def _widen(self, chosen: dict[Column, int], wanted: Callable[[Column], int]) -> None:
        for column in sorted(chosen, key=lambda column: -column.priority):
            if column.is_cut:
                more = min(wanted(column) - chosen[column], self._room(chosen))
                chosen[column] += max(0, more)

    def _add(self, chosen: dict[Column, int], columns: Sequence[Column]) -> None:
        for column in sorted(columns, key=lambda column: -column.priority):
            width = self._least(column) if column in self._base else self._wide(column)
            if width < self._room(chosen):
                chosen[column] = width

    def _wide(self, column: Column) -> int:
        return max(self._least(column), self._usual(column))

    def _give_rest_to_last(self) -> None:
        last = len(self.widths) - len(self._below) - 1
        if self.limit is None or last < 0 or not self.shown[last].is_cut:
            return
        rest = self.limit - self._taken - sum(width + 1 for width in self.widths[:last])
        self.widths[last] = max(self.widths[last], rest)


def _stepped(column: Column, length: int) -> int:
    step = _STEP_OF_ADDRESSES if column.whole else _STEP_OF_TEXT
    return column.full if length <= column.full else -(-length // step) * step


class Texts:
    """The texts of many rows, by column; those of values that repeat are made once."""

    def __init__(self) -> None:
        self._memos: dict[Column, Memo] = {}

    def of(self, shown: Sequence[Column], columns: Columns) -> list[Sequence[str]]:
        """Return the texts of each column shown."""
        rows: list[dict[str, Any]] = []
        texts: list[Sequence[str]] = []
        for column in shown:
            if type(column).cell is not Column.cell:  # it combines several values
                rows = rows or list(rows_of(columns))
                texts.append([column.cell(row) for row in rows])
            elif column.json_type == "array":
                texts.append([column.text(value) for value in columns[column.name]])
            else:
                memo = self._memos.setdefault(column, Memo(column.text))
                texts.append(memo.all(columns[column.name]))
        return texts


def texts_of(columns: Sequence[Column], values: Mapping[str, Any]) -> list[str]:
    """Return the text of each column of a row."""
    return [column.cell(values) for column in columns]
