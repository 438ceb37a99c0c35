"""System calls that Python does not wrap: bpf(2), perf_event_open(2), detached mounts and others.

Call numbers are for x86_64 and for the generic table (arm64, riscv64). Functions raise OSError.
"""

from __future__ import annotations

import ctypes
import os
import struct
import time
from functools import cache

_X86 = os.uname().machine == "x86_64"
SYS_BPF = 321 if _X86 else 280
SYS_PERF_EVENT_OPEN = 298 if _X86 else 241
SYS_FSOPEN, SYS_FSCONFIG, SYS_FSMOUNT = 430, 431, 432  # the same everywhere, since Linux 5.2
SYS_OPENAT2 = 437  # the same everywhere, since Linux 5.6
_NO_MAGIC_LINKS, _IN_ROOT = 0x02, 0x10  # RESOLVE_... of include/uapi/linux/openat2.h

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def syscall(number: int, *arguments: object) -> int:
    """Make a system call; raises OSError."""
    result = int(_libc.syscall(ctypes.c_long(number), *arguments))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def advise(address: int, length: int) -> None:
    """Unmap the pages of a read-only file mapping (MADV_DONTNEED); never fails."""
    _libc.madvise(ctypes.c_void_p(address), ctypes.c_size_t(length), 4)


def enter_network(namespace: int) -> None:
    """Move the calling thread (only) into the network namespace behind a descriptor."""
    if _libc.setns(ctypes.c_int(namespace), 0x40000000):  # CLONE_NEWNET
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def prctl(operation: int, *arguments: int) -> int:
    """Make a prctl(2) call; raises OSError."""
    padded = [*arguments, 0, 0, 0, 0][:4]
    result = int(_libc.prctl(ctypes.c_int(operation), *map(ctypes.c_ulong, padded)))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def capset(effective: int, permitted: int, inheritable: int = 0) -> None:
    """Set the capabilities of the calling thread, as bit masks; raises OSError."""
    header = ctypes.create_string_buffer(struct.pack("=Ii", 0x20080522, 0), 8)  # version 3
    masks = [mask >> shift & 0xFFFFFFFF for shift in (0, 32) for mask in
             (effective, permitted, inheritable)]  # fmt: skip
    data = ctypes.create_string_buffer(struct.pack("=6I", *masks), 24)
    if _libc.capset(header, data):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def open_inside(root: int, path: str, flags: int) -> int:
    """Open `path` with `root` (a descriptor) as the root directory; raises OSError.

    "..", absolute symbolic links and /proc's links to open files do not lead out of it.
    """
    how = struct.pack("=QQQ", flags, 0, _IN_ROOT | _NO_MAGIC_LINKS)  # struct open_how
    buffer = ctypes.create_string_buffer(how, len(how))
    return syscall(SYS_OPENAT2, root, os.fsencode(path), buffer, len(how))


def open_by_inode(mount: int, inode: int) -> int:
    """Return an O_PATH descriptor of a cgroupfs directory by its inode number; raises OSError.

    `mount` is a descriptor of any file on that file system. Needs CAP_DAC_READ_SEARCH.
    """
    # struct file_handle: size, FILEID_KERNFS (since 33c5ac9175195, 5.5), inode number.
    handle = ctypes.create_string_buffer(struct.pack("=IiQ", 8, 0xFE, inode), 16)
    number = 304 if _X86 else 265
    return syscall(number, mount, handle, os.O_PATH | os.O_CLOEXEC)


def filesystem_type(descriptor: int) -> int:
    """Return the magic number of the file system that holds the file, from statfs(2)."""
    status = ctypes.create_string_buffer(256)  # struct statfs begins with it, a long
    if _libc.fstatfs(ctypes.c_int(descriptor), status):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return int(struct.unpack_from("@l", status)[0]) & 0xFFFFFFFF


def end_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent (process `parent`) ends."""
    _libc.prctl(ctypes.c_int(1), ctypes.c_ulong(9), 0, 0, 0)  # PR_SET_PDEATHSIG, SIGKILL
    if os.getppid() != parent:
        os._exit(0)  # the parent had ended before


def timer_until_set() -> int:
    """Return a timerfd: read(2) fails with ECANCELED once CLOCK_REALTIME has been set."""
    timer = int(_libc.timerfd_create(time.CLOCK_REALTIME, os.O_NONBLOCK | os.O_CLOEXEC))
    # struct itimerspec: no repetition; expires at the last second that every kernel accepts.
    until = ctypes.create_string_buffer(struct.pack("@4l", 0, 0, 2**31 - 1, 0))
    # TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET
    if timer < 0 or _libc.timerfd_settime(timer, 3, until, None):
        code = ctypes.get_errno()
        if timer >= 0:
            os.close(timer)
        raise OSError(code, os.strerror(code))
    return timer


def bpf(command: int, attributes: bytes) -> int:
    """Make a bpf(2) call; `attributes` is the packed union bpf_attr."""
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    return syscall(SYS_BPF, command, buffer, len(attributes))


def load_program(
    kind: int,
    instructions: bytes,
    name: str = "",
    attach: tuple[int, int] = (0, 0),
    log: tuple[int, int] = (0, 0),
) -> int:
    """Load a program of bpf_prog_type `kind` (BPF_PROG_LOAD) and return its descriptor.

    `attach` is its expected_attach_type and the BTF id of its target, `log` the address and size
    (bytes) of a buffer for the verifier's log. kern_version stays 0: the kernel ignores it since
    6c4fc209fcf9 ("bpf: remove useless version check for prog load", 5.0).
    """
    code = ctypes.create_string_buffer(instructions, len(instructions))
    license_text = ctypes.create_string_buffer(b"GPL")
    # union bpf_attr of BPF_PROG_LOAD (5) up to attach_btf_id; the name's last byte must be zero.
    attributes = struct.pack(
        "=IIQQIIQII16sIIIIQIIQII", kind, len(instructions) // 8, ctypes.addressof(code),
        ctypes.addressof(license_text), int(log[1] > 0), log[1], log[0], 0, 0, name.encode()[:15],
        0, attach[0], 0, 0, 0, 0, 0, 0, 0, attach[1],
    )  # fmt: skip
    return bpf(5, attributes)


@cache
def accepts_fentry(function: int) -> bool:
    """Return whether the kernel loads an fentry program for the function with this BTF id.

    Some kernels have BTF but no trampolines, or a policy against them, so this loads a program
    (return 0) and closes it without attaching it.
    """
    code = struct.pack("=BBhiBBhi", 0xB7, 0, 0, 0, 0x95, 0, 0, 0)
    try:
        os.close(load_program(26, code, attach=(24, function)))  # tracing, BPF_TRACE_FENTRY
    except OSError:
        return False
    return True


def own_mounts() -> None:
    """Give this process mounts of its own, which no other process sees; raises OSError.

    Needs CAP_SYS_ADMIN, and a process with one thread.
    """
    if _libc.unshare(ctypes.c_int(0x20000)):  # CLONE_NEWNS
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    mount("", "/", flags=0x44000)  # MS_REC | MS_PRIVATE


def mount(source: str, target: str, fstype: str = "", flags: int = 0) -> None:
    """Make a mount(2) call; raises OSError. Without a type and flags, bind `source`."""
    words = (os.fsencode(source), os.fsencode(target), os.fsencode(fstype))
    bits = ctypes.c_ulong(flags or (0 if fstype else 0x1000))  # MS_BIND
    if _libc.mount(*words, bits, None):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def detached_mount(fstype: str) -> str:
    """Create a detached mount of `fstype` and return a path to it.

    Only this process can reach it, and it vanishes with the process, even after SIGKILL. Needs
    CAP_SYS_ADMIN, else OSError.
    """
    context = syscall(SYS_FSOPEN, fstype.encode(), 1)  # FSOPEN_CLOEXEC
    try:
        syscall(SYS_FSCONFIG, context, 6, None, None, 0)  # FSCONFIG_CMD_CREATE
        return f"/proc/self/fd/{syscall(SYS_FSMOUNT, context, 1, 0)}"  # FSMOUNT_CLOEXEC
    finally:
        os.close(context)
