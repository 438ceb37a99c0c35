"""Read the kernel's files: users choose the names of devices, tasks and mounts in them."""

from __future__ import annotations

import os
import re

_PART = 1 << 16  # bytes
_OCTAL = re.compile(r"\\([0-7]{3})")


def read_all(file: int) -> bytes:
    """Return what is left to read of a descriptor."""
    return b"".join(iter(lambda: os.read(file, _PART), b""))


def lines_of(data: bytes, errors: str = "backslashreplace") -> list[str]:
    """Return the lines of `data`; `errors` is passed to bytes.decode().

    Only a line feed ends a line. str.splitlines() also splits at ten other characters, each of
    which may be part of the name of a network device, a process or a directory.
    """
    lines = data.decode(errors=errors).split("\n")
    return lines if lines[-1] else lines[:-1]


def unescape_path(text: str) -> str:
    """Decode the octal escapes in a path of /proc/self/mounts or mountinfo: a space is \\040."""
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), text)
