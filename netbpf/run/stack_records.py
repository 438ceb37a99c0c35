"""What programs report of a stack, and the memory of the process that it is from."""

from __future__ import annotations

import os
import struct
from bisect import bisect_right
from typing import NamedTuple, Optional

from netbpf.binaries.code import Mapping, executable_mappings, read_maps
from netbpf.binaries.frame_rules import Rule
from netbpf.binaries.perf_map import PerfMap

RECORD = struct.Struct("=QQQQQII512s320s8192s")  # struct stack_record in user_stacks.bpf.h
HIGHEST = 1 << 47  # above the addresses of user space
_PART = 40  # bytes of a part of a path


class Record(NamedTuple):
    """A stack that a program has seen."""

    key: int
    space: int
    ip: int
    sp: int
    bp: int
    pid: int
    size: int
    frames: bytes
    program: bytes
    copy: bytes

    @property
    def path(self) -> str:
        """The path of the program that the process ran, as its file system has it."""
        parts = [self.program[at : at + _PART] for at in range(0, len(self.program), _PART)]
        names = [part.partition(b"\0")[0] for part in parts if part[0]]
        return "/" + os.fsdecode(b"/".join(reversed(names)))


class Space:
    """The executable memory of a process until it executes another program."""

    def __init__(self, record: Record, pid: int) -> None:
        self.number, self.kernel_pid, self.pid = record.space, record.pid, pid
        self.rules: dict[int, Rule] = {}
        self._maps = b""
        self._mappings: Optional[list[Mapping]] = []
        self.perf_map: Optional[PerfMap] = None

    def read(self) -> None:
        """Read the mappings; those of a process that has ended stay as they were."""
        maps = read_maps(self.pid) if self.pid else b""
        if maps:
            self._maps, self._mappings = maps, None

    def find(self, address: int) -> Optional[Mapping]:
        """Return the mapping of an address."""
        mappings = self._mappings
        if mappings is None:
            mappings = self._mappings = executable_mappings(self._maps)
        index = bisect_right(mappings, (address, HIGHEST << 1)) - 1
        found = mappings[index] if index >= 0 else None
        return found if found and address < found.end else None
