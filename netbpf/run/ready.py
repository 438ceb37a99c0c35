"""The ready file: it exists only while a tool's probes are attached."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from contextlib import suppress

from netbpf.errors import NetbpfError, UsageError

_MAX_SIZE = 32  # bytes: a larger file is not a ready file of an earlier run
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def remove_stale_file(arguments: Sequence[str]) -> None:
    """Remove the ready file of an earlier run that the command line `arguments` names.

    Called before anything else is imported: imports take 0.1 s, in which a process that waits for
    the file could find the stale one.
    """
    words = iter(arguments)
    for word in words:
        option, equals, path = word.partition("=")
        if option == "--ready-file":
            path = path if equals else next(words, "")
            with suppress(OSError, ValueError, NetbpfError):
                ReadyFile(path).close()


class ReadyFile:
    """The file of --ready-file.

    A file left by an earlier run is removed immediately. The new one contains the process id; it
    follows no link and replaces no other file.
    """

    def __init__(self, path: str) -> None:
        """Check that the file can be created; remove a stale one. Raises UsageError."""
        directory, self._name = os.path.split(os.path.abspath(path))
        self._path = path
        self._created = (0, 0)
        try:
            self._directory = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            self._directory = -1
        if self._directory < 0 or not os.access(directory, os.W_OK):
            raise UsageError(
                f"--ready-file: cannot create '{path}'", "its directory must exist and be writable"
            )
        self._remove_stale()

    def _remove_stale(self) -> None:
        try:
            status = os.stat(self._name, dir_fd=self._directory, follow_symlinks=False)
        except FileNotFoundError:
            return
        if not stat.S_ISREG(status.st_mode) or status.st_size > _MAX_SIZE:
            raise UsageError(
                f"--ready-file: '{self._path}' exists and is not a ready file",
                "name a file that does not exist",
            )
        os.unlink(self._name, dir_fd=self._directory)

    def create(self) -> None:
        """Create the file. Raises NetbpfError, for example if the name exists again."""
        try:
            file = os.open(self._name, _CREATE, 0o644, dir_fd=self._directory)
            try:
                status = os.fstat(file)
                self._created = (status.st_dev, status.st_ino)
                os.write(file, f"{os.getpid()}\n".encode())
            finally:
                os.close(file)
        except OSError as error:
            reason = error.strerror or str(error)
            raise NetbpfError(f"--ready-file: cannot create '{self._path}': {reason}") from error

    def close(self) -> None:
        """Remove the file if it is still the one that was created."""
        if self._directory < 0:
            return
        with suppress(OSError):
            status = os.stat(self._name, dir_fd=self._directory, follow_symlinks=False)
            if (status.st_dev, status.st_ino) == self._created:
                os.unlink(self._name, dir_fd=self._directory)
        os.close(self._directory)
        self._directory = -1
