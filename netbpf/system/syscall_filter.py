"""A seccomp filter that allows only the system calls of a running tool's loop.

It uses libseccomp's Python binding if that is installed (python3-seccomp on Debian,
python3-libseccomp on Fedora). Other calls fail with EPERM instead of killing the process, so that
a new call by a newer C library does not end a tool during an incident.
"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, NamedTuple

# Read, wait, write to open files, memory, signals, and queries about this process.
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
# ioctl: TCGETS, TIOCGWINSZ, FIONBIO, FIONREAD; FIONCLEX and FIOCLEX, which Python 3.9's open uses.
_FILE = (0x5401, 0x5413, 0x5421, 0x541B, 0x5450, 0x5451)
_PERF = (0x2400, 0x2401, 0x40042408)  # PERF_EVENT_IOC_ENABLE, _DISABLE, _SET_BPF
# PR_SET_PDEATHSIG, _GET_DUMPABLE, _SET_NAME, _GET_NAME, _SET_NO_NEW_PRIVS and _SET_VMA.
_PRCTL = (1, 3, 15, 16, 38, 0x53564D41)
# Commands of bpf(2): map elements one by one and in batches, object info, iterators.
_MAPS = (1, 2, 3, 4, 15, 21, 24, 25, 26, 27, 33)
_PROGRAMS = (5, 17, 28)  # BPF_PROG_LOAD, _RAW_TRACEPOINT_OPEN, _LINK_CREATE

Rule = tuple[str, tuple[Any, ...]]


class Allowed(NamedTuple):
    """Optional permissions, for what only some processes do after the start.

    `probes`: attach uprobes to new programs and send their descriptors; `worker`: receive them from
    a worker process and kill it; `namespaces`: enter network namespaces; `statistics`: measure BPF
    programs; `ready_file`: create and remove --ready-file; `files`: open files below the root
    directory of any process.
    """

    probes: bool = False
    worker: bool = False
    namespaces: bool = False
    statistics: bool = False
    ready_file: bool = False
    files: bool = False


def available() -> bool:
    """Return whether libseccomp's binding is installed for this Python and has what is used."""
    try:
        import seccomp

        return bool(seccomp.SyscallFilter and seccomp.Attr.CTL_TSYNC and seccomp.Attr.CTL_SSB)
    except (ImportError, AttributeError):
        return False


def prepare(allowed: Allowed) -> Callable[[], None]:
    """Return a function that installs the filter for this process and its children.

    no_new_privs must be set first. The function raises OSError, for example on a kernel without
    seccomp filters.
    """
    import seccomp

    rules = seccomp.SyscallFilter(defaction=seccomp.ERRNO(errno.EPERM))
    rules.set_attr(seccomp.Attr.ACT_BADARCH, seccomp.ERRNO(errno.EPERM))
    rules.set_attr(seccomp.Attr.CTL_TSYNC, 1)  # in all threads
    # Before 5.16 the kernel slows down processes with a filter (speculative store bypass).
    rules.set_attr(seccomp.Attr.CTL_SSB, 1)
    for name, arguments in _rules(seccomp, allowed):
        _add(rules, seccomp.ALLOW, name, arguments)
    # A filter cannot check arguments in memory. With ENOSYS the C library makes the older call.
    absent = seccomp.ERRNO(errno.ENOSYS)
    for name in ("clone3", *([] if allowed.probes or allowed.files else ["openat2"])):
        _add(rules, absent, name, ())
    return lambda: _install(rules)


def deny_new_files() -> None:
    """Install a second filter on top of the first: opening a file must not create it."""
    import seccomp

    rules = seccomp.SyscallFilter(defaction=seccomp.ALLOW)
    for name, at in (("open", 1), ("openat", 2)):
        created = seccomp.Arg(at, seccomp.MASKED_EQ, os.O_CREAT, os.O_CREAT)
        _add(rules, seccomp.ERRNO(errno.EPERM), name, (created,))
    _install(rules)


def _add(rules: Any, action: Any, name: str, arguments: Iterable[Any]) -> None:
    # Older versions of libseccomp miss some names, and some architectures some calls.
    with suppress(ValueError, RuntimeError, OSError):
        rules.add_rule(action, name, *arguments)


def _install(rules: Any) -> None:
    try:
        rules.load()
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
    yield from one_of("sendto", 4, (0,))  # only to the connected peer
    yield from one_of("prlimit64", 2, (0,))  # read limits, but do not set them
    yield from one_of("tgkill", 0, (os.getpid(),))
    yield from one_of("prctl", 0, _PRCTL)
    yield from one_of("ioctl", 1, (*_FILE, *(_PERF if allowed.probes else ())))
    yield from one_of("bpf", 0, (*_MAPS, *(_PROGRAMS if allowed.probes else ())))
    if allowed.statistics:
        yield from one_of("bpf", 0, (32,))  # BPF_ENABLE_STATS
    if allowed.probes:
        yield "perf_event_open", ()
    if allowed.probes or allowed.files:
        yield from ((name, ()) for name in ("openat2", "sendmsg"))
        yield from one_of("kill", 1, (signal.SIGKILL,))  # a hanging worker, see system/worker.py
    if allowed.worker:
        yield from ((name, ()) for name in ("recvmsg", "kill"))
    if allowed.namespaces:
        yield "setns", ()
        yield from one_of("socket", 0, (16,))  # AF_NETLINK
        yield from ((name, ()) for name in ("bind", "getsockname", "setsockopt"))
    if allowed.ready_file:
        new = os.O_ACCMODE | os.O_TRUNC | _NEW_FILE
        yield has_bits("open", 1, new, os.O_WRONLY | _NEW_FILE)
        yield has_bits("openat", 2, new, os.O_WRONLY | _NEW_FILE)
        yield from ((name, ()) for name in ("unlink", "unlinkat", "seccomp"))
