"""Read records from a BPF ring buffer in batches, directly from shared memory.

The layout is from kernel/bpf/ringbuf.c (since 5.8): a page with the consumer position, a page with
the producer position, then the data, mapped twice in a row so that a record never wraps. All
records of a tool have the same size, so struct.iter_unpack reads a batch. Of a large ring only a
moving window is mapped, as mapped pages count as the reader's memory even if they are not read.
"""

from __future__ import annotations

import mmap
import struct
from typing import Any

_BUSY, _DISCARDED = 1 << 31, 1 << 30
_WINDOW = 1 << 21  # bytes of data


class RingBuffer:
    """The reader's end of a ring buffer whose records have the layout `record`.

    `invalid` counts discarded records and those of another length; they are skipped.

    The kernel wakes the reader for a record only if all records before it are released. While
    `silent`, take() does not release the last record that it took, and the reader is not woken.
    """

    silent = False  # see listen()

    def __init__(self, fd: int, size: int, record: struct.Struct) -> None:
        """Map the ring `fd` of `size` bytes (a power of two)."""
        page = mmap.PAGESIZE
        self._whole, self._window = 2 * size, min(2 * size, _WINDOW)
        self.fd = fd
        self.invalid = 0
        self._mask = size - 1
        self._length = record.size
        self._step = 8 + -(-record.size // 8) * 8
        # The record's header: u32 length and flags, u32 page offset.
        padding = self._step - 8 - record.size
        self._record = struct.Struct(f"=I4x{record.format.lstrip('=')}{padding}x")
        self._consumer = mmap.mmap(fd, page, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        # The first mapping has the producer's page and the first window.
        self._producer = mmap.mmap(
            fd, page + self._window, mmap.MAP_SHARED, mmap.PROT_READ, offset=page
        )
        self._moved, self._base = self._producer, 0
        self._data = memoryview(self._producer)[page:]
        self._most = (self._window - page) // self._step
        # Positions must be read and written in a single access, as the kernel uses them at the same
        # time; struct.Struct accesses single bytes.
        self._released = memoryview(self._consumer).cast("Q")
        self._done = int(self._released[0])
        self._written = memoryview(self._producer)[:8].cast("Q")

    @property
    def done(self) -> int:
        """Records before this position have been taken."""
        return self._done

    @property
    def written(self) -> int:
        """The producer position: the kernel has reserved or written records before it."""
        return int(self._written[0])

    def count(self, start: int, end: int) -> int:
        """Return the number of records between two positions, at most what the ring can hold."""
        return min(max(end - start, 0), self._mask + 1) // self._step

    def peek(self, limit: int) -> list[tuple[Any, ...]]:
        """Return up to `limit` records like take(), without consuming them."""
        at, records = self.done, []
        left = min(self.count(at, self.written), limit)
        while left:
            rows = self._rows(at, min(left, self._most))
            records += [row for row in rows if row[0] == self._length]
            at, left = at + len(rows) * self._step, left - len(rows)
        return records

    def take(self, limit: int = 4096) -> list[tuple[Any, ...]]:
        """Return up to `limit` records as (length, member, ...) and release their space."""
        done = self.done
        count = min(self.count(done, self.written), limit, self._most)
        if not count:
            return []
        rows = self._rows(done, count)
        good = [row for row in rows if row[0] == self._length]
        if len(good) != len(rows):
            good, rows = self._sort_out(rows)
        self._done = done + len(rows) * self._step
        if rows:
            self._release(self._done - self._step if self.silent else self._done)
        return good

    def listen(self, wanted: bool) -> None:
        """Have the kernel wake the reader for the next record, or for none.

        A record written meanwhile does not wake the reader: poll the ring before sleeping, as
        epoll_wait() does with a ring that had records when it was last polled.
        """
        self.silent = not wanted
        if wanted:
            self._release(self._done)

    def _release(self, position: int) -> None:
        # A plain store; the kernel reads the position with smp_load_acquire().
        self._released[0] = position

    def _rows(self, position: int, count: int) -> list[tuple[Any, ...]]:
        start, length = position & self._mask, count * self._step
        if not self._base <= start <= self._base + self._window - length:
            self._move(start)
        start -= self._base
        return list(self._record.iter_unpack(self._data[start : start + length]))

    def _move(self, start: int) -> None:
        """Map the window that begins with the page of `start`."""
        page = mmap.PAGESIZE
        self._data.release()
        if self._moved is not self._producer:
            self._moved.close()
        self._base = min(start & -page, self._whole - self._window)
        self._moved = mmap.mmap(
            self.fd, self._window, mmap.MAP_SHARED, mmap.PROT_READ, offset=2 * page + self._base
        )
        self._data = memoryview(self._moved)

    def _sort_out(
        self, rows: list[tuple[Any, ...]]
    ) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]:
        # Records after an unfinished one must wait for it.
        busy = next((i for i, row in enumerate(rows) if row[0] & _BUSY), len(rows))
        finished = rows[:busy]
        good = [row for row in finished if row[0] == self._length]
        self.invalid += len(finished) - len(good)
        return good, finished

    def close(self) -> None:
        """Unmap the ring."""
        for view in (self._data, self._released, self._written):
            view.release()
        self._moved.close()
        self._producer.close()
        self._consumer.close()
