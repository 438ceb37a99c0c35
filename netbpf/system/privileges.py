"""Query and drop the capabilities of this process.

Capabilities are per thread: functions here change those of the calling thread and of the threads
that it starts later.
"""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from netbpf.declare.needs import ATTACH, MEMORY, PROGRAMS, Need
from netbpf.errors import PrivilegeError
from netbpf.system.syscalls import capset, prctl

# include/uapi/linux/capability.h, in the order of their numbers.
CAPABILITIES = tuple(
    f"CAP_{name}"
    for name in (
        "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID",
        "SETPCAP", "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW",
        "IPC_LOCK", "IPC_OWNER", "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT",
        "SYS_ADMIN", "SYS_BOOT", "SYS_NICE", "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD",
        "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP", "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG",
        "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF", "CHECKPOINT_RESTORE",
    )
)  # fmt: skip
# The ones that netbpf uses: see netbpf.declare.needs.
_RELEVANT = (
    "CAP_SYS_ADMIN", "CAP_BPF", "CAP_PERFMON", "CAP_SYS_PTRACE", "CAP_DAC_READ_SEARCH",
    "CAP_DAC_OVERRIDE", "CAP_CHECKPOINT_RESTORE", "CAP_SYSLOG", "CAP_SYS_NICE", "CAP_SYS_RESOURCE",
)  # fmt: skip
_OWN = "/proc/self/status"
_FIRST_NAMESPACE = 0xEFFFFFFD  # PROC_USER_INIT_INO of include/linux/proc_ns.h
# include/uapi/linux/prctl.h
_BOUNDING_DROP, _NO_NEW_PRIVILEGES, _AMBIENT, _AMBIENT_CLEAR = 24, 38, 47, 4


class Denied(str):
    """A reason (text) that a missing privilege explains, not a missing kernel feature.

    `requires` is that privilege, "CAP_X" or "CAP_X to do this".
    """

    requires: str

    def __new__(cls, what: str, requires: str) -> Denied:
        """Return "`what`: needs `requires`", or only the latter if `what` is empty."""
        reason = super().__new__(cls, f"{what}: needs {requires}" if what else f"needs {requires}")
        reason.requires = requires
        return reason


def in_first_user_namespace() -> bool:
    """Return whether this process is in the initial user namespace."""
    try:
        return os.stat("/proc/self/ns/user").st_ino == _FIRST_NAMESPACE
    except OSError:
        return True  # a kernel without user namespaces


def missing_privileges(status: str = _OWN) -> list[str]:
    """Return the missing capabilities among those that every tool needs.

    CAP_BPF loads programs, CAP_PERFMON attaches them and reads kernel memory (both since 5.8);
    CAP_SYS_ADMIN implies both. They have no effect outside the initial user namespace.
    """
    return [need.name for need in (PROGRAMS, ATTACH) if lacks(need, status)]


def lacks(need: Need, status: str = _OWN) -> bool:
    """Return whether this process has none of the capabilities that satisfy `need`."""
    if status == _OWN and not in_first_user_namespace():
        return True
    return not set(need.any_of) & set(held_capabilities(status))


def held_capabilities(status: str = _OWN) -> list[str]:
    """Return the effective capabilities of this process that netbpf uses."""
    held = capabilities(status)
    return [name for name in _RELEVANT if name in held]


def capabilities(status: str = _OWN, line: str = "CapEff") -> list[str]:
    """Return the capabilities in one line (CapEff, CapPrm, CapBnd ...) of /proc/PID/status."""
    lines = Path(status).read_text().splitlines()
    mask = next((int(x.split()[1], 16) for x in lines if x.startswith(f"{line}:")), 0)
    return [name for bit, name in enumerate(CAPABILITIES) if mask >> bit & 1]


def privilege_error(
    needs: Collection[Need], command: str = "", every: Collection[Need] = ()
) -> PrivilegeError:
    """Return an error that names the missing capabilities, their purpose and how to grant them.

    `every` are all needs of the command, missing or not.
    """
    command = f"netbpf {command}".strip()
    names = ",".join(f"+{need.name[len('CAP_') :].lower()}" for need in every or needs)
    text = f"tracing needs {', '.join(need.words for need in needs)}"
    hint = f"run it as root: sudo {command}; or grant these capabilities, for example with "
    hint += f"setpriv --inh-caps {names} --ambient-caps {names}"
    if not in_first_user_namespace():
        hint = "capabilities in a user namespace have no effect: run it as root of the host"
    return PrivilegeError(text, hint)


def refusal_reason(
    what: str, error: OSError, codes: Collection[int] = (errno.EPERM, errno.EACCES)
) -> str:
    """Return `what` with the error as text; Denied if CAP_SYS_ADMIN is missing and may help."""
    text = f"{what} ({error.strerror})"
    if error.errno in codes and "CAP_SYS_ADMIN" not in capabilities():
        return Denied(text, "CAP_SYS_ADMIN")
    return text


def memory_is_limited() -> bool:
    """Return whether RLIMIT_MEMLOCK can make map creation fail, as it does before 5.11."""
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    return limit != resource.RLIM_INFINITY and lacks(MEMORY)


def capabilities_of_all_threads() -> set[str]:
    """Return the union of the permitted capabilities of this process's threads."""
    names: set[str] = set()
    for task in os.listdir("/proc/self/task"):
        with suppress(FileNotFoundError):
            names.update(capabilities(f"/proc/self/task/{task}/status", "CapPrm"))
    return names


def drop_capabilities(kept: Collection[str]) -> None:
    """Drop all capabilities but `kept` permanently, also for programs that are started.

    Without CAP_SETPCAP the bounding set stays, but no_new_privs makes it useless.
    """
    last = _last_capability()
    if "CAP_SETPCAP" in capabilities():
        for number in range(last + 1):
            name = CAPABILITIES[number] if number < len(CAPABILITIES) else ""
            if name not in kept:
                prctl(_BOUNDING_DROP, number)
    prctl(_AMBIENT, _AMBIENT_CLEAR)
    prctl(_NO_NEW_PRIVILEGES, 1)
    mask = _mask(kept) & _mask(capabilities(line="CapPrm"))
    capset(mask, mask)


@contextmanager
def limited_to(names: Collection[str]) -> Iterator[None]:
    """Reduce the effective capabilities to `names` within the block."""
    effective, permitted = (_mask(capabilities(line=line)) for line in ("CapEff", "CapPrm"))
    inheritable = _mask(capabilities(line="CapInh"))
    capset(_mask(names) & effective, permitted, inheritable)
    try:
        yield
    finally:
        capset(effective, permitted, inheritable)


def no_new_privileges() -> bool:
    """Return whether no_new_privs is set: programs run from here cannot gain privileges."""
    return "NoNewPrivs:\t1" in Path(_OWN).read_text()


def _mask(names: Collection[str]) -> int:
    return sum(1 << bit for bit, name in enumerate(CAPABILITIES) if name in names)


def _last_capability() -> int:
    with suppress(OSError, ValueError):
        return int(Path("/proc/sys/kernel/cap_last_cap").read_text())
    return len(CAPABILITIES) - 1
