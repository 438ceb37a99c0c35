"""Maps are read in short batches with real-time priority."""

from __future__ import annotations

import errno
import os
import struct

import pytest

from netbpf.bpf import maps
from netbpf.bpf.maps import Map
from netbpf.system import realtime

LOOKUP, NEXT, TAKE = 1, 4, 21  # enum bpf_cmd in include/uapi/linux/bpf.h


class Kernel:
    """A map of numbers, the scheduling class of the reader, and the calls made in each."""

    def __init__(self, entries: int, policy: int = os.SCHED_OTHER, allowed: bool = True) -> None:
        self.entries = {number: number * 10 for number in range(entries)}
        self.policy, self.allowed = policy, allowed
        self.steps: list[tuple[int, int]] = []

    def bpf(self, command: int, attributes: bytes) -> int:
        fd, key_at, value_at = struct.unpack("=IxxxxQQ", attributes[:24])
        assert fd == 7
        self.steps.append((command, self.policy))
        key = maps.ctypes.c_uint32.from_address(key_at).value if key_at else -1
        value = maps.ctypes.c_uint32.from_address(value_at)
        if command == NEXT:
            key += 1
        if key not in self.entries:
            raise OSError(errno.ENOENT, "no such entry")
        value.value = key if command == NEXT else self.entries[key]
        if command == TAKE:
            del self.entries[key]
        return 0

    def sched_setscheduler(self, pid: int, policy: int, param: os.sched_param) -> None:
        if not self.allowed:
            raise PermissionError(errno.EPERM, "not permitted")
        assert pid == 0 and param.sched_priority == (policy == os.SCHED_FIFO)
        self.policy = policy
        self.steps.append((-1, policy))

    def placed(self, monkeypatch: pytest.MonkeyPatch) -> Kernel:
        monkeypatch.setattr(maps, "bpf", self.bpf)
        monkeypatch.setattr(realtime.os, "sched_getscheduler", lambda pid: self.policy)
        monkeypatch.setattr(realtime.os, "sched_setscheduler", self.sched_setscheduler)
        return self


def pairs(found):
    return [tuple(struct.unpack("=I", part)[0] for part in pair) for pair in found]


def test_entries_are_read_in_batches_with_real_time_priority(monkeypatch):
    kernel = Kernel(maps._BATCH * 2 + 1).placed(monkeypatch)
    assert pairs(Map(7, 4, 4).items()) == [(n, n * 10) for n in kernel.entries]
    assert {policy for command, policy in kernel.steps if command == LOOKUP} == {os.SCHED_FIFO}
    assert {policy for command, policy in kernel.steps if command == NEXT} == {os.SCHED_OTHER}
    switches = [policy for command, policy in kernel.steps if command == -1]
    assert switches == [os.SCHED_FIFO, os.SCHED_OTHER] * 3
    assert kernel.policy == os.SCHED_OTHER


def test_taken_entries_are_deleted_and_missing_ones_left_out(monkeypatch):
    kernel = Kernel(3).placed(monkeypatch)
    keys = [struct.pack("=I", number) for number in (2, 9, 0)]
    assert pairs(Map(7, 4, 4).take(keys)) == [(2, 20), (0, 0)]
    assert kernel.entries == {1: 10}
    assert {policy for command, policy in kernel.steps if command == TAKE} == {os.SCHED_FIFO}


@pytest.mark.parametrize("policy", [os.SCHED_FIFO, os.SCHED_RR])
def test_reader_with_another_policy_keeps_it(monkeypatch, policy):
    kernel = Kernel(5, policy).placed(monkeypatch)
    assert len(list(Map(7, 4, 4).items())) == 5
    assert {now for _, now in kernel.steps} == {policy}


def test_maps_are_read_without_the_privilege_for_a_priority(monkeypatch):
    kernel = Kernel(5, os.SCHED_BATCH, allowed=False).placed(monkeypatch)
    assert len(list(Map(7, 4, 4).items())) == 5
    assert kernel.policy == os.SCHED_BATCH


def test_policy_is_restored_after_an_error(monkeypatch):
    kernel = Kernel(5).placed(monkeypatch)
    refuse = kernel.bpf

    def bpf(command: int, attributes: bytes) -> int:
        if command == LOOKUP:
            raise PermissionError(errno.EPERM, "not permitted")
        return refuse(command, attributes)

    monkeypatch.setattr(maps, "bpf", bpf)
    with pytest.raises(PermissionError):
        list(Map(7, 4, 4).items())
    assert kernel.policy == os.SCHED_OTHER
