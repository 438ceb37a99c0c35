"""Split the kernel's text files into lines: users choose the names of devices, tasks and mounts."""

from __future__ import annotations

import re

_OCTAL = re.compile(r"\\([0-7]{3})")


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
