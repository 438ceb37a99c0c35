"""The shared probes of include/owners.bpf.h: who owns a TCP socket, and how that is known.

A tool with `owners=True` gets them: connects and closes (unless it follows states itself, with a
probe `state`), accepts, the sockets that existed before the start, and on request sends: a probe
for every send (since 6.3) is too dear for what it adds.
"""

from __future__ import annotations

from netbpf.declare.options import Option
from netbpf.declare.probes import Fexit, Iterator, Kretprobe, Probe, RawTracepoint, Tracepoint

SNAPSHOT = Probe("snapshot", Iterator("task_file"), optional=True, loses=("pid", "comm"))
OWNER_PROBES = (
    Probe(
        "owner_state",
        RawTracepoint("inet_sock_set_state", args=("sk", "oldstate", "newstate")),
        Tracepoint("sock:inet_sock_set_state", args=("skaddr", "oldstate", "newstate")),
    ),
    Probe(
        "accept",
        Fexit("inet_csk_accept"),
        Kretprobe("inet_csk_accept"),
        Tracepoint("syscalls:sys_exit_accept", args=("ret",)),
        optional=True,
        loses=("pid", "comm"),
    ),
    Probe(
        "accept4",
        Tracepoint("syscalls:sys_exit_accept4", args=("ret",)),
        optional=True,
        loses=("pid", "comm"),
        instead="accept",
    ),
    SNAPSHOT,
    Probe(
        "owner_send",
        RawTracepoint("sock_send_length", args=("sk",)),
        Tracepoint("sock:sock_send_length", args=("sk",)),
        option="learn_sends",
        optional=True,
        loses=("pid", "comm"),
    ),
)
OWNER_OPTIONS = (
    Option(
        "--learn-sends",
        help="learn owners from sends, too (accepted by io_uring, UDP); costs 0.1 us per send",
    ),
)
