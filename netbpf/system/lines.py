"""Lines of the kernel's text files, in which strangers choose names: devices, programs, mounts."""

from __future__ import annotations

import re

_OCTAL = re.compile(r"\\([0-7]{3})")


def lines_of(data: bytes, errors: str = "backslashreplace") -> list[str]:
    """Return the lines of `data`; `errors` is that of bytes.decode() for what is not UTF-8.

    Only a line feed ends a line. str.splitlines() takes ten other characters for that, and a
    network device, a process or a directory may have each of them in its name.
    """
    lines = data.decode(errors=errors).split("\n")
    return lines if lines[-1] else lines[:-1]


def plain_path(text: str) -> str:
    """Return a path of /proc/self/mounts or mountinfo as it is: there a space is \\040."""
    return _OCTAL.sub(lambda found: chr(int(found[1], 8)), text)
