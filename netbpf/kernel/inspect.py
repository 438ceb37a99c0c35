"""What this kernel offers: a snapshot that the selection of probes and the layout are made from.

`LiveKernel` asks the running kernel, lazily, so that starting a tool reads only what that tool
needs. `RecordedKernel` answers from a file that `netbpf.doctor.recording` made, so that tests
choose probes for kernels that are not booted.
"""

from __future__ import annotations

import errno
import os
import re
from contextlib import suppress
from functools import cache, lru_cache
from pathlib import Path
from typing import Optional, Protocol

from netbpf.declare.needs import MOUNT, TRACEFS, Need
from netbpf.kernel.btf import FUNC, VAR, VMLINUX, Btf, Field
from netbpf.kernel.recorded import RecordedKernel as RecordedKernel
from netbpf.system.privileges import lacks
from netbpf.system.syscalls import accepts_fentry, detached_mount

_TRACEFS = ("/sys/kernel/tracing", "/sys/kernel/debug/tracing")
_PMU = Path("/sys/bus/event_source/devices")


class Kernel(Protocol):
    """The questions that may be asked of a kernel; None or False means it has no such thing."""

    @property
    def release(self) -> str:
        """The kernel's own name for itself, only for messages."""

    def tracepoint(self, name: str) -> Optional[tuple[str, ...]]:
        """Return the field names of trace event "system:name"; PermissionError if it is hidden."""

    def raw_tracepoint(self, name: str) -> Optional[tuple[str, ...]]:
        """Return the C parameter names of the tracepoint `name`."""

    def function(self, name: str) -> Optional[tuple[str, ...]]:
        """Return the parameter names of a kernel function that can be probed."""

    def typed(self, name: str) -> bool:
        """Tell whether a function's parameters have types that fentry programs can read."""

    def iterator(self, name: str) -> bool:
        """Tell whether there is a BPF iterator `name`."""

    def dynamic(self, kind: str) -> bool:
        """Tell whether the kernel takes "kprobe", "uprobe" or "fentry" programs."""

    def preempts(self, programs: str) -> bool:
        """Tell whether other tasks get a CPU that is in the midst of a program of that kind.

        "rawtp": of raw tracepoints; "syscalls": of the trace events of system calls.
        """

    def field(self, struct: str, path: str) -> Optional[Field]:
        """Return where a field is; see Btf.field."""

    def size(self, struct: str) -> Optional[int]:
        """Return the size of a struct in bytes."""

    def enumerator(self, enum: str, name: str) -> Optional[int]:
        """Return the value of an enumerator."""


class LiveKernel:
    """The running kernel."""

    def __init__(self, btf: str = "") -> None:
        """Read types from the file `btf`, or the running kernel's own."""
        self.release = os.uname().release
        self.btf = Btf(btf or VMLINUX)
        self._preempts: dict[str, bool] = {}  # asked for each alternative, and 1 ms each time

    def tracepoint(self, name: str) -> Optional[tuple[str, ...]]:
        """Return the field names of trace event "system:name", from its format file."""
        found = tracepoint_format(name)
        return tuple(found) if found is not None else None

    def raw_tracepoint(self, name: str) -> Optional[tuple[str, ...]]:
        """Return the tracepoint's parameters: those of __traceiter_NAME (5.10), less __data."""
        found = self.btf.parameters(f"__traceiter_{name}")
        return found[1:] if found else None

    def function(self, name: str) -> Optional[tuple[str, ...]]:
        """Return parameter names: BTF lists just the functions that ftrace or kprobes can take."""
        return self.btf.parameters(name)

    def typed(self, name: str) -> bool:
        """Tell whether a function's parameters have types that fentry programs can read."""
        return self.btf.typed(name)

    def iterator(self, name: str) -> bool:
        """Tell by the type of the iterator's context."""
        return self.btf.size(f"bpf_iter__{name}") is not None

    def dynamic(self, kind: str) -> bool:
        """Tell by the kernel's event source for them (kprobe since 4.17), or by trying (fentry)."""
        if kind == "fentry":
            return accepts_fentry(self.btf.find("tcp_set_state", FUNC))
        return (_PMU / kind / "type").exists()

    def preempts(self, programs: str) -> bool:
        """Tell by what came with it, as no kernel says so.

        Trace events of system calls: the function that runs their programs. Raw tracepoints: since
        a46023d5616e ("tracing: Guard __DECLARE_TRACE() use of __DO_TRACE_CALL() with SRCU-fast",
        7.0) they have SRCU data, which is a variable per CPU. Up to 6.12 that was there for another
        reason, when there was no struct tracepoint_ext yet.
        """
        if programs not in self._preempts:
            self._preempts[programs] = self._has_come_with_it(programs)
        return self._preempts[programs]

    def _has_come_with_it(self, programs: str) -> bool:
        if programs == "syscalls":
            return self.btf.find("trace_call_bpf_faultable", FUNC) > 0
        srcu = self.btf.find("tracepoint_srcu_srcu_data", VAR) > 0
        return srcu and self.btf.size("tracepoint_ext") is not None

    def field(self, struct: str, path: str) -> Optional[Field]:
        """Return where a field is."""
        return self.btf.field(struct, path)

    def size(self, struct: str) -> Optional[int]:
        """Return the size of a struct in bytes."""
        return self.btf.size(struct)

    def enumerator(self, enum: str, name: str) -> Optional[int]:
        """Return the value of an enumerator."""
        return self.btf.enumerator(enum, name)


@lru_cache(maxsize=1)
def tracefs() -> str:
    """Return a path to tracefs, mounted or else mounted detached for this process; "" if neither.

    Debian and most servers mount it; containers and small VMs often do not.
    """
    for path in _TRACEFS:
        # Not access(2): of a user other than root it leaves the capabilities out.
        if os.path.isdir(f"{path}/events/."):
            return path
    try:
        return detached_mount("tracefs")
    except OSError:
        return ""


def tracefs_lacking() -> Optional[Need]:
    """Return the privilege without which this process cannot read the tracefs that there is."""
    if tracefs():
        return None
    with suppress(OSError):
        if "tracefs" in Path("/proc/filesystems").read_text().split():
            mounted = re.search(r"^\S+ \S+ tracefs ", Path("/proc/mounts").read_text(), re.M)
            return TRACEFS if mounted else MOUNT
    return None


@cache
def tracepoint_format(name: str) -> Optional[dict[str, Field]]:
    """Return {field: where it is in the record} of trace event "system:name", or None.

    Raises PermissionError, which names the privilege, if this process must not read it.
    """
    system, _, event = name.partition(":")
    lacking = tracefs_lacking()
    if lacking:
        also = f", and {TRACEFS.words}" if lacking == MOUNT and lacks(TRACEFS) else ""
        raise PermissionError(errno.EACCES, lacking.words + also)
    try:
        text = Path(tracefs(), "events", system, event, "format").read_text()
    except PermissionError as error:
        raise PermissionError(error.errno, TRACEFS.words) from error
    except OSError:
        return None
    return parse_format(text)


_FIELD = re.compile(
    r"field:(.*?)\s*\b(\w+)(\[[^]]*\])?;\s*offset:(\d+);\s*size:(\d+);\s*signed:(\d)"
)


def parse_format(text: str) -> dict[str, Field]:
    """Return the fields of a trace event's format file."""
    fields = {}
    for _, name, array, offset, size, signed in _FIELD.findall(text):
        sign, bits = "s" if signed == "1" else "u", int(size) * 8
        plain = not array and bits in (8, 16, 32, 64)
        ctype = f"{sign}{bits} %s" if plain else f"u8 %s[{size}]"
        fields[name] = Field(int(offset) * 8, ctype)
    return fields


def tracepoint_id(name: str) -> int:
    """Return the id of trace event "system:name" for perf_event_open(2); OSError if it is gone."""
    system, _, event = name.partition(":")
    return int(Path(tracefs(), "events", system, event, "id").read_text())
