"""Keep probes on the name lookups of every libc and Go program in use, and keep account of it.

A process apart finds and attaches them (run/finder.py): here its descriptors are held, and what it
reports is received, never waiting for it longer than a moment.
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
from netbpf.run.confinement import confine_finder
from netbpf.run.filters import may_pass
from netbpf.run.finder import Finder, Task
from netbpf.run.program import Attached
from netbpf.run.results.base import Result
from netbpf.run.stop import Stop
from netbpf.system.forks import note_cpu
from netbpf.system.untrusted import read_text
from netbpf.system.worker import Worker

_FIRST_LOOK = 60.0  # seconds that the start waits for it, at most
_SILENCE = 5.0  # and how long for a sign that it goes on
_OTHERS = 1.2  # and for what is not root's
_LAST_LOOK = 0.3
_ANSWER = 0.1
_PAUSE = 0.05  # seconds until a signal is noticed
_AT_ONCE = 64  # messages


class UprobeManager(Result):
    """Holds the tool's uprobes; a shape that writes nothing but what is covered."""

    def __init__(self, tool: Tool, settings: Mapping[str, Any], attached: Attached) -> None:
        super().__init__()
        self.tool, self.settings, self.attached = tool, settings, attached
        self._links: dict[tuple[int, int], list[int]] = {}
        self._refused: dict[str, str] = {}
        nothing = {"libcs": 0, "programs": 0, "processes": 0, "uncovered": []}
        self._state: dict[str, Any] = {"state": nothing}
        self._over = False
        self._heard = self._end = 0.0
        self._left: Optional[list[Stack]] = None
        self._cpu_before = self._cpu = 0.0

    def begin(self, stop: Stop, writer: Writer) -> None:
        """Attach to everything that is in use now, and report what that covers."""
        super().begin(stop, writer)
        maps = self.attached.loaded.maps
        targets = dict(self._programs())
        task = Task(targets, maps["execs"], maps["programs_seen"], self.settings)
        programs = {program for program, _ in targets.values()}
        keep = {task.execs, task.seen, *programs}
        self._apart = Worker(lambda desk: Finder(desk, task).run(), keep, confine_finder)
        self.attached.closers.append(self._apart.close)
        self.attached.left = self.left
        self._wait_for_first_look(stop)
        if isinstance(writer, TextWriter) or self.settings.get("verbose"):
            words = self._state.get("words") or "not all processes have been looked at yet"
            print(f"{self.tool.name}: {escape(words)}", file=sys.stderr)
        if not self._apart.ended:
            stop.watch(self._apart.channel.fileno())

    def _wait_for_first_look(self, stop: Stop) -> None:
        """Wait for it as long as it goes on; hardly for what users other than root have made."""
        now = self._heard = time.monotonic()
        self._end = now + _FIRST_LOOK
        while now < min(self._end, self._heard + _SILENCE) and "first" not in self._state:
            if stop.reason or self._apart.ended:
                break
            self._apart.wait(now + _PAUSE)
            self.read()
            now = time.monotonic()

    def read(self) -> bool:
        """Receive what was attached and found; writes nothing."""
        for number, (message, descriptors) in enumerate(self._apart.receive(), 1):
            self._take(message, descriptors)
            if number == _AT_ONCE:
                break
        return False

    def close_interval(self, final: bool) -> None:
        """At the end, let it report once more: nothing is attached after that."""
        if final:
            with self.stop.apart():
                self._finish()

    def left(self, stacks: Sequence[Stack]) -> Collection[Stack]:
        """Return which threads have left their calls, as far as the process apart answers at once.

        Their stacks may be in memory that does not come when it is read.
        """
        self._left = None
        self._apart.send(json.dumps(list(stacks)).encode())
        end = time.monotonic() + _ANSWER
        while self._left is None and not self._apart.ended and time.monotonic() < end:
            self._apart.wait(end)
            self.read()
        return self._left or ()

    def progress(self) -> dict[str, Any]:
        """Return what is covered by now, in numbers."""
        found = self._state["state"]
        return {"coverage": {**found, "uncovered": len(found["uncovered"])}}

    @property
    def lost(self) -> dict[str, int]:
        """How many processes had lookups that may have gone unseen, limits and filters apart."""
        return {"not_covered": int(self._state.get("lost", 0))}

    def summary(self) -> dict[str, Any]:
        """Return what is covered now, and note it in words."""
        self.note(self._state.get("words") or "what is covered is not known")
        self.notes += [f"{path} {refused}" for path, refused in self._refused.items()]
        return {"coverage": self._state["state"]}

    def _finish(self) -> None:
        if self._over:
            return
        self._over = True
        self._apart.send(b"end")
        end = time.monotonic() + _LAST_LOOK
        while not ("last" in self._state or self._apart.ended) and time.monotonic() < end:
            self._apart.wait(end)
            self.read()
        if "last" not in self._state:
            self._note_unknown(self._apart.stuck(_LAST_LOOK))
        self._apart.close()

    def _note_unknown(self, at: str) -> None:
        hides = bool(at) or self._apart.ended
        if at.isdecimal():
            name = read_text(f"/proc/{at}/comm", 64).strip()
            hides = may_pass(int(at), name, self.settings)
            at = f"process {at} ({name})"
        self._state["lost"] = self._state.get("lost", 0) + hides
        doing = f": it was still at {at}" if at else ""
        self.note(f"who is covered was not looked at any more in the end{doing}")

    def _take(self, message: dict[str, Any], descriptors: list[int]) -> None:
        self._heard = time.monotonic()
        if descriptors:
            self._hold(tuple(message["links"]), descriptors)
        if "verbose" in message:
            self._say(message["verbose"])
        if "state" in message:
            self._state = {**self._state, **message}
            self._cpu = self._cpu_before + message["cpu"]
            note_cpu(self, self._cpu)
            if "own" in message:
                self._end = min(self._end, self._heard + _OTHERS)
        if "left" in message:
            self._left = [(pid, thread, sp, back) for pid, thread, sp, back in message["left"]]
        if "refused" in message:
            path, refused = message["refused"]
            self._refused[path] = refused
            print(f"{self.tool.name}: {escape(f'{path} {refused}')}", file=sys.stderr)
        if "gone" in message:
            self._detach(tuple(message["gone"]))
        if "again" in message:
            self._say(f"given up, it takes too long: {escape(message['again'])}")
            self._end = min(self._end, self._heard + _OTHERS)  # the start waits no longer for this
            self._cpu_before = self._cpu
            self._apart.send(json.dumps(list(self._links)).encode())

    def _hold(self, file: Any, links: list[int]) -> None:
        if self._over:
            release(links)
            return
        self.attached.user_links += links
        self._links.setdefault(file, []).extend(links)

    def _detach(self, file: Any) -> None:
        gone = set(self._links.pop(file, ())) & set(self.attached.user_links)
        self.attached.user_links = [n for n in self.attached.user_links if n not in gone]
        release(list(gone))

    def _say(self, message: str) -> None:
        if self.settings.get("verbose"):
            print(f"netbpf: {message}", file=sys.stderr)

    def _programs(self) -> Iterator[tuple[str, tuple[int, bool]]]:
        for selection in self.attached.selections:
            if selection.alternative and selection.alternative.how.user_space:
                at_return = selection.alternative.how.at_return
                for target in selection.targets:
                    program = self.attached.loaded.programs[selection.entry]
                    yield f"{target}{'()' * at_return}", (program, at_return)
