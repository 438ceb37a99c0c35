"""Survey which processes' name lookups can be probed, without attaching probes."""

from __future__ import annotations

import time
from importlib.util import find_spec
from typing import Any

from netbpf.binaries.mappings import has_program, processes
from netbpf.system.worker import Worker, WorkerEnd

_MAX_SECONDS = 8.0


def survey() -> dict[str, Any]:
    """Return the libcs and programs that can be probed, and the processes that are not covered.

    If the survey fails, the result has only the key "error".
    """
    if not find_spec("elftools"):
        return {"error": "this Python has no pyelftools"}
    end = time.monotonic() + _MAX_SECONDS
    worker = Worker(_scan)
    try:
        while time.monotonic() < end and not worker.ended:
            worker.wait(end)
            for message, _ in worker.receive():
                return message
        return {"error": f"scanning processes takes too long {worker.stuck(0)}".rstrip()}
    finally:
        worker.close()


def _scan(worker: WorkerEnd) -> None:
    """Scan all processes, in a child process: reading the files that they map may block."""
    from netbpf.binaries.scan import FIRST, Coverage

    end = time.monotonic() + _MAX_SECONDS / 2
    coverage = Coverage(first=FIRST)
    pids = [str(pid) for pid in processes()]
    for what in ("libraries", *pids):
        if what in worker.skipped or time.monotonic() > end:
            if what in pids and has_program(int(what)):
                coverage.skip(int(what), "scanning it takes too long")
            continue
        with worker.item(what):
            coverage.rescan(int(what)) if what in pids else coverage.add_known()
    while coverage.unfinished and time.monotonic() < end:
        with worker.item("unfinished"):
            coverage.finish_one()
    report = {
        "libcs": [
            {"kind": b.kind, "path": b.path, "processes": len(b.pids)} for b in coverage.libcs
        ],
        "programs": len(coverage.binaries) - len(coverage.libcs),
        "covered": coverage.covered,
        "uncovered": [
            {"pid": gap.pid, "name": gap.name, "reason": gap.reason}
            for gap in coverage.uncovered.values()
        ],
    }
    worker.send(report)
