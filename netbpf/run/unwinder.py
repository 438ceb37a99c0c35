"""Unwind and name user stacks, in a separate process: see system/worker.py.

Programs report a copy of each new stack with the registers (include/user_stacks.bpf.h). This
process unwinds it by the tables of the mapped files, gives the rules that it used to the programs,
which then recognise the stack by themselves, and sends the named functions to the process that
writes the results. Of a process that has ended, the build ids of the frames lead to files that are
known already, and to the program, whose path was noted.
"""

from __future__ import annotations

import json
import os
import select
import struct
import sys
import time
from collections import deque
from contextlib import suppress
from threading import Thread
from typing import Any, Optional

from netbpf.binaries.code import Code
from netbpf.binaries.code_files import CodeFiles
from netbpf.binaries.frame_rules import BY_POINTER, DEREF, END, NO_RULE, SP, Rule
from netbpf.binaries.perf_map import PerfMap
from netbpf.bpf.maps import Map
from netbpf.bpf.ringbuf import RingBuffer
from netbpf.declare.stacks import COMPLETE, CUT, NO_UNWIND
from netbpf.kernel.processes import proc_pid
from netbpf.run.stack_records import HIGHEST, RECORD, Record, Space
from netbpf.system.realtime import realtime_priority
from netbpf.system.untrusted import Budget, Limits
from netbpf.system.worker import ITEM_SECONDS, WorkerEnd

RING_BYTES = 512 * 4096  # STACK_RING_PAGES in include/user_stacks.bpf.h
_FRAME = struct.Struct("=i20sQ")  # struct build_frame
_VALID, _ADDRESS = 1, 2  # BPF_STACK_BUILD_ID_VALID and _IP, linux/bpf.h
_CODE_ADDRESS, _RULE = struct.Struct("=QQ"), struct.Struct("=ihH")
_POINTER_KEY = 1 << 62
_DEPTH = 48  # STACK_DEPTH in include/user_stacks.bpf.h
_WORD = struct.Struct("<Q")
_MAX_QUEUE = 128
_SWITCH, _PAUSE = 0.0005, 0.01  # seconds
_WORK = Limits(0, 1.0)  # for the rules of one stack
_MAX_SPACES, _MAX_RULES, _BATCH = 512, 10_000, 16
_LOWEST = 4096  # of addresses in user space


class Unwinder:
    """The work of the separate process; `records` and `rules` are descriptors of BPF maps.

    Stacks are written to the pipe `out`, as lines of JSON: tools count messages of sockets.
    """

    def __init__(self, worker: WorkerEnd, records: int, rules: int, out: int) -> None:
        self._worker, self._out = worker, out
        self._ring = RingBuffer(records, RING_BYTES, RECORD)
        self._rules = Map.from_fd(rules)
        self._spaces: dict[int, Space] = {}
        self._files = CodeFiles()
        self._queue: deque[tuple[Record, Space]] = deque()
        self._woken, self._wake = os.pipe()
        os.set_blocking(self._woken, False)
        os.set_blocking(self._wake, False)
        self._reading = (0, 0.0)  # the process whose mappings are read, since when

    def run(self) -> None:
        """Work until the other end is closed."""
        if not self._worker.skipped:
            with self._worker.item("libraries"):
                self._files.read_libcs()
        sys.setswitchinterval(_SWITCH)
        Thread(target=self._take, daemon=True).start()
        poll = select.poll()
        poll.register(self._worker.channel, select.POLLIN)
        poll.register(self._woken, select.POLLIN)
        with suppress(BrokenPipeError, ConnectionResetError):
            while self._worker.channel.fileno() not in [fd for fd, _ in poll.poll(1000)]:
                if 0 < self._reading[1] < time.monotonic() - ITEM_SECONDS:
                    with self._worker.item(str(self._reading[0])):
                        os._exit(1)  # the next worker skips this process
                with suppress(BlockingIOError):
                    os.read(self._woken, _MAX_QUEUE)
                while self._queue:
                    self._handle(*self._queue.popleft())

    # --- in a thread: read the mappings of a process before it ends -------------------------------

    def _take(self) -> None:
        poll = select.poll()
        poll.register(self._ring.fd, select.POLLIN)
        with realtime_priority():
            while True:
                poll.poll()
                for row in self._ring.take(_BATCH):
                    record = Record(*row[1:])
                    self._queue.append((record, self._space(record)))
                    with suppress(BlockingIOError):
                        os.write(self._wake, b"+")
                while len(self._queue) > _MAX_QUEUE:
                    time.sleep(_PAUSE)  # programs follow frame pointers meanwhile

    def _space(self, record: Record) -> Space:
        space = self._spaces.get(record.space)
        is_new = space is None or space.kernel_pid != record.pid
        if space is None or is_new:
            if len(self._spaces) >= _MAX_SPACES:
                del self._spaces[next(iter(self._spaces))]
            space = self._spaces[record.space] = Space(record, proc_pid(record.pid) or 0)
        if (is_new or not space.find(record.ip)) and str(space.pid) not in self._worker.skipped:
            self._reading = (space.pid, time.monotonic())
            space.read()
            self._reading = (0, 0.0)
        return space

    # --- in the main thread -----------------------------------------------------------------------

    def _handle(self, record: Record, space: Space) -> None:
        if str(space.pid) in self._worker.skipped:
            frames: list[Any] = []
            end = NO_UNWIND
        else:
            with self._worker.item(str(space.pid)):
                self._budget = Budget(f"/proc/{space.pid}", _WORK)
                frames, end = self._resolved(record, space)
        self._write({"key": record.key, "frames": frames, "end": end})

    def _write(self, message: object) -> None:
        # A worker that was killed before may have left a part of a line.
        data = b"\n" + json.dumps(message).encode() + b"\n"
        while data:
            data = data[os.write(self._out, data) :]

    def _resolved(self, record: Record, space: Space) -> tuple[list[Any], str]:
        by_pointer = record.key & _POINTER_KEY and not record.key >> 63
        if not by_pointer and space.find(record.ip):
            addresses, end = self._unwind(record, space)
            return [self._named(space, address) for address in addresses], end
        return self._by_frame_pointers(record, space), NO_UNWIND

    # --- unwinding --------------------------------------------------------------------------------

    def _unwind(self, record: Record, space: Space) -> tuple[list[int], str]:
        """Return the addresses of a copied stack, and how it ends; store the rules used."""
        ip, sp, bp = record.ip, record.sp, record.bp
        addresses, end = [ip], COMPLETE
        copy = record.copy[: record.size]

        def word(address: int) -> int:
            at = address - record.sp
            return int(_WORD.unpack_from(copy, at)[0]) if 0 <= at <= len(copy) - 8 else -1

        while len(addresses) <= _DEPTH:
            rule = self._rule(space, ip)
            if rule is BY_POINTER:
                end = NO_UNWIND
            if rule.kind >= END:
                return addresses, end if rule.kind == END else NO_UNWIND
            cfa = (sp if rule.kind == SP else bp) + rule.cfa
            if rule.kind == DEREF:
                cfa, bp = word(cfa), word(bp)
            elif rule.bp:
                bp = word(cfa + rule.bp)
            caller = word(cfa - 8)
            if caller < 0 and sp < cfa < record.sp + (1 << 20):
                return addresses, CUT if record.size == len(record.copy) else NO_UNWIND
            if not caller:
                return addresses, end
            if cfa <= sp or not self._is_code(space, caller):
                self._store(space, ip, NO_RULE)  # the rule leads nowhere: there is none
                return addresses, NO_UNWIND
            ip, sp = caller, cfa
            addresses.append(ip)
        return addresses[:_DEPTH], CUT

    def _is_code(self, space: Space, address: int) -> bool:
        if not space.find(address):
            space.read()
        return space.find(address) is not None

    def _rule(self, space: Space, ip: int) -> Rule:
        """Return the rule at an address, from the table of the file that is mapped there."""
        if ip not in space.rules:
            code, address = self._place(space, ip - 1)
            rule = code.rule(address, self._budget) if code and address is not None else None
            self._store(space, ip, rule or BY_POINTER)
        return space.rules[ip]

    def _store(self, space: Space, ip: int, rule: Rule) -> None:
        if len(space.rules) >= _MAX_RULES:
            space.rules.clear()
        space.rules[ip] = rule
        address = _CODE_ADDRESS.pack(ip, space.number)
        with suppress(OSError):
            self._rules.set(address, _RULE.pack(rule.cfa, rule.bp, rule.kind))

    def _place(self, space: Space, address: int) -> tuple[Optional[Code], Optional[int]]:
        """Return the file that is mapped at an address, and the address in that file."""
        mapping = space.find(address)
        if not mapping or not mapping.path:
            return None, None
        code = self._files.mapped(space.pid, mapping)
        return code, code.address(address - mapping.start + mapping.offset) if code else None

    # --- names ------------------------------------------------------------------------------------

    def _named(self, space: Space, ip: int) -> dict[str, Any]:
        mapping = space.find(ip - 1)
        code, address = self._place(space, ip - 1)
        path = mapping.path if mapping else ""
        if code and mapping and address is not None:
            return _frame(code, address + 1, path, ip - mapping.start + mapping.offset)
        if mapping and not path:
            return self._compiled(space, ip)
        offset = ip - mapping.start + mapping.offset if mapping else ip
        return {"function": None, "offset": offset, "file": path or None, "build_id": None}

    def _compiled(self, space: Space, ip: int) -> dict[str, Any]:
        """Return a frame of code that the program itself has compiled."""
        if space.perf_map is None:
            space.perf_map = PerfMap(space.pid)
        function = space.perf_map.function(ip - 1)
        return {
            "function": function[0] if function else None,
            "offset": function[1] + 1 if function else ip,
            "file": None,
            "build_id": None,
        }

    def _by_frame_pointers(self, record: Record, space: Space) -> list[dict[str, Any]]:
        """Return the frames that the kernel has found, of a process that may have ended."""
        frames = []
        for status, raw, offset in _FRAME.iter_unpack(record.frames):
            if status == _VALID:
                frames.append(self._of_build_id(record, raw.hex(), offset))
            elif status == _ADDRESS and _LOWEST <= offset < HIGHEST:
                frames.append(self._named(space, offset))
        return frames or [self._named(space, record.ip)]

    def _of_build_id(self, record: Record, build_id: str, offset: int) -> dict[str, Any]:
        name, code = self._files.with_build_id(build_id, record.path)
        address = code.address(offset) if code else None
        if code and address is not None:
            return _frame(code, address, name, offset)
        return {"function": None, "offset": offset, "file": name or None, "build_id": build_id}


def _frame(code: Code, address: int, path: str, offset: int) -> dict[str, Any]:
    function = code.function(address - 1)
    return {
        "function": function[0] if function else None,
        "offset": function[1] + 1 if function else offset,
        "file": path or None,
        "build_id": code.build_id,
    }
