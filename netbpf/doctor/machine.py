"""Check this machine for everything except probes.

A check does not raise if something is missing; it returns that as its result.
"""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Callable, NamedTuple, Optional

from netbpf.bpf.compiler import BCC_HINT
from netbpf.declare.needs import TRACEFS
from netbpf.errors import NetbpfError
from netbpf.kernel.btf import VMLINUX, library
from netbpf.kernel.cgroups import cgroup_root
from netbpf.kernel.inspect import Kernel, missing_tracefs_privilege, tracefs
from netbpf.system import syscall_filter
from netbpf.system.links import enable_statistics
from netbpf.system.privileges import (
    held_capabilities,
    in_first_user_namespace,
    missing_privileges,
)

OK, ABSENT, BAD = "ok", "absent", "missing"
UNKNOWN = "unknown without root"
_LOCKDOWN = Path("/sys/kernel/security/lockdown")
_JIT = Path("/proc/sys/net/core/bpf_jit_enable")
_IMPORT_SECONDS = 60  # emulated machines are ten times slower


class Check(NamedTuple):
    """A result: OK, ABSENT (missing but optional) or BAD (missing and required)."""

    name: str
    state: str
    words: str
    hint: str = ""


def machine_checks() -> list[Check]:
    """Return the checks that do not need the kernel's types."""
    checks: Sequence[tuple[str, Callable[[], Check]]] = (
        ("python", check_python),
        ("bcc", check_bcc),
        ("libbpf", check_libbpf),
        ("privileges", check_privileges),
        ("lockdown", check_lockdown),
        ("tracefs", check_tracefs),
        ("cgroup2", check_cgroups),
        ("jit", check_jit),
        ("statistics", check_statistics),
    )
    return [_guarded(name, check) for name, check in checks]


def _guarded(name: str, check: Callable[[], Check]) -> Check:
    try:
        return check()
    except NetbpfError as error:
        return Check(name, BAD, error.message, error.hint)
    except (OSError, ValueError) as error:
        return Check(name, ABSENT, f"check failed ({error})")


def check_python() -> Check:
    """Return the version and path of this Python; bcc's bindings belong to a single Python."""
    return Check("python", OK, f"{platform.python_version()} {sys.executable}")


def check_bcc(python: str = sys.executable) -> Check:
    """Return whether `python` can import bcc; a child process imports it, as LLVM is large."""
    code = "import bcc; bcc.BPF; print(bcc.__version__)"
    try:
        # Root must not import modules from the current directory.
        done = subprocess.run(
            [python, "-c", code], cwd="/", capture_output=True, text=True,
            stdin=subprocess.DEVNULL, timeout=_IMPORT_SECONDS, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        return Check("bcc", BAD, f"cannot run {python} ({error})", BCC_HINT)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        return Check("bcc", BAD, f"this Python cannot import it ({last})", BCC_HINT)
    return Check("bcc", OK, done.stdout.strip())


def check_libbpf() -> Check:
    """Return the library that reads BTF."""
    return Check("libbpf", OK, library())


def check_privileges() -> Check:
    """Return whether this process has the privileges for tracing."""
    missing = missing_privileges()
    if missing:
        words, hint = f"{', '.join(missing)} missing", "run it as root: sudo netbpf doctor"
        if not in_first_user_namespace():
            words += " (capabilities in a user namespace do not count)"
            hint = "run it as root outside the user namespace"
        return Check("privileges", BAD, words, hint)
    filtered = "" if syscall_filter.available() else "; no system call filter"
    hint = "" if not filtered else "for the system call filter: install python3-seccomp"
    return Check("privileges", OK, ", ".join(held_capabilities()) + filtered, hint)


def check_lockdown(path: Path = _LOCKDOWN) -> Check:
    """Return the kernel's lockdown mode; "confidentiality" forbids BPF to read kernel memory."""
    try:
        words = path.read_text().split()
    except PermissionError:
        return Check("lockdown", ABSENT, UNKNOWN)
    except OSError:
        return Check("lockdown", OK, "none, or securityfs is not mounted")
    mode = next((word.strip("[]") for word in words if word.startswith("[")), "none")
    if mode == "confidentiality":
        hint = "boot with lockdown=integrity or without Secure Boot: this mode forbids BPF"
        return Check("lockdown", BAD, mode, hint)
    return Check("lockdown", OK, mode)


def check_tracefs() -> Check:
    """Return how trace event formats can be read."""
    path = tracefs()
    if path.startswith("/proc/"):
        return Check("tracefs", OK, "not mounted; netbpf uses a private mount")
    if path:
        return Check("tracefs", OK, f"mounted at {path}")
    if "tracefs" not in Path("/proc/filesystems").read_text():
        hint = "tracepoints need CONFIG_TRACING; raw tracepoints do not"
        return Check("tracefs", ABSENT, "not in this kernel", hint)
    if missing_privileges():
        return Check("tracefs", ABSENT, UNKNOWN)
    missing = missing_tracefs_privilege()
    if missing == TRACEFS:
        return Check("tracefs", ABSENT, f"not readable: needs {TRACEFS.words}")
    hint = "mount -t tracefs none /sys/kernel/tracing"
    return Check("tracefs", ABSENT, "not mounted, and this process cannot mount it", hint)


def check_cgroups() -> Check:
    """Return where cgroup v2 is mounted; --cgroup and --container need it."""
    root = cgroup_root()
    if root:
        return Check("cgroup2", OK, f"mounted at {root}")
    hint = "for --cgroup and --container: mount -t cgroup2 none /sys/fs/cgroup"
    return Check("cgroup2", ABSENT, "not mounted: --cgroup and --container do not work", hint)


def check_jit(path: Path = _JIT) -> Check:
    """Return whether the kernel compiles BPF programs to machine code."""
    try:
        on = path.read_text().strip() != "0"
    except PermissionError:
        return Check("jit", ABSENT, UNKNOWN)
    except OSError:
        # Both exist only in the initial network namespace (net_core_table, net/core).
        if not path.with_name("netdev_max_backlog").exists():
            return Check("jit", OK, "unknown: only the initial network namespace shows it")
        return Check("jit", ABSENT, "not in this kernel: BPF programs are interpreted")
    if on:
        return Check("jit", OK, "on")
    hint = "for less overhead: sysctl net.core.bpf_jit_enable=1"
    return Check("jit", ABSENT, "off: BPF programs are interpreted", hint)


def check_statistics() -> Check:
    """Return whether the kernel can measure BPF run time (BPF_ENABLE_STATS, since 5.8)."""
    try:
        os.close(enable_statistics())
    except OSError as error:
        words = f"unavailable ({error.strerror}): no overhead in summaries, no --max-overhead"
        return Check("statistics", ABSENT, words)
    return Check("statistics", OK, "the kernel measures BPF run time")


def check_memlock(kernel: Kernel) -> Check:
    """Return whether RLIMIT_MEMLOCK applies to BPF maps.

    Kernels up to 5.10 accounted them in struct bpf_map_memory; since 80ee81e0403c ("bpf: Eliminate
    rlimit-based memory accounting infra for bpf maps", 5.11) the memory cgroup accounts them.
    """
    if kernel.size("bpf_map_memory") is None:
        return Check("memlock", OK, "RLIMIT_MEMLOCK does not apply to BPF on this kernel")
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    if limit == resource.RLIM_INFINITY or "CAP_SYS_RESOURCE" in held_capabilities():
        return Check("memlock", OK, "RLIMIT_MEMLOCK is unlimited or can be raised")
    words = f"RLIMIT_MEMLOCK limits BPF memory to {limit >> 10} KB"
    return Check("memlock", ABSENT, words, "ulimit -l unlimited")


def kernel_checks(kernel: Kernel, missing: Sequence[str] = ()) -> list[Check]:
    """Return the checks for BPF features; some results are unknown with `missing` privileges."""
    ringbuf = kernel.size("bpf_ringbuf") is not None
    hint = "netbpf needs a kernel with the BPF ring buffer: 5.10 or newer"
    fentry = kernel.dynamic("fentry")
    return [
        _feature("ring buffer", True) if ringbuf else Check("ring buffer", BAD, "missing", hint),
        _feature("kprobes", kernel.dynamic("kprobe")),
        _feature("uprobes", kernel.dynamic("uprobe")),
        _feature("fentry", fentry, UNKNOWN if missing else "refused by this kernel"),
        _feature("iterators", kernel.iterator("task_file")),
        check_memlock(kernel),
    ]


def _feature(name: str, available: bool, otherwise: str = "not in this kernel") -> Check:
    return Check(name, OK, "available") if available else Check(name, ABSENT, otherwise)


def check_btf(path: str, error: Optional[NetbpfError]) -> Check:
    """Return where the kernel's types were read from, or why they could not be read."""
    if error:
        return Check("BTF", BAD, error.message, error.hint)
    path = path or VMLINUX
    return Check("BTF", OK, f"{path}, {os.path.getsize(path) / 2**20:.1f} MB")
