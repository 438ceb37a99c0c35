"""How text shows what has not ended, apart from events."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Callable, NamedTuple

from netbpf.declare.column import Column


class OpenRows(NamedTuple):
    """Rows of the probes with the role OPEN.

    `columns` returns the columns of their text from those of the events, `only` whether settings
    select no event.
    """

    columns: Callable[[Sequence[Column]], Sequence[Column]]
    only: Callable[[Mapping[str, Any]], bool]
