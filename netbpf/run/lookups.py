"""Keep probes on the name lookups of every libc and Go program in use, and keep account of it.

All processes are looked at when tracing starts, from time to time, and at the end; a program file
that begins to run for the first time (the program's own exec probe tells) is looked at at once.
"""

from __future__ import annotations

import heapq
import os
import struct
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any, Optional

from netbpf.declare.tool import Tool
from netbpf.declare.values import escape
from netbpf.kernel.attach import attach_user, release
from netbpf.kernel.binaries import Binary
from netbpf.kernel.libraries import Coverage, scan
from netbpf.kernel.maps import Map
from netbpf.kernel.processes import proc_pid
from netbpf.kernel.symbols import UnreadableBinary, open_regular
from netbpf.output.writers import TextWriter, Writer
from netbpf.run.program import Attached
from netbpf.run.shape import Shape
from netbpf.run.stop import Stop
from netbpf.run.stream import RingBuffer

_EXEC_RING_PAGES = 16  # EXEC_RING_PAGES in include/user.bpf.h
_START = struct.Struct("=QQQ")  # struct program_start in include/user.bpf.h: inode, device, pid
_AGAIN = (0.02, 0.2, 2.0)  # a new program maps its libraries some time after exec (seconds)
_CANNOT = "cannot be probed"
_SCAN_SECONDS = 10.0
_SCAN_SHARE = 200  # a scan may take at most one part in so many of the time between two


class Watch(Shape):
    """Attaches the tool's uprobes; a shape that writes nothing but what is covered."""

    def __init__(self, tool: Tool, settings: Mapping[str, Any], attached: Attached) -> None:
        super().__init__()
        self.tool, self.settings, self.attached = tool, settings, attached
        self._links: dict[int, list[int]] = {}
        self._pids: set[int] = set()
        self._again: list[tuple[float, int]] = []
        self._refused: dict[str, str] = {}
        self._execs: Optional[RingBuffer] = None

    def begin(self, stop: Stop, writer: Writer) -> None:
        """Attach to everything that is in use now, and say what that covers."""
        super().begin(stop, writer)
        size = _EXEC_RING_PAGES * 4096
        self._execs = RingBuffer(self.attached.loaded.maps["execs"], size, _START)
        self._seen = Map.opened(self.attached.loaded.maps["programs_seen"])
        stop.watch(self._execs.fd)
        self._targets = dict(self._programs())
        began = time.monotonic()
        self.coverage = scan()
        self._plan_scan(began)
        self._pids = _pids(self.coverage)
        self._attach(self.coverage.binaries)
        if isinstance(writer, TextWriter) or self.settings.get("verbose"):
            print(f"{self.tool.name}: {escape(self.coverage.summary())}", file=sys.stderr)

    def next_due(self) -> float:
        """Return when a new program or all processes are to be looked at."""
        return min(self._due, self._again[0][0] if self._again else self._due)

    def read(self) -> bool:
        """Look at programs that began to run, and at those that are due; writes nothing."""
        now = time.monotonic()
        for _, inode, device, kernel in self._execs.take() if self._execs else ():
            pid = proc_pid(kernel) or 0
            self._look_at(pid)
            if _inode(pid) == inode:  # not gone, and not on to the next program
                self._seen.set(struct.pack("=QQ", inode, device), bytes(8))
            if pid in self.coverage.uncovered:
                for pause in _AGAIN:
                    heapq.heappush(self._again, (now + pause, pid))
        while self._again and self._again[0][0] <= now:
            self._look_at(heapq.heappop(self._again)[1])
        if now >= self._due:
            self._look_at_all()
        return False

    def summary(self) -> dict[str, Any]:
        """Return what is covered now, and note it in words."""
        self._targets = {}  # everything is detached: nothing new is to be attached
        self._look_at_all()
        self.note(self.coverage.summary())
        self.notes += [f"{path} {refused}" for path, refused in self._refused.items()]
        gaps = self.coverage.uncovered.values()
        uncovered = [{"pid": gap.pid, "comm": gap.name, "reason": gap.reason} for gap in gaps]
        libcs = len(self.coverage.libcs)
        return {
            "coverage": {
                "libcs": libcs,
                "programs": len(self.coverage.binaries) - libcs,
                "processes": self.coverage.covered,
                "uncovered": uncovered,
            }
        }

    def _say(self, message: str) -> None:
        if self.settings.get("verbose"):
            print(f"netbpf: {escape(message)}", file=sys.stderr)

    def _look_at(self, pid: int) -> None:
        if os.path.exists(f"/proc/{pid}"):
            self._pids.add(pid)
            self._attach(self.coverage.rescan(pid))
        else:
            self.coverage.forget(pid)

    def _look_at_all(self) -> None:
        began = time.monotonic()
        running = {int(name) for name in os.listdir("/proc") if name.isdecimal()}
        for pid in self._pids - running:
            self.coverage.forget(pid)
        self._pids = running
        for pid in running:
            self._attach(self.coverage.rescan(pid))
        for binary in self.coverage.prune():
            self._detach(binary)
        self._plan_scan(began)

    def _plan_scan(self, began: float) -> None:
        now = time.monotonic()
        self._due = now + max(_SCAN_SECONDS, (now - began) * _SCAN_SHARE)

    def _programs(self) -> Iterator[tuple[str, tuple[int, bool]]]:
        for choice in self.attached.choices:
            if choice.kind in ("uprobe", "uretprobe"):
                at_return = choice.kind == "uretprobe"
                for target in choice.targets:
                    program = self.attached.loaded.programs[choice.entry]
                    yield f"{target}{'()' * at_return}", (program, at_return)

    def _attach(self, binaries: list[Binary]) -> None:
        for binary in binaries if self._targets else ():
            path = binary.path
            if path:
                try:
                    refused = self._attach_one(binary, path)
                except (OSError, UnreadableBinary) as error:
                    refused = f"{_CANNOT}: {getattr(error, 'strerror', '') or error}"
                if refused:
                    self._refused[path] = refused
                    self.coverage.refuse(binary, f"{os.path.basename(path)} {_CANNOT}")
                    print(f"{self.tool.name}: {escape(f'{path} {refused}')}", file=sys.stderr)
                else:
                    self._say(f"probing {path}")

    def _attach_one(self, binary: Binary, path: str) -> str:
        """Attach all probes that belong on a file; return in words what the kernel refused."""
        refused: dict[str, str] = {}
        with open_regular(path) as file:
            found = os.fstat(file.fileno())
            if (found.st_dev, found.st_ino) != (binary.device, binary.inode):
                return ""  # the path leads elsewhere by now: another look will tell
            # Through the open file, so that it is this one that is probed whatever the path does.
            opened = f"/proc/self/fd/{file.fileno()}"
            for target, offset in places(binary):
                program, at_return = self._targets[target]
                try:
                    link = attach_user(program, opened, offset, at_return)
                except OSError as error:
                    # Another tool's probe of the same place may stand in the way of ours, if it
                    # names a semaphore: some versions of bcc do so by mistake.
                    refused[target] = error.strerror or str(error)
                    continue
                self.attached.user_links.append(link)
                self._links.setdefault(id(binary), []).append(link)
                if at_return:
                    self._say(f"{target} of {path} has a uretprobe: its returns are not known")
        reasons = ", ".join(sorted(set(refused.values())))
        return f"{_CANNOT} at {', '.join(refused)}: {reasons}" if refused else ""

    def _detach(self, binary: Binary) -> None:
        gone = set(self._links.pop(id(binary), ())) & set(self.attached.user_links)
        self.attached.user_links = [n for n in self.attached.user_links if n not in gone]
        release(list(gone))


def places(binary: Binary) -> Iterator[tuple[str, int]]:
    """Yield (target of a declared probe, file offset) of every probe that belongs on a file.

    "F RET" is a return instruction of the function F. Where those of C are not known, "F()" is its
    return by uretprobe. "net.DNSError+N" are the lookups' entries where its flags are at N.
    """
    functions = {n: f for n, f in binary.functions.items() if not f.ifunc}
    # The returns first: a call whose entry alone is seen would wait for ever. Functions that end in
    # one another share some.
    shared = {offset: name for name, f in functions.items() for offset in f.returns}
    for offset, name in shared.items():
        yield f"{name} RET", offset
    for name, function in functions.items():
        if not function.returns:
            yield f"{name}()", function.offset
        yield name, function.offset
    if not binary.go:
        return
    flags = binary.go.error.timeout if binary.go.error else 0
    for lookup in binary.go.lookups:
        yield lookup.name, lookup.offset
        yield f"net.DNSError+{flags}", lookup.offset
        for offset in lookup.returns:
            yield f"{lookup.name} RET", offset
    yield from binary.go.libc_calls.items()


def _pids(coverage: Coverage) -> set[int]:
    covered = {pid for binary in coverage.binaries for pid in binary.pids}
    return covered | set(coverage.uncovered)


def _inode(pid: int) -> int:
    try:
        return os.stat(f"/proc/{pid}/exe").st_ino
    except OSError:
        return -1
