"""Events that a kernel keeps from BPF: a test that lacked such a one is run again, and it is said.

Some builds of the kernel, made for sandboxes, run no BPF program while process 1 is on the CPU, and
do not count that as missed. A timer or a softirq that falls into its time is then seen by nobody
but ftrace. This module finds out whether this kernel is one of those (`hides_init`), and is a
witness for what happened in process 1's time (`Witness`), from the same tracepoints that the tools
use.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from harness import wait_until
from instructions import instruction

from netbpf.bpf.attach import attach
from netbpf.bpf.loader import Entry, load
from netbpf.bpf.maps import Map
from netbpf.bpf.object import BpfObject, MapSpec
from netbpf.declare.probe_kinds import KINDS
from netbpf.system.syscalls import detached_mount

# What is hit in a timer or softirq, and so in the time of any process.
EVENTS = (
    "sock/inet_sock_set_state",
    "tcp/tcp_retransmit_skb",
    "tcp/tcp_retransmit_synack",
    "sock/sk_data_ready",
    "skb/kfree_skb",
    "napi/napi_poll",
    "net/net_dev_queue",
    "net/netif_receive_skb",
    "qdisc/qdisc_dequeue",
)
_FIRST_PID_NAMESPACE = 0xEFFFFFFC  # PROC_PID_INIT_INO, include/linux/proc_ns.h
_numbers = itertools.count()
_ARRAY = 2  # bpf_map_type


_COUNT_INIT = b"".join((
    instruction(0x85, imm=14),  # r0 = bpf_get_current_pid_tgid()
    instruction(0x77, 0, imm=32),  # r0 >>= 32
    instruction(0x55, 0, off=9, imm=1),  # if it is not 1: end
    instruction(0x62, 10, off=-4, imm=0),  # key: 0
    instruction(0x18, 1, 1), instruction(0),  # r1 = map at place 0
    instruction(0xBF, 2, 10),  # r2 = r10
    instruction(0x07, 2, imm=-4),  # r2 -= 4
    instruction(0x85, imm=1),  # r0 = bpf_map_lookup_elem()
    instruction(0x15, 0, off=2),  # if it is not there: end
    instruction(0xB7, 1, imm=1),  # r1 = 1
    instruction(0xDB, 0, 1),  # lock *(u64 *)r0 += r1
    instruction(0xB7, 0),  # end: r0 = 0
    instruction(0x95),
))  # fmt: skip


def _switches() -> int:
    """Return how often the threads of process 1 left a CPU."""
    number = 0
    for path in Path("/proc/1/task").glob("*/status"):
        with contextlib.suppress(OSError):
            lines = path.read_text().splitlines()
            number += sum(int(line.split()[-1]) for line in lines if "ctxt_switches" in line)
    return number


@functools.cache
def hides_init() -> bool:
    """Tell whether process 1 makes system calls that no BPF program sees.

    It does make some when it reaps a process whose parent has ended.
    """
    if os.geteuid() != 0 or os.stat("/proc/self/ns/pid").st_ino != _FIRST_PID_NAMESPACE:
        return False  # nobody knows: process 1 of a container is another one
    image = BpfObject((MapSpec("seen", _ARRAY, 4, 8, 1, 0),), {"count_init": _COUNT_INIT})
    entry = Entry("init", "count_init", "count_init", KINDS["rawtp"], "")
    loaded = load(image, [entry], ["seen"], lambda name: 0)
    descriptors = [loaded.programs["count_init"], loaded.maps["seen"]]
    try:
        descriptors.append(attach(KINDS["rawtp"], descriptors[0], "sys_enter"))
        before = _switches()
        for _ in range(10):
            subprocess.run(["sh", "-c", "true & exit 0"], check=True)
        with contextlib.suppress(AssertionError):
            wait_until(lambda: _switches() > before, 1.0)
        ran = _switches() > before
        seen = Map(descriptors[1], 4, 8).get(bytes(4)) or b""
        return ran and not any(seen)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


class Witness:
    """What ftrace sees of EVENTS while process 1 is on a CPU, in a trace instance of its own."""

    def __init__(self) -> None:
        self._mount = detached_mount("tracefs")
        name = f"netbpf-tests-{os.getpid()}-{next(_numbers)}"
        self._instance = Path(self._mount) / "instances" / name
        self._instance.mkdir()
        self._threads: set[str] = set()
        for event in EVENTS:
            self._write(f"events/{event}/enable", "1")

    @contextlib.contextmanager
    def watching(self) -> Iterator[list[str]]:
        """Yield a list that has a line for each such event after the block."""
        threads = set(os.listdir("/proc/1/task"))
        if threads != self._threads:
            self._write("set_event_pid", " ".join(threads))
            self._threads = threads
        self._write("trace", "")
        lines: list[str] = []
        yield lines
        text = (self._instance / "trace").read_text()
        lines += [line.strip() for line in text.splitlines() if not line.startswith("#")]

    def close(self) -> None:
        """Remove the instance."""
        for event in EVENTS:
            self._write(f"events/{event}/enable", "0")
        self._instance.rmdir()
        os.close(int(self._mount.rpartition("/")[2]))

    def _write(self, name: str, text: str) -> None:
        (self._instance / name).write_text(text)
