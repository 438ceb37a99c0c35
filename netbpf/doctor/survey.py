"""How far probes on name lookups reach at this moment, without placing any."""

from __future__ import annotations

import time
from importlib.util import find_spec
from typing import Any

from netbpf.binaries.mappings import has_program, processes
from netbpf.system.worker import Worker, WorkerEnd

_MOST_SECONDS = 8.0


def survey() -> dict[str, Any]:
    """Return which libcs and programs can be probed, and which processes' lookups cannot be seen.

    "error" is why that is not known, if it is not.
    """
    if not find_spec("elftools"):
        return {"error": "pyelftools is missing for this Python"}
    end = time.monotonic() + _MOST_SECONDS
    apart = Worker(_look)
    try:
        while time.monotonic() < end and not apart.ended:
            apart.wait(end)
            for message, _ in apart.receive():
                return message
        return {"error": f"looking at processes takes too long {apart.stuck(0)}".rstrip()}
    finally:
        apart.close()


def _look(desk: WorkerEnd) -> None:
    """Look at all processes: apart, as what they have mapped may hold up who looks at it."""
    from netbpf.binaries.scan import FIRST, Coverage

    end = time.monotonic() + _MOST_SECONDS / 2
    found = Coverage(first=FIRST)
    pids = [str(pid) for pid in processes()]
    for what in ("libraries", *pids):
        if what in desk.skipped or time.monotonic() > end:
            if what in pids and has_program(int(what)):
                found.skip(int(what), "given up: it takes too long to look at")
            continue
        with desk.item(what):
            found.rescan(int(what)) if what in pids else found.add_known()
    while found.unfinished and time.monotonic() < end:
        with desk.item("unfinished"):
            found.finish_one()
    report = {
        "libcs": [{"kind": b.kind, "path": b.path, "processes": len(b.pids)} for b in found.libcs],
        "programs": len(found.binaries) - len(found.libcs),
        "covered": found.covered,
        "uncovered": [
            {"pid": gap.pid, "name": gap.name, "reason": gap.reason}
            for gap in found.uncovered.values()
        ],
    }
    desk.send(report)
