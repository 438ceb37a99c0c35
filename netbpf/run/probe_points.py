"""The offsets of name lookups in a program file, and attaching uprobes there."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress

from netbpf.binaries.binary import Binary
from netbpf.bpf.attach import attach_places, attach_user
from netbpf.declare.values import escape
from netbpf.system.untrusted import open_regular
from netbpf.system.worker import WorkerEnd

CANNOT = "cannot be probed"

# {target of a declared probe: (descriptor of its program, whether it goes on the return)}
Targets = Mapping[str, tuple[int, bool]]


def attach_all(worker: WorkerEnd, targets: Targets, binary: Binary, path: str) -> str:
    """Attach all probes of a file, and send their links to the other end.

    Returns a description of what the kernel refused, or "". Raises OSError, UnreadableBinary.
    """
    refused: dict[str, str] = {}
    links = []
    with open_regular(path) as file:
        status = os.fstat(file.fileno())
        if (status.st_dev, status.st_ino) != (binary.device, binary.inode):
            return ""  # another file has this path by now: the next scan finds it
        # By its descriptor, so that this file is probed even if the path changes.
        opened = f"/proc/self/fd/{file.fileno()}"
        for (program, at_return), points in _by_program(binary, targets).items():
            links += _attach(worker, program, at_return, opened, points, refused)
            for target in dict(points) if at_return else ():
                if target not in refused:
                    text = f"{target} of {escape(path)} has a uretprobe: its returns are unknown"
                    worker.send({"verbose": text})
    worker.send({"links": [binary.device, binary.inode]}, links)
    for link in links:
        os.close(link)
    reasons = ", ".join(sorted(set(refused.values())))
    return f"{CANNOT} at {', '.join(refused)}: {reasons}" if refused else ""


def _by_program(binary: Binary, targets: Targets) -> dict[tuple[int, bool], list[tuple[str, int]]]:
    points: dict[tuple[int, bool], list[tuple[str, int]]] = {}
    for target, offset in probe_points(binary):
        points.setdefault(targets[target], []).append((target, offset))
    return points


def _attach(
    worker: WorkerEnd,
    program: int,
    at_return: bool,
    path: str,
    points: Sequence[tuple[str, int]],
    refused: dict[str, str],
) -> list[int]:
    """Return the links of one program: one for all points if possible, else one for each."""
    links = []
    _extend_deadline(worker)
    with suppress(OSError):
        return [attach_places(program, path, [offset for _, offset in points], at_return)]
    for target, offset in points:
        _extend_deadline(worker)
        try:
            links.append(attach_user(program, path, offset, at_return))
        except OSError as error:
            # The kernel refuses a second probe at an offset if one of them names a semaphore: some
            # versions of bcc do so by mistake.
            refused[target] = error.strerror or str(error)
    return links


def _extend_deadline(worker: WorkerEnd) -> None:
    worker.extend_deadline()
    worker.send({})


def probe_points(binary: Binary) -> Iterator[tuple[str, int]]:
    """Yield (target of a declared probe, file offset) for each probe of a file.

    "F RET" is a return instruction of the function F. If those of a C function are unknown, "F()"
    is its return by uretprobe. "net.DNSError+N" are the entries of Go lookups if the flags of that
    struct are at offset N.
    """
    functions = {n: f for n, f in binary.functions.items() if not f.ifunc}
    # Returns first: a call of which only the entry is seen would be pending for ever. Functions
    # that end in each other share return instructions.
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
