"""Names of code that a program compiles while it runs: /tmp/perf-PID.map, as perf reads it.

Node (--perf-basic-prof), Java (agents) and Python (-X perf) write these files: a line with address
and length in hexadecimal digits and a name per function. A later line replaces earlier ones.
"""

from __future__ import annotations

import os
import re
from bisect import bisect_right
from typing import Optional

from netbpf.binaries.mappings import owner
from netbpf.system.untrusted import UnreadableBinary, open_regular, read_text

_MAX_BYTES = 32 << 20
_MAX_NAME = 1024
_LINE = re.compile(rb"([0-9a-fA-F]{1,16}) ([0-9a-fA-F]{1,16}) ([^\n]+)")


class PerfMap:
    """The functions of one process, empty if it has no such file that belongs to its own user.

    Anyone can create files in /tmp: one of another user could give a process any names.
    """

    def __init__(self, pid: int, proc: str = "/proc") -> None:
        """Look in the root directory of the process, for its id in its own PID namespace."""
        self._pid = pid
        self._path = f"{proc}/{pid}/root/tmp/perf-{_inner_pid(pid, proc)}.map"
        self._user = owner(pid, proc)
        self._read_size = -1
        self._starts: list[int] = []
        self._entries: list[tuple[int, str]] = []

    def function(self, address: int) -> Optional[tuple[str, int]]:
        """Return (function, offset) of an address; read the file again if it has grown."""
        found = self._find(address)
        if not found:
            self._read()
            found = self._find(address)
        return found

    def _find(self, address: int) -> Optional[tuple[str, int]]:
        index = bisect_right(self._starts, address) - 1
        if index < 0:
            return None
        end, name = self._entries[index]
        return (name, address - self._starts[index]) if address < end else None

    def _read(self) -> None:
        try:
            with open_regular(self._path) as file:
                status = os.fstat(file.fileno())
                if status.st_uid != self._user or status.st_size == self._read_size:
                    return
                self._read_size = status.st_size
                data = file.read(_MAX_BYTES)
        except (UnreadableBinary, OSError):
            return
        entries = {}
        for start, size, name in _LINE.findall(data):
            begin = int(start, 16)
            text = name[:_MAX_NAME].decode("utf-8", "replace")
            entries[begin] = (begin + int(size, 16), text)
        self._starts = sorted(entries)
        self._entries = [entries[start] for start in self._starts]


def _inner_pid(pid: int, proc: str) -> str:
    """Return the id of a process in its innermost PID namespace."""
    match = re.search(r"^NSpid:.*?(\d{1,10})$", read_text(f"{proc}/{pid}/status"), re.MULTILINE)
    return match[1] if match else str(pid)
