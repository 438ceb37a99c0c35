"""Attach uprobes to the name lookup functions of every libc and Go program, and track coverage.

A separate process finds the files and attaches (run/finder.py). This module holds the descriptors
and receives the reports; it never waits for that process longer than a moment.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Optional

from netbpf.bpf.attach import release
from netbpf.declare.tool import Tool
from netbpf.declare.values import escape
from netbpf.kernel.thread_stacks import Stack
from netbpf.output.writers import TextWriter, Writer
from netbpf.run.attached import Attached
from netbpf.run.confinement import confine_finder
from netbpf.run.filters import may_pass
from netbpf.run.finder import Finder, Task
from netbpf.run.results.base import Result
from netbpf.run.stop import Stop
from netbpf.system.forks import note_cpu
from netbpf.system.untrusted import read_text
from netbpf.system.worker import Worker

_FIRST_SCAN = 60.0  # seconds that the start waits for it, at most
_SILENCE = 5.0  # and at most between two messages
_OTHERS = 1.2  # and for the processes of users other than root
_LAST_SCAN = 0.3
_ANSWER = 0.1
_PAUSE = 0.05  # seconds until a signal is noticed
_BATCH = 64  # messages


class UprobeManager(Result):
    """Holds the tool's uprobes; as a result, it adds the coverage to reports."""

    def __init__(self, tool: Tool, settings: Mapping[str, Any], attached: Attached) -> None:
        super().__init__()
        self.tool, self.settings, self.attached = tool, settings, attached
        self._links: dict[tuple[int, int], list[int]] = {}
        self._refused: dict[str, str] = {}
        nothing = {"libcs": 0, "programs": 0, "processes": 0, "uncovered": []}
        self._state: dict[str, Any] = {"state": nothing}
        self._ended = False
        self._received = self._end = 0.0
        self._left: Optional[list[Stack]] = None
        self._cpu_before = self._cpu = 0.0

    def begin(self, stop: Stop, writer: Writer) -> None:
        """Attach to the programs in use, and report the coverage."""
        super().begin(stop, writer)
        maps = self.attached.loaded.maps
        targets = dict(self._programs())
        task = Task(targets, maps["execs"], maps["programs_seen"], self.settings)
        programs = {program for program, _ in targets.values()}
        keep = {task.execs, task.seen, *programs}
        self._worker = Worker(lambda worker: Finder(worker, task).run(), keep, confine_finder)
        self.attached.closers.append(self._worker.close)
        self.attached.left_calls = self.left_calls
        self._wait_for_first_scan(stop)
        if isinstance(writer, TextWriter) or self.settings.get("verbose"):
            text = self._state.get("text") or "not all processes have been scanned yet"
            print(f"{self.tool.name}: {escape(text)}", file=sys.stderr)
        if not self._worker.ended:
            stop.watch(self._worker.channel.fileno())

    def _wait_for_first_scan(self, stop: Stop) -> None:
        """Wait while the scan makes progress, but briefly for users other than root."""
        now = self._received = time.monotonic()
        self._end = now + _FIRST_SCAN
        while now < min(self._end, self._received + _SILENCE) and "first" not in self._state:
            if stop.reason or self._worker.ended:
                break
            self._worker.wait(now + _PAUSE)
            self.read()
            now = time.monotonic()

    def read(self) -> bool:
        """Receive descriptors and messages; writes nothing."""
        for number, (message, descriptors) in enumerate(self._worker.receive(), 1):
            self._take(message, descriptors)
            if number == _BATCH:
                break
        return False

    def close_interval(self, final: bool) -> None:
        """At the end, request the last report: nothing is attached after it."""
        if final:
            with self.stop.extended():
                self._finish()

    def left_calls(self, stacks: Sequence[Stack]) -> Collection[Stack]:
        """Return which threads have left their calls, if the worker process answers at once.

        Reading their stacks may block, so that process does it.
        """
        self._left = None
        self._worker.send(json.dumps(list(stacks)).encode())
        end = time.monotonic() + _ANSWER
        while self._left is None and not self._worker.ended and time.monotonic() < end:
            self._worker.wait(end)
            self.read()
        return self._left or ()

    def progress(self) -> dict[str, Any]:
        """Return the current coverage, in numbers."""
        state = self._state["state"]
        return {"coverage": {**state, "uncovered": len(state["uncovered"])}}

    @property
    def lost(self) -> dict[str, int]:
        """The number of processes that pass the filters and whose lookups may have been missed."""
        return {"not_covered": int(self._state.get("lost", 0))}

    def summary(self) -> dict[str, Any]:
        """Return the coverage, and add it to the notes."""
        self.note(self._state.get("text") or "the coverage is unknown")
        self.notes += [f"{path} {refused}" for path, refused in self._refused.items()]
        return {"coverage": self._state["state"]}

    def _finish(self) -> None:
        if self._ended:
            return
        self._ended = True
        self._worker.send(b"end")
        end = time.monotonic() + _LAST_SCAN
        while not ("last" in self._state or self._worker.ended) and time.monotonic() < end:
            self._worker.wait(end)
            self.read()
        if "last" not in self._state:
            self._note_unknown(self._worker.stuck(_LAST_SCAN))
        self._worker.close()

    def _note_unknown(self, at: str) -> None:
        hides = bool(at) or self._worker.ended
        if at.isdecimal():
            name = read_text(f"/proc/{at}/comm", 64).strip()
            hides = may_pass(int(at), name, self.settings)
            at = f"process {at} ({name})"
        self._state["lost"] = self._state.get("lost", 0) + hides
        current = f": the last scan was still at {at}" if at else ""
        self.note(f"the coverage at the end is unknown{current}")

    def _take(self, message: dict[str, Any], descriptors: list[int]) -> None:
        self._received = time.monotonic()
        if descriptors:
            self._hold(tuple(message["links"]), descriptors)
        if "verbose" in message:
            self._log(message["verbose"])
        if "state" in message:
            self._state = {**self._state, **message}
            self._cpu = self._cpu_before + message["cpu"]
            note_cpu(self, self._cpu)
            if "own" in message:
                self._end = min(self._end, self._received + _OTHERS)
        if "left" in message:
            self._left = [(pid, thread, sp, back) for pid, thread, sp, back in message["left"]]
        if "refused" in message:
            path, refused = message["refused"]
            self._refused[path] = refused
            print(f"{self.tool.name}: {escape(f'{path} {refused}')}", file=sys.stderr)
        if "gone" in message:
            self._detach(tuple(message["gone"]))
        if "again" in message:
            self._log(f"given up, as it takes too long: {escape(message['again'])}")
            self._end = min(self._end, self._received + _OTHERS)  # the start waits no longer for it
            self._cpu_before = self._cpu
            self._worker.send(json.dumps(list(self._links)).encode())

    def _hold(self, file: Any, links: list[int]) -> None:
        if self._ended:
            release(links)
            return
        self.attached.user_links += links
        self._links.setdefault(file, []).extend(links)

    def _detach(self, file: Any) -> None:
        gone = set(self._links.pop(file, ())) & set(self.attached.user_links)
        self.attached.user_links = [n for n in self.attached.user_links if n not in gone]
        release(list(gone))

    def _log(self, message: str) -> None:
        if self.settings.get("verbose"):
            print(f"netbpf: {message}", file=sys.stderr)

    def _programs(self) -> Iterator[tuple[str, tuple[int, bool]]]:
        for selection in self.attached.selections:
            if selection.alternative and selection.alternative.how.user_space:
                at_return = selection.alternative.how.at_return
                for target in selection.targets:
                    program = self.attached.loaded.programs[selection.entry]
                    yield f"{target}{'()' * at_return}", (program, at_return)
