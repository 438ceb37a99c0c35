"""Processes by the ids of /proc and by those of the kernel: the one place where both are joined."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from netbpf.errors import UsageError


def kernel_pid(pid: int, proc: str = "/proc") -> int:
    """Return the kernel's id of the process that /proc has as `pid`.

    UsageError if it is none that can do anything: absent, ended, or a thread of a process.
    """
    if not Path(proc, str(pid)).is_dir():
        raise UsageError(f"--pid: there is no process {pid}", "processes: ps -e")
    status = _status(pid, proc)
    process = int(status.get("Tgid", pid))
    if process != pid:
        raise UsageError(
            f"--pid: {pid} is a thread of process {process} ({status.get('Name', '')})",
            f"processes are watched with all their threads: -p {process}",
        )
    if status.get("State", "").startswith(("Z", "X")):
        raise UsageError(f"--pid: process {pid} has ended", "processes: ps -e")
    return pid


def _status(pid: int, proc: str) -> dict[str, str]:
    with suppress(OSError):
        lines = Path(proc, str(pid), "status").read_text(errors="replace").splitlines()
        return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return {}
