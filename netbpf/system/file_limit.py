"""The limit on open files: every probe, map and program takes a descriptor."""

from __future__ import annotations

import resource
from contextlib import suppress

from netbpf.errors import NetbpfError

_MOST = 1 << 20
_ENOUGH = 256  # for every tool without user-space probes


def allow_many_files() -> None:
    """Raise the soft limit as far as possible; NetbpfError if that is not enough to trace.

    Each container's own libc takes 14 probes. Root may also raise the hard limit.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for wanted in (max(hard, 4096), hard):
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(wanted, _MOST)), wanted))
            break
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if soft < _ENOUGH:
        raise NetbpfError(
            f"only {soft} files may be open at once (RLIMIT_NOFILE)",
            f"allow at least {_ENOUGH}: ulimit -n {_ENOUGH}",
        )
