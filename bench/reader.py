"""How long the reader takes per event, in each output format, without a kernel.

Records come from a file in shared memory that has the layout of a BPF ring buffer, and lines go to
/dev/null. The CPU time covers all steps between both: take, decode, complete, format, encode and
write. The figure is us per event, with the lines per second of one core: the best of 5 runs, as
other load can only add time.
"""

from __future__ import annotations

import os
import random
import struct
import time
from types import SimpleNamespace
from typing import Any
from unittest import mock

from netbpf.declare.tool import Tool, find_tool
from netbpf.output.clock import Clock
from netbpf.output.outlet import Outlet
from netbpf.output.writers import make_writer
from netbpf.run.results import events
from netbpf.run.results.events import EventResult

TOOLS = ("tcplife", "soconnect", "soaccept", "tcpretrans", "tcpstates")
FORMATS = ("json", "text", "csv")
EVENTS, RUNS, PAGE = 1 << 16, 5, 4096


def record(tool: Tool, chance: random.Random, ns: int) -> bytes:
    """Return a record as of a busy server: few processes, many remote ports."""
    values: list[Any] = []
    assert tool.event
    for column in tool.event.members:
        kind, array, length = column.ctype.partition("[")
        if column.name == "time":
            values.append(ns)
        elif array and kind == "char":
            values.append(chance.choice((b"nginx", b"redis-server", b"curl")))
        elif array:
            address = bytes(10) + b"\xff\xff" + bytes((10, 0, 3, chance.randrange(40)))
            values.append(address.ljust(int(length[:-1]), b"\0"))
        elif column.name.endswith(("_us", "bytes", "port")):
            values.append(chance.randrange(1 << (15 if kind == "u16" else 24)))
        else:
            values.append(chance.randrange(3))
    return tool.event.layout().pack(*values)


def ring_file(tool: Tool) -> tuple[int, int]:
    """Return the descriptor of a ring with EVENTS records, and the size of its data."""
    chance = random.Random(1)
    rows = [record(tool, chance, 10**15 + number * 30_000) for number in range(1000)]
    step = 8 + -(-len(rows[0]) // 8) * 8
    size = 1 << (EVENTS * step - 1).bit_length()
    data = b"".join(
        struct.pack("=II", len(row), 0) + row.ljust(step - 8, b"\0")
        for row in (rows[number % 1000] for number in range(EVENTS))
    )
    fd = os.memfd_create("ring")
    os.ftruncate(fd, 2 * PAGE + 2 * size)
    os.pwrite(fd, struct.pack("=Q", EVENTS * step), PAGE)
    os.pwrite(fd, data, 2 * PAGE)
    return fd, size


def seconds(tool: Tool, output: str) -> float:
    """Return the CPU seconds in which one reader takes and writes EVENTS events."""
    fd, size = ring_file(tool)
    attached: Any = SimpleNamespace(
        loaded=SimpleNamespace(maps={"events": fd, "late": -1}),
        missing=(),
        selections=(),
        with_role=lambda _: (),
    )
    settings = {
        option.name: option.parse(option.default) if option.parse and option.default else None
        for option in tool.options
    }
    settings.update(output=output, buffer=size, by=(), timestamp=False, map_entries=1 << 16)
    clock, sink = Clock(), os.open(os.devnull, os.O_WRONLY)
    out = Outlet(sink)
    stop: Any = SimpleNamespace(
        blocked=False, reason="", remaining=lambda seen: 1 << 30, watch=lambda *_, **__: None
    )
    assert tool.event
    with mock.patch.object(events, "ring_size", lambda _: size):
        result = EventResult(tool, tool.event, settings, attached, clock)
    result._delayed = None  # which need a map
    writer = make_writer(output, tool.name, result.columns, clock, out, settings)
    writer.begin()
    result.begin(stop, writer)
    begin = time.process_time()
    while result.read():
        out.flush()
    spent = time.process_time() - begin
    assert result.seen == EVENTS and not out.blocked, result.seen
    os.close(fd)
    os.close(sink)
    return spent


def figures(name: str, runs: int = RUNS) -> dict[str, float]:
    """Return us per event by format, the best of so many runs."""
    return {
        output: min(seconds(find_tool(name), output) for _ in range(runs)) / EVENTS * 1e6
        for output in FORMATS
    }
