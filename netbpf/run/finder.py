"""Find the files to probe and attach the uprobes, in a separate process: see system/worker.py.

All processes are scanned at the start and periodically. A program file that runs for the first time
(the tool's own exec probe reports it) is scanned immediately. The work is done in steps of one file
and within budgets: a share of one CPU in the long run, bytes and time for each file. Descriptors of
attached probes, and messages, go to the process that writes the events.
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
from netbpf.run.probe_points import CANNOT, Targets, attach_all
from netbpf.system.untrusted import UnreadableBinary
from netbpf.system.worker import WorkerEnd

_EXEC_RING_PAGES = 16  # EXEC_RING_PAGES in include/user.bpf.h
_START = struct.Struct("=QQQ")  # struct program_start in include/user.bpf.h: inode, device, pid
_RESCAN_AFTER = (0.02, 0.2, 2.0)  # seconds after exec: a program maps its libraries later
_SCAN_SECONDS = 10.0
_SCAN_SHARE = 200  # a scan may take 1/200 of the time between two
_SHARE, _BURST = 0.25, 2.0  # of one CPU in the long run; CPU seconds in a burst
_STEP = 0.05  # seconds of work before checking for something more urgent
_OWN = 3.0  # seconds of the first scan for processes of root; larger files follow later
_OTHERS = 1.0  # seconds of the first scan for processes of other users
_LAST = 0.15  # seconds of the last scan
_MAX_STARTED = 10_000  # new programs in the queue; others wait for the next full scan


class Task(NamedTuple):
    """What to find and probe.

    `targets` is {target of a declared probe: (descriptor of its program, whether at the return)},
    `execs` and `seen` are descriptors of the maps of user.bpf.h, `settings` the tool's.
    """

    targets: Targets
    execs: int
    seen: int
    settings: Mapping[str, Any]


class Finder:
    """The work of the separate process."""

    def __init__(self, worker: WorkerEnd, task: Task) -> None:
        self.worker, self.task = worker, task
        self.coverage = Coverage(first=FIRST)
        self._execs = RingBuffer(task.execs, _EXEC_RING_PAGES * 4096, _START)
        self._seen = Map.from_fd(task.seen)
        self._known: set[tuple[int, int]] = set()
        self._pids: set[int] = set()
        self._lost: set[int] = set()
        self._lost_before = 0  # lost processes that have ended
        self._started: deque[tuple[int, int, int]] = deque()
        self._rescans: list[tuple[float, int]] = []
        self._to_scan: deque[int] = deque()
        self._attaching = True

    def run(self) -> None:
        """Work until the other end requests the last report, or is closed."""
        self._resume()
        with suppress(BrokenPipeError, ConnectionResetError):
            self._first_scan()
            self._began, self._used = time.monotonic(), time.process_time()
            while self._wait():
                self._work()
            self._last_scan()

    def _resume(self) -> None:
        skipped = [int(what) for what in self.worker.skipped if what.isdecimal()]
        for pid in skipped:
            with suppress(OSError):
                program = os.readlink(f"/proc/{pid}/exe")
                self.coverage.skip(pid, f"given up: reading its files blocks ({program})")
                self._count(pid)
        self._never = set(skipped)
        if self.worker.skipped:  # a previous worker was killed: ask what it has attached
            self.worker.send({"again": self.worker.skipped[-1]})
            self._known = {(device, inode) for device, inode in json.loads(self.worker.receive())}

    # --- scanning ---------------------------------------------------------------------------------

    def _first_scan(self) -> None:
        """Scan all processes of root, and those of other users while there is time."""
        began = time.monotonic()
        if "libraries" not in self.worker.skipped:
            with self.worker.item("libraries"):
                self._attach(self.coverage.add_known())
        order = processes()
        others = next((n for n, pid in enumerate(order) if owner(pid)), len(order))
        for pid in order[:others]:
            self._scan_process(pid)
        while self.coverage.unfinished and time.monotonic() < began + _OWN:
            self._finish_one()
        self._report({"own": True})
        began_others = time.monotonic()
        for number, pid in enumerate(order[others:], others):
            if time.monotonic() > began_others + _OTHERS:
                self._to_scan.extend(order[number:])
                break
            self._scan_process(pid)
        self._plan_scan(began)
        self._report({"first": True})

    def _wait(self) -> bool:
        """Wait until there is something to do; return whether to continue."""
        now = time.monotonic()
        if self._has_work(now):
            spare = _BURST + _SHARE * (now - self._began) - (time.process_time() - self._used)
            pause = 0.0 if spare > 0 else -spare / _SHARE
        else:
            rescan = self._rescans[0][0] if self._rescans else self._due
            pause = max(min(self._due, rescan) - now, 0)
        poll = select.poll()
        poll.register(self.worker.channel, select.POLLIN)
        poll.register(self.task.execs, select.POLLIN)
        ready = [fd for fd, _ in poll.poll(pause * 1000 + 1 if pause else 0)]
        self._take_starts()
        return self.worker.channel.fileno() not in ready or self._answer(self.worker.receive())

    def _answer(self, question: bytes) -> bool:
        """Report which threads have left their calls; return False if asked to end instead."""
        stacks = json.loads(question) if question not in (b"", b"end") else []
        left = []
        for stack in stacks:
            with self.worker.item(str(stack[0])):
                left += [stack] * has_left(*stack)
        self.worker.send({"left": left})
        return bool(stacks)

    def _has_work(self, now: float) -> bool:
        due = now >= self._due or bool(self._rescans and self._rescans[0][0] <= now)
        return due or bool(self._started or self._to_scan or self.coverage.unfinished)

    def _take_starts(self) -> None:
        for _, inode, device, kernel in self._execs.take():
            if len(self._started) < _MAX_STARTED:
                self._started.append((inode, device, proc_pid(kernel) or 0))

    def _work(self) -> None:
        """Do some of the pending work, the most urgent first."""
        began = time.monotonic()
        lost = len(self._lost)
        while (now := time.monotonic()) < began + _STEP:
            if self._started:
                self._scan_started(*self._started.popleft())
            elif self._rescans and self._rescans[0][0] <= now:
                self._scan_process(heapq.heappop(self._rescans)[1])
            elif self._to_scan:
                self._scan_process(self._to_scan.popleft())
                if not self._to_scan:
                    self._end_scan()
            elif self.coverage.unfinished:
                self._finish_one()
            elif now >= self._due:
                self._begin_scan()
            else:
                break
        if len(self._lost) != lost:
            self._report({})

    def _scan_started(self, inode: int, device: int, pid: int) -> None:
        self._scan_process(pid)
        gap = self.coverage.uncovered.get(pid)
        if gap:
            now = time.monotonic()
            for pause in _RESCAN_AFTER:
                heapq.heappush(self._rescans, (now + pause, pid))
        # Not if another program runs by now, nor if this one cannot be probed: each start counts.
        if not (gap and gap.lost) and program_inode(pid) == inode:
            with suppress(OSError):
                self._seen.set(struct.pack("=QQ", inode, device), bytes(8))

    def _scan_process(self, pid: int) -> None:
        if pid in self._never:
            return
        if not os.path.exists(f"/proc/{pid}"):
            self._forget(pid)
            return
        self._pids.add(pid)
        with self.worker.item(str(pid)):
            self._attach(self.coverage.rescan(pid))
        if not any(pid in pids for pids in self.coverage.unfinished.values()):
            self._count(pid)

    def _finish_one(self) -> None:
        pids = next(reversed(self.coverage.unfinished.values()))
        with self.worker.item(str(min(pids))):
            self._attach(self.coverage.finish_one())
        for pid in pids:
            self._count(pid)

    def _begin_scan(self) -> None:
        self._scan_began = time.monotonic()
        order = processes()
        for pid in self._pids.difference(order):
            self._forget(pid)
        self._to_scan.extend(order)

    def _end_scan(self) -> None:
        for binary in self.coverage.prune():
            self.worker.send({"gone": [binary.device, binary.inode]})
        self._plan_scan(self._scan_began)
        self._report({})

    def _plan_scan(self, began: float) -> None:
        now = time.monotonic()
        self._scan_began = now
        self._due = now + max(_SCAN_SECONDS, (now - began) * _SCAN_SHARE)

    def _last_scan(self) -> None:
        """Scan what is new since the last scan, for a moment at most."""
        self._attaching = False  # everything is about to be detached
        end = time.monotonic() + _LAST
        self._take_starts()
        order = processes()
        for pid in self._pids.difference(order):
            self._forget(pid)
        new = {pid: None for _, _, pid in self._started if pid}
        new.update(dict.fromkeys(pid for pid in order if pid not in self._pids))
        for pid in (*new, *(pid for pid in order if pid not in new)):
            if time.monotonic() < end:
                self._scan_process(pid)
            elif pid not in self._pids and has_program(pid):
                self.coverage.skip(pid, "not scanned yet")
        for pid in self.coverage.uncovered:
            self._count(pid)
        self._report({"last": True})

    # --- accounting -------------------------------------------------------------------------------

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
            "text": self.coverage.summary(),
            "lost": len(self._lost) + self._lost_before,
            "cpu": round(time.process_time(), 4),
        }
        self.worker.send({**report, **message})

    # --- attaching --------------------------------------------------------------------------------

    def _attach(self, binaries: list[Binary]) -> None:
        for binary in binaries if self._attaching else ():
            path = binary.path
            if path and (binary.device, binary.inode) not in self._known:
                try:
                    refused = attach_all(self.worker, self.task.targets, binary, path)
                except (OSError, UnreadableBinary) as error:
                    refused = f"{CANNOT}: {getattr(error, 'strerror', '') or error}"
                if refused:
                    self.coverage.mark_failed(binary, f"{os.path.basename(path)} {CANNOT}")
                    for pid in binary.pids:
                        self._count(pid)
                    self.worker.send({"refused": [escape(path), refused]})
                else:
                    self.worker.send({"verbose": f"probing {escape(path)}"})
