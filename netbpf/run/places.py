"""Where in a file probes belong on its name lookups, and attaching them there."""

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


def attach_all(desk: WorkerEnd, targets: Targets, binary: Binary, path: str) -> str:
    """Attach all probes that belong on a file, and send them on.

    Returns in words what the kernel refused; raises OSError, UnreadableBinary.
    """
    refused: dict[str, str] = {}
    links = []
    with open_regular(path) as file:
        status = os.fstat(file.fileno())
        if (status.st_dev, status.st_ino) != (binary.device, binary.inode):
            return ""  # the path leads elsewhere by now: another look finds it
        # Through the open file, so that it is this one that is probed whatever the path does.
        opened = f"/proc/self/fd/{file.fileno()}"
        for (program, at_return), found in _by_program(binary, targets).items():
            links += _attach(desk, program, at_return, opened, found, refused)
            for target in dict(found) if at_return else ():
                if target not in refused:
                    words = f"{target} of {escape(path)} has a uretprobe: its returns are not known"
                    desk.send({"verbose": words})
    desk.send({"links": [binary.device, binary.inode]}, links)
    for link in links:
        os.close(link)
    reasons = ", ".join(sorted(set(refused.values())))
    return f"{CANNOT} at {', '.join(refused)}: {reasons}" if refused else ""


def _by_program(binary: Binary, targets: Targets) -> dict[tuple[int, bool], list[tuple[str, int]]]:
    found: dict[tuple[int, bool], list[tuple[str, int]]] = {}
    for target, offset in places(binary):
        found.setdefault(targets[target], []).append((target, offset))
    return found


def _attach(
    desk: WorkerEnd,
    program: int,
    at_return: bool,
    path: str,
    found: Sequence[tuple[str, int]],
    refused: dict[str, str],
) -> list[int]:
    """Return the links of one program: one if the kernel takes that, else one for each place."""
    links = []
    _go_on(desk)
    with suppress(OSError):
        return [attach_places(program, path, [offset for _, offset in found], at_return)]
    for target, offset in found:
        _go_on(desk)
        try:
            links.append(attach_user(program, path, offset, at_return))
        except OSError as error:
            # Another tool's probe of the same place may stand in the way of ours, if it names a
            # semaphore: some versions of bcc do so by mistake.
            refused[target] = error.strerror or str(error)
    return links


def _go_on(desk: WorkerEnd) -> None:
    desk.extend_deadline()
    desk.send({})


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
