"""Not to be kept waiting for the CPU in the midst of reading a map.

A system call that reads a map keeps programs of trace events and kprobes from running on its CPU
(bpf_disable_instrumentation raises bpf_prog_active; kernel/bpf/syscall.c, since 5.7). Where the
kernel can be preempted there (preempt=full, and all of Linux 7 with its lazy preemption), a reader
that has to wait for the CPU then hides the events of all tasks that run meanwhile.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_ORDINARY = (os.SCHED_OTHER, os.SCHED_BATCH, os.SCHED_IDLE)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Run before all tasks without a real-time priority, if this process may (CAP_SYS_NICE)."""
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
