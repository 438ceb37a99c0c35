"""What this machine has of the things that netbpf needs besides probes, each check by itself.

A check never raises because something is missing: that is its result.
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
ROOT_TELLS = "root is needed to tell"
_LOCKDOWN = Path("/sys/kernel/security/lockdown")
_JIT = Path("/proc/sys/net/core/bpf_jit_enable")
_IMPORT_SECONDS = 60  # in an emulated machine everything takes ten times as long


class Check(NamedTuple):
    """One fact: OK, ABSENT (not there, and can be done without) or BAD (needed, and missing)."""

    name: str
    state: str
    words: str
    hint: str = ""


def machine_checks() -> list[Check]:
    """Return what can be said without knowing the kernel's types."""
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
        return Check(name, ABSENT, f"could not be looked at ({error})")


def check_python() -> Check:
    """Tell which Python this is: bcc's bindings belong to one of them."""
    return Check("python", OK, f"{platform.python_version()} {sys.executable}")


def check_bcc(python: str = sys.executable) -> Check:
    """Tell whether `python` can import bcc: asked in a process of its own, as LLVM is large."""
    code = "import bcc; bcc.BPF; print(bcc.__version__)"
    try:
        # Not from the current directory: what lies there must not be imported by root.
        done = subprocess.run(
            [python, "-c", code], cwd="/", capture_output=True, text=True,
            stdin=subprocess.DEVNULL, timeout=_IMPORT_SECONDS, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        return Check("bcc", BAD, f"could not be tried ({error})", BCC_HINT)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        return Check("bcc", BAD, f"this Python cannot import it ({last})", BCC_HINT)
    return Check("bcc", OK, done.stdout.strip())


def check_libbpf() -> Check:
    """Tell which library reads BTF."""
    return Check("libbpf", OK, library())


def check_privileges() -> Check:
    """Tell whether this process may trace."""
    lacking = missing_privileges()
    if lacking:
        words, hint = f"{', '.join(lacking)} missing", "run it as root: sudo netbpf doctor"
        if not in_first_user_namespace():
            words += ": those of a user namespace do not count"
            hint = "run it as root of the machine, outside of the user namespace"
        return Check("privileges", BAD, words, hint)
    filtered = "" if syscall_filter.available() else "; no filter of system calls while running"
    hint = "" if not filtered else "for the filter: the distribution's python3-seccomp"
    return Check("privileges", OK, ", ".join(held_capabilities()) + filtered, hint)


def check_lockdown(path: Path = _LOCKDOWN) -> Check:
    """Tell whether the kernel is locked down; in confidentiality mode BPF may not read it."""
    try:
        words = path.read_text().split()
    except PermissionError:
        return Check("lockdown", ABSENT, ROOT_TELLS)
    except OSError:
        return Check("lockdown", OK, "not in this kernel, or securityfs is not mounted")
    mode = next((word.strip("[]") for word in words if word.startswith("[")), "none")
    if mode == "confidentiality":
        hint = "boot with lockdown=integrity or without Secure Boot: BPF may not read this kernel"
        return Check("lockdown", BAD, mode, hint)
    return Check("lockdown", OK, mode)


def check_tracefs() -> Check:
    """Tell how the formats of trace events can be read."""
    path = tracefs()
    if path.startswith("/proc/"):
        return Check("tracefs", OK, "not mounted; netbpf mounts it for itself: nothing to do")
    if path:
        return Check("tracefs", OK, f"mounted at {path}")
    if "tracefs" not in Path("/proc/filesystems").read_text():
        hint = "tracepoints need a kernel with CONFIG_TRACING; raw tracepoints work without"
        return Check("tracefs", ABSENT, "not in this kernel", hint)
    if missing_privileges():
        return Check("tracefs", ABSENT, ROOT_TELLS)
    lacking = missing_tracefs_privilege()
    if lacking == TRACEFS:
        return Check("tracefs", ABSENT, f"not for this user: it takes {TRACEFS.words}")
    hint = "mount -t tracefs none /sys/kernel/tracing"
    return Check("tracefs", ABSENT, "not mounted, and cannot be mounted by this process", hint)


def check_cgroups() -> Check:
    """Tell where the version 2 hierarchy is mounted: --cgroup and --container go by it."""
    root = cgroup_root()
    if root:
        return Check("cgroup2", OK, f"mounted at {root}")
    hint = "for --cgroup and --container: mount -t cgroup2 none /sys/fs/cgroup"
    return Check("cgroup2", ABSENT, "not mounted: no --cgroup, no --container", hint)


def check_jit(path: Path = _JIT) -> Check:
    """Tell whether BPF programs run as machine code."""
    try:
        on = path.read_text().strip() != "0"
    except PermissionError:
        return Check("jit", ABSENT, ROOT_TELLS)
    except OSError:
        return Check("jit", ABSENT, "not in this kernel: programs are interpreted, and cost more")
    if on:
        return Check("jit", OK, "on")
    hint = "to make probes cheaper: sysctl net.core.bpf_jit_enable=1"
    return Check("jit", ABSENT, "off: programs are interpreted, and cost more", hint)


def check_statistics() -> Check:
    """Tell whether the kernel can count what programs cost (BPF_ENABLE_STATS, since 5.8)."""
    try:
        os.close(enable_statistics())
    except OSError as error:
        why = f"not to be had ({error.strerror}): overhead is not measured, no --max-overhead"
        return Check("statistics", ABSENT, why)
    return Check("statistics", OK, "the kernel counts what programs cost")


def check_memlock(kernel: Kernel) -> Check:
    """Tell whether a limit on locked memory applies to BPF maps.

    Kernels up to 5.10 counted them in struct bpf_map_memory; since 80ee81e0403c ("bpf: Eliminate
    rlimit-based memory accounting infra for bpf maps", 5.11) the memory cgroup does.
    """
    if kernel.size("bpf_map_memory") is None:
        return Check("memlock", OK, "RLIMIT_MEMLOCK does not limit BPF memory here")
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    if limit == resource.RLIM_INFINITY or "CAP_SYS_RESOURCE" in held_capabilities():
        return Check("memlock", OK, "RLIMIT_MEMLOCK is unlimited, or can be raised")
    words = f"RLIMIT_MEMLOCK limits BPF memory on this kernel, to {limit >> 10} KB"
    return Check("memlock", ABSENT, words, "ulimit -l unlimited")


def kernel_checks(kernel: Kernel, lacking: Sequence[str] = ()) -> list[Check]:
    """Return what this kernel has of the ways in; without privileges (`lacking`) not all show."""
    ringbuf = kernel.size("bpf_ringbuf") is not None
    hint = "netbpf needs a kernel with the BPF ring buffer: 5.10 or newer"
    fentry = kernel.dynamic("fentry")
    return [
        Check("ring buffer", OK, "there") if ringbuf else Check("ring buffer", BAD, "no", hint),
        _way("kprobes", kernel.dynamic("kprobe"), "not in this kernel"),
        _way("uprobes", kernel.dynamic("uprobe"), "not in this kernel"),
        _way("fentry", fentry, ROOT_TELLS if lacking else "refused by this kernel"),
        _way("iterators", kernel.iterator("task_file"), "not in this kernel"),
        check_memlock(kernel),
    ]


def _way(name: str, there: bool, otherwise: str) -> Check:
    return Check(name, OK, "there") if there else Check(name, ABSENT, otherwise)


def check_btf(path: str, error: Optional[NetbpfError]) -> Check:
    """Tell which types were read, or why none."""
    if error:
        return Check("BTF", BAD, error.message, error.hint)
    where = path or VMLINUX
    return Check("BTF", OK, f"{where}, {os.path.getsize(where) / 2**20:.1f} MB")
