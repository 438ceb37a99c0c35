"""What this process may do, from its effective capabilities."""

from __future__ import annotations

import os
from pathlib import Path

# include/uapi/linux/capability.h
_OF_INTEREST = {
    "CAP_SYS_ADMIN": 21,
    "CAP_BPF": 39,
    "CAP_PERFMON": 38,
    "CAP_SYS_PTRACE": 19,
    "CAP_SYS_RESOURCE": 24,
}


_OWN = "/proc/self/status"
_FIRST_NAMESPACE = 0xEFFFFFFD  # PROC_USER_INIT_INO of include/linux/proc_ns.h


def in_first_user_namespace() -> bool:
    """Return whether the capabilities of this process are good for the whole machine."""
    try:
        return os.stat("/proc/self/ns/user").st_ino == _FIRST_NAMESPACE
    except OSError:
        return True  # a kernel without user namespaces


def missing_privileges(status: str = _OWN) -> list[str]:
    """Return the capabilities that tracing needs and this process lacks.

    CAP_BPF loads programs, CAP_PERFMON attaches them and reads kernel memory (both since 5.8);
    CAP_SYS_ADMIN covers both. In a user namespace other than the first they are worth nothing.
    """
    held = held_capabilities(status) if status != _OWN or in_first_user_namespace() else []
    if "CAP_SYS_ADMIN" in held:
        return []
    return [name for name in ("CAP_BPF", "CAP_PERFMON") if name not in held]


def held_capabilities(status: str = "/proc/self/status") -> list[str]:
    """Return those capabilities of this process that make a difference to netbpf.

    CAP_SYS_PTRACE opens files through /proc/PID/root of others, CAP_SYS_RESOURCE raises limits.
    """
    lines = Path(status).read_text().splitlines()
    effective = next((int(x.split()[1], 16) for x in lines if x.startswith("CapEff:")), 0)
    return [name for name, bit in _OF_INTEREST.items() if effective >> bit & 1]
