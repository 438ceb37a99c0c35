"""Translate process ids between /proc and the kernel.

In a PID namespace /proc has the namespace's ids, while BPF programs read the host's ids of a task.
Columns show the host's ids.
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
from netbpf.system.lines import lines_of, read_all
from netbpf.system.links import attach_iterator, open_iterator
from netbpf.system.privileges import privilege_error
from netbpf.system.syscalls import load_program

_FIRST_NAMESPACE = 0xEFFFFFFC  # PROC_PID_INIT_INO of include/linux/proc_ns.h
_LEVELS = 8  # nested PID namespaces that are read; the kernel allows 32
# Record of a task: reader (pid and tgid), pid, tgid, level; id and namespace at each level.
_TASK = struct.Struct("=QIII4x" + "I4xQ" * _LEVELS)
_TRACING, _ITER = 26, 28  # BPF_PROG_TYPE_TRACING, BPF_TRACE_ITER


def kernel_pid(pid: int, proc: str = "/proc") -> int:
    """Return the kernel's id of the process with id `pid` in /proc.

    Raises UsageError if it does not exist, has ended, or is a thread of another process.
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
            f"a process is traced with all its threads: -p {process}",
        )
    if status.get("State", "").startswith(("Z", "X")):
        raise UsageError(f"--pid: process {pid} has ended", "processes: ps -e")
    if not ids_differ():
        return pid
    kernel_ids = {local: kernel for kernel, local in _ids().items()}
    if pid not in kernel_ids:
        raise UsageError(f"--pid: there is no process {pid}", "processes: ps -e")
    return kernel_ids[pid]


def _is_hidden(pid: int) -> bool:
    # The mount option hidepid= hides processes of other users in /proc.
    try:
        os.kill(pid, 0)
    except (OSError, OverflowError) as error:
        return isinstance(error, PermissionError)
    return False


def proc_pid(kernel: int) -> Optional[int]:
    """Return the id in /proc of the process with the kernel's id `kernel`, None if not there."""
    if ids_differ():
        return _ids().get(kernel)
    return kernel if os.path.exists(f"/proc/{kernel}") else None


def has_ended(kernel: int) -> bool:
    """Return whether the process with the kernel's id `kernel` has certainly ended.

    This is unknown (False) in a PID namespace, where /proc does not show all processes.
    """
    return not ids_differ() and proc_pid(kernel) is None


@lru_cache(maxsize=1)
def ids_differ() -> bool:
    """Return whether the ids in /proc differ from the kernel's."""
    with suppress(OSError):
        if os.stat("/proc/self/ns/pid").st_ino != _FIRST_NAMESPACE:
            return any(kernel != local for kernel, local in _ids().items())
    return False


def _ids() -> dict[int, int]:
    """Return {kernel's id: id in /proc} of the processes in /proc's namespace."""
    tasks = _tasks()
    own = next((t for t in tasks if t.process == t.reader), None)
    # NSpid has one id per level, from the namespace of /proc to the process's own.
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
    reader: int  # the kernel's id of this process
    process: int  # the kernel's id of the task's process
    level: int  # of its PID namespace, 0 for the host's
    numbers: list[tuple[int, int]]  # (id, address of the namespace) by level


def _tasks() -> list[_Task]:
    """Return the thread group leaders in this PID namespace and below; [] on an error."""
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
    try:
        data = read_all(iterator)
    finally:
        os.close(iterator)
    return data[: len(data) // _TASK.size * _TASK.size]


def _program(btf: Btf) -> int:
    """Load the iterator's program and return its descriptor."""
    offsets = {}
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
        offsets[name] = field.bit_offset // 8
    code = _code(offsets)
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


def _code(offsets: Mapping[str, int]) -> Sequence[tuple[int, int, int, int, int]]:
    # (operation, target, source, offset, value) of each instruction
    start = -_TASK.size
    return (
        (0x79, 6, 1, 8, 0),  # r6 = the task
        (0x79, 7, 1, 0, 0),  # r7 = the iterator's meta data
        (0x15, 6, 0, 0, 0),  # no task: to the end (_program() fills in the distance)
        (0x61, 1, 6, offsets["tgid"], 0),
        (0x61, 2, 6, offsets["pid"], 0),
        (0x5D, 1, 2, 0, 0),  # not a leader: to the end
        (0x7A, 10, 0, start + 16, 0),  # clears the padding
        (0x63, 10, 1, start + 12, 0),
        (0x63, 10, 2, start + 8, 0),
        (0x85, 0, 0, 0, 14),  # bpf_get_current_pid_tgid()
        (0x7B, 10, 0, start, 0),
        (0x79, 8, 6, offsets["thread_pid"], 0),
        (0xBF, 1, 10, 0, 0),
        (0x07, 1, 0, 0, start + 16),
        (0xB7, 2, 0, 0, 8),
        (0xBF, 3, 8, 0, 0),
        (0x07, 3, 0, 0, offsets["level"]),
        (0x85, 0, 0, 0, 113),  # bpf_probe_read_kernel()
        (0xBF, 1, 10, 0, 0),
        (0x07, 1, 0, 0, start + 24),
        (0xB7, 2, 0, 0, 16 * _LEVELS),
        (0xBF, 3, 8, 0, 0),
        (0x07, 3, 0, 0, offsets["numbers"]),
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
