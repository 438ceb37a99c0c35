"""Maps are read in one go as far as other tasks are concerned, and not for long at once."""

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
    """A map of numbers, the scheduling class of the reader, and what was done in which."""

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


def test_entries_are_read_before_other_tasks_and_those_have_their_turn(monkeypatch):
    kernel = Kernel(maps._AT_ONCE * 2 + 1).placed(monkeypatch)
    assert pairs(Map(7, 4, 4).items()) == [(n, n * 10) for n in kernel.entries]
    assert {policy for command, policy in kernel.steps if command == LOOKUP} == {os.SCHED_FIFO}
    assert {policy for command, policy in kernel.steps if command == NEXT} == {os.SCHED_OTHER}
    switches = [policy for command, policy in kernel.steps if command == -1]
    assert switches == [os.SCHED_FIFO, os.SCHED_OTHER] * 3
    assert kernel.policy == os.SCHED_OTHER


def test_what_is_taken_is_gone_and_what_was_gone_is_left_out(monkeypatch):
    kernel = Kernel(3).placed(monkeypatch)
    keys = [struct.pack("=I", number) for number in (2, 9, 0)]
    assert pairs(Map(7, 4, 4).take(keys)) == [(2, 20), (0, 0)]
    assert kernel.entries == {1: 10}
    assert {policy for command, policy in kernel.steps if command == TAKE} == {os.SCHED_FIFO}


@pytest.mark.parametrize("policy", [os.SCHED_FIFO, os.SCHED_RR])
def test_a_reader_with_a_priority_of_its_own_keeps_it(monkeypatch, policy):
    kernel = Kernel(5, policy).placed(monkeypatch)
    assert len(list(Map(7, 4, 4).items())) == 5
    assert {now for _, now in kernel.steps} == {policy}


def test_without_the_right_to_a_priority_maps_are_read_all_the_same(monkeypatch):
    kernel = Kernel(5, os.SCHED_BATCH, allowed=False).placed(monkeypatch)
    assert len(list(Map(7, 4, 4).items())) == 5
    assert kernel.policy == os.SCHED_BATCH


def test_the_class_comes_back_when_the_kernel_refuses_the_map(monkeypatch):
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
