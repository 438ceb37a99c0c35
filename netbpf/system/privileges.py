"""What this process may do, and giving it up.

Capabilities belong to threads: what is given up here is given up by the calling thread, and by
those that it starts afterwards.
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
# Those that make a difference to netbpf: see netbpf.declare.needs.
_OF_INTEREST = (
    "CAP_SYS_ADMIN", "CAP_BPF", "CAP_PERFMON", "CAP_SYS_PTRACE", "CAP_DAC_READ_SEARCH",
    "CAP_DAC_OVERRIDE", "CAP_CHECKPOINT_RESTORE", "CAP_SYSLOG", "CAP_SYS_NICE", "CAP_SYS_RESOURCE",
)  # fmt: skip
_OWN = "/proc/self/status"
_FIRST_NAMESPACE = 0xEFFFFFFD  # PROC_USER_INIT_INO of include/linux/proc_ns.h
# include/uapi/linux/prctl.h
_BOUNDING_DROP, _NO_NEW_PRIVILEGES, _AMBIENT, _AMBIENT_CLEAR = 24, 38, 47, 4


class Denied(str):
    """A reason in words that is a lack of privileges, and not of the kernel."""


def in_first_user_namespace() -> bool:
    """Return whether the capabilities of this process are good for the whole machine."""
    try:
        return os.stat("/proc/self/ns/user").st_ino == _FIRST_NAMESPACE
    except OSError:
        return True  # a kernel without user namespaces


def missing_privileges(status: str = _OWN) -> list[str]:
    """Return the capabilities that every tool needs and this process lacks.

    CAP_BPF loads programs, CAP_PERFMON attaches them and reads kernel memory (both since 5.8);
    CAP_SYS_ADMIN covers both. In a user namespace other than the first they are worth nothing.
    """
    return [need.name for need in (PROGRAMS, ATTACH) if lacks(need, status)]


def lacks(need: Need, status: str = _OWN) -> bool:
    """Return whether this process has none of the capabilities that the need asks for."""
    if status == _OWN and not in_first_user_namespace():
        return True
    return not set(need.any_of) & set(held_capabilities(status))


def held_capabilities(status: str = _OWN) -> list[str]:
    """Return the effective capabilities of this process that make a difference to netbpf."""
    held = capabilities(status)
    return [name for name in _OF_INTEREST if name in held]


def capabilities(status: str = _OWN, line: str = "CapEff") -> list[str]:
    """Return the names in one line of a status file of /proc: CapEff, CapPrm, CapBnd ..."""
    lines = Path(status).read_text().splitlines()
    mask = next((int(x.split()[1], 16) for x in lines if x.startswith(f"{line}:")), 0)
    return [name for bit, name in enumerate(CAPABILITIES) if mask >> bit & 1]


def lack(
    needs: Collection[Need], command: str = "", every: Collection[Need] = ()
) -> PrivilegeError:
    """Return the error that names what is missing, what for, and how to give it.

    `every` is what the command needs, missing or not.
    """
    command = f"netbpf {command}".strip()
    names = ",".join(f"+{need.name[len('CAP_') :].lower()}" for need in every or needs)
    words = f"tracing needs {', '.join(need.words for need in needs)}"
    hint = f"run it as root: sudo {command}; or give it these capabilities, as by "
    hint += f"setpriv --inh-caps {names} --ambient-caps {names}"
    if not in_first_user_namespace():
        hint = "those of a user namespace do not count: run it as root of the machine"
    return PrivilegeError(words, hint)


def refusal(
    words: str, error: OSError, codes: Collection[int] = (errno.EPERM, errno.EACCES)
) -> str:
    """Return words for what the kernel refused: Denied if a privilege could have changed that."""
    text = f"{words} ({error.strerror})"
    if error.errno in codes and "CAP_SYS_ADMIN" not in capabilities():
        return Denied(f"{text}: it takes CAP_SYS_ADMIN")
    return text


def memory_is_limited() -> bool:
    """Return whether RLIMIT_MEMLOCK can be why the kernel makes no map: it counts before 5.11."""
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    return limit != resource.RLIM_INFINITY and lacks(MEMORY)


def all_threads() -> set[str]:
    """Return the capabilities that any thread of this process may use."""
    found: set[str] = set()
    for task in os.listdir("/proc/self/task"):
        with suppress(FileNotFoundError):
            found.update(capabilities(f"/proc/self/task/{task}/status", "CapPrm"))
    return found


def give_up(kept: Collection[str]) -> None:
    """Give up all capabilities but `kept`, for good, also for programs that are started.

    Without CAP_SETPCAP the bounding set stays, and cannot be made use of.
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
def using(names: Collection[str]) -> Iterator[None]:
    """Use no capabilities but `names` for a while."""
    effective, permitted = (_mask(capabilities(line=line)) for line in ("CapEff", "CapPrm"))
    inheritable = _mask(capabilities(line="CapInh"))
    capset(_mask(names) & effective, permitted, inheritable)
    try:
        yield
    finally:
        capset(effective, permitted, inheritable)


def no_new_privileges() -> bool:
    """Return whether no program that is run from here can gain privileges."""
    return "NoNewPrivs:\t1" in Path(_OWN).read_text()


def _mask(names: Collection[str]) -> int:
    return sum(1 << bit for bit, name in enumerate(CAPABILITIES) if name in names)


def _last_capability() -> int:
    with suppress(OSError, ValueError):
        return int(Path("/proc/sys/kernel/cap_last_cap").read_text())
    return len(CAPABILITIES) - 1
