"""Find what is to be probed, and probe it, in a process apart: see system/worker.py.

It looks at all processes at the start and from time to time, and at a program file that begins to
run for the first time (the tool's own exec probe reports it) at once. All of this is done in steps
of one file, within budgets: a part of one CPU in the long run, bytes and time for each file. What
it attaches goes to the process that writes the events, as descriptors, and what it has found, as
messages.
"""

from __future__ import annotations

import heapq
import json
import os
import select
import struct
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from netbpf.binaries.binary import Binary
from netbpf.binaries.mappings import has_program, owner, processes, program_inode
from netbpf.binaries.scan import FIRST, Coverage
from netbpf.bpf.maps import Map
from netbpf.bpf.ringbuf import RingBuffer
from netbpf.declare.values import escape
from netbpf.kernel.processes import proc_pid
from netbpf.kernel.thread_stacks import has_left
from netbpf.run.filters import may_pass
from netbpf.run.places import CANNOT, Targets, attach_all
from netbpf.system.untrusted import UnreadableBinary
from netbpf.system.worker import WorkerEnd

_EXEC_RING_PAGES = 16  # EXEC_RING_PAGES in include/user.bpf.h
_START = struct.Struct("=QQQ")  # struct program_start in include/user.bpf.h: inode, device, pid
_AGAIN = (0.02, 0.2, 2.0)  # a new program maps its libraries some time after exec (seconds)
_SCAN_SECONDS = 10.0
_SCAN_SHARE = 200  # a scan may take at most one part in so many of the time between two
_SHARE, _HOARD = 0.25, 2.0  # of one CPU, in the long run; seconds of it at once
_STEP = 0.05  # seconds of work until it asks again whether there is something more urgent
_OWN = 3.0  # seconds of the first look until long files of root's processes wait
_OTHERS = 1.0  # seconds of it for the processes of other users
_LAST = 0.15  # seconds of the last look
_MOST_WAITING = 10_000  # new programs that wait for their look; the others wait for a scan


class Task(NamedTuple):
    """What is to be found.

    `targets` are {target of a declared probe: (descriptor of its program, at the return)}, `execs`
    and `seen` descriptors of the maps of user.bpf.h; `settings` are the tool's.
    """

    targets: Targets
    execs: int
    seen: int
    settings: Mapping[str, Any]


class Finder:
    """The work of the process apart."""

    def __init__(self, desk: WorkerEnd, task: Task) -> None:
        self.desk, self.task = desk, task
        self.coverage = Coverage(first=FIRST)
        self._execs = RingBuffer(task.execs, _EXEC_RING_PAGES * 4096, _START)
        self._seen = Map.from_fd(task.seen)
        self._known: set[tuple[int, int]] = set()
        self._pids: set[int] = set()
        self._lost: set[int] = set()
        self._lost_before = 0  # processes that have ended
        self._new: deque[tuple[int, int, int]] = deque()
        self._again: list[tuple[float, int]] = []
        self._scan: deque[int] = deque()
        self._attaching = True

    def run(self) -> None:
        """Work until the other end asks for the last report, or is closed."""
        self._resume()
        with suppress(BrokenPipeError, ConnectionResetError):
            self._first_look()
            self._began, self._used = time.monotonic(), time.process_time()
            while self._wait():
                self._work()
            self._last_look()

    def _resume(self) -> None:
        skipped = [int(what) for what in self.desk.skipped if what.isdecimal()]
        for pid in skipped:
            with suppress(OSError):
                program = os.readlink(f"/proc/{pid}/exe")
                self.coverage.skip(pid, f"given up: its files do not answer ({program})")
                self._count(pid)
        self._never = set(skipped)
        if self.desk.skipped:  # others were before: what have they attached?
            self.desk.send({"again": self.desk.skipped[-1]})
            self._known = {(device, inode) for device, inode in json.loads(self.desk.receive())}

    # --- looking ----------------------------------------------------------------------------------

    def _first_look(self) -> None:
        """Look at all processes: at root's in any case, at the others' as long as there is time."""
        began = time.monotonic()
        if "libraries" not in self.desk.skipped:
            with self.desk.item("libraries"):
                self._attach(self.coverage.add_known())
        order = processes()
        others = next((n for n, pid in enumerate(order) if owner(pid)), len(order))
        for pid in order[:others]:
            self._look_at(pid)
        while self.coverage.unfinished and time.monotonic() < began + _OWN:
            self._finish_one()
        self._report({"own": True})
        began_others = time.monotonic()
        for number, pid in enumerate(order[others:], others):
            if time.monotonic() > began_others + _OTHERS:
                self._scan.extend(order[number:])
                break
            self._look_at(pid)
        self._plan_scan(began)
        self._report({"first": True})

    def _wait(self) -> bool:
        """Wait until there is something to do; return whether to go on."""
        now = time.monotonic()
        if self._has_work(now):
            spare = _HOARD + _SHARE * (now - self._began) - (time.process_time() - self._used)
            pause = 0.0 if spare > 0 else -spare / _SHARE
        else:
            pause = max(min(self._due, self._again[0][0] if self._again else self._due) - now, 0)
        poll = select.poll()
        poll.register(self.desk.channel, select.POLLIN)
        poll.register(self.task.execs, select.POLLIN)
        ready = [fd for fd, _ in poll.poll(pause * 1000 + 1 if pause else 0)]
        self._take_starts()
        return self.desk.channel.fileno() not in ready or self._answer(self.desk.receive())

    def _answer(self, question: bytes) -> bool:
        """Answer which threads have left their calls; return whether that was the question."""
        stacks = json.loads(question) if question not in (b"", b"end") else []
        found = []
        for stack in stacks:
            with self.desk.item(str(stack[0])):
                found += [stack] * has_left(*stack)
        self.desk.send({"left": found})
        return bool(stacks)

    def _has_work(self, now: float) -> bool:
        due = now >= self._due or bool(self._again and self._again[0][0] <= now)
        return due or bool(self._new or self._scan or self.coverage.unfinished)

    def _take_starts(self) -> None:
        for _, inode, device, kernel in self._execs.take():
            if len(self._new) < _MOST_WAITING:
                self._new.append((inode, device, proc_pid(kernel) or 0))

    def _work(self) -> None:
        """Do some of what there is to do, the most urgent first."""
        began = time.monotonic()
        lost = len(self._lost)
        while (now := time.monotonic()) < began + _STEP:
            if self._new:
                self._look_at_new(*self._new.popleft())
            elif self._again and self._again[0][0] <= now:
                self._look_at(heapq.heappop(self._again)[1])
            elif self._scan:
                self._look_at(self._scan.popleft())
                if not self._scan:
                    self._end_scan()
            elif self.coverage.unfinished:
                self._finish_one()
            elif now >= self._due:
                self._begin_scan()
            else:
                break
        if len(self._lost) != lost:
            self._report({})

    def _look_at_new(self, inode: int, device: int, pid: int) -> None:
        self._look_at(pid)
        gap = self.coverage.uncovered.get(pid)
        if gap:
            now = time.monotonic()
            for pause in _AGAIN:
                heapq.heappush(self._again, (now + pause, pid))
        # What is gone, or on to the next program, was not looked at; of what is lost, each start
        # is to be counted.
        if not (gap and gap.lost) and program_inode(pid) == inode:
            with suppress(OSError):
                self._seen.set(struct.pack("=QQ", inode, device), bytes(8))

    def _look_at(self, pid: int) -> None:
        if pid in self._never:
            return
        if not os.path.exists(f"/proc/{pid}"):
            self._forget(pid)
            return
        self._pids.add(pid)
        with self.desk.item(str(pid)):
            self._attach(self.coverage.rescan(pid))
        if not any(pid in pids for pids in self.coverage.unfinished.values()):
            self._count(pid)

    def _finish_one(self) -> None:
        pids = next(reversed(self.coverage.unfinished.values()))
        with self.desk.item(str(min(pids))):
            self._attach(self.coverage.finish_one())
        for pid in pids:
            self._count(pid)

    def _begin_scan(self) -> None:
        self._scan_began = time.monotonic()
        order = processes()
        for pid in self._pids.difference(order):
            self._forget(pid)
        self._scan.extend(order)

    def _end_scan(self) -> None:
        for binary in self.coverage.prune():
            self.desk.send({"gone": [binary.device, binary.inode]})
        self._plan_scan(self._scan_began)
        self._report({})

    def _plan_scan(self, began: float) -> None:
        now = time.monotonic()
        self._scan_began = now
        self._due = now + max(_SCAN_SECONDS, (now - began) * _SCAN_SHARE)

    def _last_look(self) -> None:
        """Look at what is new since the last scan, as far as that goes in a moment."""
        self._attaching = False  # everything is about to be detached
        end = time.monotonic() + _LAST
        self._take_starts()
        order = processes()
        for pid in self._pids.difference(order):
            self._forget(pid)
        fresh = {pid: None for _, _, pid in self._new if pid}
        fresh.update(dict.fromkeys(pid for pid in order if pid not in self._pids))
        for pid in (*fresh, *(pid for pid in order if pid not in fresh)):
            if time.monotonic() < end:
                self._look_at(pid)
            elif pid not in self._pids and has_program(pid):
                self.coverage.skip(pid, "not looked at yet")
        for pid in self.coverage.uncovered:
            self._count(pid)
        self._report({"last": True})

    # --- account ----------------------------------------------------------------------------------

    def _forget(self, pid: int) -> None:
        self.coverage.forget(pid)
        self._pids.discard(pid)
        self._never.discard(pid)
        if pid in self._lost:
            self._lost.discard(pid)
            self._lost_before += 1

    def _count(self, pid: int) -> None:
        gap = self.coverage.uncovered.get(pid)
        if gap and gap.lost and may_pass(pid, gap.name, self.task.settings):
            self._lost.add(pid)

    def _report(self, message: dict[str, Any]) -> None:
        libcs = len(self.coverage.libcs)
        state = {
            "libcs": libcs,
            "programs": len(self.coverage.binaries) - libcs,
            "processes": self.coverage.covered,
            "uncovered": [
                {"pid": gap.pid, "comm": gap.name, "reason": gap.reason, "lost": gap.lost}
                for gap in self.coverage.uncovered.values()
            ],
        }
        report = {
            "state": state,
            "words": self.coverage.summary(),
            "lost": len(self._lost) + self._lost_before,
            "cpu": round(time.process_time(), 4),
        }
        self.desk.send({**report, **message})

    # --- attaching --------------------------------------------------------------------------------

    def _attach(self, binaries: list[Binary]) -> None:
        for binary in binaries if self._attaching else ():
            path = binary.path
            if path and (binary.device, binary.inode) not in self._known:
                try:
                    refused = attach_all(self.desk, self.task.targets, binary, path)
                except (OSError, UnreadableBinary) as error:
                    refused = f"{CANNOT}: {getattr(error, 'strerror', '') or error}"
                if refused:
                    self.coverage.mark_failed(binary, f"{os.path.basename(path)} {CANNOT}")
                    for pid in binary.pids:
                        self._count(pid)
                    self.desk.send({"refused": [escape(path), refused]})
                else:
                    self.desk.send({"verbose": f"probing {escape(path)}"})
