"""The writer for text: aligned columns that fit the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from typing import Any, Optional

from netbpf.declare.aliases import chosen_columns
from netbpf.declare.batch import Columns
from netbpf.declare.column import prefer
from netbpf.declare.columns import Column
from netbpf.declare.record import text_columns
from netbpf.output.layout import Layout, Texts, texts_of
from netbpf.output.screen import BOLD, RED, fold
from netbpf.output.text import describe_histogram, describe_loss
from netbpf.output.writer import Writer

_SINCE = 10  # characters of the seconds since the start


class TextWriter(Writer):
    """Writes aligned columns; on a terminal as many as fit, and the heading again if they change.

    In a pipe the heading comes once per table, and no value is cut.
    """

    def begin(self) -> None:
        """Prepare the columns; the heading is written before the first row."""
        style = self.style
        self.columns = tuple(copy(column) for column in self.columns)
        prefer(self.columns, style.sort)
        selected = bool(style.columns or style.shown)
        base = style.chosen(self.columns) if style.columns else self._usual()
        self._hidden = not base
        extra = [] if selected else [c for c in self._declared(True) if c not in base]
        self._day = (8 if style.seconds else 15) if style.time else 0  # characters
        taken = (self._day + 1 if self._day else 0) + (_SINCE + 1 if style.timestamp else 0)
        self._layout = Layout(
            base, extra, order=base if selected else self.columns,
            limit=self._limit, taken=taken, pinned=bool(style.columns), roomy=style.wide,
        )  # fmt: skip
        self._all_texts = Texts()
        self._headed = False
        self._separate = False

    def sibling(self, columns: Sequence[Column]) -> Writer:
        """Return a writer for other columns, with a blank line before each heading."""
        other = super().sibling(columns)
        assert isinstance(other, TextWriter)
        other._separate = True
        return other

    def new_table(self) -> None:
        """Repeat the heading before the next row."""
        if self._headed and not self._separate:
            self._aside("\n")
        self._headed = False

    def event(self, ns: int, values: Mapping[str, Any], kind: str = "event") -> None:
        """Write one line."""
        if self._hidden:
            return
        changed = self._layout.resize(self._limit)
        texts, grown = self._texts(values)
        if not self._headed:
            self._heading(blank=self._separate)
        elif (changed or grown) and self.style.screen.terminal:
            self._heading()
        cells = self._layout.cells(texts)
        if self.style.screen.colour:
            cells = [
                self._painted(cell, values[column.name], column)
                for cell, column in zip(cells, self._layout.shown)
            ]
        self.out.write(" ".join([*self._stamps(ns), *cells]).rstrip() + "\n")

    def events(self, times: Sequence[int], columns: Columns, kind: str = "event") -> None:
        """Write one line per event; by column if all texts fit and have no colours."""
        if self._hidden:
            return
        lines = None if self.style.screen.colour else self._lines(times, columns)
        if lines is None:
            super().events(times, columns, kind)
        else:
            self.heading_now()
            self.out.writelines(lines)

    def _lines(self, times: Sequence[int], columns: Columns) -> Optional[Iterable[str]]:
        """Return the lines; None if the layout must change for them, or a text is not ASCII."""
        if self._layout.resize(self._limit):
            return None
        shown, widths = self._layout.shown, self._layout.widths
        texts = self._all_texts.of(shown, columns)
        for column, width, cells in zip(shown, widths, texts):
            if not column.below and max(map(len, cells)) > width:
                return None
        lines: Iterable[str] = list(map(self._layout.template().__mod__, zip(*texts)))
        if not all(map(str.isascii, lines)):  # see width_of()
            return None
        if self._day or self.style.timestamp:
            lines = (" ".join([*self._stamps(ns), line]) for ns, line in zip(times, lines))
        return [line.rstrip() + "\n" for line in lines]

    def rows(self, ns: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write all rows of an interval, in columns that are wide enough for each of them."""
        changed = [self._texts(row, exactly=True)[1] for row in rows if not self._hidden]
        if self._headed and self.style.screen.terminal and any(changed):
            self._heading()
        super().rows(ns, rows)

    def histogram(self, ns: int, histogram: Mapping[str, Any]) -> None:
        """Write the histogram as bars."""
        stamp = " ".join(self._stamps(ns))
        below = [c for c in self.columns if c.below and c.name in histogram["key"]]
        self.out.write(describe_histogram(histogram, stamp, self.style.screen.width, below))

    def counters(self, ns: int, counters: Mapping[str, int]) -> None:
        """Write the counters that changed, and a blank line between intervals."""
        grown = [f"{name} +{number}" for name, number in counters.items() if number]
        end = "" if self._separate else "\n"
        line = f"kernel: {', '.join(grown) or 'no counter grew'}"
        self._aside(f"{fold(line, self.style.screen.width)}\n{end}")
        self._headed = False

    def end_interval(self) -> None:
        """Write a line below an incomplete interval."""
        if self.interval.lost:
            line = f"{describe_loss(self.interval.lost)} in this interval"
            screen = self.style.screen
            self._aside(screen.paint(fold(line, screen.width), RED) + "\n")
            self._headed = False

    def heading_now(self) -> None:
        """Write the heading before the first event, as a sign that tracing has started."""
        if not self._headed and not self._hidden:
            self._heading(blank=self._separate)

    def _usual(self) -> list[Column]:
        style = self.style
        return chosen_columns(self.columns, style.shown, self._declared(style.wide), style.wide)

    def _declared(self, wide: bool) -> list[Column]:
        return list(text_columns(self.columns, wide, self.style.given))

    @property
    def _limit(self) -> Optional[int]:
        return None if self.style.wide else self.style.screen.width

    def _texts(self, values: Mapping[str, Any], exactly: bool = False) -> tuple[list[str], bool]:
        """Return the texts of a row, and whether the columns changed to make room for it."""
        changed = False
        texts = texts_of(self._layout.shown, values)
        while self._layout.grow(texts, exactly):
            changed = True
            texts = texts_of(self._layout.shown, values)
        return texts, changed

    def _painted(self, cell: str, value: Any, column: Column) -> str:
        shown = cell.strip()
        if not shown or not column.is_alert(value):
            return cell
        return cell.replace(shown, self.style.screen.paint(shown, RED), 1)

    def _heading(self, blank: bool = False) -> None:
        self._headed = True
        if blank:
            self._aside("\n")
        stamps = [f"{'TIME':<{self._day}}"] * bool(self._day)
        stamps += [f"{'TIME(s)':>{_SINCE}}"] * self.style.timestamp
        cells = self._layout.cells([column.title for column in self._layout.shown])
        line = " ".join([*stamps, *cells]).rstrip()
        self._aside(self.style.screen.paint(line, BOLD) + "\n")

    def _stamps(self, ns: int) -> list[str]:
        wall = [self.clock.local(ns)[: self._day]] if self._day else []
        since = [f"{self.clock.since_start(ns):>{_SINCE}.6f}"] if self.style.timestamp else []
        return wall + since
