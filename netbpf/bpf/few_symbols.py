"""A short /proc/kallsyms for bcc, which reads all of it for each program that it compiles.

bcc looks up two helpers there, which came with 5.5, as it replaces them on older kernels. Reading
and sorting a hundred thousand symbols takes a quarter of the time of compiling.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from netbpf.system.syscalls import mount, own_mounts

SYMBOLS = "/proc/kallsyms"
_NAMES = [f"bpf_probe_read_{space}{text}" for space in ("kernel", "user") for text in ("", "_str")]
# The addresses are not used, but bcc skips symbols that are not in the kernel's half of them.
TEXT = "".join(f"{at:016x} T {name}\n" for at, name in enumerate(_NAMES, 0xFFFFFFFF80000001))


def show_few_symbols(place: Path) -> None:
    """Replace /proc/kallsyms for this process, which hides the content of directory `place`.

    Without CAP_SYS_ADMIN, or if mounting is forbidden, nothing changes.
    """
    with suppress(OSError):
        own_mounts()
        mount("tmpfs", str(place), "tmpfs")
        (place / "kallsyms").write_text(TEXT)
        mount(str(place / "kallsyms"), SYMBOLS)
