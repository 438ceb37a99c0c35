"""Attach a program that drops all packets to a device until standard input ends.

usage: xdp.py DEVICE generic|native|ingress|egress

Each line of standard input is answered with how often the program has run.
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
_SCHED_CLS, _TCX = 3, {"ingress": 46, "egress": 47}  # BPF_TCX_INGRESS, BPF_TCX_EGRESS
_XDP_DROP, _SHOT = 1, 2  # TC_ACT_SHOT, include/uapi/linux/pkt_cls.h


def returning(number: int) -> bytes:
    """Return the instructions of a program that returns `number`."""
    return struct.pack("=BBhiBBhi", 0xB7, 0, 0, number, 0x95, 0, 0, 0)


def runs(program: int) -> int:
    lines = Path(f"/proc/self/fdinfo/{program}").read_text().splitlines()
    (found,) = (int(line.split()[1]) for line in lines if line.startswith("run_cnt:"))
    return found


def main(device: str, mode: str) -> None:
    xdp = mode in _FLAGS
    kind, result = (_PROGRAM_XDP, _XDP_DROP) if xdp else (_SCHED_CLS, _SHOT)
    at = _ATTACH_XDP if xdp else _TCX[mode]
    program = load_program(kind, returning(result), f"drop_{mode}", (at, 0), (0, 0))
    index = socket.if_nametoindex(device)
    bpf(_LINK_CREATE, struct.pack("=4I", program, index, at, _FLAGS.get(mode, 0)) + bytes(16))
    print("attached", flush=True)
    for _ in sys.stdin:
        print(runs(program), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
