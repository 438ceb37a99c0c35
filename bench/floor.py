"""Run a tool of netbpf with empty programs: the cost that no tool at the same probes can avoid.

    python3 -m bench.floor TOOL [OPTION ...]

Probes, maps, options and reader are the tool's own; each program returns 0 at once.
"""

from __future__ import annotations

import struct
from typing import Any
from unittest import mock

from netbpf.bpf import loader
from netbpf.cli import main

_RETURN_0 = struct.pack("=BBhiBBhi", 0xB7, 0, 0, 0, 0x95, 0, 0, 0)  # r0 = 0; exit

_load = loader._load


def _load_empty(entry: Any, code: bytes, *others: Any) -> int:
    return _load(entry, _RETURN_0, *others)


with mock.patch.object(loader, "_load", _load_empty):
    main()
