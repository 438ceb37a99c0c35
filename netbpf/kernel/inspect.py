"""The interface through which probe selection and layout query a kernel, and the running kernel.

`LiveKernel` queries the running kernel lazily, so that a tool reads only what it needs.
`RecordedKernel` answers from a file made by `netbpf.doctor.recording`, so that tests select probes
for kernels that are not booted.
"""

from __future__ import annotations

import errno
import os
import re
from contextlib import suppress
from functools import cache, lru_cache
from pathlib import Path
from typing import Optional, Protocol, Union

from netbpf.declare.needs import MOUNT, TRACEFS, Need
from netbpf.kernel.btf import FUNC, VAR, VMLINUX, Btf, Field
from netbpf.kernel.cgroups import hook_arguments, whole_hierarchy
from netbpf.kernel.known_types import KnownTypes
from netbpf.kernel.recorded import RecordedKernel as RecordedKernel
from netbpf.system.privileges import lacks
from netbpf.system.syscalls import accepts_fentry, detached_mount

_TRACEFS = ("/sys/kernel/tracing", "/sys/kernel/debug/tracing")
_PMU = Path("/sys/bus/event_source/devices")


class Kernel(Protocol):
    """The queries to a kernel; None or False means that the kernel does not have it."""

    @property
    def release(self) -> str:
        """The kernel release, for messages only."""

    def tracepoint(self, name: str) -> Optional[tuple[str, ...]]:
        """Return the field names of trace event "system:name"; raises PermissionError."""

    def raw_tracepoint(self, name: str) -> Optional[tuple[str, ...]]:
        """Return the C parameter names of the tracepoint `name`."""

    def function(self, name: str) -> Optional[tuple[str, ...]]:
        """Return the parameter names of a kernel function that can be probed."""

    def typed(self, name: str) -> bool:
        """Return whether a function's parameters have types that fentry programs can read."""

    def iterator(self, name: str) -> bool:
        """Return whether there is a BPF iterator `name`."""

    def cgroup_hook(self, name: str) -> Optional[tuple[str, ...]]:
        """Return the arguments of a hook of cgroups, see HOOKS of declare/probe_kinds.py."""

    def dynamic(self, kind: str) -> bool:
        """Return whether the kernel accepts "kprobe", "uprobe" or "fentry" programs."""

    def preempts(self, programs: str) -> bool:
        """Return whether programs of that kind are preemptible.

        "rawtp": raw tracepoints; "syscalls": trace events of system calls.
        """

    def field(self, struct: str, path: str) -> Optional[Field]:
        """Return the layout of a field; see Btf.field."""

    def size(self, struct: str) -> Optional[int]:
        """Return the size of a struct in bytes."""

    def enumerator(self, enum: str, name: str) -> Optional[int]:
        """Return the value of an enumerator."""


class LiveKernel:
    """The running kernel."""

    def __init__(self, btf: str = "", known: Optional[KnownTypes] = None) -> None:
        """Read types from the file `btf`, else take them from `known` or the running kernel."""
        self.release = os.uname().release
        self.btf: Union[Btf, KnownTypes] = (known if not btf else None) or Btf(btf or VMLINUX)
        self._preempts: dict[str, bool] = {}  # a query takes 1 ms, and each alternative makes one

    def tracepoint(self, name: str) -> Optional[tuple[str, ...]]:
        """Return the field names of trace event "system:name", from its format file."""
        fields = tracepoint_format(name)
        return tuple(fields) if fields is not None else None

    def raw_tracepoint(self, name: str) -> Optional[tuple[str, ...]]:
        """Return the tracepoint's parameters: those of __traceiter_NAME (5.10) without __data."""
        names = self.btf.parameters(f"__traceiter_{name}")
        return names[1:] if names else None

    def function(self, name: str) -> Optional[tuple[str, ...]]:
        """Return parameter names: BTF has only functions that ftrace or kprobes can attach to."""
        return self.btf.parameters(name)

    def typed(self, name: str) -> bool:
        """Return whether a function's parameters have types that fentry programs can read."""
        return self.btf.typed(name)

    def iterator(self, name: str) -> bool:
        """Return whether BTF has the type of the iterator's context."""
        return self.btf.size(f"bpf_iter__{name}") is not None

    def cgroup_hook(self, name: str) -> Optional[tuple[str, ...]]:
        """Return the arguments of a hook, if programs can be attached to all cgroups."""
        return hook_arguments(self, name) if whole_hierarchy() else None

    def dynamic(self, kind: str) -> bool:
        """Check for the kernel's event source (kprobe since 4.17), or load a program (fentry)."""
        if kind == "fentry":
            return accepts_fentry(self.btf.find("tcp_set_state", FUNC))
        return (_PMU / kind / "type").exists()

    def preempts(self, programs: str) -> bool:
        """Infer it from symbols added by the same commits, as the kernel does not advertise it.

        Trace events of system calls: the function that runs their programs. Raw tracepoints: since
        a46023d5616e ("tracing: Guard __DECLARE_TRACE() use of __DO_TRACE_CALL() with SRCU-fast",
        7.0) they have SRCU data, which is a per-CPU variable. Up to 6.12 this variable existed for
        another reason, before struct tracepoint_ext was added.
        """
        if programs not in self._preempts:
            self._preempts[programs] = self._has_marker(programs)
        return self._preempts[programs]

    def _has_marker(self, programs: str) -> bool:
        if programs == "syscalls":
            return self.btf.find("trace_call_bpf_faultable", FUNC) > 0
        srcu = self.btf.find("tracepoint_srcu_srcu_data", VAR) > 0
        return srcu and self.btf.size("tracepoint_ext") is not None

    def field(self, struct: str, path: str) -> Optional[Field]:
        """Return the layout of a field."""
        return self.btf.field(struct, path)

    def size(self, struct: str) -> Optional[int]:
        """Return the size of a struct in bytes."""
        return self.btf.size(struct)

    def enumerator(self, enum: str, name: str) -> Optional[int]:
        """Return the value of an enumerator."""
        return self.btf.enumerator(enum, name)


@lru_cache(maxsize=1)
def tracefs() -> str:
    """Return a path to tracefs: where it is mounted, else a detached mount; "" if neither works.

    Debian and most servers mount it; containers and small VMs often do not.
    """
    for path in _TRACEFS:
        # Not access(2), which ignores capabilities for users other than root.
        if os.path.isdir(f"{path}/events/."):
            return path
    try:
        return detached_mount("tracefs")
    except OSError:
        return ""


def missing_tracefs_privilege() -> Optional[Need]:
    """Return the privilege that this process needs to read the kernel's tracefs, None if none."""
    if tracefs():
        return None
    with suppress(OSError):
        if "tracefs" in Path("/proc/filesystems").read_text().split():
            mounted = re.search(r"^\S+ \S+ tracefs ", Path("/proc/mounts").read_text(), re.M)
            return TRACEFS if mounted else MOUNT
    return None


@cache
def tracepoint_format(name: str) -> Optional[dict[str, Field]]:
    """Return {field: layout} of trace event "system:name", or None.

    Raises PermissionError with the missing privilege if this process may not read it.
    """
    system, _, event = name.partition(":")
    missing = missing_tracefs_privilege()
    if missing:
        also = f", and {TRACEFS.words}" if missing == MOUNT and lacks(TRACEFS) else ""
        raise PermissionError(errno.EACCES, missing.words + also)
    try:
        text = Path(tracefs(), "events", system, event, "format").read_text()
    except PermissionError as error:
        raise PermissionError(error.errno, TRACEFS.words) from error
    except OSError:
        return None
    return parse_format(text)


_FIELD = re.compile(
    r"field:(.*?)\s*\b(\w+)(\[[^]]*\])?;\s*offset:(\d{1,9});\s*size:(\d{1,9});\s*signed:(\d)"
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
    """Return the id of trace event "system:name" for perf_event_open(2); raises OSError."""
    system, _, event = name.partition(":")
    return int(Path(tracefs(), "events", system, event, "id").read_text())
