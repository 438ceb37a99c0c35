"""Record a kernel: its answer to every question that any tool may ask, as data for tests.

`netbpf.kernel.inspect.RecordedKernel` gives the same answers where that kernel is not booted.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from netbpf.declare.probes import Alternative
from netbpf.declare.tool import Tool, all_tools
from netbpf.doctor import choices_of, manifests_of, missing_fields
from netbpf.errors import NetbpfError, PrivilegeError, Unsupported
from netbpf.kernel import layout, machine
from netbpf.kernel.inspect import Kernel, LiveKernel, Recorder
from netbpf.kernel.privileges import missing_privileges


def record(path: str, btf: str = "") -> None:
    """Write the running kernel's answers to the file `path`; without root it would answer less.

    Raises PrivilegeError, and NetbpfError if the file cannot be written.
    """
    lacking = missing_privileges()
    if lacking:
        raise PrivilegeError(
            f"recording needs {', '.join(lacking)}",
            f"run it as root: sudo netbpf doctor --record {path}",
        )
    recorder = Recorder(LiveKernel(btf))
    machine.kernel_checks(recorder)
    for tool in all_tools():
        ask_everything(tool, recorder)
    try:
        Path(path).write_text(json.dumps(recorder.answers, indent=1, sort_keys=True) + "\n")
    except OSError as error:
        raise NetbpfError(f"cannot write '{path}': {error.strerror}") from None


def ask_everything(tool: Tool, kernel: Kernel) -> None:
    """Ask `kernel` all that choosing probes and laying out structs for `tool` may ask."""
    for probe in tool.all_probes:
        for alternative in probe.alternatives:
            _ask(alternative, kernel)
    list(missing_fields(tool, kernel))
    with suppress(Unsupported):
        layout.header(kernel, manifests_of(tool), choices_of(tool, kernel))


def _ask(alternative: Alternative, kernel: Kernel) -> None:
    if alternative.kind in ("uprobe", "uretprobe"):
        return
    questions = {
        "rawtp": kernel.raw_tracepoint,
        "tp": kernel.tracepoint,
        "iter": kernel.iterator,
    }
    for name in alternative.names:
        found = questions.get(alternative.kind, kernel.function)(name)
        if found is not None and alternative.kind in ("fentry", "fexit"):
            kernel.typed(name)
