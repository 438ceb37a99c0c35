"""Attach loaded programs; each link is a descriptor, and closing it or process exit detaches.

This uses system calls instead of bcc, whose attach functions hide the error number, use a fixed
path to tracefs, and (for fentry) report every error as missing root privileges.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Optional

from netbpf.declare.probe_kinds import TRACE_KPROBE_MULTI, TRACE_UPROBE_MULTI, ProbeKind, type_of
from netbpf.kernel.cgroups import whole_hierarchy
from netbpf.kernel.inspect import tracepoint_id
from netbpf.system.forks import close_all_but
from netbpf.system.links import LINK_CREATE, attach_iterator
from netbpf.system.syscalls import SYS_PERF_EVENT_OPEN, bpf, load_program, syscall

# Commands of bpf(2), include/uapi/linux/bpf.h
_RAW_TRACEPOINT_OPEN = 17
_PERF_TYPE_TRACEPOINT = 2
_IOC_ENABLE, _IOC_SET_BPF = 0x2400, 0x40042408
_CLOEXEC = 8  # PERF_FLAG_FD_CLOEXEC


def attach(kind: ProbeKind, program: int, target: str, over: Optional[int] = None) -> int:
    """Attach `program` (a descriptor) to the kernel's `target`; return the link's descriptor.

    `over` is the descriptor of the map that an iterator iterates over. Raises OSError.
    """
    if kind.attach == "raw_tracepoint":
        return _raw_tracepoint(program, target)
    if kind.attach == "trampoline":
        return _raw_tracepoint(program, "")  # the target was given when the program was loaded
    if kind.attach == "trace_event":
        return _perf_event(program, _PERF_TYPE_TRACEPOINT, tracepoint_id(target))
    if kind.attach == "function":
        return _function_probe(program, kind.at_return, target)
    if kind.attach == "cgroup":
        return _cgroup(program, type_of(kind, target))
    if kind.attach == "iterator":
        return attach_iterator(program, over)
    raise ValueError(kind.name)


def attach_places(program: int, path: str, offsets: Sequence[int], at_return: bool) -> int:
    """Attach `program` with one link to file offsets (bytes) of the binary `path`, or to returns.

    It covers every process that maps the file (device and inode), now and later. These links take
    no lock that is held during a grace period, and closing one takes a single grace period for all
    its offsets (89ae89f53d20, "bpf: Add multi uprobe link", 6.6). Programs must return 0: in the
    first kernels another value removes the probe from the process.

    Raises OSError if the kernel has no such links or refuses an offset.
    """
    name = ctypes.create_string_buffer(os.fsencode(path))
    numbers = struct.pack(f"={len(offsets)}Q", *offsets)
    listed = ctypes.create_string_buffer(numbers, len(numbers))
    # struct uprobe_multi of union bpf_attr, without semaphores and cookies; the last field is a
    # process id, 0 for all. Flag 1 is BPF_F_UPROBE_MULTI_RETURN.
    multi = struct.pack(
        "=QQQQIII4x", ctypes.addressof(name), ctypes.addressof(listed), 0, 0, len(offsets),
        int(at_return), 0,
    )  # fmt: skip
    return bpf(LINK_CREATE, struct.pack("=IIII", program, 0, TRACE_UPROBE_MULTI, 0) + multi)


def attach_user(program: int, path: str, offset: int, at_return: bool) -> int:
    """Attach `program` at one offset, with a link if the kernel has them, else with a perf event.

    Raises OSError.
    """
    with suppress(OSError):
        return attach_places(program, path, [offset], at_return)
    return _probe_event(program, "uprobe", at_return, path, offset)


def release(links: Sequence[int]) -> None:
    """Close links of user-space probes and trace events without waiting.

    The kernel removes them one by one, each after an RCU grace period: 0.1 s per event with
    CONFIG_TASKS_TRACE_RCU_READ_MB, so dozens take seconds. The last close of a link waits, so a
    double-forked child holds only the links, in particular not the output, and exits after this
    process has closed its own.
    """
    if not links:
        return
    closed, close = os.pipe()
    with suppress(OSError):
        child = os.fork()
        if child == 0:
            _end_after(closed, [closed, *links])
        os.waitpid(child, 0)
    for descriptor in (*links, closed, close):
        os.close(descriptor)


def _end_after(pipe: int, kept: Sequence[int]) -> None:
    try:
        if os.fork():
            return
        close_all_but(kept)
        os.read(pipe, 1)
    finally:
        os._exit(0)


def probing_denied() -> bool:
    """Return whether this process lacks the privilege for uprobes."""
    if _accepts_links():
        return False
    try:
        _probe_event(-1, "uprobe", False, "", 0)
    except PermissionError:
        return True
    except (OSError, ValueError):
        pass  # permitted: the error is that there is no such file
    return False


def _accepts_links() -> bool:
    # Links need no privilege beyond loading their program (return 0, attached to nothing).
    code = struct.pack("=BBhiBBhi", 0xB7, 0, 0, 0, 0x95, 0, 0, 0)
    with suppress(OSError):
        program = load_program(2, code, attach=(TRACE_UPROBE_MULTI, 0))  # BPF_PROG_TYPE_KPROBE
        try:
            os.close(attach_places(program, "/", [0], False))
        except OSError as error:
            return error.errno == errno.EBADF  # the kernel got to the file, which is a directory
        finally:
            os.close(program)
    return False


def _raw_tracepoint(program: int, name: str) -> int:
    text = ctypes.create_string_buffer(name.encode())
    address = ctypes.addressof(text) if name else 0
    return bpf(_RAW_TRACEPOINT_OPEN, struct.pack("=QII", address, program, 0))


def _cgroup(program: int, attach_type: int) -> int:
    # The programs of a cgroup's own links do not replace those of the root's.
    root = os.open(whole_hierarchy(), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return bpf(LINK_CREATE, struct.pack("=IIII", program, root, attach_type, 0))
    finally:
        os.close(root)


def _function_probe(program: int, at_return: bool, function: str) -> int:
    # Use a kprobe_multi link (0dcac2725406, 5.18) if possible: since 4346ba160409 ("fprobe: Rewrite
    # fprobe on function-graph tracer", 6.14) it sees every return, for any number of tasks in the
    # function. A kretprobe event sees the returns of a few tasks per CPU.
    name = ctypes.create_string_buffer(function.encode())
    names = struct.pack("=Q", ctypes.addressof(name))
    listed = ctypes.create_string_buffer(names, len(names))
    multi = struct.pack("=IIQQQ", int(at_return), 1, ctypes.addressof(listed), 0, 0)
    with suppress(OSError):
        return bpf(LINK_CREATE, struct.pack("=IIII", program, 0, TRACE_KPROBE_MULTI, 0) + multi)
    return _probe_event(program, "kprobe", at_return, function, 0)


def _probe_event(program: int, pmu: str, at_return: bool, target: str, offset: int) -> int:
    event_type = int(Path(f"/sys/bus/event_source/devices/{pmu}/type").read_text())
    text = ctypes.create_string_buffer(os.fsencode(target))
    # config bit 0 selects the return: .../format/retprobe
    return _perf_event(program, event_type, int(at_return), ctypes.addressof(text), offset)


def _perf_event(
    program: int, event_type: int, config: int, config1: int = 0, config2: int = 0
) -> int:
    # struct perf_event_attr up to config2 (PERF_ATTR_SIZE_VER1, 72 bytes); sample_period 1.
    attributes = struct.pack(
        "=IIQQQQQIIQQ", event_type, 72, config, 1, 0, 0, 0, 1, 0, config1, config2
    )
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    # All processes on CPU 0: the event is not read, and its BPF program runs on every CPU, as it is
    # attached to the probe and not to the event.
    event = syscall(SYS_PERF_EVENT_OPEN, buffer, -1, 0, -1, _CLOEXEC)
    try:
        fcntl.ioctl(event, _IOC_SET_BPF, program)
        fcntl.ioctl(event, _IOC_ENABLE, 0)
    except OSError:
        os.close(event)
        raise
    return event
