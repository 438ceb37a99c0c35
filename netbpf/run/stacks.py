"""User stacks by the numbers that programs give them; another process resolves them."""

from __future__ import annotations

import json
import os
import select
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Optional

from netbpf.bpf.maps import Map
from netbpf.declare.stacks import Frame, Stack, user_stacks
from netbpf.declare.tool import Tool
from netbpf.output.writers import Writer
from netbpf.run.attached import Attached
from netbpf.run.confinement import confine_unwinder
from netbpf.run.results.base import Result
from netbpf.run.stop import Stop
from netbpf.run.unwinder import Unwinder
from netbpf.system.worker import Worker

_ANSWER = 1.0  # seconds to wait for a stack, at most
_SILENCE = 5.0  # seconds without waiting after that
_MAX_STACKS = 100_000
_PARTS = 16  # of 64 KiB that are read at once


class StackReader(Result):
    """Receives the named stacks; as a result, it adds notes on them to the summary."""

    def __init__(self, tool: Tool, settings: Mapping[str, Any], attached: Attached) -> None:
        super().__init__()
        self._maps = attached.loaded.maps
        self._attached = attached
        self._stacks: dict[int, Stack] = {}
        self._missing: set[int] = set()
        self._deaf_until = 0.0
        self._stream, self._line, self._ended = -1, b"", False
        self._worker: Optional[Worker] = None
        for column in user_stacks(tool.records, settings):
            column.bind(self.stack)

    def begin(self, stop: Stop, writer: Writer) -> None:
        """Start the process that resolves stacks."""
        super().begin(stop, writer)
        records, rules = self._maps["stack_records"], self._maps["unwind_rules"]
        self._stream, out = os.pipe()
        os.set_blocking(self._stream, False)
        self._worker = Worker(
            lambda end: Unwinder(end, records, rules, out).run(),
            (records, rules, out),
            confine_unwinder,
        )
        os.close(out)
        self._attached.closers += [self._worker.close, self._close]
        stop.watch(self._stream)

    def read(self) -> bool:
        """Receive stacks; writes nothing."""
        with suppress(BlockingIOError):
            for _ in range(_PARTS if self._stream >= 0 else 0):
                part = os.read(self._stream, 1 << 16)
                self._ended = not part
                *lines, self._line = (self._line + part).split(b"\n")
                for line in filter(None, lines):
                    self._add(line)
                if self._ended:
                    self._close()
                    break
        return False

    def _close(self) -> None:
        if self._stream >= 0:
            os.close(self._stream)
            self._stream = -1

    def _add(self, line: bytes) -> None:
        try:
            message = json.loads(line)
        except ValueError:  # of a process that was killed
            return
        if len(self._stacks) >= _MAX_STACKS:
            del self._stacks[next(iter(self._stacks))]
        frames = (Frame(frame) for frame in message["frames"])
        self._stacks[message["key"]] = Stack(frames, message["end"])

    def stack(self, key: int) -> Optional[Stack]:
        """Return a stack by its number; wait a moment for one that is not known yet."""
        if key not in self._stacks:
            self.read()
        end = time.monotonic() + _ANSWER
        while key not in self._stacks and self._worker and not self._ended:
            now = time.monotonic()
            if now < self._deaf_until or key in self._missing:
                break
            if now >= end:
                self._deaf_until = now + _SILENCE
                break
            self._wait(end - now)
            self.read()
        if key not in self._stacks:
            self._missing.add(key)
        return self._stacks.get(key)

    def _wait(self, seconds: float) -> None:
        poll = select.poll()
        poll.register(self._stream, select.POLLIN)
        poll.poll(seconds * 1000)

    def summary(self) -> dict[str, Any]:
        """Add notes on stacks that are not complete."""
        limited = Map(self._maps["stacks_limited"], 4, 8, per_cpu=True).get(bytes(4)) or b""
        number = sum(
            int.from_bytes(limited[at : at + 8], "little") for at in range(0, len(limited), 8)
        )
        if number:
            self.note(
                f"{number} stacks were followed by frame pointers only: more than could be copied"
            )
        if self._missing:
            self.note(f"{len(self._missing)} stacks could not be resolved in time")
        return super().summary()
