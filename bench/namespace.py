"""The namespaces that benchmarks run in: nothing is visible outside of them or left behind.

In the mount namespace, missing file systems are mounted for tools that need them, and if the
running kernel has no headers, those of another kernel are provided in their place, which is enough
for bcc's tools where struct layouts agree. The network namespace has loopback and an idle device.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from bench.contestants import IDLE_DEVICE

_INSIDE = "NETBPF_BENCH_INSIDE"


def enter() -> str:
    """Restart this program in new namespaces; there, return whose kernel headers bcc will use.

    Raises OSError if they cannot be made.
    """
    if _INSIDE not in os.environ:
        command = ["unshare", "--mount", "--net", sys.executable, "-m", "bench", *sys.argv[1:]]
        os.execvpe(command[0], command, {**os.environ, _INSIDE: "yes"})
    for words in (
        ("link", "set", "lo", "up"),
        ("link", "add", IDLE_DEVICE, "type", "veth", "peer", "name", f"{IDLE_DEVICE}-peer"),
    ):
        subprocess.run(["ip", *words], check=True)
    if not Path("/sys/kernel/tracing/events").is_dir():
        _mount("tracefs", "/sys/kernel/tracing")
    if not Path("/sys/kernel/debug/tracing").is_dir():
        _mount("debugfs", "/sys/kernel/debug")
    release = os.uname().release
    if Path(f"/lib/modules/{release}/build").is_dir():
        return release
    return _provide_headers(release)


def _provide_headers(release: str) -> str:
    owners = [link.parent for link in Path("/lib/modules").glob("*/build") if link.is_dir()]
    if not owners:
        return ""
    owner = max(owners, key=lambda path: path.stat().st_mtime)
    # Debian has generated headers in `build` and the others in `source`; elsewhere all in `build`.
    links = {
        name: (owner / name).resolve() for name in ("build", "source") if (owner / name).is_dir()
    }
    if not _mount("tmpfs", "/lib/modules"):
        return ""
    directory = Path("/lib/modules", release)
    directory.mkdir()
    for name, target in links.items():
        (directory / name).symlink_to(target)
    return owner.name


def _mount(kind: str, where: str) -> bool:
    done = subprocess.run(["mount", "-t", kind, "none", where], capture_output=True, check=False)
    return done.returncode == 0
