"""Many records at once, by column: most columns repeat a few values, which are converted once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

Columns = dict[str, Sequence[Any]]  # equally long

_MOST = 4096  # values that are remembered per column


class Memo(dict[Any, Any]):
    """The results of a function of one hashable argument."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        super().__init__()
        self._function = function

    def __missing__(self, argument: Any) -> Any:
        if len(self) >= _MOST:
            self.clear()
        result = self[argument] = self._function(argument)
        return result

    def all(self, arguments: Sequence[Any]) -> list[Any]:
        """Return the results for each of `arguments`."""
        return list(map(self.__getitem__, arguments))


def rows_of(columns: Columns) -> Iterator[dict[str, Any]]:
    """Yield each record as {name: value}."""
    names = tuple(columns)
    return (dict(zip(names, values)) for values in zip(*columns.values()))


def columns_of(rows: Sequence[Mapping[str, Any]]) -> Columns:
    """Return records with the same names by column."""
    return {name: [row[name] for row in rows] for name in rows[0]} if rows else {}
