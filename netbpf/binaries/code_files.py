"""The files of code that processes have mapped, by mapping and by build id, within a limit."""

from __future__ import annotations

import os
from typing import Optional

from netbpf.binaries.code import Code, Mapping, path_of
from netbpf.binaries.mappings import known_libcs
from netbpf.system.untrusted import UnreadableBinary

_MAX_MEMORY = 96 << 20  # bytes
_LEAST = 4096  # bytes that an entry takes


class CodeFiles:
    """Files that were read, the oldest of which are forgotten."""

    def __init__(self) -> None:
        self._files: dict[object, Optional[Code]] = {}
        self._by_build_id: dict[str, tuple[str, Code]] = {}
        self._size = 0

    def read_libcs(self) -> None:
        """Read the libcs of this process's root, which most programs use."""
        for path in known_libcs():
            real = os.path.realpath(path)
            if real not in self._files:
                self._open(real, real, real)

    def mapped(self, pid: int, mapping: Mapping) -> Optional[Code]:
        """Return the file that a process has mapped, None if it cannot be read."""
        key = (mapping.device, mapping.inode, mapping.path)
        if key not in self._files:
            path = path_of(pid, mapping)
            if not path:
                return None
            self._open(key, path, mapping.path)
        return self._files[key]

    def with_build_id(self, build_id: str, program: str) -> tuple[str, Optional[Code]]:
        """Return (path, file) of a build id: a file that was read before, or the file `program`."""
        if build_id in self._by_build_id:
            return self._by_build_id[build_id]
        if program not in self._files:
            self._open(program, program, program)
        code = self._files[program]
        return (program, code) if code and _full(code.build_id) == build_id else ("", None)

    def _open(self, key: object, path: str, name: str) -> None:
        try:
            code: Optional[Code] = Code(path)
        except UnreadableBinary:
            code = None
        self._files[key] = code
        self._size += code.size if code else _LEAST
        while self._size > _MAX_MEMORY and len(self._files) > 1:
            oldest = self._files.pop(next(iter(self._files)))
            self._size -= oldest.size if oldest else _LEAST
            if oldest and oldest.build_id:
                self._by_build_id.pop(_full(oldest.build_id), None)
        if code and code.build_id:
            # The first file counts: others may only claim to be it.
            self._by_build_id.setdefault(_full(code.build_id), (name, code))


def _full(build_id: Optional[str]) -> str:
    """Return a build id as the kernel gives it, which fills up shorter ones with zeros."""
    return (build_id or "").ljust(40, "0")
