"""A limit of the time that something may take while events arrive."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Credit:
    """Time for work that is not urgent: `share` of all time, and at most `most` seconds at once."""

    def __init__(self, share: float, most: float) -> None:
        self._share, self._most = share, most
        self.refill()

    def refill(self) -> None:
        """Allow as much at once as at the start."""
        self._left, self._since = self._most, time.monotonic()

    @contextmanager
    def spent(self) -> Iterator[bool]:
        """Charge the time of the block; yield whether it may do any work."""
        begin = time.monotonic()
        self._left = min(self._most, self._left + (begin - self._since) * self._share)
        self._since = begin
        try:
            yield self._left > 0
        finally:
            self._since = time.monotonic()
            self._left -= self._since - begin
