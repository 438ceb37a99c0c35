"""The ring buffer reader, with the kernel's side simulated in ordinary memory."""

from __future__ import annotations

import random
import struct
from types import SimpleNamespace
from typing import Any

import pytest

from netbpf.bpf import ringbuf
from netbpf.bpf.ringbuf import RingBuffer

PAGE, SIZE = 4096, 8192
BUSY, DISCARDED = 1 << 31, 1 << 30
RECORD = struct.Struct("=QI4x")


class Memory(bytearray):
    """Mapped memory."""

    def close(self) -> None:
        """Unmap."""


class Ring:
    """The kernel side (kernel/bpf/ringbuf.c): positions on two pages, data mapped twice."""

    def __init__(self) -> None:
        self.consumer = Memory(PAGE)
        self.producer = Memory(PAGE + 2 * SIZE)
        self.position = 0

    def write(self, record: bytes, flags: int = 0) -> int:
        """Write a record as the kernel does; return the position of its header."""
        at = self.position
        data = struct.pack("=II", len(record) | flags, 0) + record
        self.position += 8 + -(-len(record) // 8) * 8
        assert self.position - self.consumed <= SIZE, "the kernel would have found no room"
        for offset, byte in enumerate(data):
            for copy in (0, SIZE):
                self.producer[PAGE + copy + (at + offset) % SIZE] = byte
        struct.pack_into("=Q", self.producer, 0, self.position)
        return at

    def commit(self, at: int, length: int) -> None:
        """Clear the busy bit of the record at `at`."""
        for copy in (0, SIZE):
            struct.pack_into("=I", self.producer, PAGE + copy + at % SIZE, length)

    @property
    def consumed(self) -> int:
        return int(struct.unpack_from("=Q", self.consumer)[0])


@pytest.fixture
def ring(monkeypatch: pytest.MonkeyPatch) -> Ring:
    ring = Ring()

    def mapped(fd: int, length: int, *_: int, offset: int = 0) -> Memory:
        assert offset in (0, PAGE)
        memory = ring.producer if offset else ring.consumer
        assert length == len(memory)
        return memory

    fake = SimpleNamespace(mmap=mapped, PAGESIZE=PAGE, MAP_SHARED=1, PROT_READ=1, PROT_WRITE=2)
    monkeypatch.setattr(ringbuf, "mmap", fake)
    return ring


def values(rows) -> list[int]:
    return [row[2] for row in rows]


def write(ring: Ring, number: int, flags: int = 0) -> int:
    return ring.write(RECORD.pack(1000 + number, number), flags)


def test_empty_ring_has_no_records(ring):
    assert RingBuffer(7, SIZE, RECORD).take() == []


def test_records_come_in_order_and_their_space_is_released(ring):
    reader = RingBuffer(7, SIZE, RECORD)
    for number in range(23):
        write(ring, number)
    assert reader.take() == [(16, 1000 + number, number) for number in range(23)]
    assert ring.consumed == ring.position
    assert reader.take() == []


def test_limit_leaves_the_rest_for_the_next_batch(ring):
    reader = RingBuffer(7, SIZE, RECORD)
    for number in range(23):
        write(ring, number)
    assert values(reader.take(limit=10)) == list(range(10))
    assert ring.consumed == 10 * 24
    assert values(reader.take(limit=100)) == list(range(10, 23))


def test_records_are_complete_where_the_ring_wraps(ring):
    # GIVEN a ring whose size is not a multiple of a record's
    reader = RingBuffer(7, SIZE, RECORD)
    assert SIZE % 24
    chance, sent, got = random.Random(43), 0, []
    # WHEN many times its size is written and read
    while sent < 5000:
        for _ in range(chance.randint(0, SIZE // 24)):
            if ring.position - ring.consumed + 24 > SIZE:
                break
            write(ring, sent)
            sent += 1
        got += values(reader.take(limit=chance.randint(1, 400)))
    got += values(reader.take())
    # THEN each record was returned once
    assert got == list(range(sent))
    assert reader.invalid == 0


def test_full_ring_is_read_in_one_batch(ring):
    reader = RingBuffer(7, SIZE, RECORD)
    for number in range(100):
        write(ring, number)
    reader.take()
    for number in range(SIZE // 24):
        write(ring, number)
    assert values(reader.take()) == list(range(SIZE // 24))


def test_unfinished_record_holds_back_later_ones(ring):
    reader = RingBuffer(7, SIZE, RECORD)
    write(ring, 0)
    at = write(ring, 1, BUSY)
    write(ring, 2)
    # WHEN the second is not finished
    assert values(reader.take()) == [0]
    assert reader.take() == []
    # THEN it and the next one are returned once it is
    ring.commit(at, 16)
    assert values(reader.take()) == [1, 2]
    assert reader.invalid == 0


def test_discarded_and_invalid_records_are_skipped_and_counted(ring):
    reader = RingBuffer(7, SIZE, RECORD)
    write(ring, 0)
    write(ring, 1, DISCARDED)
    ring.write(bytes(13))  # another length in the same space
    write(ring, 3)
    assert values(reader.take()) == [0, 3]
    assert reader.invalid == 2
    assert ring.consumed == ring.position


def test_record_is_padded_to_a_multiple_of_eight(ring):
    record = struct.Struct("=QHB")
    reader = RingBuffer(7, SIZE, record)
    for number in range(5):
        ring.write(record.pack(number, 80, 9))
    assert reader.take() == [(11, number, 80, 9) for number in range(5)]


def wakes(ring) -> bool:
    """Whether the kernel wakes the reader for the next record (bpf_ringbuf_commit())."""
    return ring.consumed == ring.position


def test_a_silent_reader_is_never_woken_and_reads_all(ring):
    reader, chance = RingBuffer(7, SIZE, RECORD), random.Random(23)
    reader.listen(wanted=False)
    written, taken, before = 0, [], 0
    for _ in range(300):
        for _ in range(chance.randrange(4)):
            write(ring, written)
            written += 1
        taken += values(reader.take(chance.choice((1, 2, 4096))))
        assert ring.consumed >= before, "the position went back"
        before = ring.consumed
        assert not written or not wakes(ring)
    taken += values(reader.take())
    assert taken == list(range(written))
    assert reader.count(reader.done, reader.written) == 0


def test_a_reader_that_listens_is_woken_for_the_next_record(ring):
    reader = RingBuffer(7, SIZE, RECORD)
    reader.listen(wanted=False)
    write(ring, 1)
    assert values(reader.take()) == [1]
    assert not wakes(ring)
    reader.listen(wanted=True)
    assert wakes(ring)
    write(ring, 2)
    assert values(reader.take()) == [2]
    assert wakes(ring)


def test_close_releases_the_memory(ring):
    reader = RingBuffer(7, SIZE, RECORD)
    reader.close()
    ring.producer.append(0)  # raises BufferError if a view still exists


# --- a ring that is larger than the window --------------------------------------------------------


class Large(Ring):
    """A ring with a mapped window of its data."""

    def __init__(self) -> None:
        super().__init__()
        self.mapped: list[tuple[int, int]] = []
        self.open = 0

    def mmap(self, fd: int, length: int, *_: int, offset: int = 0) -> Window:
        self.mapped.append((offset, length))
        self.open += 1
        return Window(self, offset, length)


class Window:
    """A mapped part of the ring's memory."""

    def __new__(cls, ring: Large, offset: int, length: int) -> Any:
        memory = ring.consumer if not offset else ring.producer
        start = max(offset - PAGE, 0)
        assert offset % PAGE == 0 and start + length <= len(memory)
        return Mapped(memory, start, length, ring)


class Mapped:
    """A view of memory that counts as open until it is closed."""

    def __init__(self, memory: Memory, start: int, length: int, ring: Large) -> None:
        self.view = memoryview(memory)[start : start + length]
        self.ring = ring

    def close(self) -> None:
        self.ring.open -= 1


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> Large:
    ring = Large()
    fake = SimpleNamespace(mmap=ring.mmap, PAGESIZE=PAGE, MAP_SHARED=1, PROT_READ=1, PROT_WRITE=2)
    monkeypatch.setattr(ringbuf, "mmap", fake)
    monkeypatch.setattr(ringbuf, "_WINDOW", 2 * PAGE)
    monkeypatch.setattr(
        ringbuf, "memoryview", lambda one: getattr(one, "view", one)[:], raising=False
    )
    return ring


def test_window_moves_along_a_large_ring(large):
    reader = RingBuffer(7, SIZE, RECORD)
    chance, sent, got = random.Random(43), 0, []
    while sent < 3000:
        for _ in range(chance.randint(0, SIZE // 24)):
            if large.position - large.consumed + 24 > SIZE:
                break
            write(large, sent)
            sent += 1
        assert values(reader.peek(10_000)) == list(range(len(got), sent))
        got += values(reader.take(limit=chance.randint(1, 400)))
    while rows := reader.take():
        got += values(rows)
    assert got == list(range(sent))
    # The consumer page, the producer page with the first window, and later windows of data.
    assert large.mapped[:2] == [(0, PAGE), (PAGE, 3 * PAGE)]
    assert len(large.mapped) > 3 and {length for _, length in large.mapped[2:]} == {2 * PAGE}
    assert large.open == 3


def test_batch_is_limited_by_the_window(large):
    reader = RingBuffer(7, SIZE, RECORD)
    for number in range(SIZE // 24):
        write(large, number)
    first = reader.take(10_000)
    assert 0 < len(first) < SIZE // 24
    assert values(first + reader.take(10_000) + reader.take(10_000)) == list(range(SIZE // 24))


@pytest.mark.parametrize(("done", "written"), [(0, SIZE * 3 + 8), (64, 0), (8, 2**64 - 8)])
def test_impossible_positions_stay_inside_the_ring(ring: Ring, done: int, written: int) -> None:
    reader = RingBuffer(3, SIZE, RECORD)
    struct.pack_into("=Q", ring.consumer, 0, done)
    struct.pack_into("=Q", ring.producer, 0, written)
    assert reader.take() == []
