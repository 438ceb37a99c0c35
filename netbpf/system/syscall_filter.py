"""Allow only the system calls that the loop of a running tool makes.

By libseccomp's own Python binding (Debian's python3-seccomp, Fedora's python3-libseccomp), if it is
there. What is not allowed fails with EPERM, and does not end the process: an incident is no time to
find out that a newer C library makes another call.
"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, NamedTuple

# Reading, waiting, writing to what is open, memory, signals, and what looks at this process.
_ALWAYS = """
    access brk clock_getres clock_gettime clock_nanosleep close close_range dup dup2 dup3
    epoll_create1 epoll_ctl epoll_pwait epoll_pwait2 epoll_wait eventfd2 exit exit_group faccessat
    faccessat2 fcntl fdatasync fork fstat fstatfs fsync futex futex_time64 futex_wait futex_wake
    getcwd getdents64 getegid geteuid getgid getitimer getpgid getpgrp getpid getppid getrandom
    getresgid getresuid getrusage get_robust_list getsid gettid gettimeofday getuid lseek lstat
    madvise membarrier mmap mprotect mremap munmap nanosleep newfstatat pause pipe pipe2 poll ppoll
    pread64 preadv preadv2 pselect6 read readlink readlinkat readv recvfrom restart_syscall rseq
    rt_sigaction rt_sigpending rt_sigprocmask rt_sigreturn rt_sigsuspend rt_sigtimedwait
    sched_getaffinity sched_getparam sched_getscheduler sched_setscheduler sched_yield select
    sendfile set_robust_list set_tid_address setitimer sigaltstack sigreturn stat statfs statx
    sysinfo time timerfd_create timerfd_gettime timerfd_settime times uname vfork wait4 waitid
    write writev capget capset
""".split()
_ONLY_OLD_FILES = os.O_ACCMODE | os.O_CREAT | os.O_TRUNC
_NEW_FILE = os.O_CREAT | os.O_EXCL
# CLONE_NEWNS, CGROUP, UTS, IPC, USER, PID, NET and TIME of include/uapi/linux/sched.h.
_NEW_NAMESPACES = 0x7E020080
# ioctl: TCGETS, TIOCGWINSZ, FIONBIO, FIONREAD; FIONCLEX and FIOCLEX, by which Python 3.9 opens.
_FILE = (0x5401, 0x5413, 0x5421, 0x541B, 0x5450, 0x5451)
_PERF = (0x2400, 0x2401, 0x40042408)  # PERF_EVENT_IOC_ENABLE, _DISABLE, _SET_BPF
_PRCTL = (1, 3, 15, 16, 38, 0x53564D41)  # death signal, names, no new privileges; not what gives
# Commands of bpf(2): map elements one by one and in batches, what an object is, iterators.
_MAPS = (1, 2, 3, 4, 15, 21, 24, 25, 26, 27, 33)
_PROGRAMS = (5, 17, 28)  # BPF_PROG_LOAD, _RAW_TRACEPOINT_OPEN, _LINK_CREATE

Rule = tuple[str, tuple[Any, ...]]


class Allowed(NamedTuple):
    """What a tool does while it runs that others do not.

    `probes`: attaches to programs that begin to run, and hands the descriptors on; `apart`: gets
    them from a process that it ends; `namespaces`: enters network namespaces; `sign`: creates and
    removes --ready-file.
    """

    probes: bool = False
    apart: bool = False
    namespaces: bool = False
    sign: bool = False


def available() -> bool:
    """Return whether the binding is installed for this Python, and is what it should be."""
    try:
        import seccomp

        return bool(seccomp.SyscallFilter and seccomp.Attr.CTL_TSYNC and seccomp.Attr.CTL_SSB)
    except (ImportError, AttributeError):
        return False


def prepared(allowed: Allowed) -> Callable[[], None]:
    """Return what puts the filter in force, for this process and all that it starts.

    No new privileges must be set before. Calling it can raise OSError, as on a kernel that has no
    filters.
    """
    import seccomp

    chosen = seccomp.SyscallFilter(defaction=seccomp.ERRNO(errno.EPERM))
    chosen.set_attr(seccomp.Attr.ACT_BADARCH, seccomp.ERRNO(errno.EPERM))
    chosen.set_attr(seccomp.Attr.CTL_TSYNC, 1)  # in all threads
    # Kernels before 5.16 slow down every process that has a filter, against attacks on itself.
    chosen.set_attr(seccomp.Attr.CTL_SSB, 1)
    for name, arguments in _rules(seccomp, allowed):
        _add(chosen, seccomp.ALLOW, name, arguments)
    # What cannot be looked into, in memory, is unknown: the C library then makes the older call.
    absent = seccomp.ERRNO(errno.ENOSYS)
    for name in ("clone3", *([] if allowed.probes else ["openat2"])):
        _add(chosen, absent, name, ())
    return lambda: _loaded(chosen)


def no_more_files() -> None:
    """Put a filter in force, on top of the first one, that allows no new file."""
    import seccomp

    chosen = seccomp.SyscallFilter(defaction=seccomp.ALLOW)
    for name, at in (("open", 1), ("openat", 2)):
        created = seccomp.Arg(at, seccomp.MASKED_EQ, os.O_CREAT, os.O_CREAT)
        _add(chosen, seccomp.ERRNO(errno.EPERM), name, (created,))
    _loaded(chosen)


def _add(chosen: Any, action: Any, name: str, arguments: Iterable[Any]) -> None:
    # An older libseccomp does not have every name, and not every machine has every call.
    with suppress(ValueError, RuntimeError, OSError):
        chosen.add_rule(action, name, *arguments)


def _loaded(chosen: Any) -> None:
    try:
        chosen.load()
    except RuntimeError as error:
        raise OSError(errno.EINVAL, str(error)) from error


def _rules(seccomp: Any, allowed: Allowed) -> Iterable[Rule]:
    def one_of(name: str, at: int, values: Iterable[int]) -> Iterable[Rule]:
        return ((name, (seccomp.Arg(at, seccomp.EQ, value),)) for value in values)

    def has_bits(name: str, at: int, mask: int, value: int) -> Rule:
        return name, (seccomp.Arg(at, seccomp.MASKED_EQ, mask, value),)

    yield from ((name, ()) for name in _ALWAYS)
    yield from (
        has_bits(*call, _ONLY_OLD_FILES, os.O_RDONLY) for call in (("open", 1), ("openat", 2))
    )
    yield has_bits("clone", 0, _NEW_NAMESPACES, 0)
    yield from one_of("sendto", 4, (0,))  # to the end that a socket is connected to
    yield from one_of("prlimit64", 2, (0,))  # limits are looked at and not set
    yield from one_of("tgkill", 0, (os.getpid(),))
    yield from one_of("prctl", 0, _PRCTL)
    yield from one_of("ioctl", 1, (*_FILE, *(_PERF if allowed.probes else ())))
    yield from one_of("bpf", 0, (*_MAPS, *(_PROGRAMS if allowed.probes else ())))
    if allowed.probes:
        yield from ((name, ()) for name in ("perf_event_open", "openat2", "sendmsg"))
        yield from one_of("kill", 1, (signal.SIGKILL,))  # what takes too long, see system/worker.py
    if allowed.apart:
        yield from ((name, ()) for name in ("recvmsg", "kill"))
    if allowed.namespaces:
        yield "setns", ()
        yield from one_of("socket", 0, (16,))  # AF_NETLINK
        yield from ((name, ()) for name in ("bind", "getsockname", "setsockopt"))
    if allowed.sign:
        new = os.O_ACCMODE | os.O_TRUNC | _NEW_FILE
        yield has_bits("open", 1, new, os.O_WRONLY | _NEW_FILE)
        yield has_bits("openat", 2, new, os.O_WRONLY | _NEW_FILE)
        yield from ((name, ()) for name in ("unlink", "unlinkat", "seccomp"))
