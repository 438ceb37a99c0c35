"""Attach an XDP program that drops all packets to a device until standard input ends.

usage: xdp.py DEVICE generic|native
"""

from __future__ import annotations

import socket
import struct
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from netbpf.system.syscalls import bpf, load_program

_LINK_CREATE, _PROGRAM_XDP, _ATTACH_XDP = 28, 6, 37  # include/uapi/linux/bpf.h
_FLAGS = {"generic": 2, "native": 4}  # XDP_FLAGS_SKB_MODE, XDP_FLAGS_DRV_MODE
_XDP_DROP = struct.pack("=BBhiBBhi", 0xB7, 0, 0, 1, 0x95, 0, 0, 0)  # r0 = XDP_DROP; exit


def main(device: str, mode: str) -> None:
    program = load_program(_PROGRAM_XDP, _XDP_DROP, "drop_all", (_ATTACH_XDP, 0), (0, 0))
    index = socket.if_nametoindex(device)
    bpf(_LINK_CREATE, struct.pack("=4I", program, index, _ATTACH_XDP, _FLAGS[mode]))
    print("attached", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(*sys.argv[1:])
