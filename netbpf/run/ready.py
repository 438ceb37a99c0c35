"""The sign that a tool is ready: a file that is there only while its probes are attached."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from contextlib import suppress

from netbpf.errors import NetbpfError, UsageError

_LONGEST = 32  # bytes: what is longer is somebody's file and no sign of an earlier run
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def remove_stale_sign(arguments: Sequence[str]) -> None:
    """Remove what an earlier run left where the command line `arguments` asks for a sign.

    Called before anything else is imported, which takes 0.1 s: who waits for the sign may look in
    that time.
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

    A sign that an earlier run left is removed at once. The new one, which holds the process id,
    follows no link and takes no other file's place.
    """

    def __init__(self, path: str) -> None:
        """Check that the file can be created; remove a stale sign. Raises UsageError."""
        directory, self._name = os.path.split(os.path.abspath(path))
        self._path = path
        self._made = (0, 0)
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
            found = os.stat(self._name, dir_fd=self._directory, follow_symlinks=False)
        except FileNotFoundError:
            return
        if not stat.S_ISREG(found.st_mode) or found.st_size > _LONGEST:
            raise UsageError(
                f"--ready-file: '{self._path}' exists and is no ready file",
                "name a file that does not exist",
            )
        os.unlink(self._name, dir_fd=self._directory)

    def create(self) -> None:
        """Create the file; raises NetbpfError if something is in its place meanwhile."""
        try:
            made = os.open(self._name, _CREATE, 0o644, dir_fd=self._directory)
            try:
                found = os.fstat(made)
                self._made = (found.st_dev, found.st_ino)
                os.write(made, f"{os.getpid()}\n".encode())
            finally:
                os.close(made)
        except OSError as error:
            why = error.strerror or str(error)
            raise NetbpfError(f"--ready-file: cannot create '{self._path}': {why}") from error

    def close(self) -> None:
        """Remove the file if it is still the one that was created."""
        if self._directory < 0:
            return
        with suppress(OSError):
            found = os.stat(self._name, dir_fd=self._directory, follow_symlinks=False)
            if (found.st_dev, found.st_ino) == self._made:
                os.unlink(self._name, dir_fd=self._directory)
        os.close(self._directory)
        self._directory = -1
