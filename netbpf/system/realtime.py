"""Avoid being preempted while reading a BPF map.

While a system call reads a map, programs of trace events and kprobes do not run on its CPU
(bpf_disable_instrumentation raises bpf_prog_active; kernel/bpf/syscall.c, since 5.7). On a kernel
that is preemptible there (preempt=full, and all of Linux 7 with its lazy preemption), a preempted
reader hides the events of all tasks that run on that CPU until it continues.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_ORDINARY = (os.SCHED_OTHER, os.SCHED_BATCH, os.SCHED_IDLE)


@contextmanager
def realtime_priority() -> Iterator[None]:
    """Run the block with SCHED_FIFO priority 1 if allowed (CAP_SYS_NICE), else unchanged."""
    before = os.sched_getscheduler(0)
    raised = False
    if before in _ORDINARY:
        with suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
            raised = True
    try:
        yield
    finally:
        if raised:
            os.sched_setscheduler(0, before, os.sched_param(0))
