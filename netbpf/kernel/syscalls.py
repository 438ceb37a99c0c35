"""The system calls that Python does not wrap: bpf(2), perf_event_open(2) and detached mounts.

Numbers are those of x86_64 and of the generic table (arm64, riscv64).
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from functools import cache

_X86 = platform.machine() == "x86_64"
SYS_BPF = 321 if _X86 else 280
SYS_PERF_EVENT_OPEN = 298 if _X86 else 241
SYS_FSOPEN, SYS_FSCONFIG, SYS_FSMOUNT = 430, 431, 432  # the same everywhere, since Linux 5.2

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def syscall(number: int, *arguments: object) -> int:
    """Make a system call; an error becomes OSError."""
    result = int(_libc.syscall(ctypes.c_long(number), *arguments))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def advise(address: int, length: int) -> None:
    """Let go of the pages of a mapping that only reads a file (MADV_DONTNEED); never fails."""
    _libc.madvise(ctypes.c_void_p(address), ctypes.c_size_t(length), 4)


def enter_network(namespace: int) -> None:
    """Move the calling thread, and no other, into the network namespace behind a descriptor."""
    if _libc.setns(ctypes.c_int(namespace), 0x40000000):  # CLONE_NEWNET
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def bpf(command: int, attributes: bytes) -> int:
    """Make a bpf(2) call; `attributes` is the packed union bpf_attr."""
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    return syscall(SYS_BPF, command, buffer, len(attributes))


@cache
def accepts_fentry(function: int) -> bool:
    """Tell whether this kernel loads an fentry program for the function with this BTF id.

    Some builds have the types but not the trampolines, or a policy against them: only trying
    tells. The program (return 0) is attached to nothing and gone at once.
    """
    code = struct.pack("=BBhiBBhi", 0xB7, 0, 0, 0, 0x95, 0, 0, 0)
    instructions = ctypes.create_string_buffer(code, len(code))
    license_text = ctypes.create_string_buffer(b"GPL")
    # union bpf_attr of BPF_PROG_LOAD (5) up to attach_btf_id: BPF_PROG_TYPE_TRACING (26) with
    # expected_attach_type BPF_TRACE_FENTRY (24).
    attributes = struct.pack(
        "=IIQQIIQII16sIIIIQIIQII", 26, 2, ctypes.addressof(instructions),
        ctypes.addressof(license_text), 0, 0, 0, 0, 0, b"", 0, 24, 0, 0, 0, 0, 0, 0, 0, function,
    )  # fmt: skip
    try:
        os.close(bpf(5, attributes + bytes(20)))
    except OSError:
        return False
    return True


def detached_mount(fstype: str) -> str:
    """Mount a new `fstype` that is attached nowhere, and return a path into it.

    Only this process can reach it, and it is gone when the process is, even after SIGKILL: no
    directory, no mount point, nothing to clean up. Needs CAP_SYS_ADMIN, else OSError.
    """
    context = syscall(SYS_FSOPEN, fstype.encode(), 1)  # FSOPEN_CLOEXEC
    try:
        syscall(SYS_FSCONFIG, context, 6, None, None, 0)  # FSCONFIG_CMD_CREATE
        return f"/proc/self/fd/{syscall(SYS_FSMOUNT, context, 1, 0)}"  # FSMOUNT_CLOEXEC
    finally:
        os.close(context)
