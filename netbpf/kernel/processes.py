"""Processes by the ids of /proc and by those of the kernel: the one place where both are joined.

Where this process is in a PID namespace of its own, /proc has the ids of that namespace, and what
BPF programs read of a task are those of the host. Columns show the host's.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, Optional

from netbpf.declare.needs import HIDDEN
from netbpf.errors import UsageError
from netbpf.kernel.btf import FUNC, Btf
from netbpf.system.lines import lines_of
from netbpf.system.links import attach_iterator, open_iterator
from netbpf.system.privileges import privilege_error
from netbpf.system.syscalls import load_program

_FIRST_NAMESPACE = 0xEFFFFFFC  # PROC_PID_INIT_INO of include/linux/proc_ns.h
_LEVELS = 8  # of PID namespaces within each other that are looked at; the kernel allows 32
# What the program writes of a task: the reader, the task; its id at each level, with the namespace.
_TASK = struct.Struct("=QIII4x" + "I4xQ" * _LEVELS)
_TRACING, _ITER = 26, 28  # BPF_PROG_TYPE_TRACING, BPF_TRACE_ITER


def kernel_pid(pid: int, proc: str = "/proc") -> int:
    """Return the kernel's id of the process that /proc has as `pid`.

    UsageError if it is none that can do anything: absent, ended, or a thread of a process.
    """
    if not Path(proc, str(pid)).is_dir():
        if proc == "/proc" and _is_hidden(pid):
            raise privilege_error([HIDDEN])
        raise UsageError(f"--pid: there is no process {pid}", "processes: ps -e")
    status = _status(pid, proc)
    group = re.fullmatch(r"[0-9]{1,10}", status.get("Tgid", ""))
    process = int(group[0]) if group else pid
    if process != pid:
        raise UsageError(
            f"--pid: {pid} is a thread of process {process} ({status.get('Name', '')})",
            f"processes are watched with all their threads: -p {process}",
        )
    if status.get("State", "").startswith(("Z", "X")):
        raise UsageError(f"--pid: process {pid} has ended", "processes: ps -e")
    if not ids_differ():
        return pid
    found = {local: kernel for kernel, local in _ids().items()}
    if pid not in found:
        raise UsageError(f"--pid: there is no process {pid}", "processes: ps -e")
    return found[pid]


def _is_hidden(pid: int) -> bool:
    # /proc can be mounted (hidepid=) so that it does not show processes of other users.
    try:
        os.kill(pid, 0)
    except (OSError, OverflowError) as error:
        return isinstance(error, PermissionError)
    return False


def proc_pid(kernel: int) -> Optional[int]:
    """Return the id under which /proc has the kernel's process `kernel`, None if it has not."""
    if ids_differ():
        return _ids().get(kernel)
    return kernel if os.path.exists(f"/proc/{kernel}") else None


def has_ended(kernel: int) -> bool:
    """Return whether the kernel's process `kernel` has ended for certain.

    Of one that is not in our PID namespace that is not known.
    """
    return not ids_differ() and proc_pid(kernel) is None


@lru_cache(maxsize=1)
def ids_differ() -> bool:
    """Return whether the ids in /proc are others than the kernel's."""
    with suppress(OSError):
        if os.stat("/proc/self/ns/pid").st_ino != _FIRST_NAMESPACE:
            found = _ids()
            return any(kernel != local for kernel, local in found.items())
    return False


def _ids() -> dict[int, int]:
    """Return {kernel's id: that of /proc} of the processes in /proc's namespace."""
    tasks = _tasks()
    own = next((t for t in tasks if t.process == t.reader), None)
    # NSpid has an id for each level from that of /proc down to the process's own.
    depth = len(_status_of_self().get("NSpid", "").split()) or 1
    if own is None or not 0 <= own.level - depth + 1 < _LEVELS:
        return {}
    level = own.level - depth + 1
    namespace = own.numbers[level][1]
    return {
        task.process: task.numbers[level][0]
        for task in tasks
        if task.level >= level and task.numbers[level][1] == namespace
    }


class _Task(NamedTuple):
    reader: int  # kernel's ids of processes: the one that asks, and this one
    process: int
    level: int  # of its PID namespace, 0 is the host's
    numbers: list[tuple[int, int]]  # (id, address of the namespace) by level


def _tasks() -> list[_Task]:
    """Return the leaders of the processes in our namespace and below; [] if that is refused."""
    try:
        return [_decode(raw) for raw in _TASK.iter_unpack(_written(_program(Btf())))]
    except OSError:
        return []


def _decode(raw: tuple[int, ...]) -> _Task:
    numbers = list(zip(raw[4::2], raw[5::2]))
    return _Task(raw[0] >> 32, raw[2], raw[3], numbers)


def _written(program: int) -> bytes:
    try:
        link = attach_iterator(program)
    finally:
        os.close(program)
    try:
        iterator = open_iterator(link)
    finally:
        os.close(link)
    data = b""
    try:
        while chunk := os.read(iterator, 1 << 16):
            data += chunk
    finally:
        os.close(iterator)
    return data[: len(data) // _TASK.size * _TASK.size]


def _program(btf: Btf) -> int:
    """Load the iterator's program and return its descriptor."""
    places = {}
    for name, struct_name in (
        ("tgid", "task_struct"),
        ("pid", "task_struct"),
        ("thread_pid", "task_struct"),
        ("level", "pid"),
        ("numbers", "pid"),
    ):
        field = btf.field(struct_name, name)
        if not field:
            raise OSError(f"no field {name} in struct {struct_name}")
        places[name] = field.bit_offset // 8
    code = _code(places)
    end = len(code) - 2
    packed = b"".join(
        struct.pack(
            "=BBhi",
            op,
            source << 4 | target,
            end - index - 1 if op in (0x15, 0x5D) else offset,
            value,
        )
        for index, (op, target, source, offset, value) in enumerate(code)
    )
    return load_program(_TRACING, packed, "pids", attach=(_ITER, btf.find("bpf_iter_task", FUNC)))


def _code(places: Mapping[str, int]) -> Sequence[tuple[int, int, int, int, int]]:
    # (operation, target, source, offset, value) of each instruction
    start = -_TASK.size
    return (
        (0x79, 6, 1, 8, 0),  # r6 = the task
        (0x79, 7, 1, 0, 0),  # r7 = the iterator's meta data
        (0x15, 6, 0, 0, 0),  # none: to the end (the jump is filled in below)
        (0x61, 1, 6, places["tgid"], 0),
        (0x61, 2, 6, places["pid"], 0),
        (0x5D, 1, 2, 0, 0),  # a thread: to the end
        (0x7A, 10, 0, start + 16, 0),  # also where the record has no member
        (0x63, 10, 1, start + 12, 0),
        (0x63, 10, 2, start + 8, 0),
        (0x85, 0, 0, 0, 14),  # bpf_get_current_pid_tgid()
        (0x7B, 10, 0, start, 0),
        (0x79, 8, 6, places["thread_pid"], 0),
        (0xBF, 1, 10, 0, 0),
        (0x07, 1, 0, 0, start + 16),
        (0xB7, 2, 0, 0, 8),
        (0xBF, 3, 8, 0, 0),
        (0x07, 3, 0, 0, places["level"]),
        (0x85, 0, 0, 0, 113),  # bpf_probe_read_kernel()
        (0xBF, 1, 10, 0, 0),
        (0x07, 1, 0, 0, start + 24),
        (0xB7, 2, 0, 0, 16 * _LEVELS),
        (0xBF, 3, 8, 0, 0),
        (0x07, 3, 0, 0, places["numbers"]),
        (0x85, 0, 0, 0, 113),
        (0x79, 1, 7, 0, 0),  # meta->seq
        (0xBF, 2, 10, 0, 0),
        (0x07, 2, 0, 0, start),
        (0xB7, 3, 0, 0, _TASK.size),
        (0x85, 0, 0, 0, 127),  # bpf_seq_write()
        (0xB7, 0, 0, 0, 0),
        (0x95, 0, 0, 0, 0),  # return 0
    )


def _status(pid: object, proc: str) -> dict[str, str]:
    with suppress(OSError):
        lines = lines_of(Path(proc, str(pid), "status").read_bytes())
        return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return {}


def _status_of_self() -> dict[str, str]:
    return _status("self", "/proc")
